"""Two systems side by side: paired tests, and the queries that changed most with what each of them found, so that one
sees why.

A system is ``NAME`` (of the workspace) or ``REVISION:NAME``, where the revision is an experiment, a branch or a commit.
Numbers come from git-tracked cells; texts and hits come from ``work/`` and are shown only where that is present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dream.data.tasks import written
from dream.errors import DreamError
from dream.files import read_json
from dream.report import stats
from dream.report.results import runs
from dream.report.results.cells import Results
from dream.report.tables import measures
from dream.report.tables.measures import LEVEL
from dream.report.tables.notes import untested
from dream.report.tables.render import Field, Line, Table, fields, grouped, number, one_line, p_value, ranged, signed

WORK = Path("work")
KEYS = ["suite", "task", "ours", "theirs", "difference", "ci_low", "ci_high", "p", "p_holm", "won", "lost", "queries",
        "seed_low", "seed_high", "theirs_seed_low", "theirs_seed_high"]  # fmt: skip
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
        raise DreamError(f"{ours!r} is compared with itself", "Name two systems, as in `dream-report compare dream bm25`")
    once = cache(load)
    return side(ours, once), side(theirs, once)


def table(ours: Side, theirs: Side) -> Table:
    """Paired differences on the tasks that both were evaluated on, and over all of them."""
    shared = [pair for pair in ours.results.tasks if pair in theirs.results.tasks]
    if not shared:
        raise DreamError(f"{ours.label} and {theirs.label} have no task in common", "Compare experiments with the same tasks")
    scopes = [(suite, task, [task]) for suite, task in shared] + [("all", "mean", [task for _, task in shared])]
    data: list[dict[str, Any]] = []
    rows, within = [], []
    for suite, label, tasks in scopes:
        found, gaps = difference(ours, theirs, tasks), np.concatenate([np.subtract(*aligned(ours, theirs, t)) for t in tasks])
        means = [stats.mean(one.results.values(one.system, tasks), one.results.weights(tasks)) for one in (ours, theirs)]
        ranges = [end for one in (ours, theirs) for end in measures.seed_range(one.results, one.system, tasks)]
        won, lost = int((gaps > 1e-9).sum()), int((gaps < -1e-9).sum())
        values = (suite, label, *means, found.value, found.low, found.high, found.p, None, won, lost, len(gaps), *ranges)
        data.append(dict(zip(KEYS, values, strict=True)))
        within += [label] if measures.within_seeds(ours.results, ours.system, theirs.results, theirs.system, tasks) else []
    measures.corrected(data[:-1])
    measures.corrected(data[-1:])
    for row in data:
        p = Field(p_value(row["p_holm"]), row["p_holm"] is not None and row["p_holm"] < LEVEL)
        interval = f"[{signed(row['ci_low'])}, {signed(row['ci_high'])}]"
        seeds = [ranged(row[f"{who}seed_low"], row[f"{who}seed_high"]) for who in ("", "theirs_")]
        ends = [row["suite"], row["task"], number(row["ours"]), number(row["theirs"]), signed(row["difference"]), interval]
        rows.append(fields(*ends, p, row["won"], row["lost"], grouped(row["queries"]), *seeds))
    head = ["Suite", "Task", ours.label, theirs.label, "Difference", "Interval", "p", "Won", "Lost", "Queries",
            f"Seeds of {ours.label}", f"Seeds of {theirs.label}"]  # fmt: skip
    few = {one.label: len(one.results.seeds(one.system)) for one in (ours, theirs)}
    percent, over = f"{ours.results.config.report.confidence:.0%}", measures.over(ours.results, theirs.results)
    notes = [
        f"nDCG@10. Difference: {ours.label} minus {theirs.label}, {percent} interval over {over}; "
        f"p: paired test over the same, Holm-corrected over the tasks (the mean is one test of its own); marked: p < {LEVEL}.",
        *([f"Inside the seeds' spread (the ranges meet): {', '.join(within)}."] if within else []),
        *untested(few),
        "Won, lost: queries on which the first is better or worse.",
        *_settings(ours, theirs),
    ]
    return Table("compare", f"{ours.label} against {theirs.label}", pd.DataFrame(data, columns=KEYS), head, rows, notes)


def _settings(ours: Side, theirs: Side) -> list[str]:
    """A note on what two experiments were run with, where that is not the same."""
    a, b = runs.settings(ours.results), runs.settings(theirs.results)
    knobs = [f"{key} {runs.short(a.get(key))} / {runs.short(b.get(key))}" for key in runs.differing([a, b])]
    return [f"Settings that differ: {'; '.join(knobs)}."] if knobs else []


def difference(ours: Side, theirs: Side, tasks: list[str]) -> stats.Difference:
    """Paired difference over some tasks; stop if they were scored on different queries."""
    for task in tasks:
        aligned(ours, theirs, task)
    return measures.difference(ours.results, ours.system, theirs.results, theirs.system, tasks)


def aligned(ours: Side, theirs: Side, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores per query of both sides on a task, in one order; stop if they were scored on different queries."""
    a, b = ours.results.scores(ours.system, task), theirs.results.scores(theirs.system, task)
    if not a.index.equals(b.index):
        raise DreamError(
            f"{task}: {ours.label} and {theirs.label} were scored on different queries",
            "Compare experiments with the same data settings (data.task_queries, data.seed)",
        )
    return a.to_numpy(), b.to_numpy()


def changes(
    ours: Side, theirs: Side, count: int = 5, work: Path = WORK, kept: Mapping[tuple[str, str], str] | None = None
) -> tuple[list[Change], str]:
    """The queries that changed most, half of them wins and half losses, and a remark on what could not be shown.

    Args:
        ours, theirs: the two.
        count: how many queries.
        work: where texts and hits are.
        kept: (task, query id) → text of the query, for tasks that are not there.
    """
    frames = []
    for _, task in ours.results.tasks:
        if task in {name for _, name in theirs.results.tasks}:
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
            text = (kept or {}).get((row.task, row.query_id), "")
            missing.add(f"passages of {row.task}" if text else f"task {row.task}")
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
        f"Not at hand, so not shown: {', '.join(sorted(missing))} (`dvc repro` or `dvc pull` brings them)." if missing else ""
    )
    return shown, remark


@cache
def task_texts(task: str, work: Path = WORK) -> dict[str, Any] | None:
    """``{"queries": id → text, "documents": id → text, "relevant": query id → ids, "revision"}`` of a task folder, or None."""
    folder = written(work / "tasks").get(task)
    if folder is None:
        return None
    paths = {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
    if not all(path.exists() for path in paths.values()):
        return None
    queries, corpus, qrels = (pd.read_parquet(path) for path in paths.values())
    facts = read_json(folder / "task.json")
    if part := facts.get("part"):  # as a cell names its queries
        queries["id"], qrels["query_id"] = f"{part}:" + queries["id"], f"{part}:" + qrels["query_id"]
    titles = corpus["title"].fillna("") if "title" in corpus.columns else [""] * len(corpus)
    relevant: dict[str, set[str]] = {}
    for row in qrels[qrels["relevance"] > 0].itertuples():
        relevant.setdefault(str(row.query_id), set()).add(str(row.doc_id))
    return {
        "queries": dict(zip(queries["id"].astype(str), queries["text"], strict=True)),
        "documents": {
            str(i): f"{title} {text}".strip() if title else text
            for i, title, text in zip(corpus["id"], titles, corpus["text"], strict=True)
        },
        "relevant": relevant,
        "revision": facts.get("revision"),
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
