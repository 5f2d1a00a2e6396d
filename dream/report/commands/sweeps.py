"""Sweeps: questions that take several experiments, as data in sweeps.yaml, run by DVC and read back from git.

A point of a sweep is one ``dvc exp run --temp`` under a name of its own: it runs in a copy of the workspace, DVC's
run-cache restores every stage that another experiment has run already, and a point whose experiment exists is not run
again. :func:`collect` reads the experiments from git and writes ``reports/sweeps/<name>``: table and figure, with the
experiment and commit of every number. That folder is what git keeps; experiments stay in the clone that ran them.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dream.errors import DreamError, run_to_its_end
from dream.files import read_yaml, replacing_folder
from dream.knobs import RECIPES
from dream.names import hint
from dream.report import build, stats
from dream.report.commands import compare
from dream.report.results import runs
from dream.report.results.agreement import HARMLESS
from dream.report.results.cells import Results
from dream.report.results.collected import BOTH, COLUMNS, FOLDER, read
from dream.report.tables import measures, registry, render
from dream.report.tables.notes import untested
from dream.report.tables.render import Field, Table, fields, number, p_value, ranged, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = Path("sweeps.yaml")
KEYS = {"question", "paper", "base", "points", "against"}
BEFORE = "Collected before seeds were part of the uncertainty: intervals and p are over queries only."


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep: a label for people, the overrides of params.yaml, the name that DVC knows it by."""

    label: str
    overrides: tuple[str, ...]
    experiment: str

    def command(self, queue: bool = False) -> list[str]:
        """The ``dvc exp run`` call, run at once in a copy of the workspace, or queued."""
        settings = [part for override in self.overrides for part in ("-S", override)]
        return ["dvc", "exp", "run", "--queue" if queue else "--temp", "-n", self.experiment, *settings]


@dataclass(frozen=True)
class Sweep:
    """A question, its points in order, and the point that the others are tested against."""

    name: str
    question: str
    paper: str
    points: tuple[Point, ...]
    against: str


def load(path: Path | str = FILE) -> dict[str, Sweep]:
    """Read the sweeps by name.

    Raises:
        DreamError: the file is missing or not YAML, or a sweep has an unknown key, no points, or an override that is
            not ``key=value``.
    """
    raw = read_yaml(path) or {}
    if not isinstance(raw, dict):
        raise DreamError(f"{path} holds no sweeps", "Add `name:` with its question and points")
    return {str(name): _sweep(str(name), entry, path) for name, entry in raw.items()}


def _sweep(name: str, entry: dict, path: Path | str) -> Sweep:
    if not isinstance(entry, dict) or not entry.get("points"):
        raise DreamError(f"{path}: sweep {name} has no points", "Add `points:` with one label and its overrides a line")
    if unknown := set(entry) - KEYS:
        raise DreamError(f"{path}: sweep {name} has the unknown key {min(unknown)}", f"Known: {', '.join(sorted(KEYS))}")
    points = []
    for label, own in entry["points"].items():
        overrides = [*map(str, entry.get("base") or []), *map(str, own or [])]
        for override in overrides:
            if not re.match(r"\+{0,2}[\w.-]+=", override):
                raise DreamError(f"{path}: sweep {name}, point {label}: {override!r} is not key=value")
        points.append(Point(str(label), tuple(overrides), f"{name}-{_plain(str(label))}"))
    against = str(entry.get("against", points[0].label))
    if against not in [point.label for point in points]:
        raise DreamError(f"{path}: sweep {name} is tested against {against!r}, which is none of its points")
    return Sweep(name, str(entry.get("question", "")), str(entry.get("paper", "")), tuple(points), against)


def _plain(label: str) -> str:
    return re.sub(r"\W+", "-", label).strip("-").lower()


def find(name: str, path: Path | str = FILE) -> Sweep:
    """The sweep of that name, or one line with the known ones."""
    known = load(path)
    if name not in known:
        raise DreamError(f"sweep {name!r} is unknown", hint(name, known, f"Choose one of {{}}, or add it to {path}"))
    return known[name]


def experiments() -> dict[str, str]:
    """Name → commit of the experiments in this clone."""
    return {revision.name: revision.commit for revision in runs.found(0)}


def done(sweep: Sweep, names: dict[str, str]) -> dict[str, str]:
    """Label → commit of the points whose experiment is among ``names`` (see :func:`experiments`)."""
    return {point.label: names[point.experiment] for point in sweep.points if point.experiment in names}


def commands(sweep: Sweep) -> list[str]:
    """The commands of a sweep as a shell would take them."""
    return [shlex.join(point.command()) for point in sweep.points]


