"""What an evaluation task is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dream.data.tables import CORPUS, QRELS, QUERIES, check_id
from dream.errors import DreamError


@dataclass(frozen=True)
class Task:
    """One corpus with its queries and judgements. A score belongs to a task and its ``revision``.

    Attributes:
        name: as in params; unique.
        suite: ``packaged``, ``own``, ``BEIR``, ``RTEB`` or ``mteb``.
        corpus: id, title, text.
        queries: id, text; every query has a relevant document.
        qrels: query_id, doc_id, relevance (positive whole numbers).
        revision: hash of all of the above tables: it changes when a text, an id or a judgement changes.
        part: name of the part, for mteb tasks that are a mean over several corpora (empty otherwise).
        drop_identical_ids: the task's own rule on hits with the query's id; None = as ``evaluate.drop_identical_ids``.
        notes: what a reader must know: draws, what was left out.
    """

    name: str
    suite: str
    corpus: pd.DataFrame
    queries: pd.DataFrame
    qrels: pd.DataFrame
    revision: str
    description: str = ""
    licence: str = ""
    part: str = ""
    drop_identical_ids: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def judgements(self) -> dict[str, dict[str, int]]:
        """qrels as query id → document id → relevance."""
        found: dict[str, dict[str, int]] = {}
        for query, doc, grade in zip(self.qrels["query_id"], self.qrels["doc_id"], self.qrels["relevance"], strict=True):
            found.setdefault(query, {})[doc] = int(grade)
        return found


def make(name: str, suite: str, corpus: pd.DataFrame, queries: pd.DataFrame, qrels: pd.DataFrame, **more: Any) -> Task:
    """A :class:`Task` with its tables in the order of their ids and its revision.

    Raises:
        DreamError: an id appears twice or holds a control character, a pair is judged twice, or a grade is no whole number.
    """
    for kind, table in (("documents", corpus), ("queries", queries)):
        place = f"task {name}, {kind}"
        if len(twice := table["id"][table["id"].duplicated()]):
            raise DreamError(f"{place}: id {twice.iloc[0]!r} appears twice", "Ids must be unique")
        for one in table["id"]:
            check_id(one, place)
    if len(again := qrels[qrels.duplicated(["query_id", "doc_id"])]):
        query, doc = again.iloc[0][["query_id", "doc_id"]]
        raise DreamError(f"task {name}: document {doc!r} is judged twice for query {query!r}", "Keep one of the judgements")
    if len(broken := qrels[qrels["relevance"] % 1 != 0]):
        raise DreamError(f"task {name}: grade {broken['relevance'].iloc[0]} is no whole number", "Scale or round all grades")
    corpus = corpus[CORPUS].sort_values("id", ignore_index=True)
    queries = queries[QUERIES].sort_values("id", ignore_index=True)
    qrels = qrels[QRELS].sort_values(["query_id", "doc_id"], ignore_index=True)
    return Task(name, suite, corpus, queries, qrels, revision(corpus, queries, qrels), **more)


def revision(*tables: pd.DataFrame) -> str:
    """Content hash of tables: rows in their order, fields separated."""
    digest = hashlib.sha256()
    for table in tables:
        for row in table.itertuples(index=False):
            digest.update("\x1f".join(map(str, row)).encode() + b"\x1e")
        digest.update(b"\x1d")
    return digest.hexdigest()[:32]
