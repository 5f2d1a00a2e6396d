"""What the stage ``prepare`` does: tasks first, then training data that holds none of their queries.

1. Every evaluation task is written (packaged, own) and read back, or loaded (mteb); its queries are remembered by fingerprint.
2. Every source is loaded without its held-out groups (:mod:`dream.data.development`); instances whose query is an
   evaluation query (equal normalised text) are dropped, counted.
3. ``data.instances`` instances are drawn, evenly over the sources.
4. Passages that stand in training and in an evaluation corpus are counted, for all documents and for relevant ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dream.data import development, sources, tasks
from dream.data.tables import blank, draw, fingerprint, quotas, rng
from dream.data.tasks.base import Task
from dream.errors import DreamError
from dream.files import replacing

if TYPE_CHECKING:
    from dream.config import Config


@dataclass
class Prepared:
    """Training tables and a flat record per source and per task (see :func:`prepare`)."""

    passages: pd.DataFrame
    instances: pd.DataFrame
    records: list[dict[str, Any]] = field(default_factory=list)


def prepare(config: Config, questions: pd.DataFrame | None = None, folder: Path = tasks.FOLDER) -> Prepared:
    """Write the evaluation tasks to ``folder/<entry of tasks>``; return decontaminated, mixed training data.

    Args:
        config: the resolved config.
        questions: generated questions (source, target_id, query) for sources that need them.
        folder: where the packaged and own tasks are written, every entry in a folder of its own.

    Returns:
        Passages of all sources (the candidate pools), the drawn instances, and records:
        per source ``{kind: "source", name, natural, licence, passages, instances_available, dropped_evaluation_queries,
        instances, notes}``; per task ``{kind: "task", name, suite, part, queries, documents, relevance_judgements, revision,
        licence, description, notes, documents_in_training, share_in_training, relevant_documents,
        relevant_in_training, share_relevant_in_training}``. All have all keys, for DVC's table: None where one has no meaning.

    Raises:
        DreamError: unknown names, missing or malformed data, or nothing to train on.
    """
    for entry in tqdm(config.tasks, desc="evaluation tasks", unit="entry", leave=False):
        tasks.write_entry(entry, config, folder / entry)
    queries = {fingerprint(text) for task in _tasks(config, folder) for text in task.queries["text"]}
    passages, instances, records = training(config, questions, queries)
    seen = set(map(fingerprint, tqdm(passages["text"], desc="training passages", unit="passage", leave=False)))
    records += [contamination(task, seen) for task in _tasks(config, folder)]
    keys = list(dict.fromkeys(key for one in records for key in one))
    return Prepared(passages, instances, [dict.fromkeys(keys) | one for one in records])


def _tasks(config: Config, folder: Path) -> Iterator[Task]:
    """All tasks' parts, one at a time, so that memory holds one corpus."""
    for name in tqdm(tasks.of(config), desc="evaluation tasks", unit="task", leave=False):
        yield from tasks.parts(name, config, folder)


def training(
    config: Config, questions: pd.DataFrame | None, evaluation_queries: set[int]
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    """Load, decontaminate and mix the training sources: passages, instances, a record per source."""
    loaded, kept, notes = {}, {}, {}
    for name in sources.of(config):
        asked = None if questions is None or questions.empty else questions[questions["source"] == name]
        tables = sources.load(name, config, asked)
        notes[name] = tables[1].attrs.pop("notes", [])
        loaded[name] = development.trained(*tables, config.data.development)
        found = loaded[name][1]
        kept[name] = found[[fingerprint(query) not in evaluation_queries for query in found["query"]]]
    if not any(len(table) for table in kept.values()):
        raise DreamError("data.sources leaves no training instance", "Add a source to data.sources in params.yaml")
    drawn, records = [], []
    for name, share in zip(kept, quotas([len(t) for t in kept.values()], config.data.instances), strict=True):
        table, source = kept[name], sources.get(name, config)
        drawn.append(table.iloc[draw(len(table), share, rng(config.data.seed, "instances", name))])
        records.append(
            {
                "kind": "source",
                "name": name,
                "natural": source.natural,
                "description": source.description,
                "licence": source.licence,
                "passages": len(loaded[name][0]),
                "instances_available": len(loaded[name][1]),
                "dropped_evaluation_queries": len(loaded[name][1]) - len(table),
                "instances": share,
                "notes": "; ".join(notes[name]),
            }
        )
    passages = pd.concat([tables[0] for tables in loaded.values()], ignore_index=True)
    return passages, pd.concat(drawn, ignore_index=True), records


def contamination(task: Task, training_texts: set[int]) -> dict[str, Any]:
    """A task's record with the share of its documents that stand in training too (equal normalised text).

    Args:
        task: one part of a task.
        training_texts: fingerprints of the training passages' texts.
    """
    inside = np.array([not blank(text) and fingerprint(text) in training_texts for text in task.corpus["text"]])
    relevant = task.corpus["id"].isin(set(task.qrels["doc_id"]))
    both = int((relevant.to_numpy() & inside).sum())
    return {
        "kind": "task",
        "name": task.name,
        "suite": task.suite,
        "part": task.part,
        "description": task.description,
        "licence": task.licence,
        "revision": task.revision,
        "notes": "; ".join(task.notes),
        "queries": len(task.queries),
        "documents": len(task.corpus),
        "relevance_judgements": len(task.qrels),
        "documents_in_training": int(inside.sum()),
        "share_in_training": round(float(inside.mean()), 4),
        "relevant_documents": int(relevant.sum()),
        "relevant_in_training": both,
        "share_relevant_in_training": round(both / max(1, int(relevant.sum())), 4),
    }


def write(prepared: Prepared, folder: Path | str = "work/data") -> None:
    """Write passages.parquet and instances.parquet."""
    for name in ("passages", "instances"):
        with replacing(Path(folder) / f"{name}.parquet") as temporary:
            getattr(prepared, name).to_parquet(temporary, index=False)
