"""Instances and passages → candidate sets and a summary of what was found.

A set holds K different texts: passages whose title and text are equal, white space aside, are one passage under several
ids. So no copy of a target stands among its negatives. Where a retriever finds fewer than K, passages of the source,
drawn with the seed, take the places that are left. Both are counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dream.candidates.bm25 import BM25Index
from dream.candidates.dense import DenseIndex
from dream.data.tables import rng
from dream.errors import DreamError
from dream.instances import passage_texts, plain

if TYPE_CHECKING:
    from dream.config import Config

COLUMNS = ["set_id", "source", "group", "passage_ids", "instance_ids", "gold"]
DEPTH = 100  # how deep the positive's rank is looked for, and how deep lists are fused

# Queries → a ranking each; and of how many BM25 knows no word (None: it was not asked).
Search = Callable[[Sequence[str]], tuple[list[list[str]], int | None]]


def fuse(rankings: Sequence[Sequence[str]], constant: int) -> list[str]:
    """Reciprocal rank fusion: documents by the sum of 1 / (constant + rank), ties by id.

    >>> fuse([["a", "b", "c"], ["b", "c", "d"]], 60)
    ['b', 'c', 'a', 'd']
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (constant + rank)
    return sorted(scores, key=lambda name: (-scores[name], name))


def _bm25(config: Config, passages: pd.DataFrame) -> Search:
    index = BM25Index(passage_texts(passages), config.bm25, list(passages["passage_id"]), progress=True)

    def search(queries: Sequence[str]) -> tuple[list[list[str]], int]:
        rankings = [ids.tolist() for ids in index.search(queries, max(DEPTH, config.candidates.count))[0]]
        return rankings, sum(not ranking for ranking in rankings)

    return search


def _dense(config: Config, passages: pd.DataFrame) -> Search:
    index = DenseIndex(list(passage_texts(passages)), config.roles["dense"], list(passages["passage_id"]), progress=True)
    return lambda queries: (index.search(queries, max(DEPTH, config.candidates.count))[0].tolist(), None)


def _hybrid(config: Config, passages: pd.DataFrame) -> Search:
    lexical, dense = _bm25(config, passages), _dense(config, passages)

    def search(queries: Sequence[str]) -> tuple[list[list[str]], int | None]:
        (one, wordless), (other, _) = lexical(queries), dense(queries)
        return [fuse(rankings, config.candidates.rrf_k) for rankings in zip(one, other, strict=True)], wordless

    return search


RETRIEVERS: dict[str, Callable[[Config, pd.DataFrame], Search]] = {"bm25": _bm25, "dense": _dense, "hybrid": _hybrid}
STRATEGIES = ("same_document", *RETRIEVERS)


class Texts:
    """Passages by what they say: those with the same text (title and text joined, white space aside) are one.

    Args:
        passages: passage_id, title, text; read once, 16 bytes kept of each until the copies are known.
    """

    def __init__(self, passages: pd.DataFrame) -> None:
        texts = (plain(text).encode("utf-8", "surrogatepass") for text in passage_texts(passages))
        digests = pd.Series([hashlib.blake2b(text, digest_size=16).digest() for text in texts], dtype=object)
        copied = digests.duplicated(keep=False).to_numpy()
        first: dict[bytes, str] = {}
        pairs = zip(passages["passage_id"][copied], digests[copied], strict=True)
        self._first = {name: first.setdefault(digest, name) for name, digest in pairs}

    def of(self, name: str) -> str:
        """The id that stands for all passages with this one's text."""
        return self._first.get(name, name)

    def count(self, names: Iterable[str]) -> int:
        """How many texts these passages have."""
        return len(set(map(self.of, names)))

    def distinct(self, names: Iterable[str], k: int, targets: Iterable[str] = ()) -> tuple[list[str], int]:
        """The first ``k`` passages with different texts, and how many copies were left out on the way.

        A copy of a target gives its place to the target. ``names`` is read no further than needed.
        """
        own = {self.of(target): target for target in reversed(list(targets))}
        chosen: dict[str, str] = {}
        copies = 0
        for name in names:
            text = self.of(name)
            copies += chosen.setdefault(text, own.get(text, name)) != name
            if len(chosen) == k:
                break
        return list(chosen.values()), copies


def at_random(names: Sequence[str], generator: np.random.Generator) -> Iterator[str]:
    """All names in random order; some come twice, so that few are drawn where few are asked for."""
    for size in (DEPTH, len(names)):
        yield from (names[i] for i in generator.choice(len(names), min(size, len(names)), replace=False))


