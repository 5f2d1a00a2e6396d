"""The tables of a report, one function each in a registry.

What stays the same when a table is added: a function of :class:`~dream.report.results.cells.Results` returns a
:class:`~dream.report.tables.render.Table`; files, formats, the command line and the page find it through :data:`TABLES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dream.errors import DreamError
from dream.names import hint
from dream.progress import duration
from dream.report.results.cells import METRIC, Results
from dream.report.tables import curves
from dream.report.tables.measures import (
    LEVEL,
    MAIN_COLUMNS,
    SIGNIFICANCE_COLUMNS,
    UNTRAINED,
    everything,
    main_rows,
    measured,
    over,
    overall,
    scopes,
    seed_range,
    significance_rows,
    source,
)
from dream.report.tables.notes import footnotes, untested
from dream.report.tables.render import Field, Table, fields, grouped, number, p_value, ranged, signed

TABLES: dict[str, Callable[[Results], Table | None]] = {}
COST_COLUMNS = ["system", "size", "stage", "wall_s", "peak_gib", "flops"]
CURVE_COLUMNS = ["system", "pairs", "ndcg_at_10", "ci_low", "ci_high", "seeds", "seed_low", "seed_high", "seconds", "flops"]
SEED_COLUMNS = ["suite", "task", "system", "seeds", "mean", "sd", "lowest", "highest"]
DIAGNOSTIC_ORDER = "rows used gate none uniform gold wrong gap gap_low gap_high instances".split()  # noqa: SIM905
SHARED_STAGES = ("assets", "questions", "prepare", "candidates", "heads", "signal")
SCALARS = {"log_tau": ("tau", math.exp), "gamma": ("gate", lambda gamma: 1 / (1 + math.exp(-gamma)))}  # in their natural unit
SCALAR_COLUMNS = ["system", "scalar", "seeds", "start", "end_low", "end_high", "used_low", "used_high"]


def table(name: str) -> Callable:
    """Register a table under the name of its file. A function that returns None has nothing to show."""

    def add(function: Callable[[Results], Table | None]) -> Callable[[Results], Table | None]:
        TABLES[name] = function
        return function

    return add


def build(results: Results, names: list[str] | None = None, made: Iterable[Table] = ()) -> list[Table]:
    """All tables that have something to show, or the named ones; ``made`` are at hand already (those of sweeps)."""
    known = TABLES | {one.name: (lambda _, one=one: one) for one in made}
    for name in names or []:
        if name not in known:
            raise DreamError(f"table {name!r} is unknown", hint(name, known, "Choose one of {}"))
    built = {name: known[name](results) for name in names or known}
    for name, value in built.items():
        if names and value is None:
            raise DreamError(f"table {name!r} has nothing to show: what it shows was not measured", "Run `dvc repro`")
    return [value for value in built.values() if value is not None]


# ---------------------------------------------------------------------------------------------- what tables count


# --------------------------------------------------------------------------------------------------------- tables


@table("main")
def main(results: Results) -> Table:
    """nDCG@10 of every system on every task, with intervals and marks of significance."""
    config, systems = results.config, results.systems
    reference = results.reference
    marks = {(r["suite"], r["task"], r["system"]): _mark(r) for r in significance_rows(results)}
    rows = []
    for suite, label, tasks in everything(results):
        found = {system: measured(results, system, tasks) for system in systems}
        best = max(round(f.value, 3) for f in found.values())
        first = [results.record(systems[0], task) for task in tasks]
        scores = [
            Field(
                f"{number(f.value)} [{number(f.low)}, {number(f.high)}]{marks.get((suite, label, system), '')}",
                bold=round(f.value, 3) == best,
                source=source(results, system, tasks),
            )
            for system, f in found.items()
        ]
        counts = [grouped(sum(int(r[key]) for r in first)) for key in ("queries", "documents")]
        rows.append(fields(suite, label, *scores, *counts))
    percent = f"{config.report.confidence:.0%}"
    legend = [
        f"nDCG@10 [{percent} interval over {over(results)}]; the best of a row is marked. A mean weighs every task the same.",
        f"↑ ↓ above or below {reference}: p < {LEVEL} of a paired test over {over(results)}, after Holm's correction, for each "
        "system over its tasks (and apart over its means).",
        *_about_seeds(results),
    ]
    if not any(row["p_holm"] is not None for row in significance_rows(results)):
        del legend[1]
    title = f"nDCG@10, size {config.model.size}, recipe {config.recipe}"
    head = ["Suite", "Task", *systems, "Queries", "Documents"]
    data = pd.DataFrame(main_rows(results), columns=MAIN_COLUMNS)
    return Table("main", title, data, head, rows, legend + footnotes(results), together=tuple(config.objectives))


BRIEF = 3  # notes of a table at a glance


def brief(table: Table) -> Table:
    """A table with its first notes, which say how to read it, and where the others are."""
    more = len(table.notes) - BRIEF
    return (
        table
        if more <= 0
        else replace(table, notes=[*table.notes[:BRIEF], f"`dream-report tables --all`: {more} more notes, all tables."])
    )


def _about_seeds(results: Results) -> list[str]:
    """What a reader must know about seeds: how far they lie apart, what was not tested, which differences they could make."""
    tasks, rows = overall(results)[2], significance_rows(results)
    several = results.config.objectives if len(results.config.seeds) > 1 else []
    ranges = [f"{name} {ranged(*seed_range(results, name, tasks))}" for name in several]
    within: dict[str, list[str]] = {}
    for row in rows:
        if row["within"]:
            within.setdefault(row["system"], []).append(f"the mean of {row['suite']}" if row["task"] == "mean" else row["task"])
    named = "; ".join(f"{system} on {', '.join(labels)}" for system, labels in within.items())
    return [
        *([f"Lowest and highest seed, mean over all tasks: {', '.join(ranges)}."] if ranges else []),
        *([f"Inside the seeds' spread (the ranges meet) is the difference to {results.reference} of {named}."] if named else []),
        *untested({name: len(results.seeds(name)) for name in results.config.objectives}),
    ]


def _mark(row: dict[str, Any]) -> str:
    if row["p_holm"] is None or row["p_holm"] >= LEVEL:
        return ""
    return "↑" if row["difference"] > 0 else "↓"


@table("significance")
def significance(results: Results) -> Table | None:
    """Paired differences to the reference system."""
    found = significance_rows(results)
    if not found:
        return None
    reference = results.reference
    rows = [
        fields(
            r["suite"], r["task"], r["system"], Field(signed(r["difference"]), source=source(results, r["system"], r["tasks"])),
            f"[{signed(r['ci_low'])}, {signed(r['ci_high'])}]", p_value(r["p"]),
            Field(p_value(r["p_holm"]), bold=r["p_holm"] is not None and r["p_holm"] < LEVEL), grouped(r["queries"]),
            ranged(r["seed_low"], r["seed_high"]), ranged(r["reference_seed_low"], r["reference_seed_high"]),
        )
        for r in found
    ]  # fmt: skip
    draws = results.config.report.resamples
    notes = [
        f"Difference of nDCG@10, system minus {reference}, on the same queries; marked: p < {LEVEL} after Holm's correction.",
        f"Interval over {over(results)}: bootstrap of queries, {draws} draws; two-sided p: sign flips of queries, as many draws, "
        f"smallest possible value 1/{1 + draws}."
        + (" To every draw a trained system's seeds add Student's t with their spread." if "seeds" in over(results) else ""),
        "p (Holm) is corrected per pair of systems over the tasks, and apart from them over the means.",
        *_about_seeds(results),
    ]
    head = ["Suite", "Task", "System", "Difference", "Interval", "p", "p (Holm)", "Queries", "Seeds", f"Seeds of {reference}"]
    data = pd.DataFrame(found, columns=SIGNIFICANCE_COLUMNS)
    return Table("significance", f"Paired differences to {reference}", data, head, rows, notes)


@table("seeds")
def seeds(results: Results) -> Table | None:
    """Mean and standard deviation over the training runs of every trained system."""
    found, rows = [], []
    for suite, label, tasks in scopes(results):
        for system in results.config.objectives:
            values = np.array(results.seed_means(system, tasks))
            sd = float(values.std(ddof=1)) if len(values) > 1 else None
            row = (
                suite,
                label,
                system,
                len(values),
                float(values.mean()),
                sd,
                float(values.min()),
                float(values.max()),
            )
            found.append(dict(zip(SEED_COLUMNS, row, strict=True)))
            mean = Field(number(row[4]), source=source(results, system, tasks))
            rows.append(fields(suite, label, system, len(values), mean, *(number(v) for v in row[5:])))
    if not found:
        return None
    notes = [
        "nDCG@10 of whole training runs. SD is the sample standard deviation over seeds (n − 1); – with one seed.",
        "The intervals of the main table contain this spread."
        if "seeds" in over(results)
        else "The intervals of the main table are over queries, with seeds averaged: they do not contain this spread.",
    ]
    head = ["Suite", "Task", "System", "Seeds", "Mean", "SD", "Lowest", "Highest"]
    return Table("seeds", "Spread over seeds", pd.DataFrame(found, columns=SEED_COLUMNS), head, rows, notes)


@table("scalars")
def scalars(results: Results) -> Table | None:
    """Where the learned scalars went, and how much of what their rate allowed they used."""
    found, rows = [], []
    for system in results.config.objectives:
        runs = [results.runs[f"train-{system}-{seed}"].get("notes", {}).get("scalars") or {} for seed in results.seeds(system)]
        for name in dict.fromkeys(name for run in runs for name in run):
            moved = [run[name] for run in runs if name in run]
            said, natural = SCALARS.get(name, (name, float))
            ends, used = [natural(m["end"]) for m in moved], [m["used"] for m in moved]
            row = (system, said, len(moved), natural(moved[0]["start"]), min(ends), max(ends), min(used), max(used))
            found.append(dict(zip(SCALAR_COLUMNS, row, strict=True)))
            share = f"{min(used):.0%}" if min(used) == max(used) else f"{min(used):.0%} to {max(used):.0%}"
            start = Field(number(row[3], 4), source=f"run-train-{system}-{results.seeds(system)[0]}")
            rows.append(fields(system, said, len(moved), start, ranged(row[4], row[5], 4), share))
    if not found:
        return None
    notes = [
        "Reach: the farthest that log tau and gamma (g = sigmoid(gamma)) can move from their start, the sum of "
        "training.scalar_learning_rate over the steps. Lowest and highest seed.",
        "Near 100 % a scalar was held back by its rate: where it would go is not known.",
    ]
    head = ["System", "Scalar", "Seeds", "Start", "End", "Reach used"]
    return Table("scalars", "Learned scalars", pd.DataFrame(found, columns=SCALAR_COLUMNS), head, rows, notes)


@table("cost")
def cost(results: Results) -> Table:
    """What every system cost: the only table that differs from run to run."""
    found = cost_rows(results)
    gains = {system: _gain_per_hour(results, system, found) for system in results.config.objectives}
    rows = [
        fields(
            r["system"], r["stage"], _wall_time(results, r),
            f"{r['peak_gib']:.2f}", _power(r["flops"]),
            grouped(results.pairs_trained(r["system"])) if r["stage"] == "train" else "",
            number(gains[r["system"]], 2) if r["stage"] == "train" else "",
        )
        for r in found
    ]  # fmt: skip
    hardware: dict[str, Any] = next((run["hardware"] for run in results.runs.values() if run.get("hardware")), {})
    devices = ", ".join(hardware.get("accelerators") or ["no accelerator"])
    notes = [
        "Per training run: mean over seeds; evaluation: all tasks of one run. Peak: the process's, device memory if larger.",
        f"Gain per hour: mean nDCG@10 over all tasks minus that of {UNTRAINED}, by hours of training "
        "(detection of heads and making of data not counted; they stand in rows of their own).",
        f"Machine: {hardware.get('cpu', 'unknown')}, {hardware.get('cores', '?')} cores, "
        f"{hardware.get('memory_gib', '?')} GiB, {devices}.",
        "FLOPs are counted from shapes; – where a stage counts none. Evaluation: 2 × weights outside the token embeddings × "
        "tokens of queries and documents (equal texts within a chunk of 1,024 once), whoever made the vectors.",
        *(["Teacher: operations and time are those of all its answers, also of those that were at hand."]
          if any(r["stage"] == "teacher" for r in found) else []),
        "Times vary between runs; every other table does not.",
    ]  # fmt: skip
    head = ["System", "Stage", "Wall time", "Peak GiB", "FLOPs", "Pairs", "Gain per hour"]
    title = f"Cost, size {results.config.model.size}, recipe {results.config.recipe}"
    return Table("cost", title, pd.DataFrame(found, columns=COST_COLUMNS), head, rows, notes, varies=True)


def _wall_time(results: Results, row: dict[str, Any]) -> Field:
    """A row's time with the anchor on the page of the run record (the first seed's) that it came from."""
    system, stage = row["system"], row["stage"]
    seed = [] if stage == "teacher" else [str(seed) for seed in results.seeds(system)[:1]]
    made = f"run-{stage}" if system == "shared" else "-".join(["run", stage, system, *seed])
    return Field(duration(row["wall_s"]), source=f"cells-{system}" if stage == "evaluate" else made, sort=row["wall_s"])


def cost_rows(results: Results) -> list[dict[str, Any]]:
    """Rows of cost.csv: stages that all systems share (system ``shared``), then teacher, training and evaluation per system."""
    size = results.config.model.size
    groups = [("shared", stage, [[results.runs[stage]]]) for stage in SHARED_STAGES if stage in results.runs]
    for system in results.systems:
        runs = [f"{system}-{seed}" for seed in results.seeds(system)]
        if (teacher := f"teacher-{system}") in results.runs:
            groups.append((system, "teacher", [[results.runs[teacher]]]))
        if runs:
            groups.append((system, "train", [[results.runs[f"train-{run}"]] for run in runs]))
        evaluations = [[results.runs[f"evaluate-{run}-{tasks}"] for tasks in results.config.tasks] for run in runs or [system]]
        groups.append((system, "evaluate", evaluations))
    rows = []
    for system, stage, repeats in groups:
        wall, flops = (
            np.mean([sum(float(r.get(key) or 0) for r in repeat) for repeat in repeats]) for key in ("wall_s", "flops")
        )
        peak = max(float(r.get("peak_gib") or 0) for repeat in repeats for r in repeat)
        rows.append(dict(zip(COST_COLUMNS, (system, size, stage, float(wall), peak, float(flops)), strict=True)))
    return rows


@table("curves")
def learning_curves(results: Results) -> Table | None:
    """Every trained system after chosen numbers of pairs, with what it took."""
    found = curves.points(results)
    if not found:
        return None
    tasks = overall(results)[2]
    data, rows = [], []
    for system, points in found.items():
        for point in points:
            score = measured(point.results, system, tasks)
            low, high = seed_range(point.results, system, tasks)
            values = (
                system,
                point.pairs,
                *score[:3],
                len(results.seeds(system)),
                low,
                high,
                round(point.seconds, 1),
                point.flops,
            )
            data.append(dict(zip(CURVE_COLUMNS, values, strict=True)))
            shown = f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"
            spread = ranged(low, high) if len(results.seeds(system)) > 1 else "–"
            rows.append(fields(system, grouped(point.pairs), shown, spread, duration(point.seconds), _power(point.flops)))
    levels = [name for name in results.systems if name not in found]
    notes = [
        f"Mean nDCG@10 over {len(tasks)} tasks, interval over {over(results)}; time and operations of training and of the "
        "objective's teacher, mean over seeds.",
        f"Not trained here: {', '.join(f'{name} {number(measured(results, name, tasks).value)}' for name in levels)}.",
        "Times vary between runs; every other column does not.",
    ]
    head = ["System", "Pairs", "nDCG@10", "Lowest to highest", "Time", "Operations"]
    return Table("curves", "Learning curves", pd.DataFrame(data, columns=CURVE_COLUMNS), head, rows, notes, varies=True)


@table("curves-equal")
def equal_points(results: Results) -> Table | None:
    """The reference system and its rivals at equal pairs, time and operations."""
    found = curves.rows(results)
    if not found:
        return None
    words = {"pairs": "pairs", "seconds": "time", "flops": "operations"}
    rows = [
        fields(
            words[r["equal"]], f"{r['system']}, {grouped(r['pairs'])} pairs: {number(r['ndcg_at_10'])}",
            f"{r['rival']}, {grouped(r['rival_pairs'])} pairs: {number(r['rival_ndcg_at_10'])}", f"{r['share']:.0%}",
            f"{signed(r['difference'])} [{signed(r['diff_low'])}, {signed(r['diff_high'])}]",
            "–" if r["p_holm"] is None else p_value(r["p_holm"]), curves.outcome(r),
        )
        for r in found
    ]  # fmt: skip
    notes = [
        f"Paired differences of mean nDCG@10, over {over(results)}; p after Holm's correction over this table.",
        "At equal time or operations: the rival's last point that took no more; Used: its share of what the reference system "
        "took, where less than all its run ended or its next point took more.",
    ]
    head = ["Equal", results.reference, "Rival", "Used", "Difference", "p", "Outcome"]
    title = f"{results.reference} and its rivals at equal pairs, time and operations"
    return Table("curves-equal", title, pd.DataFrame(found), head, rows, notes, varies=True)


def _gain_per_hour(results: Results, system: str, found: list[dict[str, Any]]) -> float | None:
    if UNTRAINED not in results.systems:
        return None
    tasks = overall(results)[2]
    gain = measured(results, system, tasks).value - measured(results, UNTRAINED, tasks).value
    seconds = next(r["wall_s"] for r in found if r["system"] == system and r["stage"] == "train")
    return gain / (seconds / 3600) if seconds else None


def _power(value: float) -> str:
    return f"{value:.2e}" if value else "–"


@table("heads")
def heads(results: Results, top: int = 20) -> Table | None:
    """The judge's best attention heads and those that were selected."""
    found = head_scores(results)
    if found is None:
        return None
    made = "run-heads" if "heads" in results.runs else ""
    ranked = found.sort_values(["score", "layer", "head"], ascending=[False, True, True], ignore_index=True)
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    shown = ranked[(ranked["rank"] <= top) | ranked["selected"]]
    rows = [
        fields(r["rank"], f"({r['layer']}, {r['head']})", Field(number(r["score"]), source=made), "yes" if r["selected"] else "")
        for r in shown.to_dict("records")
    ]
    notes = [
        f"nDCG@10 of the gold candidate when candidates are ranked by a head's calibrated attention; mean of all "
        f"{len(ranked)} heads {number(ranked['score'].mean())}. Zero-based (layer, query head).",
        f"Strategy {results.config.heads.strategy}, {int(ranked['selected'].sum())} selected, "
        f"{results.config.heads.probes} probes.",
    ]
    return Table("heads", "Attention heads of the judge", ranked, ["Rank", "Head", "Score", "Selected"], rows, notes)


