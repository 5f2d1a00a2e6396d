"""A user's own data as a training source: a BEIR-format set with ``qrels/train.tsv``, or documents without questions.

Of documents the group is the document, and the stage ``questions`` writes the questions. Of a BEIR-format set, candidates come
from its own corpus: one instance per training query: its highest-graded document (of equals the first id) is the target. Ids are
``<name>:<id>``: no name of a set holds a colon, so that two sets cannot share one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dream.data import beir, documents
from dream.data.own import is_documents
from dream.data.sources.base import FITTING, Source, Tables
from dream.data.tables import INSTANCES, PASSAGES

if TYPE_CHECKING:
    from dream.config import Config


def has_training(path: str) -> bool:
    """Whether the set can be trained on: it is documents, or has training judgements."""
    return is_documents(path) or "train" in beir.splits(path)


def source(name: str, path: str) -> Source:
    """The source of an own set."""
    if is_documents(path):
        return Source(
            name=name,
            natural=FITTING,
            description=f"Own documents {name}: generated questions",
            licence="as given by its owner",
            passages=partial(documents.passages, name, path),
            check=lambda config: documents.check(path),
            reads=documents.READS,
        )
    return Source(
        name=name,
        natural="bm25",
        description=f"Own set {name}: training judgements",
        licence="as given by its owner",
        load=partial(load, name, path),
        check=lambda config: beir.check(path),
    )


def load(name: str, path: str, config: Config) -> Tables:
    """The set's corpus as passages, its training queries as instances."""
    own = beir.read(path, "train")
    passages = own.corpus.rename(columns={"id": "passage_id"}).assign(source=name, group="")
    passages["passage_id"] = f"{name}:" + passages["passage_id"]
    best = own.qrels.sort_values(["query_id", "relevance", "doc_id"], ascending=[True, False, True])
    best = best.drop_duplicates("query_id").merge(own.queries, left_on="query_id", right_on="id")
    instances = best.assign(
        instance_id=f"{name}:" + best["query_id"], source=name, group="", target_id=f"{name}:" + best["doc_id"]
    )
    instances = instances.rename(columns={"text": "query"})[INSTANCES].reset_index(drop=True)
    instances.attrs["notes"] = own.notes
    return passages[PASSAGES], instances
