"""Uncertainty of nDCG@10: intervals, paired tests, correction over a table.

The unit is the query. A system trained with several seeds has, per query, the mean over its seeds; then systems are
paired query by query. So an interval says how much a number would move with other queries of the same kind. How much
it moves with another seed is a different question, answered by :func:`over_seeds`.

A score over several tasks is the plain mean of the tasks' means, whatever their sizes; queries are nested in tasks, so
they are resampled (and their signs flipped) inside their task. A single task is a list of one array.

* Interval: percentile bootstrap over queries. Per-query nDCG is bounded and skewed; the mean of 100 queries and more is
  close to normal, where the percentile and BCa intervals agree, and the percentile one needs no jackknife per task.
* p-value: two-sided sign-flip randomisation test. If two systems are exchangeable, each query's difference is as likely
  to have the other sign. ``p = (1 + #{|flipped mean| ≥ |observed mean|}) / (1 + resamples)``, which is never 0.
* Correction: Holm over the comparisons of a table (statsmodels).

Smucker, Allan and Carterette (2007) compare these tests for retrieval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

Tasks = Sequence[np.ndarray]  # one array of per-query values for each task
BLOCK = 4_000_000  # random numbers held at once


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference of means, its confidence interval and the randomisation test's two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def mean(tasks: Tasks) -> float:
    """Plain mean over tasks of the mean over queries.

    >>> mean([np.array([0.0, 1.0]), np.array([1.0])])
    0.75
    """
    return float(np.mean([np.mean(values) for values in tasks]))


def interval(tasks: Tasks, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean over tasks and its percentile bootstrap interval.

    >>> interval([np.array([0.5, 0.5])], resamples=100)
    Interval(value=0.5, low=0.5, high=0.5)
    """
    rng, drawn = np.random.default_rng(seed), np.zeros(resamples)
    for values in tasks:
        values = np.asarray(values, np.float64)
        for rows in _blocks(resamples, len(values)):
            picks = rng.integers(0, len(values), (rows.stop - rows.start, len(values)), dtype=np.int32)
            drawn[rows] += values[picks].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn / len(tasks), [tail, 1 - tail])
    return Interval(mean(tasks), float(low), float(high))


def randomisation(gaps: Tasks, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip test of "the mean over tasks of these paired differences is zero".

    >>> randomisation([np.zeros(10)], resamples=100)
    1.0
    """
    rng, flipped = np.random.default_rng([seed, 1]), np.zeros(resamples)
    for gap in gaps:
        gap = np.asarray(gap, np.float64)
        for rows in _blocks(resamples, len(gap)):
            signs = rng.integers(0, 2, (rows.stop - rows.start, len(gap)), dtype=np.int32) * 2.0 - 1.0
            flipped[rows] += signs @ gap / len(gap)
    # Means that are equal on paper differ in their last bits: count them as reached.
    reached = np.abs(flipped / len(gaps)) >= abs(mean(gaps)) - 1e-12
    return float((1 + reached.sum()) / (1 + resamples))


def paired(ours: Tasks, theirs: Tasks, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Difference:
    """Compare two systems on the same queries, ``ours − theirs``.

    Args:
        ours, theirs: per task, values of the same queries in the same order.
        resamples: bootstrap resamples and random sign vectors.
        confidence: of the interval.
        seed: of both draws.
    """
    gaps = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(ours, theirs, strict=True)]
    return Difference(*interval(gaps, resamples, confidence, seed), randomisation(gaps, resamples, seed))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding in the table stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="holm")[1]] if len(p) else []


def align(scores: pd.DataFrame, systems: Sequence[str], metric: str = "ndcg_at_10") -> dict[str, list[np.ndarray]]:
    """Per-query values of systems, averaged over seeds and paired: the same queries in the same order.

    Args:
        scores: rows of evaluation cells: ``task, system, seed, query_id`` and the metric.
        systems: what to compare; only queries that all of them answered are kept.

    Returns:
        system → one array per task (tasks sorted by name, queries by id).
    """
    means = (
        scores[scores["system"].isin(systems)].groupby(["task", "query_id", "system"])[metric].mean().unstack("system")
    )
    means = means.dropna().sort_index()
    return {s: [task[s].to_numpy() for _, task in means.groupby(level="task", sort=True)] for s in systems}


def over_seeds(scores: pd.DataFrame, metric: str = "ndcg_at_10") -> pd.DataFrame:
    """Mean and standard deviation (n − 1) over seeds of each system's mean on each task; one seed has no deviation."""
    runs = scores.fillna({"seed": -1}).groupby(["system", "task", "seed"])[metric].mean()
    return runs.groupby(["system", "task"]).agg(["mean", "std", "count"]).reset_index()


def _blocks(resamples: int, width: int) -> Iterator[slice]:
    """Cut resamples so that a block of them × ``width`` numbers stays small."""
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))
