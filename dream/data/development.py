"""Held out from every run: a share of each training source's groups, asked by the evaluation task ``development``.

Settings are searched on these questions, so that no table reports what a setting was chosen on. A group is an article, a
module or a page title; of a source without groups single targets are held out, and their passages stay in its pool.
The choice is a hash of the group's name: it does not depend on seeds, draws or the other sources. Test queries of an own set are
for the final row: a held-out question that is one of them is left out, so that nothing is chosen on it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pandas as pd

from dream.data import beir, questions, sources
from dream.data.own import labelled
from dream.data.packaged import Pair
from dream.data.tables import fingerprint

if TYPE_CHECKING:
    from dream.config import Config


def held_out(names: pd.Series, share: float) -> pd.Series:
    """True for the groups (or target ids) of a source that no run trains on.

    >>> held_out(pd.Series(["a", "b", "c", "d", "a"]), 0.5).tolist()
    [False, True, True, True, False]
    """
    chosen = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) < share * 2**32 for name in names.unique()}
    return names.map(chosen).astype(bool)


def trained(passages: pd.DataFrame, instances: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a source may train on: its tables without the held-out groups."""
    out = held_out(passages["group"], share) & (passages["group"] != "")
    if out.any():  # a large pool is not copied for nothing
        passages = passages[~out]
    return passages.reset_index(drop=True), instances[~held_out(_units(instances), share)].reset_index(drop=True)


def pairs(config: Config) -> list[Pair]:
    """The held-out questions of all training sources, each with its target."""
    found = []
    for name in sources.of(config):
        passages, instances = asked(name, config)
        texts = instances[["query", "group", "target_id"]].merge(
            passages[["passage_id", "title", "text"]], left_on="target_id", right_on="passage_id"
        )
        found += [Pair(*row) for row in texts[["query", "group", "title", "text"]].itertuples(index=False)]
    return found


def asked(name: str, config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All passages of a source, and the instances of its held-out groups; no test query of an own set is among them.

    Generated questions are read from what stage ``questions`` wrote.
    """
    written = pd.read_parquet(questions.PATH) if questions.PATH.exists() else pd.DataFrame(columns=questions.COLUMNS)
    passages, instances = sources.load(name, config, written[written["source"] == name])
    instances = instances[held_out(_units(instances), config.data.development)]
    final = {fingerprint(text) for name in labelled(config) for text in beir.test_queries(config.own[name])}
    return passages, instances[[fingerprint(query) not in final for query in instances["query"]]]


def _units(instances: pd.DataFrame) -> pd.Series:
    return instances["group"].where(instances["group"] != "", instances["target_id"])
