"""The plots of a report, one function each in a registry.

What stays the same when a plot is added: a function of :class:`~dream.report.results.cells.Results` returns a figure, or None
when what it draws was not measured; files, the command line and the page find it through :data:`PLOTS`. A system looks the same
in every figure and on the page (:func:`look`, ``reference/looks.json``): colours that read on white and on black, for
colour-blind readers too, and a marker, so that a black and white print still reads. Figures are at most :data:`WIDTH` wide:
their letters can be read on a phone. The same results give the same bytes: no dates, a fixed salt for SVG ids, a fixed jitter.
"""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dream.errors import DreamError
from dream.names import hint
from dream.report.results.cells import Results
from dream.report.tables import curves, measures, registry

Plot = Callable[[Results], Figure | None]
PLOTS: dict[str, Plot] = {}
LOOKS: dict[str, dict[str, str]] = json.loads(
    resources.files("dream.report").joinpath("reference/looks.json").read_text(encoding="utf-8")
)
INK, SOFT, LINE, PAPER = "#000000", "#444444", "#DDDDDD", "#FFFFFF"  # the page gives these four other values in the dark
WIDTH = 5.2  # inches
STYLE: Any = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "figure.constrained_layout.use": True, "font.size": 9.5, "axes.titlesize": 10, "axes.labelsize": 9.5,
    "figure.titlesize": 10.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": __name__.partition(".")[0],
    "lines.linewidth": 1.4, "figure.dpi": 100,
    "font.family": "DejaVu Sans",
}  # fmt: skip
DPI = 160  # of a PNG
ENDINGS = ("png", "svg")
METADATA = {".png": ["Software"], ".svg": ["Date", "Creator"]}  # left out of files
AXES = {"pairs": "(query, target) pairs", "seconds": "seconds of training and teacher", "flops": "operations"}
CURVES = {  # column of the training curves → title of its panel; the loss of every objective has a panel of its own
    "gap": "gap, wrong − gold (nats)",
    "gold_rank": "rank of the gold candidate",
    "entropy": "entropy of p (nats)",
    "tau": "tau",
    "gate": "gate g",
}


def plot(name: str) -> Callable[[Plot], Plot]:
    """Register a plot under the name of its file. A function that returns None has nothing to show."""

    def add(function: Plot) -> Plot:
        PLOTS[name] = function
        return function

    return add


def draw(
    results: Results,
    folder: Path,
    names: list[str] | None = None,
    more: Mapping[str, Plot] | None = None,
    endings: tuple[str, ...] = ENDINGS,
) -> list[Path]:
    """Draw all plots that have something to show, or the named ones; return the files.

    Args:
        results: what is drawn.
        folder: where the files go.
        names: these plots only; one that has nothing to show is an error then.
        more: other plots by name (those of sweeps).
        endings: of the files of each.
    """
    known = {**PLOTS, **(more or {})}
    for name in names or []:
        if name not in known:
            raise DreamError(f"plot {name!r} is unknown", hint(name, known, "Choose one of {}"))
    files = []
    with mpl.rc_context(STYLE):
        for name in names or known:
            if (figure := known[name](results)) is not None:
                files += save(figure, folder / name, endings)
            elif names:
                raise DreamError(f"plot {name!r} has nothing to show: what it draws was not measured", "Run `dvc repro`")
    return files


def save(figure: Figure, stem: Path, endings: tuple[str, ...] = ENDINGS) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg`` (or one of them) without anything that differs between two runs."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in endings]
    for file in files:
        figure.savefig(file, dpi=DPI, metadata=dict.fromkeys(METADATA[file.suffix]))
    plt.close(figure)
    return files


def look(system: str) -> dict[str, Any]:
    """Colour and marker of a system, the same in every figure. One that ``looks.json`` does not hold has those of two that it
    holds, chosen by its name alone.

    >>> look("mine") == look("mine"), sorted(look("mine"))
    (True, ['color', 'marker'])
    """
    own = LOOKS.get(system)
    if own is None:
        first, second, *_ = hashlib.sha256(system.encode()).digest()
        looks = list(LOOKS.values())
        own = {"color": looks[first % len(looks)]["color"], "marker": looks[second % len(looks)]["marker"]}
    return {"color": own["color"], "marker": own["marker"]}