@dataclass
class Found:
    """Sets of one source and what happened on the way."""

    texts: Texts
    pool: int = 0
    rows: list[tuple] = field(default_factory=list)
    in_small_groups: int = 0
    without_positive: int = 0
    copies: int = 0
    drawn: int = 0
    wordless: int | None = None
    ranks: list[int | None] = field(default_factory=list)


def build(config: Config, passages: pd.DataFrame, instances: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Build the candidate sets of all instances.

    Args:
        config: ``candidates`` (strategy, K, whether the positive is always in, questions per set, seed) and ``bm25``.
        passages: passage_id, source, group, title, text: each source's pool.
        instances: instance_id, source, group, query, target_id.

    Returns:
        Sets (set_id, source, group, passage_ids [K], instance_ids, gold: the targets' places), sources evenly mixed in
        seeded order, and one record a source: strategy, K, pool, sets, instances, what was dropped (copies too), places
        filled at random, queries of which BM25 knows no word, how often the retriever found the positive among K and
        its rank.

    Raises:
        DreamError: K is larger than every pool of a source, or no set is left.
    """
    tables, summary = [], []
    for source in dict.fromkeys(instances["source"]):
        pool, asked = _of(source, passages), _of(source, instances)
        strategy = _strategy(config, source, pool, asked)
        found = _same_document(config, pool, asked) if strategy == "same_document" else _retrieved(
            config, strategy, pool, asked
        )  # fmt: skip
        if not found.rows:
            raise DreamError(
                f"source {source}: strategy {strategy} leaves no candidate set of {config.candidates.count} passages "
                f"({found.in_small_groups} instances in groups that are too small, "
                f"{found.without_positive} without positive)",
                "Lower candidates.count or set candidates.include_positive",
            )
        generator = rng(config.candidates.seed, "order", source)
        found.rows = [found.rows[i] for i in generator.permutation(len(found.rows))]
        tables.append(pd.DataFrame(found.rows, columns=COLUMNS))
        summary.append(_record(config, source, strategy, found, len(asked)))
    return mixed(tables), summary


def _of(source: str, table: pd.DataFrame) -> pd.DataFrame:
    """A source's rows; the table itself, not a copy, if it has no others."""
    inside = table["source"] == source
    return table if inside.all() else table[inside]


def mixed(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Interleave tables so that every stretch holds them in proportion to their lengths; each keeps its own order."""
    joined = pd.concat(tables, ignore_index=True)
    place = np.concatenate([(np.arange(len(table)) + 0.5) / len(table) for table in tables])
    return joined.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)


def _strategy(config: Config, source: str, pool: pd.DataFrame, asked: pd.DataFrame) -> str:
    """``candidates.source``, or what suits the source; ``fitting`` looks at its documents."""
    from dream.data import sources
    from dream.data.sources.base import FITTING

    natural = sources.get(source, config).natural if config.candidates.source == "auto" else config.candidates.source
    if natural != FITTING:
        return natural
    large = pool["group"].value_counts() >= config.candidates.count
    return "same_document" if asked["group"].map(large).mean() > 0.5 else "bm25"


def _same_document(config: Config, pool: pd.DataFrame, instances: pd.DataFrame) -> Found:
    """K passages of the group, drawn with the seed; ``questions_per_set`` questions of a group share a set."""
    k, texts = config.candidates.count, Texts(pool)
    groups = {group: list(ids) for group, ids in pool.groupby("group", sort=False)["passage_id"]}
    sizes = {group: texts.count(members) for group, members in groups.items()}
    found = Found(texts, max(sizes.values()))
    if found.pool < k:
        raise _too_small(instances, k, found.pool, "the largest group has")
    for group, asked in instances.groupby("group", sort=True):
        members = groups[group]
        if sizes[group] < k:
            found.in_small_groups += len(asked)
            continue
        order = rng(config.candidates.seed, "same_document", str(group))
        shuffled = asked.iloc[order.permutation(len(asked))]
        for part in _shares(shuffled, config.candidates.questions_per_set, k):
            targets = list(dict.fromkeys(part["target_id"])) if config.candidates.include_positive else []
            others = [name for name in members if name not in set(targets)]
            drawn = [others[i] for i in order.choice(len(others), k - len(targets), replace=False)]
            chosen, copies = texts.distinct(chain(targets, drawn, at_random(others, order)), k, part["target_id"])
            found.copies += copies
            _add(found, config, group, chosen, part)
    return found


def _shares(asked: pd.DataFrame, per_set: int, k: int) -> Iterator[pd.DataFrame]:
    """Cut a group's instances into sets of ``per_set`` questions (of at most K: every target needs a place)."""
    step = min(per_set, k)
    for start in range(0, len(asked), step):
        yield asked.iloc[start : start + step]


def _retrieved(config: Config, strategy: str, pool: pd.DataFrame, instances: pd.DataFrame) -> Found:
    """The K best passages of the source; ``include_positive`` gives the last place to a positive not found.

    Where fewer than K are found, passages of the source drawn with the seed follow them.

    With ``questions_per_set`` above 1 a set also takes other questions whose target is already among its candidates, so
    that it stays the first question's own set; every instance is used once.
    """
    k, texts, names = config.candidates.count, Texts(pool), pool["passage_id"].array
    found = Found(texts, texts.count(names))
    if found.pool < k:
        raise _too_small(instances, k, found.pool, "it has")
    ranked, found.wordless = RETRIEVERS[strategy](config, pool)(list(instances["query"]))
    asked = instances.reset_index(drop=True)
    by_target: dict[str, list[int]] = {}
    for place, target in enumerate(asked["target_id"]):
        by_target.setdefault(texts.of(target), []).append(place)
    used: set[int] = set()
    for place, (target, ranking) in enumerate(zip(asked["target_id"], ranked, strict=True)):
        ranking, _ = texts.distinct(ranking, len(ranking), [target])
        found.ranks.append(ranking.index(target) + 1 if target in ranking else None)
        if place in used:
            continue
        chosen, copies = texts.distinct(ranked[place], k, [target])
        found.copies += copies
        if config.candidates.include_positive and target not in chosen:
            chosen = [*chosen[: k - 1], target]
        if len(chosen) < k:
            if target not in chosen:
                used.add(place)
                found.without_positive += 1
                continue
            found.drawn += k - len(chosen)
            strangers = at_random(names, rng(config.candidates.seed, "fill", asked["instance_id"][place]))
            chosen, _ = texts.distinct(chain(chosen, strangers), k)
        others = [i for name in chosen for i in by_target.get(texts.of(name), []) if i not in used and i != place]
        part = [place, *others[: config.candidates.questions_per_set - 1]]
        used.update(part)
        _add(found, config, asked["group"][place], chosen, asked.iloc[part])
    return found


def _add(found: Found, config: Config, group: str, chosen: list[str], asked: pd.DataFrame) -> None:
    """Append a set in shuffled order; instances whose target's text is not in it are dropped and counted."""
    targets = asked["target_id"].map(found.texts.of)
    inside = asked[targets.isin([found.texts.of(name) for name in chosen])]
    found.without_positive += len(asked) - len(inside)
    if inside.empty:
        return
    first = inside["instance_id"].iloc[0]
    order = rng(config.candidates.seed, "shuffle", first).permutation(len(chosen))
    passage_ids = [chosen[i] for i in order]
    place = {found.texts.of(name): i for i, name in enumerate(passage_ids)}
    gold = [place[found.texts.of(target)] for target in inside["target_id"]]
    found.rows.append((f"set-{first}", inside["source"].iloc[0], group, passage_ids, list(inside["instance_id"]), gold))


def _too_small(instances: pd.DataFrame, k: int, pool: int, where: str) -> DreamError:
    return DreamError(
        f"source {instances['source'].iloc[0]}: candidates.count is {k}, but {where} {pool} different passages",
        f"Set candidates.count to {pool} or less, choose another candidates.source, or leave the source out",
    )


def _record(config: Config, source: str, strategy: str, found: Found, instances: int) -> dict[str, Any]:
    k = config.candidates.count
    hits = [rank for rank in found.ranks if rank is not None]
    return {
        "source": source,
        "strategy": strategy,
        "count": k,
        "include_positive": config.candidates.include_positive,
        "pool": found.pool,
        "sets": len(found.rows),
        "instances": sum(len(row[4]) for row in found.rows),
        "instances_given": instances,
        "dropped_in_small_groups": found.in_small_groups,
        "dropped_without_positive": found.without_positive,
        "copies_dropped": found.copies,
        "filled_at_random": found.drawn,
        "wordless_queries": found.wordless,
        "positive_found": round(sum(rank <= k for rank in hits) / len(found.ranks), 4) if found.ranks else None,
        "positive_found_at_100": round(len(hits) / len(found.ranks), 4) if found.ranks else None,
        "positive_mean_rank": round(float(np.mean(hits)), 3) if hits else None,
        "positive_median_rank": float(np.median(hits)) if hits else None,
        "positive_first": round(sum(rank == 1 for rank in hits) / len(found.ranks), 4) if found.ranks else None,
    }