def run(sweep: Sweep, queue: bool = False) -> int:
    """Run (or queue) the points whose experiment does not exist yet; return how many. Stopped, it goes on where it was.

    Raises:
        DreamError: an experiment failed; those before it are kept.
    """
    there = done(sweep, experiments())
    waiting = [point for point in sweep.points if point.label not in there]
    for point in waiting:
        command = point.command(queue)
        print(f"> {shlex.join(command)}", flush=True)
        if run_to_its_end(command):
            failed = f"sweep {sweep.name}: `{shlex.join(command)}` failed"
            raise DreamError(failed, "Its output is above; mend it and run the same command again")
    return len(waiting)


def collect(sweep: Sweep, folder: Path | str = FOLDER) -> Table:
    """Read the sweep's experiments and write ``<folder>/<name>/``: table and figure, and the full tables of a sweep of one point.

    Raises:
        DreamError: a point has not been run, or its results do not belong together.
    """
    from dream.report import plots

    there = done(sweep, experiments())
    if not there:
        remedy = f"They stay in the clone that ran them: `dream-report sweep {sweep.name} --run` runs them here"
        raise DreamError(f"no experiment of sweep {sweep.name} is in this clone", remedy)
    if lacking := [point.label for point in sweep.points if point.label not in there]:
        raise DreamError(f"sweep {sweep.name} lacks {', '.join(lacking)}", f"Run `dream-report sweep {sweep.name} --run`")
    opened = {p.label: runs.open_revision(runs.Revision(p.experiment, there[p.label])) for p in sweep.points}
    _check_alike(sweep, opened)
    frame = pd.DataFrame(_rows(sweep, opened, there), columns=COLUMNS)
    table = shown(frame, sweep)
    with replacing_folder(Path(folder) / sweep.name) as temporary:
        build.write_table(table, temporary)
        with plots.mpl.rc_context(plots.STYLE):
            stored = read(temporary / f"{sweep.name}.csv")  # rounded as the report will find it
            plots.save(_figure(stored, sweep, _floor(opened[sweep.against])), temporary / sweep.name)
        if len(opened) == 1:
            _whole(next(iter(opened.values())), temporary)
    return table


def _check_alike(sweep: Sweep, opened: dict[str, Results]) -> None:
    """Points differ in what one of them overrides and in nothing else: one run before params or base changed is refused."""
    first = runs.settings(opened[sweep.against])
    against = next(set(point.overrides) for point in sweep.points if point.label == sweep.against)
    for point in sweep.points:
        own = [_knob(override) for override in against ^ set(point.overrides)]  # not what all share
        if {"model.size", "recipe"} & set(own):  # any knob may follow from these
            continue
        theirs = runs.settings(opened[point.label])
        for knob in runs.differing([first, theirs]):
            asked = any(_touches(override, knob) for override in own)
            if knob in first and knob in theirs and knob not in HARMLESS and not asked:
                values = f"{knob} = {theirs[knob]!r}, {sweep.against} with {first[knob]!r}"
                remedy = f"`dvc exp remove` the older of the two, then `dream-report sweep {sweep.name} --run`"
                raise DreamError(f"sweep {sweep.name}: {point.label} was run with {values}", remedy)


def _touches(override: str, knob: str) -> bool:
    """Whether an override sets a knob, or a part of it; a field of an entry of ``models`` is that of the roles it plays.

    >>> _touches("bm25", "bm25.k1"), _touches("models.smollm2-6l.layers", "roles.encoder.layers"), _touches("bm25.k1", "bm25.k12")
    (True, True, False)
    """
    if override.startswith("models."):
        return knob.startswith("roles.") and knob.rpartition(".")[2] == override.rpartition(".")[2]
    return f"{knob}.".startswith(f"{override}.")


def _knob(override: str) -> str:
    """The knob that an override changes; a value of one recipe (``data.sources.packaged``) is the knob's own."""
    knob = override.partition("=")[0].lstrip("+")
    stem, _, last = knob.rpartition(".")
    return stem if last in RECIPES else knob


def _whole(results: Results, folder: Path) -> None:
    """All tables of the one experiment, and its plot of systems."""
    from dream.report import plots

    for table in registry.build(results):
        build.write_table(table, folder)
    more = [*(["cost"] if results.config.objectives else []), *(["curves"] if results.snapshots else [])]
    plots.draw(results, folder, ["systems", *more])


