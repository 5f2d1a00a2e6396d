"""The scores of one training run, for the model card that ``dream-report export`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream import manifest
from dream.errors import DreamError
from dream.report.results import cells as reading
from dream.report.tables import registry, render
from dream.systems.encoder import TRAINED

if TYPE_CHECKING:
    from dream.config import Config


def scores(config: Config, system: str, seed: int, cells: Path | str = reading.CELLS) -> tuple[str | None, str]:
    """The report's main table for this training run alone, beside the references, as Markdown.

    Returns:
        The table, or None with the reason: no scores are here, or they belong to another configuration or model.
    """
    alone = config.model_copy(update={"objectives": [system], "seeds": [seed]})
    try:
        results = reading.load(alone, cells)
        _check_model(results.runs, TRAINED / f"{system}-{seed}")
    except DreamError as error:
        return None, error.what
    lines = render.markdown(registry.main(results)).splitlines()
    return "\n".join(lines[2:]), ""


def _check_model(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """The evaluated model is the one that is exported, byte by byte."""
    here = manifest.content_hash(folder)
    for name, record in runs.items():
        if (record.get("inputs") or {}).get(str(folder), here) != here:
            raise DreamError(f"{name} evaluated another {folder}", "Run `dvc repro`")
