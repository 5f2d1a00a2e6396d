"""Evaluation tasks of mteb by name: loaded by mteb itself, read out as tables, one part for every corpus.

Most tasks are one part. CQADupstackRetrieval is the mean over 12 tasks, others have several subsets or splits: their
score is the mean over parts, as in mteb. Importing mteb takes seconds, so it happens only where an mteb task is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import pandas as pd

from dream.assets import hub
from dream.data import lists
from dream.data.lists import LISTS
from dream.data.tables import CORPUS, QRELS, QUERIES, copies, grade
from dream.data.tasks.base import Task, make
from dream.data.tasks.packaged import PACKAGED
from dream.errors import DreamError

SUBSETS = {"CUREv1": ["en"]}  # what the paper evaluates


def get(name: str) -> list[Any]:
    """mteb's task object(s) of one name.

    Raises:
        DreamError: mteb has no such task, or it is not a retrieval task.
    """
    import mteb

    try:
        task = mteb.get_task(name, hf_subsets=SUBSETS.get(name), eval_splits=["dev"] if name == "MSMARCO" else None)
    except KeyError:
        names = [task.metadata.name for task in mteb.get_tasks(task_types=["Retrieval"])]
        near = difflib.get_close_matches(name, [*PACKAGED, *LISTS, *names], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(PACKAGED)}, an mteb task or a list"
        raise DreamError(f"tasks: {name!r} is unknown", hint) from None
    members = list(getattr(task.metadata, "tasks", None) or [])
    found = [member if not isinstance(member, str) else mteb.get_task(member) for member in members] or [task]
    for member in found:
        if member.metadata.type != "Retrieval":
            raise DreamError(f"tasks: {name} is a task of type {member.metadata.type}", "Choose retrieval tasks")
    return found


def check(name: str) -> None:
    """Stop with one line if a task's data is neither cached nor reachable."""
    for task in get(name):
        place = task.metadata.dataset
        instead = f"or serve it from DREAM_TASKS, a folder that `dream-report fetch {name}` filled"
        hub.check_dataset(place["path"], place.get("revision"), f" (task {name})", instead)


def parts(name: str) -> Iterator[Task]:
    """Load a task's parts, one at a time.

    Raises:
        DreamError: the data cannot be had (offline and not cached), or a part is empty.
    """
    for task, subset, split in loaded(name):
        yield made(name, label(name, task.metadata.name, subset, split), *tables(name, task, subset, split), **facts(task))


def loaded(name: str) -> Iterator[tuple[Any, str, str]]:
    """mteb's task object with its data, a subset and a split, for every part of a task; errors as :func:`parts`."""
    check(name)
    for task in get(name):
        try:
            task.load_data()
            if hasattr(task, "convert_v1_dataset_format_to_v2"):
                task.convert_v1_dataset_format_to_v2(num_proc=None)
        except Exception as error:  # a task's own loader, the hub's clients: each raises what it likes
            raise DreamError(
                f"task {name}: its data cannot be loaded ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]})",
                "Run where the hub can be reached, or choose other tasks",
            ) from None
        for subset in task.hf_subsets:
            for split in task.eval_splits:
                yield task, subset, split
        task.unload_data()


def label(name: str, member: str, subset: str, split: str) -> str:
    """Name of a part: what tells it from the task's others, and its split."""
    return "/".join(p for p in ("" if member == name else member, subset if subset != "default" else "", split) if p)


def tables(name: str, task: Any, subset: str, split: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Documents, queries and judgements of every grade, as mteb loads them."""
    data = task.dataset[subset][split]
    pairs = ((q, d, g) for q, docs in data["relevant_docs"].items() for d, g in docs.items())
    judged = pd.DataFrame(((q, d, grade(str(g), f"task {name}, query {q!r}")) for q, d, g in pairs), columns=QRELS)
    corpus = pd.DataFrame(
        ((str(row["id"]), row.get("title") or "", row.get("text") or "") for row in data["corpus"]), columns=CORPUS
    )
    queries = pd.DataFrame(((str(row["id"]), row["text"]) for row in data["queries"]), columns=QUERIES)
    return corpus, queries, judged


def facts(task: Any) -> dict[str, Any]:
    """What a task says of itself: description, licence, its rule on identical ids, and a note on its data set."""
    return {
        "description": " ".join(task.metadata.description.split()),
        "licence": str(task.metadata.license or "unknown"),
        "drop_identical_ids": bool(getattr(task, "ignore_identical_ids", False)),
        "notes": [f"mteb data set {task.metadata.dataset['path']} @ {task.metadata.dataset.get('revision')}"],
    }


def made(
    name: str, part: str, corpus: pd.DataFrame, queries: pd.DataFrame, judged: pd.DataFrame, *, suite: str = "", **facts: Any
) -> Task:
    """A task of mteb's from its tables: relevant documents only, and the queries that have one.

    Raises:
        DreamError: nothing is left, or what :func:`dream.data.tasks.base.make` refuses.
    """
    qrels = judged[judged["relevance"] > 0]
    queries = queries[queries["id"].isin(set(qrels["query_id"]))]
    if queries.empty or corpus.empty:
        raise DreamError(f"task {name}: {part} is empty", "Choose other tasks")
    facts["notes"] = [*facts["notes"], *copies(corpus, judged)]
    return make(name, suite or lists.suite(name), corpus, queries, qrels, part=part, **facts)
