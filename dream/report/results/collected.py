"""Collected sweeps: the tables under reports/sweeps that git keeps, read with checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dream.errors import DreamError
from dream.report import stats
from dream.report.results import cells as reading

FOLDER = Path("reports/sweeps")
COLUMNS = ["sweep", "point", "overrides", "system", "seeds", "seed_low", "seed_high", "pairs", "tasks", "queries", "ndcg_at_10",
           "ci_low", "ci_high", "over", "against", "difference", "diff_low", "diff_high", "p", "p_holm", "gap", "experiment",
           "commit"]  # fmt: skip
TEXTS = ["sweep", "point", "overrides", "system", "over", "against", "experiment", "commit"]
NEW = ["seed_low", "seed_high", "over"]  # not in a table that was collected before seeds were part of the uncertainty
ROUNDED = 5e-6  # how far a difference may lie from that of two rounded scores
BOTH = "queries and seeds"  # in column over: what the row's intervals and test are over


def read(file: Path) -> pd.DataFrame:
    """A stored table, with the columns of today.

    One that was collected before seeds were part of the uncertainty has no per-seed values: its p-values stay where there
    were seeds enough for a test, and ``over`` says that they are over queries only.

    Raises:
        DreamError: it has another schema, a score that is none, or a point twice.
    """
    again = remedy(file)
    frame = reading.read_csv(file, again, TEXTS)
    for column in set(TEXTS) & set(frame.columns):  # the apostrophe that keeps a text from being a formula (render.csv)
        frame[column] = frame[column].str.replace(r"^'(?=\s*[=+@\-＝＋＠－])", "", regex=True)
    if list(frame.columns) == [column for column in COLUMNS if column not in NEW]:
        frame = frame.assign(seed_low=np.nan, seed_high=np.nan, over="queries")[COLUMNS]
        frame.loc[(frame.pairs > 0) & (frame.seeds < stats.MIN_SEEDS), ["p", "p_holm"]] = np.nan
    if list(frame.columns) != COLUMNS:
        odd = sorted(set(frame.columns) ^ set(COLUMNS)) or ["their order"]
        raise DreamError(f"{file} has another schema (differs in {', '.join(odd)})", again)
    if frame.empty:
        raise DreamError(f"{file} holds no point", again)
    reading.check_scores(frame, ["ndcg_at_10", "ci_low", "ci_high"], file, again)
    if (twice := frame.duplicated(["point", "system"])).any():
        raise DreamError(f"{file} holds point {frame[twice].point.iloc[0]!r} twice", again)
    scores = frame.set_index(["point", "system"]).ndcg_at_10
    for row in frame[frame.difference.notna()].itertuples():
        if (base := (row.against, row.system)) in scores.index:
            require_difference(row.difference, row.ndcg_at_10, scores[base], f"{file}, point {row.point!r}", again)
    return frame


def remedy(file: Path) -> str:
    """Where a collected table comes from."""
    again = f"Run `dream-report sweep {file.parent.name} --collect`"
    return f"`git checkout {file.parent}` brings it back. {again} in the clone that ran it to make it anew"


def require_difference(difference: float, score: float, other: float, place: str, again: str) -> None:
    """Stop if a stored difference is not that of its two scores, which are rounded to six digits."""
    if abs(difference - (score - other)) > ROUNDED:
        raise DreamError(f"{place}: difference {difference:.6f} is not {score:.6f} − {other:.6f}", again)
