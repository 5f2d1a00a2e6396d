"""How often the intervals of dream/report/stats.py hold the truth, on made-up scores whose truth is known.

    python -m benchmarks.coverage        # about two minutes; writes reports/bench/coverage.md, which docs/evaluation.md shows

Two tasks of 120 and 60 queries. A score is the query's own level (skewed, many zeros, as nDCG@10 has them), what the system
makes of the query (sd .1), the seed's effect (sd as given) and a run's noise on the query (sd .15, as the default run's).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from dream.errors import exits_cleanly
from dream.files import replacing
from dream.report import stats

FILE = Path("reports/bench/coverage.md")
QUERIES, LEVEL = (120, 60), 0.35  # queries of each task; the true mean of every system
SYSTEM, NOISE = 0.1, 0.15  # sd of what a system makes of a query; of a run's noise on it
SEEDS, SPREADS = (3, 5, 10), (0.0, 0.01, 0.05)
ALIKE = 0.7  # correlation of two systems' seed effects where they are not independent


def scores(rng: np.random.Generator, seeds: list[int], sd: float, alike: float = 0.0) -> list[list[np.ndarray]]:
    """Systems of one world, each with the same true mean: per task ``[seeds, queries]``, or ``[queries]`` for 0 seeds."""
    shared = rng.normal(size=max(seeds))
    effects = [sd * (np.sqrt(alike) * shared[:n] + np.sqrt(1 - alike) * rng.normal(size=n)) for n in seeds]
    systems: list[list[np.ndarray]] = [[] for _ in seeds]
    for count in QUERIES:
        level = rng.beta(2, 2, count) * (rng.random(count) < 0.7)  # mean .35
        for system, effect in zip(systems, effects, strict=True):
            own = level + rng.normal(0, SYSTEM, count)
            runs = own + effect[:, None] + rng.normal(0, NOISE, (len(effect), count))
            system.append(runs if len(effect) else own + rng.normal(0, NOISE, count))
    return systems


def both_drawn(ours: stats.Tasks, theirs: stats.Tasks, resamples: int, seed: int) -> tuple[float, float]:
    """The plain alternative: runs drawn with replacement, then queries; 95 % percentile interval of the difference."""
    rng, drawn = np.random.default_rng(seed), np.zeros(resamples)
    drawn_runs = [rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in (len(ours[0]), len(theirs[0]))]
    for a, b in zip(ours, theirs, strict=True):
        queries = rng.multinomial(a.shape[1], np.full(a.shape[1], 1 / a.shape[1]), resamples) / a.shape[1]
        drawn += ((drawn_runs[0] @ a - drawn_runs[1] @ b) * queries).sum(axis=1) / len(ours)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def rates(seeds: int, sd: float, trials: int, resamples: int = 400, first: int = 0) -> dict[str, float]:
    """Shares of trials in which an interval held the truth, and in which a difference that is not there was "found"."""
    found: dict[str, list[bool]] = {}
    for trial in range(trials):
        rng = np.random.default_rng([first, trial, seeds, round(1000 * sd)])
        ours, theirs, reference = scores(rng, [seeds, seeds, 0], sd)
        same, alike = scores(rng, [seeds, seeds], sd, ALIKE)
        mean = stats.interval(ours, resamples, seed=trial)
        to_reference = stats.paired(ours, reference, resamples, seed=trial)
        two = stats.paired(ours, theirs, resamples, seed=trial)
        paired = stats.paired(same, alike, resamples, seed=trial)
        averaged = [[runs.mean(axis=0) for runs in system] for system in (ours, theirs)]
        held = {
            "mean": mean.low <= LEVEL <= mean.high,
            "to a reference": to_reference.low <= 0 <= to_reference.high,
            "of two trained": two.low <= 0 <= two.high,
            "seeds alike": paired.low <= 0 <= paired.high,
            "false: reference": to_reference.p < 0.05,
            "false: two": two.p < 0.05,
            "queries only": _holds(stats.paired(*averaged, resamples, seed=trial)[1:3]),
            "both drawn": _holds(both_drawn(ours, theirs, resamples, trial)),
        }
        for name, value in held.items():
            found.setdefault(name, []).append(bool(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _holds(ends: tuple[float, float]) -> bool:
    return ends[0] <= 0 <= ends[1]


def table(trials: int) -> str:
    """The Markdown table of docs/evaluation.md."""
    head = ["Seeds", "SD of seeds", "Mean", "Difference to a reference", "Difference of two trained", "the same, seeds alike",
            "p < .05, reference", "p < .05, two trained", "two, queries only", "two, plain bootstrap"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for seeds in SEEDS:
        for sd in SPREADS:
            cells = [f"{value:.3f}".removeprefix("0") for value in rates(seeds, sd, trials).values()]
            lines.append(f"| {' | '.join([str(seeds), f'{sd:g}'.removeprefix('0') or '0', *cells])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    text = table(args.trials)
    print(text, end="")
    with replacing(FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    exits_cleanly(main)()