def line(system: str) -> str:
    """Line style of a system, for curves."""
    return LOOKS.get(system, {}).get("line", "-")


def titled(figure: Figure, title: str) -> None:
    """Give a figure its title, folded to its width, and its legend below: one entry a label, in the order of drawing."""
    figure.suptitle(textwrap.fill(title, round(12.5 * figure.get_figwidth())))
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=2 if len(handles) == 4 else min(3, len(handles)),
            fontsize=9,
        )


def seed_marks(axis, across: Sequence[float] | np.ndarray, up: Sequence[float] | np.ndarray, system: str) -> None:
    """The training runs of a system, one small thin mark each."""
    axis.scatter(across, up, s=12, marker="|" if len(set(up)) == 1 else "_", color=look(system)["color"], linewidths=0.9)


# ---------------------------------------------------------------------------------------------------------- plots


@plot("systems")
def systems(results: Results) -> Figure:
    """Every system on every task with its interval, and their means; a thin mark is one seed.

    Chance: what a random order of the documents reaches where a query has one relevant document.
    """
    scopes = [(label, tasks) for _, label, tasks in measures.scopes(results) if label != "mean"]
    scopes += [(f"mean of {suite}" if len(results.suites) > 1 else "mean", tasks) for suite, tasks in results.suites.items()]
    count = len(results.systems)
    figure, axis = plt.subplots(figsize=(WIDTH, 1.3 + len(scopes) * (0.15 + 0.13 * count)))
    for index, system in enumerate(results.systems):
        found = [measures.measured(results, system, tasks) for _, tasks in scopes]
        values, y = np.array([f.value for f in found]), np.arange(len(scopes)) + _offset(index, count)
        errors = np.abs(np.array([[f.low for f in found], [f.high for f in found]]) - values)
        axis.errorbar(
            values, y, xerr=errors, linestyle="none", capsize=2, markersize=5, elinewidth=1, label=system, **look(system)
        )
        for height, (_, tasks) in zip(y, scopes, strict=True):
            runs = results.seed_means(system, tasks)
            seed_marks(axis, runs, [height + 0.3 / count] * len(runs), system)
    places = np.arange(len(scopes))
    axis.vlines([_chance(results, tasks) for _, tasks in scopes], places - 0.45, places + 0.45, color=SOFT, linewidth=0.9,
                linestyle=":", label="chance")  # fmt: skip
    for boundary in np.arange(len(scopes) - 1) + 0.5:
        is_last_task = boundary == len(results.tasks) - 0.5
        axis.axhline(boundary, color=SOFT if is_last_task else LINE, linewidth=0.9 if is_last_task else 0.5)
    axis.set_yticks(range(len(scopes)), [label for label, _ in scopes])
    axis.set(ylim=(len(scopes) - 0.5, -0.5), xlim=(0, 1.02), xlabel=f"nDCG@10, {results.config.report.confidence:.0%} interval")
    axis.grid(axis="y", visible=False)
    titled(figure, "Every system on every task; a thin mark is one seed")
    return figure


def _chance(results: Results, tasks: list[str]) -> float:
    """Expected nDCG@10 of a random order where a query has one relevant document, mean over tasks."""
    gain = sum(1 / math.log2(rank + 1) for rank in range(1, 11))
    return float(np.mean([min(1.0, gain / results.record(results.systems[0], task)["documents"]) for task in tasks]))


def _offset(index: int, count: int) -> float:
    return 0.7 * ((index + 0.5) / count - 0.5)


