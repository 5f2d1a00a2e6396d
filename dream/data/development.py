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
from dream.errors import DreamError

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


def enough(config: Config, pool: int, targets: pd.DataFrame) -> None:
    """Stop before a question is written if all of them would be too few for the recipe ``adapt``.

    Args:
        config: of the stage ``questions``; of another recipe it holds no ``adapt``, and nothing is counted.
        pool: passages of the source that has the fewest.
        targets: those that are asked about.

    Raises:
        DreamError: everything that is short, in one line.
    """
    if not hasattr(config, "adapt"):
        return
    kinds, minimum = len(config.questions.kinds), config.adapt.queries
    held = kinds * int(held_out(_units(targets, "passage_id"), config.data.development).sum())
    trained, needed = kinds * len(targets) - held, config.probes + config.training.batch
    k = config.candidates.count
    only = len(questions.needed(config)) == len(sources.of(config))  # a labelled set may train too
    short = [
        f"{held} held-out questions at most, and adapt.queries is {minimum}" * (held < minimum),
        f"{trained} to train on, and heads.probes, injection.diagnostic and training.batch take {needed}"
        * (only and trained < needed),
        f"{pool} passages to search, and candidates.count is {k}" * (pool < k),
    ]
    if any(short):
        raise DreamError(
            f"{len(targets)} passages to ask about are too few for a verdict: {'; '.join(filter(None, short))}",
            "Add documents, raise questions.per_set or questions.limit, add kinds to questions.kinds, or lower what is named",
        )


def _units(table: pd.DataFrame, name: str = "target_id") -> pd.Series:
    """What is held out together: groups, and where there is none single passages."""
    return table["group"].where(table["group"] != "", table[name])
