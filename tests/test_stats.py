"""Statistics on synthetic data with a known truth: coverage, error rate, pairing, nesting, seeds."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import coverage
from dream.report import stats

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


# ------------------------------------------------------------------------------------------------------------ seeds


def runs(rng, seeds, queries=(80, 40), sd=0.0, noise=0.0):
    """A trained system's values: levels of the queries, effects of the seeds, noise of a run on a query."""
    effects = sd * rng.normal(size=seeds)
    return [ndcg_like(rng, count) + effects[:, None] + rng.normal(0, noise, (seeds, count)) for count in queries]


@pytest.mark.parametrize("sd", [0.0, 0.05])
def test_intervals_over_three_seeds_hold_the_truth_and_tests_find_nothing(sd):
    """The full table is docs/evaluation.md's; queries alone hold the truth in half of the trials where seeds lie apart."""
    found = coverage.rates(3, sd, trials=250, resamples=200, first=1)
    for name in ("mean", "to a reference", "of two trained", "seeds alike"):
        assert found[name] >= 0.95 - 3 * 0.0138, name  # 3 binomial sd
    for name in ("false: reference", "false: two"):
        assert found[name] <= 0.05 + 3 * 0.0138, name
    assert (found["queries only"] < 0.6) == (sd > 0)


def test_the_document_shows_the_table_of_its_command():
    root = Path(__file__).resolve().parent.parent
    assert (root / coverage.FILE).read_text(encoding="utf-8") in (root / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_queries_to_draw_it_is_students_and_welchs_test(seeds):
    """Every query alike and many of them: the runs' means are all there is."""
    from scipy import stats as theirs

    rng = np.random.default_rng(seeds)
    ours, other = rng.normal(0.55, 0.03, seeds), rng.normal(0.5, 0.01, seeds + 1)
    wide = [[np.repeat(means[:, None], 1500, axis=1)] for means in (ours, other)]
    found = stats.interval(wide[0], 20_000)
    half = theirs.t.ppf(0.975, seeds - 1) * ours.std(ddof=1) / np.sqrt(seeds)
    assert (found.low, found.high) == pytest.approx((ours.mean() - half, ours.mean() + half), abs=0.06 * half)
    fixed = stats.paired(wide[0], [np.full(1500, 0.5)], 20_000)
    assert fixed.p == pytest.approx(theirs.ttest_1samp(ours, 0.5).pvalue, abs=0.01)
    two = stats.paired(*wide, 20_000)
    assert two.p == pytest.approx(theirs.ttest_ind(ours, other, equal_var=False).pvalue, abs=0.01)


def test_the_interval_of_a_score_ends_where_scores_end():
    """Two of three runs that failed: Student's t with two degrees of freedom goes far beyond 0 and 1."""
    runs = np.repeat([[0.03], [0.99], [0.02]], 50, axis=1)
    found = stats.interval([runs], 2000)
    assert (found.low, found.high) == (0.0, 1.0) and found.value == pytest.approx(np.mean([0.03, 0.99, 0.02]))


def test_equal_runs_are_one_run():
    one = runs(np.random.default_rng(0), 1)
    same, single = [np.repeat(task, 3, axis=0) for task in one], [task[0] for task in one]
    reference = [np.full(80, 0.3), np.full(40, 0.3)]
    assert tuple(stats.interval(same, 300)) == pytest.approx(tuple(stats.interval(single, 300)))
    assert tuple(stats.paired(same, reference, 300)) == pytest.approx(tuple(stats.paired(single, reference, 300)))


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_averaged_and_not_tested(seeds):
    rng = np.random.default_rng(0)
    few, three, fixed = runs(rng, seeds, sd=0.1), runs(rng, 3), [task[0] for task in runs(rng, 1)]
    averaged = [task.mean(axis=0) for task in few]
    assert stats.interval(few, 200) == stats.interval(averaged, 200)
    assert stats.paired(few, fixed, 200)[:3] == stats.paired(averaged, fixed, 200)[:3]
    assert stats.paired(few, fixed, 200).p is None and stats.paired(three, few, 200).p is None
    assert stats.paired(three, fixed, 200).p is not None and stats.paired(averaged, fixed, 200).p is not None


def test_the_noise_of_runs_counts_once():
    """All is noise of runs: the seeds' part holds it whole. None is: the draws over queries stay as they are."""
    from scipy.stats import ttest_1samp

    rng, kept = np.random.default_rng(0), []
    for _ in range(20):
        noise = [rng.normal(0, 0.1, (3, 200))]
        kept.append(stats._runs([noise], [noise[0].mean(axis=0)], None).kept ** 2)
        if kept[-1] == 0:  # nothing is left for the queries: Student's test of the three means
            found, means = stats.paired(noise, [np.zeros(200)], 2000), noise[0].mean(axis=1)
            assert found.p == pytest.approx(ttest_1samp(means, 0).pvalue, abs=0.002)
            assert found.high - found.low == pytest.approx(2 * 4.303 * means.std(ddof=1) / np.sqrt(3), rel=0.03)
    assert np.mean(kept) < 0.15 and 0 in kept
    quiet = runs(rng, 3, sd=0.1)
    assert stats._runs([quiet], [task.mean(axis=0) for task in quiet], None).kept == pytest.approx(1)


@given(st.integers(3, 6), st.integers(0, 4), st.integers(0, 1000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_difference_knows_no_order_and_moves_with_its_values(seeds, others, world, heavy):
    rng = np.random.default_rng(world)
    ours = runs(rng, seeds, (12, 7), 0.05, 0.1)
    theirs = runs(rng, others, (12, 7), 0.05, 0.1) if others else [task[0] for task in runs(rng, 1, (12, 7))]
    weights = [3.0, 1.0] if heavy else None
    found, turned = (stats.paired(*pair, 2000, weights=weights) for pair in ((ours, theirs), (theirs, ours)))
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(-turned.value) and found.p == pytest.approx(turned.p, abs=0.1)  # 6 sd of 2,000 draws
    moved = stats.paired([task + 1 for task in ours], theirs, 2000, weights=weights)
    assert moved[:3] == pytest.approx(tuple(end + 1 for end in found[:3]))
    shuffled = stats.paired([task[::-1] for task in ours], theirs, 2000, weights=weights)
    assert shuffled[:3] == pytest.approx(tuple(found[:3])) and shuffled.p == (found.p and pytest.approx(found.p))
    assert np.average(stats.seed_means(ours, weights)) == pytest.approx(stats.mean(ours, weights))


def test_weights_are_shares_of_the_mean():
    a, b = np.full(5, 0.2), np.full(50, 0.8)
    assert stats.interval([a, b], 50, weights=[3, 1]).value == pytest.approx(0.35)
    assert stats.interval([a, a, b], 50, weights=[1, 1, 2]) == pytest.approx(stats.interval([a, b], 50))


# ------------------------------------------------------------------------------------------------------- written out


def drawn_means(seed, gaps, shares, resamples, flip):
    """Means over tasks with queries drawn again, or (``flip``) with random signs."""
    rng, drawn = np.random.default_rng(seed), np.zeros(resamples)
    for gap, share in zip(gaps, shares, strict=True):
        numbers = rng.integers(0, 2 if flip else len(gap), (resamples, len(gap)), dtype=np.int32)
        drawn += share * (gap * (2 * numbers - 1) if flip else gap[numbers]).mean(axis=1)
    return drawn


@pytest.mark.parametrize("weights", [None, [3, 1]])
def test_a_difference_of_trained_systems_written_out(weights):
    """Draws of queries and of runs with their seeds, weights everywhere: value, ends and p-value to the last digits."""
    from scipy.stats import t

    rng, seed, resamples = np.random.default_rng(7), 5, 300
    levels = [ndcg_like(rng, 6), ndcg_like(rng, 9)]
    effects = np.array([[-0.1], [0.1], [-0.05], [0.15]])
    ours = [level + effects + rng.normal(0, sd, (4, len(level))) for level, sd in zip(levels, (0.1, 0.2), strict=True)]
    theirs = [level * shrunk + rng.normal(0, 0.1, (3, len(level))) for level, shrunk in zip(levels, (1.0, 0.8), strict=True)]
    share = np.array([0.5, 0.5] if weights is None else [0.75, 0.25])
    gaps = [a.mean(0) - b.mean(0) for a, b in zip(ours, theirs, strict=True)]
    value = sum(w * gap.mean() for w, gap in zip(share, gaps, strict=True))
    squared, freedoms, noise = [], [], 0.0
    for system in (ours, theirs):
        means = [sum(w * task[i].mean() for w, task in zip(share, system, strict=True)) for i in range(len(system[0]))]
        squared.append(np.std(means, ddof=1) ** 2 / len(means))
        freedoms.append(len(means) - 1)
        noise += sum(w**2 * residual(task) for w, task in zip(share, system, strict=True))
    among = sum(w**2 * np.std(gap, ddof=1) ** 2 / len(gap) for w, gap in zip(share, gaps, strict=True))
    kept = np.sqrt(1 - noise / among)
    freedom = sum(squared) ** 2 / sum(v**2 / f for v, f in zip(squared, freedoms, strict=True))
    assert 0.3 < kept < 0.99 and 2 < freedom < 5
    quantiles = np.array([t.ppf((i + 0.5) / resamples, freedom) for i in range(resamples)])
    of_runs = np.sqrt(sum(squared)) * np.random.default_rng([seed, 2]).permutation(quantiles)
    drawn = drawn_means(seed, gaps, share, resamples, flip=False)
    ends = np.quantile(value + kept * (drawn - value) + of_runs, [0.05, 0.95])
    flipped = kept * drawn_means([seed, 1], gaps, share, resamples, flip=True) + of_runs
    p = (1 + sum(abs(x) >= abs(value) for x in flipped)) / (1 + resamples)
    found = stats.paired(ours, theirs, resamples, 0.9, seed, weights)
    assert tuple(found) == pytest.approx((value, *ends, p), abs=1e-12) and 0.01 < p < 0.99


def residual(table):
    """Mean square of what rows and columns do not explain, over the number of cells."""
    seeds, queries = table.shape
    rest = [table[i, k] - table[:, k].mean() - table[i].mean() + table.mean() for i in range(seeds) for k in range(queries)]
    return sum(x**2 for x in rest) / ((seeds - 1) * (queries - 1)) / (seeds * queries)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (3, 4), (5, 9)])
def test_the_noise_left_in_a_mean_over_runs_is_the_residual_of_the_table(shape):
    table = np.random.default_rng(sum(shape)).random(shape)
    assert stats._residual(table) == pytest.approx(residual(table), rel=1e-9)


def test_one_query_has_no_noise_of_its_own():
    assert stats._residual(np.random.default_rng(0).random((3, 1))) == 0


@pytest.mark.parametrize("weights", [None, [1, 2]])
def test_an_interval_of_a_trained_system_is_that_of_its_difference_to_zero(weights):
    ours = runs(np.random.default_rng(3), 3, (8, 5), 0.05, 0.1)
    ours[1] = ours[1] ** 2
    zero = [np.zeros(8), np.zeros(5)]
    assert stats.interval(ours, 200, 0.8, 4, weights) == stats.paired(ours, zero, 200, 0.8, 4, weights)[:3]


def test_ten_thousand_resamples_of_seed_0_and_95_percent_where_nothing_is_said():
    ours, theirs = ([task] for task in np.random.default_rng(0).random((2, 3, 9)))
    everything = (10_000, 0.95, 0, None)
    assert stats.interval(ours) == stats.interval(ours, *everything)
    assert stats.paired(ours, theirs) == stats.paired(ours, theirs, *everything)
    gaps = [ours[0][0] - theirs[0][0]]
    assert stats.randomisation(gaps) == stats.randomisation(gaps, 10_000, 0, None, None)
    assert stats.randomisation(gaps) not in (stats.randomisation(gaps, seed=1), stats.randomisation(gaps, 10_001))


def test_a_block_holds_no_more_numbers_than_it_may(monkeypatch):
    monkeypatch.setattr(stats, "BLOCK", 10)

    def cut(resamples, width):
        return [(s.start, s.stop) for s in stats._blocks(resamples, width)]

    assert cut(5, 4) == [(0, 2), (2, 4), (4, 5)] and cut(3, 11) == [(0, 1), (1, 2), (2, 3)] and cut(9, 1) == [(0, 9)]


def test_runs_that_are_equal_to_the_last_bit_add_nothing():
    """No spread at all: Welch's degrees of freedom would be 0 / 0."""
    ours, theirs = [np.array([[0.0, 1.0, 0.5, 0.5]] * 3)], [np.array([[0.25, 0.25, 0.25, 0.25]] * 4)]
    one, other = [ours[0][0]], [theirs[0][0]]
    assert stats._runs([ours, theirs], [ours[0][0] - theirs[0][0]], None).error == 0
    assert stats.interval(ours, 200) == stats.interval(one, 200)
    assert stats.paired(ours, theirs, 200) == stats.paired(one, other, 200)


@pytest.mark.parametrize("queries", [1, 2])
def test_a_task_of_one_query_has_no_spread_among_queries_and_one_of_two_has(queries):
    rng = np.random.default_rng(1)
    ours = [ndcg_like(rng, count) + rng.normal(0, 0.1, (3, count)) for count in (30, queries)]
    gaps = [task.mean(axis=0) for task in ours]
    among = sum(np.std(gap, ddof=1) ** 2 / len(gap) / 4 for gap in gaps if len(gap) > 1)
    noise = sum(residual(task) / 4 for task in ours if task.shape[1] > 1)
    found = stats._runs([ours], gaps, None).kept
    assert found == pytest.approx(np.sqrt(1 - noise / among), rel=1e-9) and found < 0.999


def test_where_queries_do_not_differ_the_test_keeps_their_signs():
    """No variance to take the noise of: 0 / 0."""
    ours = [np.repeat([[0.4], [0.5], [0.75]], 4, axis=1)]
    assert stats._runs([ours], [ours[0].mean(axis=0)], None).kept == 1
