"""The verdict: the paper's claims, each with what was measured here and one word, by the rules of this file.

The claims and what each asks stand in ``reference/claims.json``: two systems of this report (and, where they are collected, the
last point of equal pairs of a learning curve of both, and the same two ``beyond`` this report's tasks), or points of a collected
sweep that should be worse or better than the point that the sweep is tested against. One comparison decides

* ``holds`` or ``does not hold``: at least three seeds, the interval over queries and seeds on one side of zero, p < .05;
* ``not decided``: measured, but with fewer seeds, or the interval holds zero;
* ``not tested``: not measured here.

A claim of several comparisons holds if all do, does not hold if one does not, and is not decided or not tested otherwise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dream.files import write_json
from dream.report import build, stats
from dream.report.results import cells as reading
from dream.report.results import collected
from dream.report.results.cells import Results
from dream.report.tables import measures
from dream.report.tables.render import grouped, number, p_value, signed

CLAIMS = json.loads(resources.files("dream.report").joinpath("reference/claims.json").read_text(encoding="utf-8"))
HOLDS, NOT, OPEN, UNTESTED = "holds", "does not hold", "not decided", "not tested"


@dataclass(frozen=True)
class Comparison:
    """One difference that a claim asks for, in nDCG@10 over all tasks; positive where the claim is right.

    Attributes:
        what: the two sides with their scores.
        difference, low, high: of the side that should be better minus the other.
        p: of the paired test; None where there were too few seeds.
        seeds: of the trained side with the fewest.
        tasks: how many the mean is over.
        within: seeds alone can make such a difference.
        corrected: over what p is corrected by Holm, where it is.
    """

    what: str
    difference: float
    low: float
    high: float
    p: float | None
    seeds: int
    tasks: int
    within: bool = False
    corrected: str = ""

    @property
    def outcome(self) -> str:
        """What this comparison says of the claim."""
        if self.p is None or self.seeds < stats.MIN_SEEDS or self.p >= measures.LEVEL or self.low <= 0 <= self.high:
            return OPEN
        return HOLDS if self.difference > 0 else NOT

    def text(self) -> str:
        """The comparison in one sentence."""
        words = [f"{self.what}: {signed(self.difference)} [{number(self.low)}, {number(self.high)}]"]
        few = ", too few to decide" if self.seeds < stats.MIN_SEEDS else ", not tested over them" if self.p is None else ""
        over = f" by Holm over {self.corrected}" if self.corrected else ""
        words += [f"p {_equals(p_value(self.p))}{over}"] if not few and self.p is not None else []
        words += [f"{_count(self.seeds, 'seed')}{few}"]
        words += [_count(self.tasks, "task")]
        return ", ".join(words) + ("; seeds alone can make it" if self.within else "")


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def verdict(results: Results, folder: Path | str = collected.FOLDER) -> list[dict[str, Any]]:
    """Every claim with its outcome and its evidence.

    Args:
        results: the report whose systems are compared.
        folder: of the collected sweeps.
    """
    found = []
    for claim in CLAIMS:
        if "against" in claim:
            compared = [*_of_systems(results, claim), *_of_curve(claim, Path(folder)), *_of_other_tasks(claim, Path(folder))]
            wanted = len(compared)
        else:
            compared, wanted = _of_sweep(claim, Path(folder)), len(claim.get("worse", [])) + len(claim.get("better", []))
        outcomes = [c.outcome for c in compared]
        outcome = (
            UNTESTED if not outcomes
            else NOT if NOT in outcomes
            else HOLDS if set(outcomes) == {HOLDS} and len(outcomes) == wanted
            else OPEN
        )  # fmt: skip
        evidence = [c.text() for c in compared]
        command = "dvc repro" if "against" in claim else f"dream-report sweep {claim['sweep']}"
        found.append({"claim": claim["claim"], "outcome": outcome, "evidence": evidence, "command": command})
    return found


def _of_systems(results: Results, claim: dict[str, Any]) -> list[Comparison]:
    ours, theirs = claim["system"], claim["against"]
    if not {ours, theirs} <= set(results.systems):
        return []
    tasks = measures.overall(results)[2]
    a, b = (measures.measured(results, name, tasks).value for name in (ours, theirs))
    gap = measures.compared(results, ours, theirs, tasks)
    seeds = min(len(results.seeds(name)) for name in (ours, theirs) if results.seeds(name))
    within = measures.within_seeds(results, ours, results, theirs, tasks)
    return [Comparison(f"{ours} {number(a)}, {theirs} {number(b)}", *gap, seeds, len(tasks), within)]


def _of_curve(claim: dict[str, Any], folder: Path) -> list[Comparison]:
    file = folder / str(claim.get("curve")) / "curves-equal.csv"
    if not file.exists():
        return []
    again = collected.remedy(file)
    table = reading.read_csv(file, again, ["equal", "system", "rival", "within"])
    for row in table.itertuples():
        place = f"{file}, {row.system} and {row.rival} at {row.pairs} pairs"
        collected.require_difference(row.difference, row.ndcg_at_10, row.rival_ndcg_at_10, place, again)
    same = table[(table.equal == "pairs") & (table.system == claim["system"]) & (table.rival == claim["against"])]
    found = []
    for row in same[same.pairs == same.pairs.max()].itertuples():
        what = (
            f"After {grouped(row.pairs)} pairs {row.system} {number(row.ndcg_at_10)}, {row.rival} {number(row.rival_ndcg_at_10)}"
        )
        p = None if row.p_holm != row.p_holm else float(row.p_holm)
        change = (float(row.difference), float(row.diff_low), float(row.diff_high))
        found.append(Comparison(what, *change, p, int(row.seeds), int(row.tasks), row.within == "True", "the curve"))
    return found


def _of_other_tasks(claim: dict[str, Any], folder: Path) -> list[Comparison]:
    file = folder / str(claim.get("beyond")) / "significance.csv"
    if not file.exists():
        return []
    again, ours, theirs = collected.remedy(file), claim["system"], claim["against"]
    main = reading.read_csv(file.with_name("main.csv"), again, ["suite", "task", "system", "size", "recipe"])
    main = main[main.task != "mean"]
    scores = main.groupby("system").ndcg_at_10.mean()
    table = reading.read_csv(file, again, ["suite", "task", "system", "reference"])
    means = table[(table.task == "mean") & (table.system == theirs) & (table.reference == ours)]
    if means.empty:
        return []
    row = means.iloc[-1]  # over all suites
    collected.require_difference(row.difference, scores[theirs], scores[ours], f"{file}, {theirs} and {ours}", again)
    tasks = list(main.task.unique())
    trained = main[main.system.isin([ours, theirs]) & (main.pairs_trained > 0)]
    after = f"After {grouped(trained.pairs_trained.max())} pairs, on {', '.join(tasks)}"
    what = f"{after}: {ours} {number(scores[ours])}, {theirs} {number(scores[theirs])}"
    other = [scores[theirs]] if row.seed_low != row.seed_low else [row.seed_low, row.seed_high]
    within = bool(measures.ranges_meet(other, [row.reference_seed_low, row.reference_seed_high]))
    p = None if row.p != row.p else float(row.p)
    return [
        Comparison(
            what, -float(row.difference), -float(row.ci_high), -float(row.ci_low), p, int(trained.seeds.min()), len(tasks), within
        )
    ]


def _of_sweep(claim: dict[str, Any], folder: Path) -> list[Comparison]:
    file = folder / claim["sweep"] / f"{claim['sweep']}.csv"
    if not file.exists():
        return []
    table = collected.read(file)
    scores = table[table.system == claim["system"]].set_index("point")
    found = []
    for sign, points in ((-1, claim.get("worse", [])), (1, claim.get("better", []))):
        for point in points:
            if point not in scores.index or not isinstance(base := scores.against[point], str) or base not in scores.index:
                continue
            row = scores.loc[point]
            low, high = sorted((sign * row.diff_low, sign * row.diff_high))
            name = f"{claim['sweep']} " if point.isdigit() else ""
            what = f"{name}{point} {number(row.ndcg_at_10)}, {name}{base} {number(scores.ndcg_at_10[base])}"
            seeds = int(min(row.seeds, scores.seeds[base]))
            p = float(row.p_holm) if row.p_holm == row.p_holm and row.over == collected.BOTH else None
            found.append(Comparison(what, sign * row.difference, low, high, p, seeds, int(row.tasks), corrected="the sweep"))
    return found


def evidence(one: dict[str, Any]) -> str:
    """What was measured for a claim, or what would measure it."""
    return (". ".join(one["evidence"]) or f"`{one['command']}` measures it") + "."


def lines(found: list[dict[str, Any]], bold: str = "") -> list[str]:
    """One line a claim: what, the outcome, the evidence."""
    return [f"{one['claim']}: {bold}{one['outcome']}{bold}. {evidence(one)}" for one in found]


def markdown(found: list[dict[str, Any]]) -> str:
    """The verdict as a Markdown list."""
    return "".join(f"- {line}\n" for line in lines(found, "**"))


def write(found: list[dict[str, Any]], folder: Path | str = build.REPORTS) -> None:
    """Write verdict.json and verdict.md."""
    write_json(Path(folder) / "verdict.json", found)
    build.write_text(Path(folder) / "verdict.md", markdown(found))