@plot("training")
def training(results: Results) -> Figure | None:
    """Training curves: a thin line is one seed, a thick one their mean; dotted is what chance gives.

    The losses of two objectives are different quantities: each has a panel of its own, on an axis of its own.
    """
    panels = [("loss", f"loss of {system} (nats)", [system]) for system in results.config.objectives]
    panels += [(column, title, list(results.config.objectives)) for column, title in CURVES.items()]
    panels = [panel for panel in panels if any(_series(results, system, panel[0]) for system in panel[2])]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, 1.7 * rows + 0.8), squeeze=False)
    count = results.config.candidates.count
    levels = {"gap": 0.0, "gold_rank": (count + 1) / 2, "entropy": math.log(count)}
    for axis, (column, title, systems) in zip(axes.flat, panels, strict=False):
        for system in systems:
            _curve(axis, _series(results, system, column), system)
        axis.set_title(title, fontsize=9.5)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        if column in levels:
            axis.axhline(levels[column], color=SOFT, linewidth=0.9, linestyle=":", label="chance")
        if column == "gold_rank":
            axis.set_ylim(bottom=min(1, axis.get_ylim()[0]))
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < len(panels))
        if index >= len(panels) - 2:
            axis.set_xlabel("step")
    titled(figure, "Training, by optimiser step")
    return figure


def _series(results: Results, system: str, column: str) -> list[pd.Series]:
    """A column of the training curves of every seed that has it."""
    curves = [results.curves.get(f"{system}-{seed}") for seed in results.seeds(system)]
    series = [c.set_index("step")[column].dropna() for c in curves if c is not None and column in c.columns]
    return [s for s in series if not s.empty]


def _curve(axis, series: list[pd.Series], system: str) -> None:
    if not series:
        return
    colour = look(system)["color"]
    for one in series:
        axis.plot(one.index, one.to_numpy(), color=colour, linewidth=0.6, alpha=0.5)
    mean = pd.concat(series, axis=1).mean(axis=1)
    axis.plot(mean.index, mean.to_numpy(), color=colour, linestyle=line(system), label=system)


@plot("queries")
def queries(results: Results) -> Figure | None:
    """Every query as a point: the reference system against its strongest rival, a panel a task (at most ten).

    A point above the diagonal is a query on which the reference system is better."""
    ours, theirs = pair(results)
    return None if theirs is None else scatter(results, ours, theirs)


def pair(results: Results) -> tuple[str, str | None]:
    """The reference system and the best of the others, trained ones first."""
    others = [s for s in results.config.objectives if s != results.reference] or [
        s for s in results.systems if s != results.reference
    ]
    tasks = measures.overall(results)[2]
    return results.reference, max(others, key=lambda s: measures.measured(results, s, tasks).value, default=None)


def scatter(results: Results, ours: str, theirs: str) -> Figure:
    """Per-query nDCG@10 of two systems, mean over seeds; above the diagonal ``ours`` wins, and the point has its look."""
    tasks = [task for _, task in results.tasks][:10]
    width = min(2, len(tasks))
    rows = -(-len(tasks) // width)
    figure, axes = plt.subplots(rows, width, figsize=(WIDTH, 2.6 * rows + 0.6), squeeze=False, sharex=True, sharey=True)
    jitter = np.random.default_rng(0)
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < len(tasks))
        if index >= len(tasks):
            continue
        x, y = results.scores(theirs, tasks[index]).to_numpy(), results.scores(ours, tasks[index]).to_numpy()
        won, lost = y > x + 1e-9, x > y + 1e-9
        noise = jitter.normal(0, 0.012, (2, len(x)))
        level = {"color": "#888888", "marker": "."}
        for chosen, label, style in (
            (won, f"{ours} is better", look(ours)), (lost, f"{theirs} is better", look(theirs)), (~won & ~lost, "level", level),
        ):  # fmt: skip
            axis.scatter((x + noise[0])[chosen], (y + noise[1])[chosen], s=12, alpha=0.5, linewidths=0, label=label, **style)
        axis.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8)
        axis.tick_params(labelbottom=index + width >= len(tasks))
        counts = f"{won.sum()} won, {lost.sum()} lost, {(~won & ~lost).sum()} level"
        axis.set_title(f"{tasks[index]}\n{counts}", fontsize=9)
        axis.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), aspect="equal", ylabel=ours if index % width == 0 else "")
        axis.set_xlabel(theirs if index + width >= len(tasks) else "")
    titled(figure, f"nDCG@10 of every query: {ours} against {theirs}")
    return figure


