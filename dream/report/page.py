"""The whole report as one HTML file that needs no network: tables that sort, plots, cells, settings, provenance.

Everything that comes from data is made visible and goes through the template's autoescape (or
:func:`dream.report.tables.render.html_table`, which escapes): text of queries and passages is shown, never interpreted.
"""

from __future__ import annotations

import base64
import json
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from dream.errors import visible
from dream.report import build, plots, verdict
from dream.report.commands import compare, paper, sweeps
from dream.report.results.cells import Results, expected
from dream.report.tables import measures, registry, render
from dream.report.tables.render import number

CLIP = 300  # characters of a passage shown


def html(results: Results, work: Path = compare.WORK) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown)
    source = resources.files("dream.report").joinpath("templates/page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(**content(results, work))


def content(results: Results, work: Path = compare.WORK) -> dict[str, Any]:
    """What the template shows."""
    config = results.config
    tasks = measures.overall(results)[2]
    ours, theirs = plots.pair(results)
    changed, remark = _changed(results, ours, theirs, work)
    cards = [(system, measures.measured(results, system, tasks)) for system in results.systems]
    return {
        "title": f"DREAM benchmark: size {config.model.size}, recipe {config.recipe}",
        "lead": f"Encoder {config.roles['encoder'].model}"
        + (f" (first {config.roles['encoder'].layers} layers)" if config.roles["encoder"].layers else "")
        + f", judge {config.roles['judge'].model}, seeds {', '.join(map(str, config.seeds))}.",
        "cards": [{"system": s, "value": number(v.value), "interval": f"{number(v.low)} to {number(v.high)}"} for s, v
        in cards], "task_count": len(tasks), "confidence": f"{config.report.confidence:.0%}", "over": measures.over(results),
        "verdict": [one | {"said": verdict.evidence(one)} for one in verdict.verdict(results)], "tables": _tables(results),
        "plots": _plots(results), "changed": changed, "remark": remark, "ours": ours, "theirs": theirs,
        "cells": _cells(results), "stages": _stages(results), "settings": _settings(results),
    }  # fmt: skip


def _shown(value: Any) -> Any:
    """Text in which nothing acts or hides; the markup of the page's own tables as it is."""
    return value if not isinstance(value, str) or hasattr(value, "__html__") else visible(value, keep="\n")


def _plots(results: Results) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        files = [file for file in plots.draw(results, Path(folder)) if file.suffix == ".png"]
        return [_image(file, " ".join((plots.PLOTS[file.stem].__doc__ or file.stem).split("\n\n")[0].split())) for file in files]


def _image(file: Path, caption: str) -> dict[str, Any]:
    """A PNG for the page, with the width at which its letters are as large in every plot."""
    png = file.read_bytes()
    width = round(int.from_bytes(png[16:20], "big") * 100 / plots.DPI)
    return {"data": base64.b64encode(png).decode(), "caption": caption, "width": width}


def _tables(results: Results) -> list[dict[str, Any]]:
    """Every table that there is; a sweep's with its figure."""
    from markupsafe import Markup

    found = [*registry.build(results, None, sweeps.stored()), paper.table(results), paper.ablations(), paper.scaling()]
    figures = _sweep_figures(results, {table.name: table.title for table in found})
    return [
        {
            "name": table.name, "title": table.title, "notes": table.notes,
            "html": Markup(render.html_table(replace(table, title="", notes=[]))),
            "figure": figures.get(table.name),
        }
        for table in found
    ]  # fmt: skip


def _sweep_figures(results: Results, titles: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The figures of collected sweeps by the names of their tables."""
    drawn = sweeps.figures()
    if not drawn:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        files = plots.draw(results, Path(folder), list(drawn), drawn)
        return {file.stem: _image(file, titles[file.stem]) for file in files if file.suffix == ".png"}


def _changed(results: Results, ours: str, theirs: str | None, work: Path) -> tuple[list[dict[str, Any]], str]:
    if theirs is None:
        return [], ""
    sides = compare.Side(ours, ours, results), compare.Side(theirs, theirs, results)
    found, remark = compare.changes(*sides, 8, work)
    return [
        {
            "task": c.task, "query_id": c.query_id, "ours": number(c.ours), "theirs": number(c.theirs),
            "text": compare.clip(c.text, CLIP),
            "hits": {k: [{**hit, "text": compare.clip(hit["text"], CLIP)} for hit in v] for k, v in c.hits.items()},
        }
        for c in found
    ], remark  # fmt: skip


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
        shown.setdefault(cell.system, []).append(found)
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
