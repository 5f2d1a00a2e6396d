"""Statistics on synthetic data with a known truth: coverage, error rate, pairing, nesting."""

from __future__ import annotations

import gc

import numpy as np
import pandas as pd
import pytest

from dream.evaluation import stats

RESAMPLES = 400


def ndcg_like(rng, queries):
    """Bounded, skewed, many zeros: what per-query nDCG@10 looks like. Mean 0.7 · 0.5 = 0.35."""
    return rng.beta(2, 2, queries) * (rng.random(queries) < 0.7)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for trial in range(trials):
        tasks = [ndcg_like(rng, 120), ndcg_like(rng, 60)]
        low, high = stats.interval(tasks, RESAMPLES, 0.95, seed=trial)[1:]
        covered += low <= 0.35 <= high
    assert 0.92 <= covered / trials <= 0.975  # 0.95, less a little for the percentile interval; 3 binomial sd = 0.033


def test_randomisation_rejects_a_true_null_at_its_level_and_finds_a_difference():
    rng, false, found, trials = np.random.default_rng(1), 0, 0, 400
    for trial in range(trials):
        shared = [ndcg_like(rng, 80), ndcg_like(rng, 40)]
        ours = [values + rng.normal(0, 0.1, len(values)) for values in shared]
        theirs = [values + rng.normal(0, 0.1, len(values)) for values in shared]
        gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
        false += stats.randomisation(gaps, RESAMPLES, seed=trial) <= 0.05
        found += stats.randomisation([g + 0.05 for g in gaps], RESAMPLES, seed=trial) <= 0.05
    assert 0.02 <= false / trials <= 0.085
    assert found / trials > 0.9


def test_intervals_of_the_difference_cover_and_agree_with_scipy():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(2)
    ours, theirs = ndcg_like(rng, 200), ndcg_like(rng, 200)
    found = stats.paired([ours], [theirs], resamples=10_000)
    expected = bootstrap((ours - theirs,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx((ours - theirs).mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=2e-3)
    bca = bootstrap((ours - theirs,), np.mean, n_resamples=10_000, method="BCa", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(bca), abs=4e-3), "BCa would say the same"


def test_p_value_agrees_with_scipys_permutation_test():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(3)
    gap = rng.normal(0.03, 0.2, 60)
    expected = permutation_test((gap,), np.mean, permutation_type="samples", n_resamples=10_000, rng=0).pvalue
    assert stats.randomisation([gap], 10_000) == pytest.approx(expected, abs=0.02)


def test_every_task_weighs_the_same_whatever_its_size():
    big, small = np.full(1000, 0.2), np.array([0.8, 0.8])
    assert stats.interval([big, small], 50).value == pytest.approx(0.5)
    # The small task brings the uncertainty: pooling its queries with the others would hide it.
    rng = np.random.default_rng(0)
    nested = stats.interval([big, rng.random(5)], 2000)
    assert nested.high - nested.low > 0.1


def test_same_seed_same_numbers_and_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = [rng.random(50), rng.random(30)], [rng.random(50), rng.random(30)]
    first = stats.paired(a, b, 500, seed=4)
    assert stats.paired(a, b, 500, seed=4) == first != stats.paired(a, b, 500, seed=5)
    monkeypatch.setattr(stats, "BLOCK", 1000)
    assert tuple(stats.paired(a, b, 500, seed=4)) == pytest.approx(tuple(first))


def test_no_difference_and_a_certain_one():
    same = np.random.default_rng(0).random(30)
    assert stats.paired([same], [same], 200) == stats.Difference(0.0, 0.0, 0.0, 1.0)
    assert stats.paired([same + 1], [same], 1000).p == pytest.approx(1 / 1001)


def test_holm_keeps_the_family_error_below_the_level(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels collects garbage in every call: 0.1 s each
    rng, trials, wrong = np.random.default_rng(0), 1000, 0
    for _ in range(trials):
        wrong += min(stats.holm(rng.random(8))) <= 0.05
    assert wrong / trials <= 0.07
    assert stats.holm([]) == []


def rows(system, seed, values, task="t"):
    return pd.DataFrame(
        {
            "task": task,
            "system": system,
            "seed": seed,
            "query_id": [f"q{i}" for i in range(len(values))],
            "ndcg_at_10": values,
        }
    )


def test_seeds_are_averaged_per_query_before_pairing():
    scores = pd.concat(
        [
            rows("dream", 0, [0.0, 1.0]),
            rows("dream", 1, [1.0, 1.0]),
            rows("bm25", None, [0.5, 0.2]),
            rows("bm25", None, [1.0], "u"),
        ]
    )
    aligned = stats.align(scores.sample(frac=1, random_state=0), ["dream", "bm25"])
    assert [v.tolist() for v in aligned["dream"]] == [[0.5, 1.0]] and [v.tolist() for v in aligned["bm25"]] == [
        [0.5, 0.2]
    ]
    spread = stats.over_seeds(scores).set_index(["system", "task"])
    assert spread.loc[("dream", "t"), "mean"] == pytest.approx(0.75)
    assert spread.loc[("dream", "t"), "std"] == pytest.approx(np.std([0.5, 1.0], ddof=1))
    assert spread.loc[("bm25", "t"), "count"] == 1 and np.isnan(spread.loc[("bm25", "t"), "std"])
