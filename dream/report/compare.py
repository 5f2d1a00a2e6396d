"""Two systems side by side: paired tests, and the queries that changed most with what each of them found, so that one
sees why.

A system is ``NAME`` (of the workspace) or ``REVISION:NAME``, where the revision is an experiment, a branch or a commit.
Numbers come from git-tracked cells; texts and hits come from ``work/`` and are shown only where that is present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dream.errors import DreamError
from dream.evaluation import stats
from dream.report import runs
from dream.report.cells import Results
from dream.report.render import Cell, Line, Table, cells, grouped, number, one_line
from dream.report.tables import LEVEL, _p, _signed

WORK = Path("work")
SHOWN = 3  # documents shown per system and query


@dataclass(frozen=True)
class Side:
    """One of the two: how the user named it, and where its results are."""

    label: str
    system: str
    results: Results
    in_workspace: bool = True


@dataclass(frozen=True)
class Change:
    """A query on which the two differ, with its text and their best documents where these are at hand."""

    task: str
    query_id: str
    ours: float
    theirs: float
    text: str = ""
    hits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def side(name: str, load: Callable[[], Results]) -> Side:
    """Open one side by the name that the user gave."""
    revision, _, system = name.rpartition(":")
    in_workspace = revision in ("", runs.WORKSPACE)
    results = load() if in_workspace else runs.open_revision(runs.resolve(revision))
    return Side(name, results.check_system(system), results, in_workspace)


def sides(ours: str, theirs: str, load: Callable[[], Results]) -> tuple[Side, Side]:
    """Open both sides, reading the workspace once."""
    if ours == theirs:
        raise DreamError(
            f"{ours!r} is compared with itself", "Name two systems, as in `dream-report compare dream infonce`"
        )
    once = cache(load)
    return side(ours, once), side(theirs, once)


def table(ours: Side, theirs: Side) -> Table:
    """Paired differences on the tasks that both were evaluated on, and over all of them."""
    shared = [pair for pair in ours.results.tasks if pair in theirs.results.tasks]
    if not shared:
        raise DreamError(
            f"{ours.label} and {theirs.label} have no task in common", "Compare experiments with the same tasks"
        )
    columns = {task: aligned(ours, theirs, task) for _, task in shared}
    scopes = [(suite, task, [task]) for suite, task in shared] + [("all", "mean", [task for _, task in shared])]
    report, rows, data = ours.results.config.report, [], []
    found = [
        stats.paired(
            *([columns[task][i] for task in tasks] for i in (0, 1)), report.resamples, report.confidence, report.seed
        )
        for _, _, tasks in scopes
    ]
    corrected = [*stats.holm([f.p for f in found[:-1]]), found[-1].p]
    for (suite, label, tasks), difference, p in zip(scopes, found, corrected, strict=True):
        means = [float(np.mean([columns[task][i].mean() for task in tasks])) for i in (0, 1)]
        won = sum(int((columns[t][0] > columns[t][1] + 1e-9).sum()) for t in tasks)
        lost = sum(int((columns[t][1] > columns[t][0] + 1e-9).sum()) for t in tasks)
        queries = sum(len(columns[t][0]) for t in tasks)
        keys = ["suite", "task", "ours", "theirs", "difference", "ci_low", "ci_high", "p", "p_holm", "won", "lost",
        "queries"]
        record = (
            suite,
            label,
            *means,
            difference.value,
            difference.low,
            difference.high,
            difference.p,
            p,
            won,
            lost,
            queries,
        )
        data.append(dict(zip(keys, record, strict=True)))
        rows.append(
            cells(
                suite, label, *map(number, means), _signed(difference.value),
                f"[{_signed(difference.low)}, {_signed(difference.high)}]", Cell(_p(p), p < LEVEL), won, lost,
                grouped(queries),
            )
        )  # fmt: skip
    head = ["Suite", "Task", ours.label, theirs.label, "Difference", "Interval", "p", "Won", "Lost", "Queries"]
    notes = [
        f"nDCG@10. Difference: {ours.label} minus {theirs.label}, {report.confidence:.0%} bootstrap interval over "
        f"queries; "
        "p: sign-flip randomisation test, Holm-corrected over the tasks (the mean is one test of its own).",
        "Won, lost: queries on which the first is better or worse.",
        *_settings(ours, theirs),
    ]
    return Table("compare", f"{ours.label} against {theirs.label}", pd.DataFrame(data), head, rows, notes)


def _settings(ours: Side, theirs: Side) -> list[str]:
    """A note on what two experiments were run with, where that is not the same."""
    a, b = runs.settings(ours.results), runs.settings(theirs.results)
    knobs = [f"{key} {runs.short(a.get(key))} / {runs.short(b.get(key))}" for key in runs.differing([a, b])]
    return [f"Settings that differ: {'; '.join(knobs)}."] if knobs else []


def aligned(ours: Side, theirs: Side, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores per query of both sides on a task, in one order; stop if they were scored on different queries."""
    a, b = ours.results.scores(ours.system, task), theirs.results.scores(theirs.system, task)
    if not a.index.equals(b.index):
        raise DreamError(
            f"{task}: {ours.label} and {theirs.label} were scored on different queries",
            "Compare experiments with the same data settings (data.task_queries, data.seed)",
        )
    return a.to_numpy(), b.to_numpy()


