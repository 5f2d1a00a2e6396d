"""Provenance: what an artefact was made with, and what it cost.

``reports/results/runs/<name>.json`` holds the settings that a stage read (its file of ``reports/config``), code hash, input and
output hashes, versions, hardware, wall time, peak memory and operations. It lies outside the artefact, so that the same bytes
made with other settings are the same artefact for the stages after it. :func:`check` compares it with what the stage would read
now, so that an artefact of another configuration is never used by mistake.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dream import progress
from dream.errors import DreamError
from dream.files import folder_hash, read_json, sha256, write_json
from dream.progress import CONFIG, RUNS

PACKAGES = ("torch", "transformers", "peft", "accelerate", "mteb", "beir", "bm25s", "dvc", "numpy", "scipy", "pandas", "pyarrow")
ROOT = Path(__file__).resolve().parent.parent


def code_hash() -> str:
    """Content hash of the library's and the stages' source files."""
    return folder_hash(ROOT / "dream", "*.py")[:32] + folder_hash(ROOT / "stages", "*.py")[:32]


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that a number can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine in words: processor, cores, memory (GiB), accelerators."""
    cpu = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    devices: list[str] = []
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "accelerators": devices}


def content_hash(path: Path | str) -> str:
    """Content hash of a file or of a folder."""
    path = Path(path)
    if not path.exists():
        raise DreamError(f"{path} is missing", "Run `dvc repro` to make it")
    return folder_hash(path) if path.is_dir() else sha256(path)


@dataclass
class Record:
    """What one stage run reports about itself; fields are written when the stage ends."""

    name: str
    flops: float = 0.0
    earlier: float = 0.0  # seconds of the processes that a resumed stage goes on from
    notes: dict[str, Any] = field(default_factory=dict)
    outputs: list[Path | str] = field(default_factory=list)  # small files that git tracks; the report checks their bytes


@contextlib.contextmanager
def recording(name: str, settings: str = "", inputs: Iterable[Path | str] = ()) -> Iterator[Record]:
    """Measure a stage and write ``reports/results/runs/<name>.json`` when it succeeds.

    Args:
        name: stage and cell, e.g. ``train-dream-0``.
        settings: the file of ``reports/config`` that the stage reads (default: that of its name); stored whole.
        inputs: files and folders that the stage reads; their hashes are stored.
    """
    config = read_json(CONFIG / f"{settings or name}.json")
    progress.begin(name, progress.models(config))
    code, started = code_hash(), time.perf_counter()
    record = Record(name)
    yield record
    stage, _, cell = name.partition("-")
    write_json(
        RUNS / f"{name}.json",
        [
            {
                "stage": stage,
                "cell": cell,
                "settings": settings or name,
                "wall_s": round(record.earlier + time.perf_counter() - started, 2),
                "peak_gib": round(peak_gib(), 3),
                "flops": record.flops,
                "code": code,
                "config": config,
                "inputs": {str(path): content_hash(path) for path in inputs},
                "outputs": {str(path): sha256(path) for path in record.outputs},
                "versions": versions(),
                "hardware": hardware(),
                "notes": record.notes,
            }
        ],
    )


def peak_gib() -> float:
    """Peak memory of this process in GiB: the larger of resident memory and CUDA memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    import torch

    if torch.cuda.is_available():
        peak = max(peak, torch.cuda.max_memory_allocated() / 2**30)
    return peak


def check(stage: str, *paths: Path | str) -> None:
    """Stop if what a stage left was made with other settings than it would read now, or is not there.

    Args:
        stage: name of its run record, e.g. ``prepare``, ``train-dream-0``.
        paths: what it left.

    Raises:
        DreamError: one line with the setting and both values, or the path that is missing.
    """
    for path in paths:
        if not Path(path).exists():
            raise DreamError(f"{path} is missing", f"Run `dvc repro` to make it (stage {stage.partition('-')[0]})")
    made = read_json(RUNS / f"{stage}.json")[0]
    agree(made["config"], read_json(CONFIG / f"{made['settings']}.json"), " and ".join(map(str, paths)) or stage)


def agree(made: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    """Stop if the settings that something was made with differ from those asked for; code is not compared."""
    made, asked = ({k: v for k, v in one.items() if k != "code"} for one in (made, asked))
    if made != asked:
        key, was, now = first_difference(made, asked)
        raise DreamError(f"{what} was made with {key} = {was!r}, params says {now!r}", "Run `dvc repro` so that both agree")


def first_difference(was: Any, now: Any, key: str = "") -> tuple[str, Any, Any]:
    """Dotted key of the first setting that differs, and both values."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(set(was) | set(now)):
            if was.get(name) != now.get(name):
                return first_difference(was.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    return key, was, now