def _rows(sweep: Sweep, opened: dict[str, Results], commits: dict[str, str]) -> list[dict]:
    rows = []
    first = opened[sweep.against]
    floors = {_floor(results) for results in opened.values()}
    floor = [measures.UNTRAINED] if len(floors) > 1 and None not in floors else []  # encoders, each with a floor of its own
    for point in sweep.points:
        results = opened[point.label]
        tasks = measures.overall(results)[2]
        if tasks != measures.overall(first)[2]:
            other = f"sweep {sweep.name}: {point.label} was evaluated on other tasks than {sweep.against}"
            raise DreamError(other, "Give all points the same tasks")
        for system in [*floor, *results.config.rerankers, *results.config.objectives]:
            found, seeds = measures.measured(results, system, tasks), results.seeds(system)
            low, high = measures.seed_range(results, system, tasks)
            row = {
                "sweep": sweep.name, "point": point.label, "overrides": " ".join(point.overrides), "system": system,
                "seeds": max(1, len(seeds)), "seed_low": low, "seed_high": high,
                "pairs": results.pairs_trained(system), "tasks": len(tasks),
                "queries": sum(len(results.scores(system, task)) for task in tasks),
                "ndcg_at_10": found.value, "ci_low": found.low, "ci_high": found.high, "gap": _gap(results),
                "over": BOTH if len(seeds) >= stats.MIN_SEEDS else "queries",
                "experiment": point.experiment, "commit": commits[point.label][:10],
            }  # fmt: skip
            if point.label != sweep.against and system in first.systems:
                sides = compare.Side(point.label, system, results), compare.Side(sweep.against, system, first)
                change = compare.difference(*sides, tasks)
                row |= {"against": sweep.against, "difference": change.value, "diff_low": change.low, "diff_high": change.high}
                row |= {"p": change.p}
            rows.append(row)
    measures.corrected(rows)
    return rows


def _gap(results: Results) -> float | None:
    """The loss gap before training with the rows that training used."""
    used = [row["gap"] for row in registry.diagnostic_rows(results) if row.get("used")]
    return float(used[0]) if used else None


def shown(frame: pd.DataFrame, sweep: Sweep) -> Table:
    """The stored rows as a table; the best of each system in bold."""
    best = frame.groupby("system").ndcg_at_10.transform("max").round(3)
    several = frame.point.nunique() > 1
    before = (frame.over != BOTH) & (frame.pairs > 0) & (frame.seeds >= stats.MIN_SEEDS)
    rows = []
    for row, top, old in zip(frame.to_dict("records"), best, before, strict=True):
        score = f"{number(row['ndcg_at_10'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"
        differs, tested = not pd.isna(row["difference"]), not pd.isna(row["p"])
        change = f"{signed(row['difference'])} [{signed(row['diff_low'])}, {signed(row['diff_high'])}]" if differs else "–"
        p = f"{p_value(row['p_holm'])}{' (queries only)' if old else ''}" if tested else "–"
        spread = ranged(row["seed_low"], row["seed_high"]) if row["seeds"] > 1 else "–"
        pairs, commit = render.grouped(row["pairs"]), str(row["commit"])[:7]
        rows.append(fields(
            row["point"], row["system"], Field(score, several and round(row["ndcg_at_10"], 3) == top), change,
            p, number(row["gap"]), row["seeds"], spread, pairs, commit,
        ))  # fmt: skip
    notes = [
        f"Mean nDCG@10 over {int(frame.tasks.iloc[0])} tasks with its interval over {' or '.join(sorted(set(frame.over)))}; "
        f"differences are paired with “{sweep.against}”, p of a test over the same after Holm's correction over this table.",
        *([BEFORE] if before.any() else []),
        *_about_seeds(frame, sweep),
        "Loss gap: wrong − gold on the frozen judge before training, in nats a token.",
        *([f"The paper: {sweep.paper}"] if sweep.paper else []),
        f"Made with `dream-report sweep {sweep.name} --run` and `--collect`; the commit is the experiment's.",
    ]
    head = ["Point", "System", "nDCG@10", "Difference", "p", "Loss gap", "Seeds", "Lowest to highest", "Pairs", "Commit"]
    return Table(sweep.name, sweep.question, frame, head, rows, notes)


def _about_seeds(frame: pd.DataFrame, sweep: Sweep) -> list[str]:
    """The rows that were not tested, and the differences that seeds alone could make."""
    trained = frame[frame.pairs > 0]
    few = {f"{row.system} ({row.point})": int(row.seeds) for row in trained.itertuples() if row.seeds < stats.MIN_SEEDS}
    if len(few) == len(trained) and trained.seeds.nunique() == 1:  # one word for all
        few = {", ".join(dict.fromkeys(trained.system)): int(trained.seeds.iloc[0])}
    ends = {(row.point, row.system): (row.seed_low, row.seed_high) for row in trained.itertuples() if row.seeds > 1}
    within = []
    for (point, system), (low, high) in ends.items():
        theirs = ends.get((sweep.against, system))
        if point != sweep.against and theirs and measures.ranges_meet((low, high), theirs):
            within.append(f"{system} ({point})")
    named = f"Inside the seeds' spread (the ranges meet) is the difference of {', '.join(within)}."
    return [*([named] if within else []), *untested(few)]