def head_scores(results: Results) -> pd.DataFrame | None:
    """heads.json as a frame ``layer, head, score, selected``, or None."""
    value = results.extras.get("heads")
    value = value.get("rows", value.get("heads")) if isinstance(value, dict) else value
    frame = pd.DataFrame(value or [])
    if not {"layer", "head", "score"} <= set(frame.columns):
        return None
    selected = frame["selected"].astype(bool) if "selected" in frame.columns else False
    return frame[["layer", "head", "score"]].assign(selected=selected)


@table("diagnostic")
def diagnostic(results: Results) -> Table | None:
    """The loss gap before training: whether the judge's loss tells the right passage from a wrong one at all."""
    found = diagnostic_rows(results)
    if not found:
        return None
    present = list(dict.fromkeys(key for row in found for key in row))
    columns = [key for key in DIAGNOSTIC_ORDER if key in present] + [key for key in present if key not in DIAGNOSTIC_ORDER]
    rows = [fields(*(_plain_value(row.get(key)) for key in columns)) for row in found]
    notes = [
        "Judge's mean loss on the target passage (nats per token) with nothing injected, uniform p, all weight on "
        "the gold "
        "candidate and all on a wrong one. The gap wrong − gold is the whole signal that training can use: about "
        "zero means "
        "that training cannot work.",
    ]
    head = [key.replace("_", " ") for key in columns]
    return Table("diagnostic", "Loss gap before training", pd.DataFrame(found, columns=columns), head, rows, notes)


def diagnostic_rows(results: Results) -> list[dict[str, Any]]:
    """diagnostic.json as a list of flat records."""
    value = results.extras.get("diagnostic")
    value = [value] if isinstance(value, dict) else value or []
    return [{k: v for k, v in row.items() if not isinstance(v, (dict, list))} for row in value]


def _plain_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4) if abs(value) >= 5e-5 or value == 0 else f"{value:.1e}"
    return "–" if value is None else str(value)


def summary(results: Results) -> dict[str, Any]:
    """metrics.json: one number per system and suite, small enough for the columns of ``dvc exp show``."""
    tasks = overall(results)[2]
    scores = {system: round(measured(results, system, tasks).value, 6) for system in results.systems}
    return {METRIC: scores}
