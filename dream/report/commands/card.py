"""The scores of one training run, for the model card that ``dream-report export`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream import manifest
from dream.errors import DreamError
from dream.report.results import cells as reading
from dream.report.results.cells import Results
from dream.report.tables import registry, render
from dream.systems.encoder import TRAINED

if TYPE_CHECKING:
    from dream.config import Config


METRICS = {"ndcg_at_10": "nDCG@10", "recall_at_100": "Recall@100", "mrr_at_10": "MRR@10"}


def scores(
    config: Config, system: str, seed: int, cells: Path | str = reading.CELLS
) -> tuple[str | None, str, list[dict[str, Any]]]:
    """The report's main table for this training run alone, beside the references, as Markdown, and the hub's ``model-index``.

    Returns:
        The table and its reason, which is empty, and the index; or None, the reason, and no index: no scores are here, or they
        belong to another configuration or model.
    """
    alone = config.model_copy(update={"objectives": [system], "seeds": [seed]})
    try:
        results = reading.load(alone, cells)
        _check_model(results.runs, TRAINED / f"{system}-{seed}")
    except DreamError as error:
        return None, error.what, []
    lines = render.markdown(registry.main(results)).splitlines()
    return "\n".join(lines[2:]), "", index(results, system, seed)


def index(results: Results, system: str, seed: int) -> list[dict[str, Any]]:
    """The scores of a system on every task as the hub reads them from a model card."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    found = [
        EvalResult(
            task_type="retrieval", dataset_type=task, dataset_name=f"{task} ({suite})", dataset_split="test",
            dataset_revision=record.get("revision"), metric_type=metric, metric_name=name, metric_value=record[metric],
        )
        for suite, task in results.tasks
        for record in [results.record(system, task)]
        for metric, name in METRICS.items()
    ]  # fmt: skip
    return eval_results_to_model_index(f"{system}-{seed}", found)


def _check_model(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """The evaluated model is the one that is exported, byte by byte."""
    here = manifest.content_hash(folder)
    for name, record in runs.items():
        if (record.get("inputs") or {}).get(str(folder), here) != here:
            raise DreamError(f"{name} evaluated another {folder}", "Run `dvc repro`")
