"""A user's own BEIR-format set with ``qrels/train.tsv``: trained on with candidates from its own corpus.

One instance per training query: its highest-graded document (of equals the first id) is the target. Ids are
``<name>:<id>``: no name of a set holds a colon, so that two sets cannot share one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dream.data import beir
from dream.data.sources.base import Source, Tables
from dream.data.tables import INSTANCES, PASSAGES

if TYPE_CHECKING:
    from dream.config import Config


def has_training(path: str) -> bool:
    """Whether the set has training judgements."""
    return "train" in beir.splits(path)


def source(name: str, path: str) -> Source:
    """The source of an own set."""
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
