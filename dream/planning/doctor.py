"""What is installed, what this machine can run, and for every problem its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dream.config import Config
from dream.errors import DreamError, visible

INSTALL = "Run `pip install -c constraints.txt -e '.[bench]'`"
OK, NOTE, PROBLEM = "ok", "note", "problem"
COLOURS = {OK: "green", NOTE: "yellow", PROBLEM: "bold red"}
NEEDED = (
    "torch", "transformers", "peft", "accelerate", "mteb", "bm25s", "dvc", "numpy", "scipy", "pandas", "pyarrow",
    "matplotlib", "jinja2", "typer", "rich",
)  # fmt: skip
CHECKS: list[Callable[[Config | None], Iterator[Check]]] = []


@dataclass(frozen=True)
class Check:
    """One finding: ``problem`` stops the default recipe, ``note`` only limits what can be run."""

    name: str
    state: str
    found: str
    remedy: str = ""


def check(function: Callable[[Config | None], Iterator[Check]]) -> Callable:
    """Register a check; it yields findings and never raises."""
    CHECKS.append(function)
    return function


def examine(config: Config | None) -> list[Check]:
    """Run all checks; ``config`` is None when params.yaml itself is the problem."""
    return [finding for function in CHECKS for finding in _findings(function, config)]


def _findings(function: Callable[[Config | None], Iterator[Check]], config: Config | None) -> list[Check]:
    """What a check finds; without the packages that it needs, that it could not look."""
    try:
        return list(function(config))
    except ModuleNotFoundError as error:
        return [Check(function.__name__, NOTE, f"not looked at: the package {error.name} is missing", INSTALL)]


def as_json(found: list[Check]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in found]


def plain(found: list[Check]) -> str:
    """Aligned lines, remedies below their problem."""
    width = max(len(finding.name) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.state:<8} {finding.name:<{width}}  {visible(finding.found)}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  → {visible(finding.remedy)}")
    return "\n".join(lines)


def rich(found: list[Check]) -> Any:
    """The same on a terminal: long findings are folded in their own column."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2, 0, 0))
    for finding in found:
        text = Text(visible(finding.found))
        if finding.remedy:
            text.append(f"\n→ {visible(finding.remedy)}", style="bold")
        drawn.add_row(Text(finding.state, style=COLOURS[finding.state]), Text(finding.name), text)
    return drawn


@check
def python(_: Config | None) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Check("python", OK if good else PROBLEM, version, "" if good else "Use Python 3.11 or newer")


@check
def packages(_: Config | None) -> Iterator[Check]:
    found, missing = [], []
    for name in NEEDED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check(
            "packages",
            PROBLEM,
            f"missing: {', '.join(missing)}",
            INSTALL,
        )
    yield Check("packages", OK, ", ".join(found))


@check
def programs(_: Config | None) -> Iterator[Check]:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for name in ("git", "dvc"):
        path = shutil.which(name, path=beside)
        yield Check(
            name,
            OK if path else PROBLEM,
            path or "not found",
            "" if path else f"Install {name}, or activate the environment",
        )


def _dtype(measured: dict[str, float] | None = None) -> Check:
    """Whether ``dtype: auto`` is the faster one: GFLOP/s of a layer's matrix product in both, measured unless given."""
    from dream.judge.model import pick_dtype

    rates = measured or {name: _rate(name) for name in ("float32", "bfloat16")}
    auto, fastest = str(pick_dtype("auto")).removeprefix("torch."), max(rates, key=rates.__getitem__)
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + f" GFLOP/s; `dtype: auto` is {auto}"
    other = "" if auto == fastest or max(rates.values()) < 1.2 * rates[auto] else f"Give models a dtype of {fastest}"
    return Check("matrix products", NOTE if other else OK, said, other)


def _rate(dtype: str) -> float:
    """GFLOP/s of a product as in the packaged judge's layers: the best of ten."""
    import torch

    rows, inputs, outputs = 1024, 576, 1536
    left, right = (torch.ones(n, inputs, dtype=getattr(torch, dtype)) for n in (rows, outputs))
    took = []
    for _ in range(10):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        took.append(time.perf_counter() - started)
    return 2 * rows * inputs * outputs / min(took) / 1e9