def stored(folder: Path | str = FOLDER, path: Path | str = FILE) -> list[Table]:
    """The collected tables that the folder holds, in the order of sweeps.yaml, under the names ``sweep-<name>``."""
    return [
        replace(shown(read(Path(folder) / sweep.name / f"{sweep.name}.csv"), sweep), name=f"sweep-{sweep.name}")
        for sweep in _collected(folder, path)
    ]


def figures(folder: Path | str = FOLDER, path: Path | str = FILE) -> dict[str, Callable[[Results], Figure]]:
    """``sweep-<name>`` → its plot, for the collected sweeps: drawn from the table, the untrained encoder from the results."""
    return {f"sweep-{sweep.name}": partial(_collected_figure, sweep, Path(folder)) for sweep in _collected(folder, path)}


def _collected_figure(sweep: Sweep, folder: Path, results: Results) -> Figure:
    frame = read(folder / sweep.name / f"{sweep.name}.csv")
    queries = sum(len(results.scores(results.systems[0], task)) for _, task in results.tasks)
    same = set(frame.queries) == {queries} and not frame.overrides.str.contains(r"model\.|models\.|data\.").any()
    return _figure(frame, sweep, _floor(results) if same else None)


def _collected(folder: Path | str, path: Path | str) -> list[Sweep]:
    known = load(path).values() if Path(path).exists() else []
    return [sweep for sweep in known if (Path(folder) / sweep.name / f"{sweep.name}.csv").exists()]


def _figure(frame: pd.DataFrame, sweep: Sweep, floor: float | None) -> Figure:
    """nDCG@10 at every point with its interval: a line where the points are numbers, dots where they are names.

    A thin mark is the lowest or the highest seed; ``floor`` is the untrained encoder's value, a thin line.
    """
    from dream.report import plots

    labels = list(dict.fromkeys([*(point.label for point in sweep.points), *frame.point]))  # a table may be the older
    numeric = len(labels) > 1 and all(re.fullmatch(r"\d+(\.\d+)?", label) for label in labels)
    systems = list(dict.fromkeys(frame.system))
    height = 3.6 if numeric else 1.6 + 0.26 * len(labels) * max(1, len(systems))
    figure, axis = plots.plt.subplots(figsize=(plots.WIDTH, height))
    for index, system in enumerate(systems):
        part = frame[frame.system == system]
        place = np.array([labels.index(label) for label in part.point], dtype=float)
        error = np.abs(part[["ci_low", "ci_high"]].to_numpy().T - part.ndcg_at_10.to_numpy())
        look = {**plots.look(system), "label": system, "capsize": 2, "markersize": 5}
        ends = part[["seed_low", "seed_high"]].to_numpy()
        if numeric:
            at = part.point.astype(float).to_numpy()
            axis.errorbar(at, part.ndcg_at_10, yerr=error, linestyle=plots.line(system), **look)
            plots.seed_marks(axis, np.repeat(1.04 * at, 2), ends.ravel(), system)
        else:
            at = place + 0.5 * ((index + 0.5) / len(systems) - 0.5)
            axis.errorbar(part.ndcg_at_10, at, xerr=error, linestyle="none", **look)
            for height, low_and_high in zip(at + 0.15 / len(systems), ends, strict=True):
                plots.seed_marks(axis, low_and_high, [height, height], system)
    if floor is not None and measures.UNTRAINED not in systems:
        line = axis.axhline if numeric else axis.axvline
        line(floor, color=plots.SOFT, linewidth=0.9, linestyle=":", label=measures.UNTRAINED)
    if numeric:
        axis.set_xscale("log", base=2)
        axis.set_xticks([float(label) for label in labels], labels)
        axis.minorticks_off()
        axis.set(xlabel=sweep.name, ylabel="nDCG@10, mean over tasks")
    else:
        axis.set_yticks(range(len(labels)), [textwrap.fill(label, 26) for label in labels])
        axis.set(ylim=(len(labels) - 0.5, -0.5), xlabel="nDCG@10, mean over tasks")
        axis.grid(axis="y", visible=False)
    marks = " Thin marks: lowest and highest seed" if frame.seed_low.notna().any() else ""
    plots.titled(figure, sweep.question + marks)
    return figure


def _floor(results: Results) -> float | None:
    """Where the untrained encoder is, if the experiment evaluated it."""
    if measures.UNTRAINED not in results.systems:
        return None
    return measures.measured(results, measures.UNTRAINED, measures.overall(results)[2]).value
