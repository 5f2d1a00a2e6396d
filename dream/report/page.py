"""The whole report as one HTML file that needs no network: verdict, figures, queries, tables, ablations, provenance.

Everything that comes from data is made visible and goes through the template's autoescape (or
:func:`dream.report.tables.render.html_table`, which escapes): text of queries and passages is shown, never interpreted.
Figures are the SVGs of :mod:`dream.report.plots` with the page's colours in the place of their black and white.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from dream.errors import visible
from dream.report import build, plots, verdict
from dream.report.commands import paper, queries, sweeps
from dream.report.results import collected
from dream.report.results.cells import Results, expected
from dream.report.tables import measures, registry, render
from dream.report.tables.render import number

COLOURS = {plots.INK: "ink", plots.SOFT: "soft", plots.LINE: "line", plots.PAPER: "paper"}  # of figures → of the page
NOTES = 2  # of a table, in sight: how to read it


def html(results: Results, changed: Path | str = queries.FILE) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("dream.report").joinpath("templates/page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(**content(results, changed))


def content(results: Results, changed: Path | str = queries.FILE) -> dict[str, Any]:
    """What the template shows."""
    config = results.config
    tasks = measures.overall(results)[2]
    cards = [(system, measures.measured(results, system, tasks)) for system in results.systems]
    found, remark = queries.read(results, changed)
    tables = _tables(results)
    return {
        "title": f"DREAM benchmark: size {config.model.size}, recipe {config.recipe}",
        "lead": f"Encoder {config.roles['encoder'].model}"
        + (f" (first {config.roles['encoder'].layers} layers)" if config.roles["encoder"].layers else "")
        + f", judge {config.roles['judge'].model}, seeds {', '.join(map(str, config.seeds))}.",
        "cards": [{"system": s, "value": number(v.value), "interval": f"{number(v.low)} to {number(v.high)}",
                   "colour": plots.look(s)["color"]} for s, v in cards],
        "reference": results.reference, "task_count": len(tasks), "confidence": f"{config.report.confidence:.0%}",
        "over": measures.over(results),
        "verdict": [one | {"said": verdict.evidence(one).split("`")} for one in verdict.verdict(results)],
        "figures": _figures(results), "changes": [_change(one) for one in found], "remark": remark, "passage": queries.PASSAGE,
        "tables": [table for table in tables if not table["name"].startswith("sweep-")],
        "sweeps": [table for table in tables if table["name"].startswith("sweep-") and not _is_search(table)],
        "searches": [table for table in tables if _is_search(table)],
        "cells": _cells(results), "stages": _stages(results), "settings": _settings(results),
    }  # fmt: skip


def _shown(value: Any) -> Any:
    """Text in which nothing acts or hides; the markup of the page's own tables and figures as it is."""
    return value if not isinstance(value, str) or hasattr(value, "__html__") else visible(value, keep="\n")


def _figures(results: Results) -> list[dict[str, Any]]:
    """Every plot, the learning curves first: of these results or, where they have none, of the collected sweeps."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = {file.stem: file for file in plots.draw(results, Path(folder), endings=("svg",))}
        curves = [drawn.pop("curves")] if "curves" in drawn else sorted(Path(collected.FOLDER).glob("*/curves.svg"))
        shown = {(f"{file.parent.name}-{file.stem}" if len(curves) > 1 else file.stem): file for file in curves} | drawn
        asked = {name: f"{sweep.question} " for name, sweep in sweeps.load().items()} if len(curves) > 1 else {}
        return [_figure(file, asked.get(file.parent.name, "") + _caption(file.stem), name) for name, file in shown.items()]


def _caption(name: str) -> str:
    return " ".join((plots.PLOTS[name].__doc__ or name).split("\n\n")[0].split())


def _figure(file: Path, caption: str, name: str) -> dict[str, Any]:
    """A figure for the page. Its ids are its own there, and what is black, grey or white follows the page."""
    from markupsafe import Markup

    svg = file.read_text(encoding="utf-8")
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->|^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in COLOURS.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.IGNORECASE)
    return {"name": name, "svg": Markup(svg), "caption": caption}


def _tables(results: Results) -> list[dict[str, Any]]:
    """Every table that there is; a sweep's with its figure."""
    from markupsafe import Markup

    found = [*registry.build(results, None, sweeps.stored()), paper.table(results), paper.ablations(), paper.scaling()]
    figures = _sweep_figures(results, {table.name: table.title for table in found})
    return [
        {
            "name": table.name, "title": table.title, "notes": table.notes[:NOTES], "more": table.notes[NOTES:],
            "html": Markup(render.html_table(replace(table, title="", notes=[]))),
            "figure": figures.get(table.name),
        }
        for table in found
    ]  # fmt: skip


def _is_search(table: dict[str, Any]) -> bool:
    return table["name"].startswith("sweep-search-")


def _sweep_figures(results: Results, titles: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The figures of collected sweeps by the names of their tables."""
    drawn = sweeps.figures()
    if not drawn:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        files = plots.draw(results, Path(folder), list(drawn), drawn, ("svg",))
        return {file.stem: _figure(file, titles[file.stem], file.stem) for file in files}


def _change(one: dict[str, Any]) -> dict[str, Any]:
    """A changed query as the page shows it; what is code keeps its own letters."""
    ranks = {f"{side}_ranks": ", ".join(one[f"{side}_ranks"]) for side in ("before", "after")}
    scores = {f"{side}_score": number(one[f"{side}_score"]) for side in ("before", "after")}
    outcome = "better" if one["after_score"] > one["before_score"] else "worse"
    return {
        **one,
        **ranks,
        **scores,
        "pair": (one["before"], one["after"]),
        "outcome": outcome,
        "is_code": bool(re.search(r"\n[ \t]", one["passage"])),
    }


def _cells(results: Results) -> dict[str, list[dict[str, str]]]:
    """System → its cells."""
    shown: dict[str, list[dict[str, str]]] = {}
    for cell in expected(results.config):
        rows = results.records[results.records["cell"] == cell.name]
        if rows.empty:  # all its tasks also stand in another list
            continue
        records = [
            {k: v for k, v in row.items() if k not in ("projection", "cell") and not _missing(v)}
            for row in rows.to_dict("records")
        ]
        run = {k: v for k, v in results.runs[f"evaluate-{cell.name}"].items() if k != "config"}
        summary = ", ".join(f"{r['task']} {number(float(r['ndcg_at_10']))}" for r in records)
        found = {"name": cell.name, "summary": summary, "json": _json({"records": records, "run": run})}
        shown.setdefault(cell.system, []).append(found | {"command": f"dvc repro {cell.stage}@{cell.name}"})
    return shown


def _stages(results: Results) -> list[dict[str, str]]:
    """The run records of all other stages."""
    return [
        {"name": name, "json": _json({k: v for k, v in run.items() if k != "config"})}
        for name, run in results.runs.items()
        if not name.startswith("evaluate-")
    ]


def _missing(value: Any) -> bool:
    import pandas as pd

    return not isinstance(value, list | dict) and bool(pd.isna(value))


def _settings(results: Results) -> list[dict[str, str]]:
    made = build.manifest(results)
    return [{"name": name, "json": _json(made[name])} for name in ("config", "versions", "hardware", "code", "inputs", "models")]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str)
