"""Provenance: what an artefact was made with, and what it cost.

Two files, because one is the same on every run and the other is not:

* ``made_with.json`` inside the artefact: the resolved config sections and input hashes. :func:`check` compares it
  with params before anything is read, so that an artefact of another size is never used by mistake.
* ``reports/cells/runs/<name>.json`` beside it: code hash, versions, hardware, wall time, peak memory, FLOPs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dream.config import Config
from dream.errors import DreamError
from dream.files import folder_hash, read_json, sha256, write_json

RUNS = Path("reports/cells/runs")
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
    notes: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def recording(config: Config, name: str, inputs: list[Path | str] = ()) -> Iterator[Record]:
    """Measure a stage and write ``reports/cells/runs/<name>.json`` when it succeeds.

    Args:
        config: the resolved config; printed first and stored whole.
        name: stage and cell, e.g. ``train-dream-0``.
        inputs: files and folders that the stage reads; their hashes are stored.
    """
    size = config.size
    print(
        f"[{name}] size {config.model.size}, recipe {config.recipe}: encoder {size.encoder}"
        f"{f' (first {size.encoder_layers} layers)' if size.encoder_layers else ''}, judge {size.judge}",
        flush=True,
    )
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
                "wall_s": round(time.perf_counter() - started, 2),
                "peak_gib": round(peak_gib(), 3),
                "flops": record.flops,
                "code": code,
                "config": config.model_dump(mode="json"),
                "inputs": {str(path): content_hash(path) for path in inputs},
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


def made_with(config: Config, *sections: str, **more: Any) -> dict[str, Any]:
    """The content of ``made_with.json``: resolved sections, size and recipe, and what else identifies the artefact."""
    return {"config": config.part(*sections), **more}


def stamp(folder: Path | str, config: Config, *sections: str, **more: Any) -> None:
    """Write ``made_with.json`` into an artefact's folder."""
    write_json(Path(folder) / "made_with.json", made_with(config, *sections, **more))


def check(folder: Path | str, config: Config) -> dict[str, Any]:
    """Return an artefact's ``made_with.json``; stop if it was made with other settings than params says.

    Raises:
        DreamError: the artefact is missing, or one of its stored settings differs from ``config``; the line names
            the setting and both values.
    """
    path = Path(folder) / "made_with.json"
    stored = read_json(path)
    compare(stored["config"], config, str(path))
    return stored


def compare(stored: dict[str, Any], config: Config, source: str) -> None:
    """Stop if the stored config part differs from ``config``. See :func:`check`."""
    current = config.part(*(name for name in stored if name not in ("recipe", "size")))
    if stored != current:
        key, was, now = _first_difference(stored, current)
        raise DreamError(f"{source} was made with {key} = {was!r}, params says {now!r}", "Run `dvc repro` so that both agree")


def _first_difference(was: Any, now: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(set(was) | set(now)):
            if was.get(name) != now.get(name):
                return _first_difference(was.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    return key, was, now
