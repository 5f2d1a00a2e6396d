"""Evaluation tasks: one registry of packaged tasks, a user's own sets and mteb's tasks by name.

A new packaged task is one entry in ``tasks/packaged.py``. Names in params are single tasks, lists of ``task_lists`` or
lists of ``tasks/lists.py``; a set under ``own`` joins the list ``general`` by itself. The stage ``prepare`` writes
packaged and own tasks to ``work/tasks``; :func:`load` reads them back. mteb keeps its own cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from dream.config import Config
from dream.data.tasks.base import Task
from dream.data.tasks.lists import LISTS
from dream.data.tasks.packaged import PACKAGED
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, write_json

FOLDER = Path("work/tasks")


def of(config: Config) -> list[str]:
    """All evaluation tasks of the config, each once."""
    return resolve(config.tasks, config)


def resolve(entries: list[str], config: Config) -> list[str]:
    """Names and lists → task names, each once, in order. A list may name lists; none holds itself (dream/names.py)."""
    lists = {**LISTS, **config.task_lists}
    if "general" in lists:
        lists["general"] = [*lists["general"], *config.own]

    def flat(names: list[str]) -> Iterator[str]:
        for name in names:
            yield from flat(lists[name]) if name in lists else [name]

    return list(dict.fromkeys(flat(entries)))


def kind(name: str, config: Config) -> str:
    """``packaged``, ``own`` or ``mteb``."""
    return "packaged" if name in PACKAGED else "own" if name in config.own else "mteb"


def assets(name: str) -> tuple[str, ...]:
    """Packaged data that a task reads."""
    return PACKAGED[name].assets if name in PACKAGED else ()


def check(names: list[str], config: Config) -> None:
    """Stop with one line if a task is unknown or its data is not at hand."""
    from dream.data import beir

    for name in names:
        match kind(name, config):
            case "own":
                beir.check(config.own[name])
            case "mteb":
                from dream.data.tasks import mteb

                mteb.check(name)


def build(name: str, config: Config) -> Task:
    """Make a packaged or own task from its source. Use :func:`load` to read what ``prepare`` wrote."""
    from dream.data.tasks import own, packaged

    if kind(name, config) == "own":
        return own.build(name, config.own[name])
    if name not in PACKAGED:
        raise DreamError(f"{name} is not a packaged task", f"Choose from {', '.join(PACKAGED)}")
    return packaged.build(name, config)


def write(task: Task, folder: Path = FOLDER) -> None:
    """Write a task to ``folder/<name>/``: corpus, queries and qrels as parquet, the rest as task.json."""
    with replacing_folder(Path(folder) / task.name) as temporary:
        for table in ("corpus", "queries", "qrels"):
            getattr(task, table).to_parquet(temporary / f"{table}.parquet", index=False)
        facts = ("name", "suite", "description", "licence", "revision", "notes", "drop_identical_ids")
        write_json(temporary / "task.json", {name: getattr(task, name) for name in facts})


def parts(name: str, config: Config, folder: Path = FOLDER) -> Iterator[Task]:
    """A task's parts, one at a time: one for packaged and own tasks, one or more for mteb's (scores are averaged).

    Raises:
        DreamError: ``prepare`` has not written the task, the name is unknown, or mteb's data cannot be had.
    """
    if kind(name, config) == "mteb":
        from dream.data.tasks import mteb

        yield from mteb.parts(name)
        return
    place = Path(folder) / name
    facts = read_json(place / "task.json")
    yield Task(
        **facts, **{table: pd.read_parquet(place / f"{table}.parquet") for table in ("corpus", "queries", "qrels")}
    )


def load(name: str, config: Config, folder: Path = FOLDER) -> Task:
    """A task that has one part. See :func:`parts`."""
    found = list(parts(name, config, folder))
    if len(found) != 1:
        raise DreamError(f"task {name} has {len(found)} parts", "Use tasks.parts and average their scores")
    return found[0]