@check
def devices(_: Config | None) -> Iterator[Check]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = torch.get_num_threads()
    yield Check("processor", OK, f"{os.cpu_count()} cores, {threads} threads")
    yield _dtype()
    enough = memory >= 7.5
    yield Check(
        "memory",
        OK if enough else NOTE,
        f"{memory:.1f} GiB",
        "" if enough else "The packaged recipe needs up to 8 GiB: lower training.micro_batch",
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            yield Check("gpu", OK, f"{found.name}, {found.total_memory / 2**30:.0f} GiB")
    else:
        yield Check("gpu", NOTE, "none", "Recipe paper needs one; recipes packaged and smoke do not")


@check
def disk(_: Config | None) -> Iterator[Check]:
    from dream.files import cache_folder

    for name, folder in (("disk, project", Path.cwd()), ("disk, cache", cache_folder())):
        place = next(p for p in (folder, *folder.parents) if os.path.exists(p))
        free, writable = shutil.disk_usage(place).free / 2**30, place.is_dir() and os.access(place, os.W_OK)
        good = free >= 5 and writable
        remedy = "" if good else "Free some space, or set DREAM_CACHE to a folder with room that you may write to"
        yield Check(
            name,
            OK if good else PROBLEM,
            f"{folder}: {free:.0f} GiB free{'' if writable else ', not writable'}",
            remedy,
        )


@check
def hub(_: Config | None) -> Iterator[Check]:
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield Check("model hub", NOTE, "HF_HUB_OFFLINE is set", "Unset it to download models; cached ones work")
        return
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=4).close()
        yield Check("model hub", OK, f"{ENDPOINT} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Check(
            "model hub",
            NOTE,
            f"{ENDPOINT} does not answer ({reason})",
            "Sizes with hub models need it, or a filled cache; size tiny does not",
        )


@check
def settings(config: Config | None) -> Iterator[Check]:
    if config is None:
        return
    yield Check("params.yaml", OK, f"size {config.model.size}, recipe {config.recipe}")


@check
def assets(config: Config | None) -> Iterator[Check]:
    """Files whose checksums were recorded when they were made, against what they are now."""
    from dream.data import needs
    from dream.files import cache_folder

    path, kept = Path("reports/assets/data.json"), cache_folder()
    if not path.exists() or not kept.is_dir() or not any(kept.iterdir()):
        yield Check("assets", NOTE, f"none in {kept} yet", "`dvc repro assets` fetches them")
        return
    from dream import assets as room

    try:
        records = needs.recorded(path.parent)
    except DreamError as error:
        yield Check("assets", PROBLEM, error.what, error.remedy)
        return
    for record in records:
        name, wanted = record.get("name", "?"), record.get("content_sha256")
        try:
            if room.kind(name) == "hub":
                continue
        except DreamError:
            pass
        yield _checksum(name, record.get("kind"), wanted)


def _checksum(name: str, kind: str | None, wanted: str | None) -> Check:
    from dream import assets as room
    from dream.files import sha256

    try:
        found = room.content_hash(name) if kind == "model" else sha256(room.data_path(name))
    except (DreamError, OSError) as error:
        return Check(f"asset {name}", PROBLEM, str(error), "Run `dvc repro assets`")
    if found != wanted:
        return Check(
            f"asset {name}",
            PROBLEM,
            f"checksum {found[:12]}, recorded {str(wanted)[:12]}",
            "Delete it from the cache and run `dvc repro assets`",
        )
    return Check(f"asset {name}", OK, f"checksum {found[:12]}")


@check
def recipes(config: Config | None) -> Iterator[Check]:
    """Which sizes can start here: what they need is cached, packaged or reachable."""
    if config is None:
        return
    from dream import config as configs
    from dream.data import needs, tasks

    found: dict[tuple[str, str, str], list[str]] = {}  # what is said of several sizes is said once
    for size in config.sizes if Path("params.yaml").exists() else []:
        try:
            resolved = configs.load("params.yaml", {"model.size": size, "recipe": "auto"})
            needs.check_available(tasks.mirrored(resolved))
            said = (OK, f"recipe {resolved.recipe}: everything it needs is at hand or can be fetched", "")
        except DreamError as error:
            said = (PROBLEM if size == config.model.size else NOTE, error.what, error.remedy)
        found.setdefault(said, []).append(size)
    for said, sizes in found.items():
        yield Check(f"size {', '.join(sizes)}", *said)