@plot("heads")
def heads(results: Results) -> Figure | None:
    """Score of every attention head of the judge, the selected ones framed."""
    count = results.config.candidates.count
    chance = sum(1 / math.log2(rank + 1) for rank in range(1, count + 1)) / count
    found = registry.head_scores(results)
    if found is None:
        return None
    grid = found.pivot(index="head", columns="layer", values="score").sort_index()
    rows = len(grid)
    figure, axis = plt.subplots(figsize=(WIDTH, min(7, 1.6 + 0.2 * rows)))
    image = axis.imshow(grid.to_numpy(), cmap="cividis", aspect="auto", origin="lower", interpolation="nearest")
    places = {"layer": list(grid.columns), "head": list(grid.index)}
    for row in found[found["selected"]].itertuples():
        x, y = places["layer"].index(row.layer), places["head"].index(row.head)
        axis.add_patch(
            mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#E8590C", linewidth=1.6, clip_on=False)
        )
    for set_ticks, name in ((axis.set_xticks, "layer"), (axis.set_yticks, "head")):
        step = max(1, -(-len(places[name]) // 10))
        set_ticks(range(0, len(places[name]), step), places[name][::step])
    axis.set(xlabel="layer of the judge", ylabel="head")
    axis.grid(visible=False)
    bar = figure.colorbar(image, ax=axis, label=f"nDCG of the gold candidate\n(chance {chance:.2f}, dotted)", pad=0.02)
    bar.ax.axhline(chance, color="#FFFFFE", linewidth=1.4, linestyle=":")
    titled(figure, f"The judge's attention heads, {int(found['selected'].sum())} selected (framed)")
    return figure


KINDS = {"none": ("#808080", ""), "uniform": ("#C99700", "//"), "gold": ("#009E73", ""), "wrong": ("#D55E00", "xx")}


@plot("diagnostic")
def diagnostic(results: Results) -> Figure | None:
    """The judge's loss with nothing, uniform, right and wrong scores injected, for every row setting that was measured.

    The gap between right and wrong is all that training can use."""
    found = registry.diagnostic_rows(results)
    kinds = [k for k in KINDS if found and all(isinstance(r.get(k), float | int) for r in found)]
    if not kinds:
        return None
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    for index, kind in enumerate(kinds):
        x = np.arange(len(found)) + (index - (len(kinds) - 1) / 2) * 0.2
        colour, hatch = KINDS[kind]
        values = [row[kind] for row in found]
        bars = axis.bar(x, values, 0.18, color=colour, hatch=hatch, edgecolor=PAPER, linewidth=0, label=f"{kind} injected")
        axis.bar_label(bars, fmt="%.2f", fontsize=7.5, padding=1)
    axis.set_xticks(range(len(found)), [_condition(row, index) for index, row in enumerate(found)])
    axis.set(ylabel="loss on the target (nats per token)", ylim=(0, None))
    axis.grid(axis="x", visible=False)
    titled(figure, "The frozen judge's loss before training, by injected scores")
    return figure


def _condition(row: dict, index: int) -> str:
    parts = [f"rows {row['rows']}" if "rows" in row else "", f"g = {row['gate']:g}" if "gate" in row else ""]
    return "\n".join(p for p in parts if p) or f"setting {index + 1}"


@plot("cost")
def cost(results: Results) -> Figure | None:
    """Mean nDCG@10 over all tasks against what one training run computed; systems that are not trained as lines.

    Floating-point operations (or pairs, where a stage counts none) rather than hours: they are the same on every
    machine and in every run, so the picture is too. Hours stand in the cost table.
    """
    rows = {r["system"]: r["flops"] for r in registry.cost_rows(results) if r["stage"] == "train"}
    if not rows:
        return None
    counted = all(rows.values())
    spent = rows if counted else {system: results.pairs_trained(system) for system in rows}
    tasks = measures.overall(results)[2]
    figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
    for system in results.systems:
        found = measures.measured(results, system, tasks)
        if system in rows:
            axis.errorbar(
                spent[system], found.value, yerr=[[found.value - found.low], [found.high - found.value]],
                capsize=3, linestyle="none", label=system, **look(system),
            )  # fmt: skip
            runs = results.seed_means(system, tasks)
            seed_marks(axis, [spent[system] + 0.02 * max(spent.values())] * len(runs), runs, system)
        else:
            style = {"color": look(system)["color"], "linestyle": line(system)}
            axis.axhline(found.value, label=f"{system} (not trained)", **style)
    unit = "floating-point operations" if counted else "(query, target) pairs"
    axis.set(xlabel=f"{unit} of one training run", ylabel="nDCG@10, mean over tasks")
    axis.margins(y=0.12)
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, 1.15 * max(spent.values()))
    titled(figure, "Quality against the computation of training")
    return figure


@plot("curves")
def curves_of_learning(results: Results) -> Figure | None:
    """Mean nDCG@10 against pairs, seconds and operations: one thin line a seed, the mean thick, untrained systems as levels."""
    found, tasks = curves.points(results), measures.overall(results)[2]
    if not found:
        return None
    figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 7.5), sharey=True)
    for axis, (key, label) in zip(axes, AXES.items(), strict=True):
        for system, points in found.items():
            spent, colour = [getattr(point, key) for point in points], look(system)
            seeds = np.array([point.results.seed_means(system, tasks) for point in points])
            axis.plot(spent, seeds, color=colour["color"], linewidth=0.6, alpha=0.5)
            axis.plot(spent, seeds.mean(axis=1), label=system, linewidth=2, markersize=5, **colour)
        for system in (name for name in results.systems if name not in found):
            level = measures.measured(results, system, tasks).value
            axis.axhline(level, label=system, linewidth=1.1, linestyle=line(system), color=look(system)["color"])
        axis.set(xscale="log", xlabel=label, ylim=(0, None))
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    every = sorted({point.pairs for points in found.values() for point in points})
    axes[0].set_xticks(every, [str(pairs) for pairs in every])
    axes[1].set_ylabel("mean nDCG@10, all tasks")
    titled(figure, "Learning curves: a thin line is one seed, a thick one their mean; without marks: not trained here")
    return figure


