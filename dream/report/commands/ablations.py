"""What the collected sweeps found, one line each: for the terminal (``dream-report sweep``) and docs/ablations.md.

Every number is read from the tables under ``reports/sweeps``; a line says of a difference only what its seeds allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dream.report import stats
from dream.report.commands import sweeps
from dream.report.commands.sweeps import Sweep
from dream.report.results.collected import BOTH, FOLDER, read
from dream.report.tables import measures
from dream.report.tables.render import Table, escape_markdown, fields, number

DOCUMENT = Path("docs/ablations.md")
HEAD = """# Ablations

This file is written by `dream-report sweep --out docs/ablations.md` from the tables under `reports/sweeps`; a test compares it.

    dream-report sweep                          # every question with its outcome
    dream-report sweep signal                   # the `dvc exp run` commands of one
    dream-report sweep signal --run --collect   # runs what is missing, writes reports/sweeps/signal
    dream-report tables --table sweep-signal    # a collected one, with intervals and, from three seeds on, tests

A sweep is an entry of [sweeps.yaml](../sweeps.yaml); a point that has been run is not run again, and `--queue` hands the points
to DVC's queue. Numbers are the mean nDCG@10 over the sweep's tasks, made with the code of their commit: compare them within their
line. ↑ ↓: above or below the line's first point, p < .05 over queries and seeds after Holm's correction. The table behind a link
has intervals, pairs, loss gaps, commits and overrides.

| question | outcome | the paper |
|---|---|---|
"""
EARLIER = """
†: collected before seeds were part of the uncertainty, and before tau and the gate had a learning rate of their own.
"""


def outcome(frame: pd.DataFrame, sweep: Sweep) -> str:
    """What a collected sweep found: each system's scores, the point that the others are tested against first, and a word.

    An arrow marks a difference that was tested over queries and seeds and found (p < .05); where there is none, ``not decided``
    and why.
    """
    found, single = [], len(sweep.points) == 1
    for system, rows in frame.groupby("system", sort=False):
        rows = rows.sort_values("point", key=lambda points: points != sweep.against, kind="stable")
        scores = [f"{_label(row.point)} {number(row.ndcg_at_10)}{_mark(row)}" for row in rows.itertuples()]
        found.append(f"{system} {number(rows.ndcg_at_10.iloc[0])}" if single else f"{system}: {', '.join(scores)}")
    return (", " if single else "; ").join(found) + _open(frame)


def _label(point: str) -> str:
    """A point's name, in quotes where it would read as several.

    >>> _label("random heads"), _label("generated, round trip")
    ('random heads', '“generated, round trip”')
    """
    return f"“{point}”" if set(point) & set(",:;") else point


def _mark(row: Any) -> str:
    """An arrow for a difference that is no accident of queries or seeds."""
    if not _decided(row):
        return ""
    return "↑" if row.difference > 0 else "↓"


def _decided(row: Any) -> bool:
    return row.over == BOTH and row.seeds >= stats.MIN_SEEDS and row.p_holm < measures.LEVEL


def _open(frame: pd.DataFrame) -> str:
    """What keeps differences from being decided, for those that were compared."""
    compared = [row for row in frame.itertuples() if not pd.isna(row.difference)]
    if not compared or any(map(_decided, compared)):
        return ""
    few = min(row.seeds for row in compared)
    why = f"{few} seed{'s' * (few > 1)}" if few < stats.MIN_SEEDS else "" if compared[0].over == BOTH else "not tested over seeds"
    return f": not decided{f' ({why})' if why else ''}"


def overview(path: Path | str = sweeps.FILE, folder: Path | str = FOLDER) -> Table:
    """Every sweep: its points, how many of them have been run in this clone, its question, its outcome where it is collected."""
    rows, data, names = [], [], sweeps.experiments()
    for sweep in sweeps.load(path).values():
        ran, found = len(sweeps.done(sweep, names)), _collected(sweep, folder)
        said = "" if found is None else outcome(found, sweep)
        data.append({"sweep": sweep.name, "question": sweep.question, "points": len(sweep.points), "run": ran,
                     "collected": found is not None, "outcome": said})  # fmt: skip
        rows.append(fields(sweep.name, len(sweep.points), ran, sweep.question, said or "not collected"))
    return Table("sweeps", "Sweeps", pd.DataFrame(data), ["Sweep", "Points", "Run here", "Question", "Outcome"], rows)


def _collected(sweep: Sweep, folder: Path | str) -> pd.DataFrame | None:
    file = Path(folder) / sweep.name / f"{sweep.name}.csv"
    return read(file) if file.exists() else None


def document(path: Path | str = sweeps.FILE, folder: Path | str = FOLDER) -> str:
    """docs/ablations.md: every sweep with its question, its outcome and the paper's, as Markdown."""
    lines, earlier = [], False
    for sweep in sweeps.load(path).values():
        found = _collected(sweep, folder)
        if found is None:
            said = f"not collected: `dream-report sweep {sweep.name} --run --collect`"
        else:
            before = bool((found.pairs > 0).any() and found.seed_low.isna().all())
            earlier |= before
            table = f"[{sweep.name}](../{FOLDER}/{sweep.name}/{sweep.name}.md)"
            said = f"{escape_markdown(outcome(found, sweep))}{' †' if before else ''} ({table})"
        lines.append(f"| {escape_markdown(sweep.question)} | {said} | {escape_markdown(sweep.paper) or '–'} |\n")
    return HEAD + "".join(lines) + (EARLIER if earlier else "")
