"""Whether results belong together: every stage read what it would read now, and one input had one content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dream.errors import DreamError

# Knobs that cannot change a number.
HARMLESS = {
    "training.checkpoint_every", "training.keep_checkpoints", "training.log_every",
    "evaluate.token_budget", "evaluate.search_chunk", "evaluate.workers", "injection.force",
}  # fmt: skip


def settings(record: dict[str, Any]) -> dict[str, Any]:
    """The flat ``{knob: value}`` of what a stage read (a file of ``reports/config``): no code, no mirror, no harmless knobs."""
    read = {name: part for name, part in record.items() if name not in ("code", "needs", "mirror")}
    found = {key: leaf for name, part in read.items() for key, leaf in flat(part, name).items()}
    return {key: value for key, value in found.items() if key not in HARMLESS}


def flat(value: Any, prefix: str) -> dict[str, Any]:
    """Nested mappings as dotted keys.

    >>> flat({"a": {"b": 1}, "c": 2}, "x")
    {'x.a.b': 1, 'x.c': 2}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, f"{prefix}.{name}").items()}


def check_agreement(wanted: dict[str, dict[str, Any]], runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Stop if a stage read other settings than it would now, or two read inputs of one name and different content.

    A knob that a run does not know came after it and cannot be compared: :func:`later` lists those, the report's footnotes
    name them.

    Args:
        wanted: what every stage would read (``dream/config/stages.py``), by file name.
        runs: the run records by name.
        folder: where they lie.
    """
    for name, record in runs.items():
        path, file = folder / "runs" / f"{name}.json", record["settings"]
        if file not in wanted:
            raise DreamError(f"{path} was made for {file}, which params does not ask for", "Run `dvc repro`")
        theirs, ours = settings(record["config"]), settings(wanted[file])
        for key in theirs:
            if key not in ours or theirs[key] != ours[key]:
                now = repr(ours[key]) if key in ours else "no such setting"
                was = f"{path} was made with {key} = {theirs[key]!r}, params says {now}"
                raise DreamError(was, "Run `dvc repro` so that both agree")
    _check_inputs(runs, folder)


def later(wanted: dict[str, dict[str, Any]], runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The knobs (and values) that stages would read now and did not know when they ran."""
    found: dict[str, Any] = {}
    for record in runs.values():
        known = settings(record["config"])
        found |= {k: v for k, v in settings(wanted[record["settings"]]).items() if k not in known and v is not None}
    return found


def _check_inputs(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """The same input (say ``work/tasks``) had the same content in every run that read it."""
    seen: dict[str, tuple[str, str]] = {}
    for name, record in runs.items():
        for path, digest in (record.get("inputs") or {}).items():
            other, expected_digest = seen.setdefault(path, (name, digest))
            if digest != expected_digest:
                runs_folder = folder / "runs"
                raise DreamError(
                    f"{runs_folder / f'{other}.json'} and {runs_folder / f'{name}.json'} were made from different "
                    f"{path} ({expected_digest[:8]} and {digest[:8]})",
                    "Run `dvc repro` so that all cells agree",
                )
