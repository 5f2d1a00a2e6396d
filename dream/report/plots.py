"""The plots of a report, one function each in a registry.

What stays the same when a plot is added: a function of :class:`~dream.report.results.cells.Results` returns a figure, or None
when what it draws was not measured; files, the command line and the page find it through :data:`PLOTS`. Colours are those of
Okabe and Ito, which colour-blind readers can tell apart; every system has a marker and a line style too, so that a black and
white print still reads. The same results give the same bytes: no dates, a fixed salt for SVG ids, a fixed jitter.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dream.errors import DreamError
from dream.report import curves
from dream.report.results.cells import Results
from dream.report.tables import measures, registry

PLOTS: dict[str, Callable[[Results], Figure | None]] = {}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "p"]  # one more than colours: a pair comes back after 72 systems
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3))]
STYLE: Any = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth":
    0.6,
    "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": __name__.partition(".")[0],
    "lines.linewidth": 1.4, "figure.dpi": 100,
    "font.family": "DejaVu Sans",
}  # fmt: skip
DPI = 160
AXES = {"pairs": "(query, target) pairs", "seconds": "seconds of training and teacher", "flops": "operations"}
CURVES = {  # column of the training curves → axis label
    "loss": "loss (each objective's own)",
    "gap": "gap, wrong − gold (nats)",
    "gold_rank": "rank of the gold candidate",
    "entropy": "entropy of p (nats)",
    "tau": "tau",
    "gate": "gate g",
}


def plot(name: str) -> Callable:
    """Register a plot under the name of its file. A function that returns None has nothing to show."""

    def add(function: Callable[[Results], Figure | None]) -> Callable[[Results], Figure | None]:
        PLOTS[name] = function
        return function

    return add


def draw(results: Results, folder: Path, names: list[str] | None = None, made: dict[str, list[Path]] | None = None) -> list[Path]:
    """Draw all plots that have something to show, or the named ones, as PNG and SVG; return the files.

    Args:
        results: what is drawn.
        folder: where the files go.
        names: these plots only; one that has nothing to show is an error then.
        made: figures that are at hand already (those of sweeps) by name: copied where they are named.
    """
    made = made or {}
    for name in names or []:
        if name not in PLOTS and name not in made:
            raise DreamError(f"plot {name!r} is unknown", f"Choose one of {', '.join([*PLOTS, *made])}")
    files = []
    with mpl.rc_context(STYLE):
        for name in names or PLOTS:
            if name in made:
                files += [_copied(file, folder / f"{name}{file.suffix}") for file in made[name]]
            elif (figure := PLOTS[name](results)) is not None:
                files += save(figure, folder / name)
            elif names:
                raise DreamError(f"plot {name!r} has nothing to show: what it draws was not measured", "Run `dvc repro`")
    return files if names else [*files, *(file for found in made.values() for file in found)]


def _copied(file: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(file, target))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg`` without anything that differs between two runs."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg"))
    figure.savefig(png, dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return [png, svg]


def look(results: Results, system: str) -> dict:
    """Colour and marker of a system: the same in every plot of a report."""
    index = results.systems.index(system)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


# ---------------------------------------------------------------------------------------------------------- plots


@plot("systems")
def systems(results: Results) -> Figure:
    """Every system on every task with its interval; the means below a line of their own."""
    scopes = [(label, tasks) for _, label, tasks in measures.scopes(results) if label != "mean"]
    scopes += [(f"mean of {suite}" if len(results.suites) > 1 else "mean", tasks) for suite, tasks in results.suites.items()]
    count = len(results.systems)
    figure, axis = plt.subplots(figsize=(7, 0.9 + len(scopes) * (0.2 + 0.13 * count)))
    for index, system in enumerate(results.systems):
        found = [measures.measured(results, system, tasks) for _, tasks in scopes]
        values, y = np.array([f.value for f in found]), np.arange(len(scopes)) + _offset(index, count)
        errors = np.abs(np.array([[f.low for f in found], [f.high for f in found]]) - values)
        axis.errorbar(
            values,
            y,
            xerr=errors,
            linestyle="none",
            capsize=2,
            markersize=4.5,
            elinewidth=1,
            label=system,
            **look(results, system),
        )
    for boundary in np.arange(len(scopes) - 1) + 0.5:
        is_last_task = boundary == len(results.tasks) - 0.5
        axis.axhline(boundary, color="#444444" if is_last_task else "#DDDDDD", linewidth=0.9 if is_last_task else 0.5)
    axis.set_yticks(range(len(scopes)), [label for label, _ in scopes])
    axis.set(
        ylim=(len(scopes) - 0.5, -0.5),
        xlabel=f"nDCG@10, {results.config.report.confidence:.0%} interval over {measures.over(results)}",
    )
    axis.grid(axis="y", visible=False)
    axis.set_xlim(left=-0.01)
    figure.legend(loc="outside upper center", ncols=min(count, 6))
    return figure


def _offset(index: int, count: int) -> float:
    return 0.7 * ((index + 0.5) / count - 0.5)


@plot("training")
def training(results: Results) -> Figure | None:
    """Training curves: one thin line a seed, a thick one for their mean."""
    columns = [c for c in CURVES if any(c in curve.columns and curve[c].notna().any() for curve in results.curves.values())]
    if not columns:
        return None
    width = min(3, len(columns))
    rows = -(-len(columns) // width)
    figure, axes = plt.subplots(rows, width, figsize=(2.7 * width, 2.1 * rows + 0.4), squeeze=False)
    for axis, column in zip(axes.flat, columns, strict=False):
        for system in results.config.objectives:
            _curve(axis, results, system, column)
        axis.set_title(CURVES[column], fontsize=9)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        if column == "gap":
            axis.axhline(0, color="#444444", linewidth=0.8)
        if column == "gold_rank":
            axis.set_ylim(bottom=min(1, axis.get_ylim()[0]))
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < len(columns))
        if index >= len(columns) - width:
            axis.set_xlabel("step")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6)
    return figure


def _curve(axis, results: Results, system: str, column: str) -> None:
    curves = [results.curves.get(f"{system}-{seed}") for seed in results.seeds(system)]
    series = [c.set_index("step")[column].dropna() for c in curves if c is not None and column in c.columns]
    series = [s for s in series if not s.empty]
    if not series:
        return
    colour = look(results, system)["color"]
    line = LINES[results.config.objectives.index(system) % len(LINES)]
    for one in series:
        axis.plot(one.index, one.to_numpy(), color=colour, linewidth=0.6, alpha=0.45)
    mean = pd.concat(series, axis=1).mean(axis=1)
    axis.plot(mean.index, mean.to_numpy(), color=colour, linestyle=line, label=system)


@plot("queries")
def queries(results: Results) -> Figure | None:
    """Per query: the reference system against its strongest rival, a panel a task (at most nine)."""
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
    """Per-query nDCG@10 of two systems; above the diagonal ``ours`` wins."""
    tasks = [task for _, task in results.tasks][:9]
    width = min(3, len(tasks))
    rows = -(-len(tasks) // width)
    figure, axes = plt.subplots(rows, width, figsize=(2.5 * width, 2.6 * rows), squeeze=False, sharex=True, sharey=True)
    jitter = np.random.default_rng(0)
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < len(tasks))
        if index >= len(tasks):
            continue
        x, y = results.scores(theirs, tasks[index]).to_numpy(), results.scores(ours, tasks[index]).to_numpy()
        won, lost = y > x + 1e-9, x > y + 1e-9
        noise = jitter.normal(0, 0.012, (2, len(x)))
        for chosen, colour, marker in ((won, COLOURS[0], "^"), (lost, COLOURS[1], "v"), (~won & ~lost, "#888888", "o")):
            axis.scatter(
                (x + noise[0])[chosen],
                (y + noise[1])[chosen],
                s=9,
                marker=marker,
                color=colour,
                alpha=0.45,
                linewidths=0,
            )
        axis.plot([0, 1], [0, 1], color="#444444", linewidth=0.8)
        axis.tick_params(labelbottom=index + width >= len(tasks))
        axis.set_title(f"{tasks[index]}\n{won.sum()} won, {lost.sum()} lost, {(~won & ~lost).sum()} level", fontsize=8.5)
        axis.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), aspect="equal")
    figure.supxlabel(f"nDCG@10 of {theirs}", fontsize=9)
    figure.supylabel(f"nDCG@10 of {ours}", fontsize=9)
    return figure


@plot("heads")
def heads(results: Results) -> Figure | None:
    """Score of every attention head of the judge, the selected ones framed."""
    found = registry.head_scores(results)
    if found is None:
        return None
    grid = found.pivot(index="head", columns="layer", values="score").sort_index()
    rows, columns = grid.shape
    figure, axis = plt.subplots(figsize=(min(9, 1.8 + 0.2 * columns), min(7, 1.3 + 0.2 * rows)))
    image = axis.imshow(grid.to_numpy(), cmap="cividis", aspect="auto", origin="lower", interpolation="nearest")
    places = {"layer": list(grid.columns), "head": list(grid.index)}
    for row in found[found["selected"]].itertuples():
        x, y = places["layer"].index(row.layer), places["head"].index(row.head)
        axis.add_patch(
            mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.6, clip_on=False)
        )
    for set_ticks, name in ((axis.set_xticks, "layer"), (axis.set_yticks, "head")):
        step = max(1, -(-len(places[name]) // 16))
        set_ticks(range(0, len(places[name]), step), places[name][::step])
    axis.set(xlabel="layer", ylabel="head", title=f"{int(found['selected'].sum())} selected heads (framed)")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="nDCG@10 of the gold candidate", pad=0.02)
    return figure


@plot("diagnostic")
def diagnostic(results: Results) -> Figure | None:
    """The judge's loss with nothing, uniform, right and wrong scores injected, for every row setting that was
    measured."""
    found = registry.diagnostic_rows(results)
    kinds = [k for k in ("none", "uniform", "gold", "wrong") if found and all(isinstance(r.get(k), float | int) for r in found)]
    if not kinds:
        return None
    figure, axis = plt.subplots(figsize=(1.8 + 1.5 * len(found), 3))
    hatches = ["", "//", "", "xx"]
    for index, kind in enumerate(kinds):
        x = np.arange(len(found)) + (index - (len(kinds) - 1) / 2) * 0.2
        bars = axis.bar(
            x,
            [row[kind] for row in found],
            0.18,
            color=COLOURS[index],
            hatch=hatches[index],
            edgecolor="white",
            label=kind,
        )
        axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    axis.set_xticks(range(len(found)), [_condition(row, index) for index, row in enumerate(found)])
    axis.set_ylabel("loss on the target (nats per token)")
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=4)
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
    figure, axis = plt.subplots(figsize=(5, 3.2))
    for system in results.systems:
        found = measures.measured(results, system, tasks)
        if system in rows:
            axis.errorbar(
                spent[system], found.value, yerr=[[found.value - found.low], [found.high - found.value]],
                capsize=3, linestyle="none", label=system, **look(results, system),
            )  # fmt: skip
        else:
            line = LINES[results.systems.index(system) % len(LINES)]
            axis.axhline(found.value, color=look(results, system)["color"], linestyle=line, label=f"{system} (not trained)")
    unit = "floating-point operations" if counted else "(query, target) pairs"
    axis.set(xlabel=f"{unit} of one training run", ylabel="mean nDCG@10, all tasks")
    axis.margins(x=0.15, y=0.12)
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, 1.15 * max(spent.values()))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@plot("curves")
def curves_of_learning(results: Results) -> Figure | None:
    """Mean nDCG@10 against pairs, seconds and operations: one thin line a seed, the mean thick, untrained systems as levels."""
    found, tasks = curves.points(results), measures.overall(results)[2]
    if not found:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharey=True)
    for axis, (key, label) in zip(axes, AXES.items(), strict=True):
        for system, points in found.items():
            spent, colour = [getattr(point, key) for point in points], look(results, system)
            seeds = np.array([point.results.seed_means(system, tasks) for point in points])
            axis.plot(spent, seeds, color=colour["color"], linewidth=0.6, alpha=0.5)
            axis.plot(spent, seeds.mean(axis=1), label=system, linewidth=2, markersize=5, **colour)
        for system in results.systems:
            if system not in found:
                line = LINES[results.systems.index(system) % len(LINES)]
                level = measures.measured(results, system, tasks).value
                axis.axhline(
                    level,
                    label=f"{system} (not trained here)",
                    linestyle=line,
                    linewidth=1.1,
                    color=look(results, system)["color"],
                )
        axis.set(xscale="log", xlabel=label, ylim=(0, None))
    every = sorted({point.pairs for points in found.values() for point in points})
    axes[0].set_xticks(every, [str(pairs) for pairs in every])
    axes[0].minorticks_off()
    axes[0].set_ylabel("mean nDCG@10, all tasks")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@plot("geometry")
def geometry(results: Results) -> Figure | None:
    """Alignment against uniformity of every encoder (both: lower is better), mean over tasks."""
    found = geometry_rows(results)
    if found is None:
        return None
    figure, axis = plt.subplots(figsize=(4.2, 3.4))
    for row in found.itertuples():
        axis.scatter(row.uniformity, row.alignment, s=36, **look(results, row.system))
        axis.annotate(row.system, (row.uniformity, row.alignment), xytext=(6, 4), textcoords="offset points", fontsize=8.5)
    axis.margins(0.2)
    axis.set(xlabel="uniformity (lower spreads wider)", ylabel="alignment (lower is closer)")
    return figure


def geometry_rows(results: Results) -> pd.DataFrame | None:
    """``system, alignment, uniformity``, mean over tasks and seeds, for the systems that have both."""
    if not {"alignment", "uniformity"} <= set(results.records.columns):
        return None
    measured = results.records.assign(
        alignment=pd.to_numeric(results.records["alignment"], errors="coerce"),
        uniformity=pd.to_numeric(results.records["uniformity"], errors="coerce"),
    )
    means = measured.groupby("system", sort=False)[["alignment", "uniformity"]].mean().dropna()
    return None if means.empty else means.reset_index()
