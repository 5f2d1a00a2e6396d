"""Learning curves: every trained system after chosen numbers of pairs, with what it took to get there.

A point is a whole report in which each trained system is as it was then, so all statistics are those of the other tables.
Cost is that of training and of the objective's teacher, whose share goes by the pairs; detection of heads and the making of
data are not in it, all systems share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dream.report.results.cells import Results
from dream.report.tables import measures

WITHIN = 1.02  # a rival's point counts as no dearer up to this factor


@dataclass(frozen=True)
class Point:
    """One system after some of its pairs: the report at that moment, seconds and operations until then, means over seeds."""

    system: str
    results: Results
    pairs: int
    seconds: float
    flops: float


def points(results: Results) -> dict[str, list[Point]]:
    """Every trained system's points, first to last; nothing where no snapshot was kept."""
    if not results.snapshots:
        return {}
    found: dict[str, list[Point]] = {}
    for system in results.config.objectives:
        ends = {**results.snapshots, results.pairs_trained(system): results}
        found[system] = [Point(system, at, pairs, *_cost(results, system, pairs)) for pairs, at in sorted(ends.items())]
    return found


def _cost(results: Results, system: str, pairs: int) -> tuple[float, float]:
    """Seconds and operations until then: of the mean seed, with the teacher's share."""
    notes = [results.runs[f"train-{system}-{seed}"]["notes"]["snapshots"][str(pairs)] for seed in results.seeds(system)]
    seconds, flops = (float(np.mean([note[key] for note in notes])) for key in ("seconds", "flops"))
    teacher = results.runs.get(f"teacher-{system}", {})
    share = min(1.0, pairs / asked) if (asked := teacher.get("notes", {}).get("questions")) else 0.0
    return seconds + share * float(teacher.get("wall_s") or 0), flops + share * float(teacher.get("flops") or 0)


@dataclass(frozen=True)
class Pair:
    """A point of the reference system and a rival's, equal in one respect: ``pairs``, ``seconds`` or ``flops``."""

    equal: str
    ours: Point
    theirs: Point


def pairs(results: Results) -> list[Pair]:
    """What is compared: at equal pairs every point, at equal time and operations the last point of the reference system.

    At equal time or operations, the rival's last point that took no more is taken; where it took much less, its run ended there.
    """
    curves = points(results)
    ours = curves.get(results.reference, [])
    found = []
    for system, theirs in curves.items():
        if system == results.reference:
            continue
        by_pairs = {point.pairs: point for point in theirs}
        found += [Pair("pairs", point, by_pairs[point.pairs]) for point in ours if point.pairs in by_pairs]
        for equal in ("seconds", "flops"):
            most = WITHIN * getattr(ours[-1], equal)
            if cheaper := [point for point in theirs if getattr(point, equal) <= most]:
                found.append(Pair(equal, ours[-1], cheaper[-1]))
    return found


def rows(results: Results) -> list[dict[str, Any]]:
    """The comparisons as data: two points, their scores, the paired difference with its interval and test."""
    tasks = measures.overall(results)[2]
    found = []
    for pair in pairs(results):
        a, b = pair.ours, pair.theirs
        change = measures.difference(a.results, a.system, b.results, b.system, tasks)
        found.append({
            "equal": pair.equal, "system": a.system, "pairs": a.pairs, "rival": b.system, "rival_pairs": b.pairs,
            "share": 1.0 if pair.equal == "pairs" else getattr(b, pair.equal) / getattr(a, pair.equal),
            "ndcg_at_10": measures.measured(a.results, a.system, tasks).value,
            "rival_ndcg_at_10": measures.measured(b.results, b.system, tasks).value,
            "difference": change.value, "diff_low": change.low, "diff_high": change.high, "p": change.p, "p_holm": None,
            "seeds": min(len(a.results.seeds(a.system)), len(b.results.seeds(b.system))), "tasks": len(tasks),
            "within": measures.within_seeds(a.results, a.system, b.results, b.system, tasks),
        })  # fmt: skip
    distinct = {(row["pairs"], row["rival"], row["rival_pairs"]): {"p": row["p"], "p_holm": None} for row in found}
    measures.corrected(list(distinct.values()))  # two points may be equal in several respects: that is one test
    for row in found:
        row["p_holm"] = distinct[row["pairs"], row["rival"], row["rival_pairs"]]["p_holm"]
    return found


def outcome(row: dict[str, Any]) -> str:
    """A comparison in words: who is ahead, or that nobody knows."""
    if row["p_holm"] is None or row["p_holm"] >= measures.LEVEL or row["diff_low"] <= 0 <= row["diff_high"]:
        return "not decided; seeds alone can make it" if row["within"] else "not decided"
    return f"{row['system'] if row['difference'] > 0 else row['rival']} ahead"
