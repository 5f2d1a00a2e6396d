"""The queries that changed most, with their texts: from the untrained encoder to the reference system, and from it to its
strongest rival.

Scores and ranks come from git-tracked cells, texts from ``work/tasks``. The stage ``queries`` writes them, cut to a stated
length, to ``reports/queries.json``: the page shows them in a clone, where ``work/`` is not.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from dream.errors import DreamError
from dream.files import read_json
from dream.report import build, plots
from dream.report.commands import compare
from dream.report.results.cells import ROUNDING, Results
from dream.report.tables.measures import UNTRAINED
from dream.report.tables.render import json_text

FILE = build.REPORTS / "queries.json"
COUNT = 60  # queries of a pair of systems
QUERY, PASSAGE = 400, 1000  # characters kept
KEYS = ["before", "after", "task", "query_id", "before_score", "after_score", "before_ranks", "after_ranks",
        "query", "passage", "passages"]  # fmt: skip


def pairs(results: Results) -> list[tuple[str, str]]:
    """The systems that are compared, before and after."""
    ours, theirs = plots.pair(results)
    wanted = [(UNTRAINED, ours), (ours, theirs)]
    return [(a, b) for a, b in wanted if b is not None and a != b and {a, b} <= set(results.systems)]


def find(results: Results, work: Path = compare.WORK) -> list[dict[str, Any]]:
    """A record for each query, with the keys :data:`KEYS`.

    Raises:
        DreamError: the texts of a task are those of another revision than was evaluated.
    """
    found = [one for before, after in pairs(results) for one in _changed(results, before, after)]
    for task in {one["task"] for one in found}:
        _check(results, task, work)
    return [{**one, **_texts(one["task"], one["query_id"], work)} for one in found]


def write(found: list[dict[str, Any]], path: Path | str = FILE) -> None:
    """Write the records; what a terminal would act on stands there as JSON's own escapes."""
    build.write_text(path, json_text(found) + "\n")


def read(results: Results, path: Path | str = FILE) -> tuple[list[dict[str, Any]], str]:
    """The records of a file that are those of these results, and a remark on why there are none."""
    if not Path(path).exists():
        return [], f"{path} is not there: `dvc repro queries` writes it."
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) and list(one) == KEYS for one in found):
        raise DreamError(f"{path} has another schema", "Run `dvc repro queries` to make it anew")
    if not all(_is_of(results, one) for one in found):
        return [], f"{path} holds queries of other results: `dvc repro queries` makes it anew."
    return found, ""


def texts(results: Results, path: Path | str = FILE) -> dict[tuple[str, str], str]:
    """(task, query id) → the query, as far as the file holds it."""
    return {(one["task"], one["query_id"]): one["query"] for one in read(results, path)[0] if one["query"]}


def _is_of(results: Results, one: dict[str, Any]) -> bool:
    """Whether both scores of a record are those of the results."""
    if not {one["before"], one["after"]} <= set(results.systems) or one["task"] not in {task for _, task in results.tasks}:
        return False
    sides = [(results.scores(one[side], one["task"]).get(one["query_id"]), one[f"{side}_score"]) for side in ("before", "after")]
    return all(score is not None and abs(score - kept) <= ROUNDING for score, kept in sides)


def _changed(results: Results, before: str, after: str) -> list[dict[str, Any]]:
    """The largest changes, drawn in turn from every task and from better and worse, in the order of tasks and changes."""
    frames = []
    for place, (_, task) in enumerate(results.tasks):
        scores = {"before_score": results.scores(before, task), "after_score": results.scores(after, task)}
        frames.append(pd.DataFrame(scores).reset_index().assign(task=task, place=place))
    rows = pd.concat(frames, ignore_index=True)
    change = rows.after_score - rows.before_score
    rows = rows.assign(better=change > 0, size=change.abs())[change.abs() > 1e-9]
    rows = rows.sort_values(["size", "query_id"], ascending=[False, True])
    rows = rows.assign(turn=rows.groupby(["task", "better"]).cumcount()).sort_values("turn", kind="stable").head(COUNT)
    rows = rows.sort_values(["place", "better", "turn"], ascending=[True, False, True])
    ranks = {system: _ranks(results, system) for system in (before, after)}
    return [
        {
            "before": before, "after": after, "task": row.task, "query_id": row.query_id,
            "before_score": round(row.before_score, 6), "after_score": round(row.after_score, 6),
            "before_ranks": ranks[before][row.task, row.query_id], "after_ranks": ranks[after][row.task, row.query_id],
        }
        for row in rows.itertuples()
    ]  # fmt: skip


def _ranks(results: Results, system: str) -> dict[tuple[str, str], list[str]]:
    """``(task, query id)`` → the rank of the first relevant document, one for each seed."""
    rows = results.queries[results.queries.system == system].sort_values("seed")
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows.itertuples():
        found.setdefault((row.task, row.query_id), []).append(rank(row.mrr_at_10, row.recall_at_100))
    return found


def rank(mrr: float, recall: float) -> str:
    """The rank of the first relevant document as far as MRR@10 and Recall@100 tell it.

    >>> rank(1.0, 1.0), rank(0.333333, 0.5), rank(0.0, 0.5), rank(0.0, 0.0)
    ('1', '3', '> 10', '> 100')
    """
    return str(round(1 / mrr)) if mrr > 0 else "> 10" if recall > 0 else "> 100"


def _check(results: Results, task: str, work: Path) -> None:
    texts, made = compare.task_texts(task, work), results.record(results.systems[0], task).get("revision")
    if texts and texts["revision"] and isinstance(made, str) and "+" not in made and texts["revision"] != made:
        raise DreamError(f"{work}/tasks holds {task} as {texts['revision']}, evaluated was {made}", "Run `dvc repro`")


def _texts(task: str, query_id: str, work: Path) -> dict[str, Any]:
    """A query and its first relevant passage, cut; empty where the task is not in the folder (mteb keeps its own)."""
    texts = compare.task_texts(task, work)
    if texts is None:
        return {"query": "", "passage": "", "passages": 0}
    gold = sorted(texts["relevant"].get(query_id, ()))
    passage = texts["documents"].get(gold[0], "") if gold else ""
    return {"query": cut(texts["queries"].get(query_id, ""), QUERY), "passage": cut(passage, PASSAGE), "passages": len(gold)}


def cut(text: str, length: int) -> str:
    r"""At most so many characters of a text, its lines as they are but for what indents them all.

    >>> cut("  if x:\n      return 1\n", 30), cut("if x:\r\n    return 1", 9)
    ('if x:\n    return 1', 'if x:\n  …')
    """
    text = textwrap.dedent(text.replace("\r\n", "\n").strip("\n")).rstrip()
    return text if len(text) <= length else f"{text[: length - 1]}…"
