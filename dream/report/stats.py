"""Uncertainty of nDCG@10 over queries and seeds: intervals, tests of a difference, correction over a table.

A system that is not trained here has one array ``[queries]`` a task; a trained one has ``[seeds, queries]``, a row for each
training run. A score over several tasks is the plain mean of the tasks' means, whatever their sizes (``weights`` for a task
that is itself a mean over parts); queries are nested in tasks, so they are drawn inside their task.

Two things could have come out otherwise, and both are in every interval and test of a trained system:

* Other queries. Interval: percentile bootstrap over queries, the same drawn queries for both systems of a difference. Test:
  two-sided sign-flip randomisation: if two systems are exchangeable, each query's difference is as likely to have the other
  sign (Smucker, Allan and Carterette 2007 compare such tests for retrieval).
* Other seeds. The mean of n runs has the standard error sd / √n, sd over the runs' means, and n − 1 degrees of freedom; two
  trained systems have the root of the sum of squares and Welch's degrees of freedom (Welch 1947). A draw of Student's t
  times that error is added to every draw over queries. With three runs a plain bootstrap of runs would be too narrow by
  √(2/3) and would know nothing of t's tails.

A run's noise on single queries is in the spread of the runs' means already. What of it the average over runs still holds is
taken out of the draws over queries (the residual mean square of the table runs × queries), so that it counts once.

Runs of two systems are taken as independent, also where their seed is the same number: a seed fixes the order of the sets
and the first LoRA weights, which can only make two systems alike, and then the interval is too wide, not too narrow. Three
pairs are too few to show how alike.

Two runs say too little about their spread (t with one degree of freedom reaches 12.7 errors): with fewer than
:data:`MIN_SEEDS` the interval is over queries alone, seeds averaged, and nothing is tested. docs/evaluation.md has how often
the intervals hold the truth, from ``python -m benchmarks.coverage``.

``p = (1 + #{|draw| ≥ |observed|}) / (1 + resamples)``, which is never 0. Correction: Holm (statsmodels) over the tests that
the caller names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Tasks = Sequence[np.ndarray]  # per task [queries], or [seeds, queries] of a trained system
Weights = Sequence[float] | None  # of the tasks; None: all the same
MIN_SEEDS = 3
BLOCK = 4_000_000  # random numbers held at once


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference of means, its confidence interval and two-sided p-value (None: not tested)."""

    value: float
    low: float
    high: float
    p: float | None


class Runs(NamedTuple):
    """What training runs add to draws over queries."""

    error: float  # standard error of the mean over runs
    freedom: float  # its degrees of freedom
    kept: float  # factor on the draws over queries: without the noise that the error holds already


def mean(tasks: Tasks, weights: Weights = None) -> float:
    """Mean over tasks of the mean over queries (and seeds).

    >>> mean([np.array([0.0, 1.0]), np.array([1.0])])
    0.75
    """
    return float(np.average([np.mean(values) for values in tasks], weights=weights))


def seed_means(tasks: Tasks, weights: Weights = None) -> list[float]:
    """The mean of every training run; empty for a system that is not trained.

    >>> seed_means([np.array([[0.0, 1.0], [1.0, 1.0]])]), seed_means([np.array([0.0, 1.0])])
    ([0.5, 1.0], [])
    """
    if tasks[0].ndim == 1:
        return []
    return [float(value) for value in np.average([runs.mean(axis=1) for runs in tasks], axis=0, weights=weights)]


def testable(*systems: Tasks) -> bool:
    """Whether every system is either not trained or trained with at least :data:`MIN_SEEDS` seeds."""
    return all(tasks[0].ndim == 1 or len(tasks[0]) >= MIN_SEEDS for tasks in systems)


def interval(tasks: Tasks, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0, weights: Weights = None) -> Interval:
    """The mean over tasks of scores from 0 to 1 and its interval: over queries, and over seeds where there are enough of them.

    Seeds far apart would take it beyond what a score can be: it ends there.

    >>> interval([np.array([0.5, 0.5])], resamples=100)
    Interval(value=0.5, low=0.5, high=0.5)
    """
    values = _over_runs(tasks)
    found = _interval(values, _runs([tasks], values, weights), resamples, confidence, seed, weights)
    return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))


def paired(
    ours: Tasks, theirs: Tasks, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0, weights: Weights = None
) -> Difference:
    """Compare two systems on the same queries, ``ours − theirs``.

    Args:
        ours, theirs: per task, values of the same queries in the same order; each with seeds of its own or without.
        resamples: draws of the interval and of the test.
        confidence: of the interval.
        seed: of all draws.
        weights: of the tasks.
    """
    gaps = [a - b for a, b in zip(_over_runs(ours), _over_runs(theirs), strict=True)]
    runs = _runs([ours, theirs], gaps, weights)
    p = randomisation(gaps, resamples, seed, weights, runs) if testable(ours, theirs) else None
    return Difference(*_interval(gaps, runs, resamples, confidence, seed, weights), p)


