"""What the pipeline says while it runs: once how many stages, how long, how much disk; then each stage its number and estimate.

Times are those of the last run records (``reports/results/runs``) that had this run's settings: of the workspace, or of git's
HEAD where DVC has taken a record away because its stage runs. Nothing here changes a result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dream import names
from dream.errors import DreamError
from dream.files import cache_folder, lasting, read_json, write_json

RUNS, CONFIG = Path("reports/results/runs"), Path("reports/config")
SILENT = ("configure", "given", "queries", "report")  # write no run record


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42.3), duration(754), duration(7500)
    ('42 s', '12 min 34 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def stages(config: Path = CONFIG) -> list[str]:
    """The names of all stages that params asks for (``train-dream-0``), in the order of the pipeline."""
    asked = read_json(config / "report.json")
    tasks, objectives = asked["tasks"], asked["objectives"]
    runs = [(name, seed) for name in objectives for seed in asked["seeds"]]
    cells = [*((name, None) for name in [*asked["references"], *asked["rerankers"]]), *runs]
    return [
        "configure", "assets", "questions", *(f"tasks-{entry}" for entry in tasks), "prepare", "candidates", "heads", "signal",
        *(f"teacher-{name}" for name in objectives), *(f"given-{name}" for name in objectives),
        *(f"train-{name}-{seed}" for name, seed in runs),
        *(f"evaluate-{names.cell(*cell, entry)}" for cell in cells for entry in tasks), "adapt", "queries", "report",
    ]  # fmt: skip


def begin(name: str, models: str = "") -> None:
    """Print a stage's first line; before it, where the stage is the first of a run of DVC, what the whole run is.

    Args:
        name: of the stage.
        models: what it loads, said where no line of the whole run says it.
    """
    run, known = _dvc(), (CONFIG / "report.json").exists()
    place = lasting("plan.json")
    plan = read_json(place) if run and place.exists() else {}
    if run and known and plan.get("run") != run:
        plan = {"run": run, "seconds": {stage: _seconds(stage) for stage in stages()}}
        write_json(place, plan)
        print(*overview(plan["seconds"], models_of("assets")), sep="\n")
    said = [number(name, plan.get("seconds", {}))] if known else []
    print(f"[{name}] {'; '.join([*said, *([models] if models and not run else [])]) or 'begins'}", flush=True)


def number(name: str, seconds: dict[str, float | None]) -> str:
    """A stage's place among all and how long it took last time."""
    known = stages()
    place = f"stage {known.index(name) + 1} of {len(known)}" if name in known else "a stage of its own"
    took = seconds.get(name) if seconds else _seconds(name)
    return place if took is None else f"{place}, last time {duration(took)}"


def overview(seconds: dict[str, float | None], models: str) -> Iterator[str]:
    """How many stages there are, which models they load, how long they took and how much disk they take."""
    yield f"[pipeline] {len(seconds)} stages; what did not change is skipped or comes from DVC's cache. {models}"
    kinds: dict[str, float] = {}
    for name, took in seconds.items():
        kind = name.partition("-")[0]
        kinds[kind] = kinds.get(kind, 0.0) + (took or 0.0)
    longest = [f"{kind} {duration(kinds[kind])}" for kind in sorted(kinds, key=lambda kind: -kinds[kind])[:3] if kinds[kind]]
    new = [name for name, took in seconds.items() if took is None and name.partition("-")[0] not in SILENT]
    unknown = f"; no record yet of {len(new)}" if new else ""
    took_all = f"{duration(sum(kinds.values()))} if all run, as last time ({', '.join(longest)})"
    yield f"[pipeline] {took_all if longest else 'no past run is known'}{unknown}; {disk()}"


def disk(lock: Path = Path("dvc.lock")) -> str:
    """What the stages' outs took by dvc.lock (they lie in work/ and in DVC's cache), what models and data take, what is free."""
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    outs = dict(re.findall(r"- path: (work/\S+)\n +hash: md5\n +md5: \S+\n +size: (\d+)", text))
    cached = sum(path.stat().st_size for path in cache_folder().rglob("*") if path.is_file())
    parts = [f"results {2 * sum(map(int, outs.values())) / 2**20:.0f} MiB", f"models and data {cached / 2**20:.0f} MiB"]
    return f"disk: {', '.join(parts)}, free {shutil.disk_usage('.').free / 2**30:.0f} GiB"


def models_of(name: str) -> str:
    """The models that a stage reads, in words."""
    return models(read_json(CONFIG / f"{name}.json"))


def models(config: dict[str, Any]) -> str:
    """The models of a stage's settings, in words."""
    found = []
    for role, model in config.get("roles", {}).items():
        layers = f" (first {model['layers']} layers)" if model["layers"] else ""
        found.append(f"{role} {model['model']}{layers}, {model['dtype']}")
    return "; ".join(found)


def _seconds(name: str) -> float | None:
    """How long a stage took when it last ran with the settings that it has now; None where nobody wrote it down."""
    path = RUNS / f"{name}.json"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else _committed(path)
        record = json.loads(text)[0]
        now = read_json(CONFIG / f"{record['settings']}.json")
        then = {key: value for key, value in record["config"].items() if key != "code"}
        return float(record["wall_s"]) if _holds(now, then) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, DreamError):  # an estimate is worth no error
        return None


def _holds(now: Any, then: Any) -> bool:
    """Whether settings hold all that a run knew, with its values.

    >>> _holds({"a": {"b": 1, "new": 2}}, {"a": {"b": 1}}), _holds({"a": 1}, {"a": 2})
    (True, False)
    """
    if isinstance(then, dict):
        return all(key in now and _holds(now[key], value) for key, value in then.items())
    return bool(now == then)


def _committed(path: Path) -> str:
    done = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, check=False)
    return done.stdout.decode("utf-8", errors="replace")


def _dvc() -> str | None:
    """The run of DVC that this process belongs to; None if it was started by hand."""
    import psutil

    if "DVC_STAGE" not in os.environ:
        return None
    for parent in psutil.Process().parents():
        try:
            if any(Path(part).name == "dvc" for part in parent.cmdline()[:4]):
                return f"{parent.pid} {parent.create_time():.2f}"
        except psutil.Error:  # it has gone, or belongs to somebody else
            continue
    return None
