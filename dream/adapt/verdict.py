"""The rules of adapting to own documents: which setting is chosen, and one of three words for it.

Settings are compared by nDCG@10 on generated questions about documents that no run trains on: the mean over tasks, seeds and
queries. The choice is the best of the untouched encoder and those settings whose paired interval against it, over queries and
seeds, lies above zero, and whose p stays below 1 − ``report.confidence`` by Holm over all settings that were tried: of many
that change nothing, some look better. So the untouched encoder wins every tie, and against everything that is not shown to be
better; of equals what trains nothing comes first, then the smaller strength and the earlier stop. Own test queries take no part
in the choice.

* ``not enough evidence``: fewer than three seeds, or fewer held-out questions than ``adapt.queries``;
* ``keep your model``: the choice trains nothing (the untouched encoder, BM25 or both fused), or it is trained and does worse than
  the untouched encoder on own test queries;
* ``use it``: the choice is trained, and no own test query speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from dream.report import stats
from dream.report.tables.render import number, signed

if TYPE_CHECKING:
    from dream.config.sections import Report
    from dream.report.stats import Difference, Tasks

EQUAL = 1e-9  # means that are equal on paper differ in their last bits
USE, KEEP, OPEN = "use it", "keep your model", "not enough evidence"


class Setting(NamedTuple):
    """A system that trains nothing, or an objective after some of its pairs (None: all) at a strength of its adapter."""

    system: str
    pairs: int | None = None
    strength: float | None = None

    @property
    def trained(self) -> bool:
        """Whether it is an adapter of the encoder."""
        return self.strength is not None

    def said(self) -> str:
        """The setting in words.

        >>> Setting("dream", 96, 0.5).said(), Setting("bm25").said()
        ('dream after 96 pairs at strength 0.5', 'bm25')
        """
        after = "all" if self.pairs is None else self.pairs
        return f"{self.system} after {after} pairs at strength {self.strength:g}" if self.trained else self.system


UNTOUCHED, LEXICAL, FUSED = Setting("untrained"), Setting("bm25"), Setting("hybrid")
FREE = (UNTOUCHED, LEXICAL, FUSED)  # train nothing
WORDS = {UNTOUCHED: "your model as it is", LEXICAL: "BM25 alone", FUSED: "BM25 and your model fused (hybrid)"}


class Choice(NamedTuple):
    """What is chosen, the trained setting that is shown (the choice itself, else the one that does best), the change of every
    setting against the untouched encoder, and the best setting of every objective, the one that is shown first."""

    best: Setting
    trained: Setting
    changes: dict[Setting, Difference]
    each: list[Setting]


def compare(scored: Mapping[Setting, Tasks], report: Report) -> dict[Setting, Difference]:
    """Every setting's paired difference from the untouched encoder, with its interval over queries and seeds."""
    old = scored[UNTOUCHED]
    draws = (report.resamples, report.confidence, report.seed)
    return {setting: stats.paired(values, old, *draws) for setting, values in scored.items() if setting != UNTOUCHED}


def choose(scored: Mapping[Setting, Tasks], report: Report) -> Choice:
    """Choose among settings by their scores on held-out questions.

    Args:
        scored: per setting and task, nDCG@10 ``[seeds, queries]`` where it is trained, else ``[queries]``.
        report: resamples, confidence and seed.
    """
    ordered = sorted(scored, key=lambda s: (FREE.index(s) if s in FREE else len(FREE), s.strength or 0, s.pairs or float("inf")))
    changes = compare(scored, report)
    shown = _shown(changes, 1 - report.confidence)
    better = [setting for setting in ordered if setting in shown]

    def mean(setting: Setting) -> float:
        return round(stats.mean(scored[setting]), 9)

    best = max([UNTOUCHED, *better], key=mean)  # of equals the first
    ranked = sorted((one for one in ordered if one.trained), key=mean, reverse=True)  # stable
    trained = best if best.trained else ranked[0]
    return Choice(best, trained, changes, first_of_each([trained, *ranked]))


def first_of_each(settings: Iterable[Setting]) -> list[Setting]:
    """The first setting of every system, in their order.

    >>> [one.said() for one in first_of_each([Setting("dream"), Setting("infonce"), Setting("dream", 48)])]
    ['dream', 'infonce']
    """
    found: dict[str, Setting] = {}
    for one in settings:
        found.setdefault(one.system, one)
    return list(found.values())


def _shown(changes: Mapping[Setting, Difference], level: float) -> set[Setting]:
    """Those that are shown to be better: interval above zero, and p by Holm over all that were tried below the level."""
    tested = [setting for setting, change in changes.items() if change.p is not None]
    p = dict(zip(tested, stats.holm([changes[setting].p or 0.0 for setting in tested]), strict=True))
    return {setting for setting, change in changes.items() if change.low > EQUAL and p.get(setting, 0.0) < level}


def decide(choice: Choice, seeds: int, questions: int, least: int, test: Mapping[Setting, Difference]) -> tuple[str, list[str]]:
    """The word, and why, a sentence each.

    Args:
        choice: what :func:`choose` gave.
        seeds: training runs of every objective.
        questions: held-out questions.
        least: of them, for any word but ``not enough evidence``.
        test: the settings' changes on own test queries; empty where there are none.
    """
    best, trained, changes, _ = choice
    if short := too_few(seeds, questions, least):
        return OPEN, short
    over = f"on {questions} held-out questions, {seeds} seeds"
    if best == UNTOUCHED:
        tried = sum(setting.trained for setting in changes)
        return KEEP, [f"No setting is shown to be better than your model {over}: of {tried} trained ones the best, "
                      f"{trained.said()}, changes nDCG@10 by {change(changes[trained])}"]  # fmt: skip
    why = [f"{WORDS.get(best, best.said())} is best {over}: nDCG@10 {change(changes[best])} against your model as it is"]
    if best in test:
        why.append(f"On your own test queries, which took no part in the choice, it changes by {change(test[best])}")
    if not best.trained:
        return KEEP, [*why, f"It trains nothing. Of the trained settings the best, {trained.said()}, changes it by "
                      f"{change(changes[trained])}"]  # fmt: skip
    return (KEEP if best in test and test[best].value < 0 else USE), why


def too_few(seeds: int, questions: int, least: int) -> list[str]:
    """What is missing for a word: seeds, questions or nothing."""
    found = []
    if seeds < stats.MIN_SEEDS:
        found.append(f"{seeds} seed{'s' * (seeds != 1)}, and {stats.MIN_SEEDS} are needed to know their spread")
    if questions < least:
        found.append(f"{questions} held-out question{'s' * (questions != 1)}, and adapt.queries asks for {least}")
    return found


def change(one: Difference) -> str:
    """A difference with its interval."""
    return f"{signed(one.value)} [{number(one.low)}, {number(one.high)}]"