def randomisation(
    gaps: Tasks, resamples: int = 10_000, seed: int = 0, weights: Weights = None, runs: Runs | None = None
) -> float:
    """Two-sided p-value of "the mean over tasks of these paired differences is zero".

    >>> randomisation([np.zeros(10)], resamples=100)
    1.0
    """
    rng, share = np.random.default_rng([seed, 1]), _shares(gaps, weights)
    flipped = np.zeros(resamples)
    for gap, weight in zip(gaps, share, strict=True):
        for rows in _blocks(resamples, len(gap)):
            signs = rng.integers(0, 2, (rows.stop - rows.start, len(gap)), dtype=np.int32) * 2.0 - 1.0
            flipped[rows] += weight * (signs @ gap / len(gap))
    if runs is not None:
        flipped = runs.kept * flipped + _of_runs(runs, resamples, seed)
    # Means that are equal on paper differ in their last bits: count them as reached.
    reached = np.abs(flipped) >= abs(mean(gaps, weights)) - 1e-12
    return float((1 + reached.sum()) / (1 + resamples))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding among these tests stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="holm")[1]]


def _interval(values: Tasks, runs: Runs | None, resamples: int, confidence: float, seed: int, weights: Weights) -> Interval:
    rng, drawn = np.random.default_rng(seed), np.zeros(resamples)
    for task, weight in zip(values, _shares(values, weights), strict=True):
        for rows in _blocks(resamples, len(task)):
            picks = rng.integers(0, len(task), (rows.stop - rows.start, len(task)), dtype=np.int32)
            drawn[rows] += weight * task[picks].mean(axis=1)
    centre = mean(values, weights)
    if runs is not None:
        drawn = centre + runs.kept * (drawn - centre) + _of_runs(runs, resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(centre, float(low), float(high))


def _over_runs(tasks: Tasks) -> list[np.ndarray]:
    """Per task the values of its queries, averaged over seeds."""
    return [np.atleast_2d(values).mean(axis=0) for values in tasks]


def _runs(systems: Sequence[Tasks], gaps: Tasks, weights: Weights) -> Runs | None:
    """What the seeds of these systems add to draws over ``gaps``; None where no seed counts."""
    trained = [tasks for tasks in systems if tasks[0].ndim == 2]
    if not trained or not testable(*systems):
        return None
    squared = np.array([np.var(seed_means(tasks, weights), ddof=1) / len(tasks[0]) for tasks in trained])
    freedoms = np.array([len(tasks[0]) - 1 for tasks in trained])
    total = squared.sum()
    freedom = total**2 / (squared**2 / freedoms).sum() if total > 0 else 1.0
    share = _shares(gaps, weights)
    among_queries = sum(w**2 * gap.var(ddof=1) / len(gap) for w, gap in zip(share, gaps, strict=True) if len(gap) > 1)
    noise = sum(w**2 * _residual(runs) for tasks in trained for w, runs in zip(share, tasks, strict=True))
    kept = np.sqrt(max(0.0, 1 - noise / among_queries)) if among_queries > 0 else 1.0
    return Runs(float(np.sqrt(total)), float(freedom), float(kept))


def _residual(runs: np.ndarray) -> float:
    """Variance that noise of single runs on single queries leaves in the mean of ``runs``, [seeds, queries]."""
    rest = runs - runs.mean(axis=0) - runs.mean(axis=1, keepdims=True) + runs.mean()
    return float((rest**2).sum() / max(1, (runs.shape[0] - 1) * (runs.shape[1] - 1)) / runs.size)


def _of_runs(runs: Runs, resamples: int, seed: int) -> np.ndarray:
    """Deviations of the mean over runs: every quantile of Student's t once, in a random order, so that chance tilts no tail."""
    from scipy.stats import t

    quantiles = t.ppf((np.arange(resamples) + 0.5) / resamples, runs.freedom)
    return runs.error * np.random.default_rng([seed, 2]).permutation(quantiles)


def _shares(tasks: Tasks, weights: Weights) -> np.ndarray:
    """Weights that sum to 1."""
    found = np.ones(len(tasks)) if weights is None else np.asarray(weights)
    return found / found.sum()


def _blocks(resamples: int, width: int) -> Iterator[slice]:
    """Cut resamples so that a block of them × ``width`` numbers stays small."""
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))
