"""A user's own data as evaluation tasks: the test queries of a BEIR-format set, and the held-out part of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dream.data import beir, development
from dream.data.own import HELD_OUT
from dream.data.tables import text_id
from dream.data.tasks.base import Task, make
from dream.errors import DreamError

if TYPE_CHECKING:
    from dream.config import Config


def build(name: str, path: str) -> Task:
    """Read the test split. Faults in the files are errors that name file and line."""
    own = beir.read(path)
    return make(
        name, "own", own.corpus, own.queries, own.qrels, description=f"Own set {name}", licence="as given by its owner",
        notes=own.notes,
    )  # fmt: skip


def held_out(name: str, config: Config) -> Task:
    """``<name>-heldout``: generated questions on the documents that no run trains on, among all passages of the set.

    Equal questions are one query with several relevant passages.

    Raises:
        DreamError: no held-out document has a question.
    """
    passages, asked = development.asked(name, config)
    if asked.empty:
        raise DreamError(
            f"task {name}{HELD_OUT}: no question was written about a held-out document of {name}",
            "Raise data.development, questions.per_set or questions.limit",
        )
    asked = asked.assign(query_id=[text_id("q", query) for query in asked["query"]], relevance=1)
    queries = asked[["query_id", "query"]].drop_duplicates().rename(columns={"query_id": "id", "query": "text"})
    qrels = asked.rename(columns={"target_id": "doc_id"}).drop_duplicates(["query_id", "doc_id"])
    documents = asked["group"].nunique()
    return make(
        f"{name}{HELD_OUT}", "heldout", passages.rename(columns={"passage_id": "id"}), queries, qrels,
        description=f"Generated questions on {documents} documents of {name} that no run trains on → passage",
        licence="as given by its owner", notes=["settings are chosen on these questions: no result is claimed on them"],
    )  # fmt: skip
