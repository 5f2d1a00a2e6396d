"""All experiments in one table: a row per experiment and system, with the knobs that differ."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dream import config as configs
from dream.errors import DreamError
from dream.report.results import cells as reading
from dream.report.results.runs import differing, found, open_revision, settings, short
from dream.report.tables import measures
from dream.report.tables.render import Field, Table, fields, number, ranged


def collect(commits: int = 1, params: Path | str = "params.yaml", folder: Path | str = reading.CELLS) -> Table:
    """One row per experiment and system: its mean over all tasks, the knobs that differ, and its commit."""
    configs.load(params)  # a broken one is no experiment without results
    opened, notes = [], []
    for revision in found(commits):
        try:
            opened.append((revision, open_revision(revision, params, folder)))
        except DreamError as error:
            notes.append(f"Not shown: {error}")
    if not opened:
        raise DreamError("no experiment holds results", "Run `dvc repro` or `dvc exp run`")
    knobs = differing([settings(results) for _, results in opened])
    rows, data = [], []
    for index, (revision, results) in enumerate(opened):
        flat = settings(results)
        scope = measures.overall(results)[2]
        best = max(round(measures.measured(results, system, scope).value, 3) for system in results.systems)
        for system in results.systems:
            value = measures.measured(results, system, scope)
            record = {
                "experiment": revision.name, "commit": revision.commit[:10], "system": system, "tasks": len(scope),
                "ndcg_at_10": value.value, "ci_low": value.low, "ci_high": value.high,
                **dict(zip(("seed_low", "seed_high"), seeds := measures.seed_range(results, system, scope), strict=True)),
                **{k: flat.get(k) for k in knobs},
            }  # fmt: skip
            data.append(record)
            shown = Field(f"{number(value.value)} [{number(value.low)}, {number(value.high)}]", round(value.value, 3) == best)
            rows.append(
                fields(
                    revision.name,
                    revision.commit[:7] or "–",
                    system,
                    shown,
                    ranged(*seeds),
                    len(scope),
                    *(short(flat[k]) if k in flat else "–" for k in knobs),
                )
            )
        if index == 0 and len({tuple(sorted(t for _, t in r.tasks)) for _, r in opened}) > 1:
            notes.append("These experiments were evaluated on different tasks: their means do not compare.")
    notes.append(
        f"Mean nDCG@10 over all tasks of an experiment, its interval over {measures.over(*(r for _, r in opened))}, and its "
        "lowest and highest seed; only knobs that differ between the experiments are shown, – where one did not exist yet."
    )
    head = ["Experiment", "Commit", "System", "nDCG@10", "Seeds", "Tasks", *knobs]
    return Table("runs", "Experiments", pd.DataFrame(data), head, rows, notes)
