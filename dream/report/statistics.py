"""Uncertainty as the tables need it: stratified over tasks, on values already averaged over seeds.

A single task is a list of one array, a mean over tasks a list of several: every task weighs the same, whatever its number
of queries, and queries are resampled inside their task. See :func:`difference` for the two tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 4_000_000  # drawn numbers held at once


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference with its bootstrap interval and two-sided randomisation p-value."""

    value: float
    low: float
    high: float
    p: float


def interval(tasks: Sequence[np.ndarray], resamples: int, confidence: float, seed: int) -> Interval:
    """Mean over tasks of the mean over queries, with its percentile bootstrap interval.

    >>> interval([np.array([0.5, 0.5])], resamples=100, confidence=0.95, seed=0)
    Interval(value=0.5, low=0.5, high=0.5)
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(tasks, resamples, seed), [tail, 1 - tail])
    return Interval(_mean(tasks), float(low), float(high))


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], resamples: int, confidence: float, seed: int) -> Difference:
    """Paired comparison of two systems on the same queries.

    The interval is a percentile bootstrap over queries. The p-value is that of the sign-flip randomisation test: under
    the hypothesis that the systems are exchangeable, each query's difference is as likely to have the other sign;
    ``p = (1 + #{|mean of flipped| ≥ |observed|}) / (1 + resamples)``.
    """
    gaps = [np.asarray(a) - np.asarray(b) for a, b in zip(ours, theirs, strict=True)]
    value, low, high = interval(gaps, resamples, confidence, seed)
    rng = np.random.default_rng([seed, 1])
    flipped = np.zeros(resamples)
    for gap in gaps:
        for start, stop in _chunks(resamples, len(gap)):
            signs = rng.integers(0, 2, (stop - start, len(gap)), dtype=np.int8) * 2.0 - 1.0
            flipped[start:stop] += signs @ gap / len(gap)
    extreme = int((np.abs(flipped / len(gaps)) >= abs(value) - 1e-12).sum())
    return Difference(value, low, high, (1 + extreme) / (1 + resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def _mean(tasks: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.mean(values) for values in tasks]))


def _chunks(total: int, width: int) -> list[tuple[int, int]]:
    step = max(1, CHUNK // max(1, width))
    return [(start, min(start + step, total)) for start in range(0, total, step)]


def _resampled_means(tasks: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    rng, means = np.random.default_rng([seed, 0]), np.zeros(resamples)
    for values in map(np.asarray, tasks):
        for start, stop in _chunks(resamples, len(values)):
            draws = rng.integers(0, len(values), (stop - start, len(values)), dtype=np.int32)
            means[start:stop] += values[draws].mean(axis=1)
    return means / len(tasks)
