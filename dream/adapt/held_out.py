"""The questions that settings are chosen on: about documents that no run trains on, none asked in training, few passages each.

A large set is cut down so that trying a setting takes seconds: of :data:`SEARCHED` passages that are drawn stay the relevant ones
and, beside them, the ``adapt.distractors`` that BM25 and the untouched encoder rank highest for the questions. The same for every
setting; scores on fewer passages are higher than on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dream import systems
from dream.data import development, own, tasks
from dream.data.tables import fingerprint
from dream.data.tasks import base
from dream.data.tasks.packaged import drawn_down
from dream.evaluation import metrics

if TYPE_CHECKING:
    from dream.config import Config
    from dream.data.tasks.base import Task

SEARCHED = 3000  # passages among which the hard ones are looked for
DEPTH = 100  # places of a ranking that can give a passage
INSTANCES = Path("work/data/instances.parquet")


def load(config: Config) -> tuple[list[Task], list[str]]:
    """The held-out task of every own set of documents that has a question, and notes on what was left out."""
    asked = {fingerprint(query) for query in pd.read_parquet(INSTANCES, columns=["query"])["query"]}
    found: list[Task] = []
    notes: list[str] = []
    for name in own.documents(config):
        task = f"{name}{own.HELD_OUT}"
        if development.asked(name, config)[1].empty:
            notes.append(f"{name}: no question was written about a held-out document")
            continue
        whole = tasks.build(task, config)
        fresh = whole.queries[[fingerprint(text) not in asked for text in whole.queries["text"]]]
        if len(fresh) < len(whole.queries):
            notes.append(f"{name}: {len(whole.queries) - len(fresh)} held-out questions are asked in training too and left out")
        if len(fresh):
            found.append(pooled(_with(whole, whole.corpus, fresh), config))
            notes.append(f"{name}: {len(fresh)} questions, among {len(found[-1].corpus)} of {len(whole.corpus)} passages")
    return found, notes


def pooled(task: Task, config: Config) -> Task:
    """The relevant documents of a task and at most ``adapt.distractors`` others: see the module's docstring."""
    relevant = dict.fromkeys(task.qrels["doc_id"])
    limit = len(relevant) + config.adapt.distractors
    if len(task.corpus) <= limit:
        return task
    corpus, *_ = drawn_down(task.name, task.corpus, task.queries, task.qrels, None, max(SEARCHED, limit), config.data.seed)
    drawn = _with(task, corpus, task.queries)
    runs = [systems.load(name, config).search(drawn, DEPTH) for name in ("untrained", "bm25")]
    kept = set(islice(dict.fromkeys([*relevant, *_by_place(runs)]), limit))
    return _with(task, corpus[corpus["id"].isin(kept)], task.queries)


def _by_place(runs: list[systems.Run]) -> Iterator[str]:
    """All hits: the first of every query and run, then the second, …"""
    ranked = [metrics.rank(hits) for run in runs for hits in run.values()]
    for place in range(DEPTH):
        yield from (hits[place] for hits in ranked if place < len(hits))


def _with(task: Task, corpus: pd.DataFrame, queries: pd.DataFrame) -> Task:
    qrels = task.qrels[task.qrels["query_id"].isin(queries["id"])]
    more = {"description": task.description, "licence": task.licence, "notes": task.notes}
    return base.make(task.name, task.suite, corpus, queries, qrels, **more)