@plot("geometry")
def geometry(results: Results) -> Figure | None:
    """Alignment against uniformity of every encoder (both: lower is better), mean over tasks; a small mark is one seed."""
    found = geometry_rows(results)
    if found is None:
        return None
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
    seeds = geometry_rows(results, ["system", "seed"])
    for row in () if seeds is None else seeds.itertuples():
        axis.scatter(row.uniformity, row.alignment, s=10, alpha=0.6, linewidths=0, **look(row.system))
    for row in found.itertuples():
        axis.scatter(row.uniformity, row.alignment, s=45, label=row.system, **look(row.system))
    axis.margins(0.2)
    axis.set(xlabel="uniformity, log of a mean (lower spreads wider)", ylabel="alignment (lower is closer)")
    titled(figure, "Geometry of the embeddings, mean over tasks")
    return figure


def geometry_rows(results: Results, by: list[str] | None = None) -> pd.DataFrame | None:
    """``system, alignment, uniformity``, mean over tasks and seeds (or by other columns), for the systems that have both."""
    if not {"alignment", "uniformity"} <= set(results.records.columns):
        return None
    measured = results.records.assign(
        alignment=pd.to_numeric(results.records["alignment"], errors="coerce"),
        uniformity=pd.to_numeric(results.records["uniformity"], errors="coerce"),
    )
    means = measured.groupby(by or ["system"], sort=False)[["alignment", "uniformity"]].mean().dropna()
    return None if means.empty else means.reset_index()
