"""Whether runs belong together: what each of them was made with, compared knob by knob."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dream.config import Config
from dream.errors import DreamError

# Sections that a cell's own stage reads. What it only reads through its inputs (the training data of an evaluation,
# say) is compared by the content hash of those inputs instead: a changed knob that changed no content is no mismatch.
STAGE_SECTIONS = {"prepare": ("data",), "candidates": ("candidates", "bm25"), "heads": ("judge", "heads", "injection")}
SYSTEM_SECTIONS = {"bm25": ("bm25", "evaluate"), "qrhead": ("bm25", "judge", "heads", "qrhead", "evaluate")}
ENCODER_SECTIONS = ("encoder", "evaluate")  # of every other evaluated system
TRAIN_SECTIONS = ("training", "encoder", "temperature")
JUDGE_SECTIONS = ("judge", "injection")
# Knobs that cannot change a number.
HARMLESS = {
    "training.checkpoint_every", "training.keep_checkpoints", "training.log_every", "injection.force",
    "evaluate.token_budget", "evaluate.search_chunk", "evaluate.workers",
}  # fmt: skip


def relevant_settings(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The flat ``{knob: value}`` of a stored config on which the run called ``name`` depends directly."""
    size = str(config.get("model", {}).get("size"))
    settings = {"model.size": size, "recipe": config.get("recipe")}
    settings |= flat(config.get("sizes", {}).get(size, {}), f"sizes.{size}")
    stage, _, cell = name.partition("-")
    system = cell.partition("-")[0]
    sections = STAGE_SECTIONS.get(stage, ())
    if stage == "evaluate":
        sections = SYSTEM_SECTIONS.get(system, ENCODER_SECTIONS)
        for published, rules in config.get("published", {}).items():
            settings |= flat(rules, f"published.{published}") if cell.startswith(f"{published}-") else {}
    elif stage == "train":
        sections = (*TRAIN_SECTIONS, *(() if system == "infonce" else JUDGE_SECTIONS), system)
    for section in sections:
        settings |= flat(config.get(section, {}), section)
    return {key: value for key, value in settings.items() if key not in HARMLESS}


def flat(value: Any, prefix: str) -> dict[str, Any]:
    """Nested mappings as dotted keys.

    >>> flat({"a": {"b": 1}, "c": 2}, "x")
    {'x.a.b': 1, 'x.c': 2}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, f"{prefix}.{name}").items()}


def check_agreement(config: Config, runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Stop if two runs were made with different settings or inputs, or with others than params says. Both are named.

    A knob that no run knows came after all of them and cannot be compared: :func:`later` lists those, the report's
    footnotes name them.
    """
    now, new = config.model_dump(mode="json"), later(config, runs)
    for name, record in runs.items():
        theirs, ours = relevant_settings(name, record["config"]), relevant_settings(name, now)
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in new and theirs.get(key) != ours.get(key):
                raise _disagreement(key, name, theirs.get(key), ours.get(key), runs, folder)
    _check_inputs(runs, folder)


def later(config: Config, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The knobs (and values) on which these runs would depend, had they not been made before the knobs existed."""
    now = config.model_dump(mode="json")
    known = {key for name, record in runs.items() for key in relevant_settings(name, record["config"])}
    ours = {key: value for name in runs for key, value in relevant_settings(name, now).items()}
    return {key: value for key, value in ours.items() if key not in known and value is not None}


def _disagreement(key: str, name: str, was: Any, now: Any, runs: dict[str, dict[str, Any]], folder: Path) -> DreamError:
    """The error for a knob: names a second run that agrees with params when there is one, else params."""
    path = folder / "runs" / f"{name}.json"
    for other, record in runs.items():
        settings = relevant_settings(other, record["config"])
        if other != name and key in settings and settings[key] == now:
            return DreamError(
                f"{path} was made with {key} = {was!r}, {folder / 'runs' / f'{other}.json'} with {now!r}",
                "Run `dvc repro` so that all cells agree",
            )
    return DreamError(f"{path} was made with {key} = {was!r}, params says {now!r}", "Run `dvc repro` so that both agree")


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
