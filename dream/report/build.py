"""Everything that the report stage writes, from one :class:`~dream.report.results.cells.Results`.

Byte-identical for the same cells: tables (but cost, which shows times), plots and metrics.json depend on nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dream.files import replacing, replacing_folder, write_json
from dream.report import plots
from dream.report.results.cells import Results
from dream.report.tables import registry, render

REPORTS = Path("reports")


def write_tables(results: Results, folder: Path | str = REPORTS / "tables") -> list[render.Table]:
    """Write every table as CSV and Markdown; the folder holds these tables and nothing else."""
    built = registry.build(results)
    with replacing_folder(folder) as temporary:
        for table in built:
            write_table(table, temporary)
    return built


def write_table(table: render.Table, folder: Path) -> None:
    """Write one table as CSV and Markdown under its name."""
    for name in ("csv", "md"):
        ending, write = render.FORMATS[name]
        (folder / f"{table.name}.{ending}").write_text(write(table), encoding="utf-8")


def write_plots(results: Results, folder: Path | str = REPORTS / "plots") -> list[str]:
    """Draw every plot that has something to show as PNG and SVG; return their names."""
    with replacing_folder(folder) as temporary:
        return [file.stem for file in plots.draw(results, temporary) if file.suffix == ".png"]


def manifest(results: Results) -> dict[str, Any]:
    """Configuration, code, versions, inputs and hardware of every run behind the report."""
    kept = ("code", "inputs", "versions", "hardware", "wall_s", "peak_gib", "flops", "notes")
    runs = {name: {key: run[key] for key in kept if key in run} for name, run in results.runs.items()}
    inputs: dict[str, str] = {}
    for run in runs.values():
        inputs |= run.get("inputs") or {}
    one = [value for key in ("versions", "hardware") for value in [_common(runs, key)]]
    return {
        "config": results.config.model_dump(mode="json"),
        "code": sorted({run["code"] for run in runs.values() if run.get("code")}),
        "versions": one[0],
        "hardware": one[1],
        "inputs": inputs,
        "models": _models(results),
        "assets": _assets(results),
        "tasks": _tasks(results),
        "runs": runs,
    }


def _common(runs: dict[str, dict[str, Any]], key: str) -> Any:
    """The value that all runs share, or the distinct ones."""
    distinct: list[Any] = []
    for run in runs.values():
        if run.get(key) is not None and run[key] not in distinct:
            distinct.append(run[key])
    return distinct[0] if len(distinct) == 1 else distinct


def _models(results: Results) -> dict[str, Any]:
    """Every evaluated model once: where it is from, and the content hash of what made its embeddings or ranked (``checkpoint``,
    a judge's ``weights``)."""
    kept = ("model", "layers", "adapter", "checkpoint", "judge", "weights")
    found = {}
    for row in results.records.itertuples(index=False):
        settings = row.settings if isinstance(row.settings, dict) else {}
        if {"model", "judge"} & set(settings):
            name = row.system if pd.isna(row.seed) else f"{row.system}-{row.seed}"
            found[name] = {key: settings[key] for key in kept if settings.get(key) is not None}
    return found


def _assets(results: Results) -> dict[str, Any]:
    """Every model and data set that was loaded, once, with its content hash, version and licence; roles share a model's files."""
    entries = results.runs.get("assets", {}).get("notes", {}).get("assets", [])
    return {one["name"]: {key: one[key] for key in one if key not in ("name", "layers", "used_for")} for one in entries}


def _tasks(results: Results) -> dict[str, str]:
    """Every task once with its content revision: all systems were evaluated on the same (see dream/report/results/cells.py)."""
    found = {task: results.record(results.systems[0], task).get("revision") for _, task in results.tasks}
    return {task: revision for task, revision in found.items() if isinstance(revision, str)}


def write_all(results: Results, folder: Path | str = REPORTS) -> list[str]:
    """Write tables, plots, metrics.json and manifest.json; return what was written, for the log."""
    folder = Path(folder)
    built = write_tables(results, folder / "tables")
    drawn = write_plots(results, folder / "plots")
    write_json(folder / "metrics.json", registry.summary(results))
    write_json(folder / "manifest.json", manifest(results))
    return [
        *(f"tables/{table.name}" for table in built),
        *(f"plots/{name}" for name in drawn),
        "metrics.json",
        "manifest.json",
    ]


def write_text(path: Path | str, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
