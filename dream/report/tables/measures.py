"""What tables and figures count: scopes, scores with their intervals, differences with their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dream.report import stats
from dream.report.results.cells import Results

MAIN_COLUMNS = ["suite", "task", "system", "size", "recipe", "ndcg_at_10", "ci_low", "ci_high", "seeds", "seed_low", "seed_high",
                "queries", "documents", "pairs_trained"]  # fmt: skip
SIGNIFICANCE_COLUMNS = ["suite", "task", "system", "reference", "difference", "ci_low", "ci_high", "p", "p_holm", "queries",
                        "seed_low", "seed_high", "reference_seed_low", "reference_seed_high"]  # fmt: skip
LEVEL = 0.05
UNTRAINED = "untrained"


def scopes(results: Results) -> list[tuple[str, str, list[str]]]:
    """The rows of a table by task, ``(suite, label, tasks)``: every task of a suite, then the suite's mean."""
    rows = []
    for suite, tasks in results.suites.items():
        rows += [(suite, task, [task]) for task in tasks]
        rows.append((suite, "mean", tasks))
    return rows


def overall(results: Results) -> tuple[str, str, list[str]]:
    """The mean over all tasks of all suites, as one more scope."""
    return ("all", "mean", [task for _, task in results.tasks])


def measured(results: Results, system: str, tasks: list[str]) -> stats.Interval:
    """nDCG@10 of a system over some tasks (every task weighs the same), with its interval over queries and seeds."""
    key, report = ("interval", system, *tasks), results.config.report
    if key not in results.cache:
        values, weights = results.values(system, tasks), results.weights(tasks)
        results.cache[key] = stats.interval(values, report.resamples, report.confidence, report.seed, weights)
    return results.cache[key]


def difference(ours: Results, system: str, theirs: Results, other: str, tasks: list[str]) -> stats.Difference:
    """Paired difference of two systems, of one report or of two, over some tasks with the same queries."""
    report, values = ours.config.report, (ours.values(system, tasks), theirs.values(other, tasks))
    return stats.paired(*values, report.resamples, report.confidence, report.seed, ours.weights(tasks))


def compared(results: Results, system: str, reference: str, tasks: list[str]) -> stats.Difference:
    """Paired difference of two systems over some tasks."""
    key = ("difference", system, reference, *tasks)
    if key not in results.cache:
        results.cache[key] = difference(results, system, results, reference, tasks)
    return results.cache[key]


def seed_range(results: Results, system: str, tasks: list[str]) -> tuple[float, float] | tuple[None, None]:
    """Lowest and highest mean of a system's training runs over some tasks; None for a system that is not trained here."""
    means = results.seed_means(system, tasks)
    return (min(means), max(means)) if means else (None, None)


def within_seeds(results: Results, system: str, theirs: Results, other: str, tasks: list[str]) -> bool:
    """Whether the ranges of two systems' seeds meet, one of them trained with several: seeds alone can make the difference."""
    means = [r.seed_means(name, tasks) or [measured(r, name, tasks).value] for r, name in ((results, system), (theirs, other))]
    return max(map(len, means)) > 1 and ranges_meet(*means)


def ranges_meet(*means: Sequence[float]) -> bool:
    """Whether the ranges of several systems' values have a point in common."""
    return max(map(min, means)) <= min(map(max, means))


def over(*reports: Results) -> str:
    """What intervals and tests are over, in words."""
    counted = any(r.config.objectives and len(r.config.seeds) >= stats.MIN_SEEDS for r in reports)
    return "queries, and the seeds of trained systems" if counted else "queries"


def everything(results: Results) -> list[tuple[str, str, list[str]]]:
    """All scopes of a table: tasks, means of suites, and the mean of all where there are several suites."""
    return [*scopes(results), *([overall(results)] if len(results.suites) > 1 else [])]


def _significance_rows(results: Results, system: str, reference: str) -> list[dict[str, Any]]:
    """One row per scope; Holm's correction runs over the tasks of this pair of systems, and apart over its means."""
    rows = []
    for suite, label, tasks in everything(results):
        found = compared(results, system, reference, tasks)
        queries = sum(len(results.scores(system, task)) for task in tasks)
        ranges = (*seed_range(results, system, tasks), *seed_range(results, reference, tasks))
        values = (suite, label, system, reference, found.value, found.low, found.high, found.p, None, queries, *ranges)
        within = within_seeds(results, system, results, reference, tasks)
        rows.append({**dict(zip(SIGNIFICANCE_COLUMNS, values, strict=True)), "tasks": tasks, "within": within})
    corrected([row for row in rows if row["task"] != "mean"])
    corrected([row for row in rows if row["task"] == "mean"])
    return rows


def corrected(family: list[dict[str, Any]]) -> None:
    """Put Holm's correction over the tests of a family into its rows as ``p_holm``; rows without a test (``p``) stay so."""
    tested = [row for row in family if row.get("p") is not None]
    for row, p in zip(tested, stats.holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p


def significance_rows(results: Results) -> list[dict[str, Any]]:
    """Every other system against the reference system, on every task and mean."""
    reference = results.reference
    if "significance" not in results.cache:
        others = [system for system in results.systems if system != reference]
        results.cache["significance"] = [r for system in others for r in _significance_rows(results, system, reference)]
    return results.cache["significance"]


def main_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of main.csv."""
    config, rows = results.config, []
    for suite, label, tasks in scopes(results):
        for system in results.systems:
            found = measured(results, system, tasks)
            records = [results.record(system, task) for task in tasks]
            values = (
                suite, label, system, config.model.size, config.recipe, found.value, found.low, found.high,
                max(1, len(results.seeds(system))), *seed_range(results, system, tasks), sum(int(r["queries"]) for r in records),
                sum(int(r["documents"]) for r in records), results.pairs_trained(system),
            )  # fmt: skip
            rows.append(dict(zip(MAIN_COLUMNS, values, strict=True)))
    return rows


def source(results: Results, system: str, tasks: list[str]) -> str:
    """Anchor on the page of the cell that a number came from; of all the system's cells for a mean over several."""
    records = results.records
    named = records[(records["system"] == system) & records["task"].isin(tasks)]["cell"].unique()
    return f"cell-{named[0]}" if len(named) == 1 else f"cells-{system}"