def changes(ours: Side, theirs: Side, count: int = 5, work: Path = WORK) -> tuple[list[Change], str]:
    """The queries that changed most, half of them wins and half losses, and a remark on what could not be shown."""
    frames = []
    for _, task in ours.results.tasks:
        if task in dict(map(reversed, theirs.results.tasks)):
            a, b = aligned(ours, theirs, task)
            ids = ours.results.scores(ours.system, task).index
            frames.append(pd.DataFrame({"task": task, "query_id": ids, "ours": a, "theirs": b}))
    ranked = pd.concat(frames)
    ranked["change"] = ranked["ours"] - ranked["theirs"]
    ranked = ranked[ranked["change"].abs() > 1e-9]
    order = ["change", "task", "query_id"]
    worst = ranked.sort_values(order, ascending=[True, True, True]).query("change < 0").head(count // 2)
    best = ranked.sort_values(order, ascending=[False, True, True]).query("change > 0").head(count - len(worst))
    shown, missing = [], set()
    for row in pd.concat([best, worst]).itertuples():
        text, hits = "", {}
        corpus = task_texts(row.task, work)
        if corpus is None:
            missing.add(str(work / "tasks" / row.task))
        else:
            text = corpus["queries"].get(row.query_id, "")
            for one in (ours, theirs):
                found = top_hits(one, row.task, row.query_id, work) if one.in_workspace else None
                if found is None:
                    missing.add(f"hits of {one.label}")
                else:
                    hits[one.label] = [_document(d, corpus, row.query_id) for d in found[:SHOWN]]
        shown.append(Change(row.task, row.query_id, row.ours, row.theirs, text, hits))
    remark = (
        f"Not at hand, so not shown: {', '.join(sorted(missing))} (`dvc repro` or `dvc pull` brings them)."
        if missing
        else ""
    )
    return shown, remark


@cache
def task_texts(task: str, work: Path = WORK) -> dict[str, Any] | None:
    """``{"queries": id → text, "documents": id → text, "relevant": query id → ids}`` of a task folder, or None."""
    folder = work / "tasks" / task
    paths = {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
    if not all(path.exists() for path in paths.values()):
        return None
    queries, corpus, qrels = (pd.read_parquet(path) for path in paths.values())
    titles = corpus["title"].fillna("") if "title" in corpus.columns else [""] * len(corpus)
    relevant: dict[str, set[str]] = {}
    for row in qrels[qrels["relevance"] > 0].itertuples():
        relevant.setdefault(str(row.query_id), set()).add(str(row.doc_id))
    return {
        "queries": dict(zip(queries["id"].astype(str), queries["text"], strict=True)),
        "documents": {
            str(i): f"{title} {text}".strip()
            for i, title, text in zip(corpus["id"], titles, corpus["text"], strict=True)
        },
        "relevant": relevant,
    }


def top_hits(one: Side, task: str, query_id: str, work: Path = WORK) -> list[str] | None:
    """Ids of a system's best documents for a query (of its first seed), or None where they are not at hand."""
    cell = one.results.record(one.system, task)["cell"]
    path = work / "evaluate" / cell / "queries.parquet"
    return _hits(path).get((task, query_id)) if path.exists() else None


@cache
def _hits(path: Path) -> dict[tuple[str, str], list[str]]:
    found = pd.read_parquet(path, columns=["task", "query_id", "hits"])
    return {(row.task, str(row.query_id)): list(map(str, row.hits)) for row in found.itertuples()}


def _document(doc_id: str, corpus: dict[str, Any], query_id: str) -> dict[str, Any]:
    relevant = doc_id in corpus["relevant"].get(query_id, set())
    return {"id": doc_id, "relevant": relevant, "text": corpus["documents"].get(doc_id, "")}


def lines(found: list[Change], ours: Side, theirs: Side, remark: str, width: int) -> Iterator[Line]:
    """The changed queries, each with what the two found: ✓ marks a relevant document."""
    yield from [("Queries that changed most", "bold"), ("", "")]
    name = max(len("query"), *(len(one.label) for one in (ours, theirs)))
    for change in found:
        scores = f"{number(change.ours)} against {number(change.theirs)}"
        yield f"{change.task} {change.query_id}: {scores}", "blue" if change.ours > change.theirs else "yellow"
        if change.text:
            yield f"  {'query':<{name}}     {clip(change.text, width - name - 7)}", "bold"
        for one in (ours, theirs):
            for rank, document in enumerate(change.hits.get(one.label, []), 1):
                mark, style = ("✓", "green") if document["relevant"] else (" ", "")
                yield f"  {one.label:<{name}} {rank} {mark} {clip(document['text'], width - name - 7)}", style
        if change.text or change.hits:
            yield "", ""
    if remark:
        yield from [("", ""), (remark, "dim")]


def clip(text: str, width: int) -> str:
    """One line of at most ``width`` characters, all of them visible.

    >>> clip("a  long\\ttext", 8)
    'a long …'
    """
    line = one_line(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"
