"""Evaluation tasks: one registry of packaged tasks, a user's own sets and mteb's tasks by name.

A new packaged task is one entry in ``tasks/packaged.py``. Names in params are single tasks, lists of ``task_lists`` or
lists of ``dream/data/lists.py``; a labelled set under ``own`` joins the list ``general`` by itself, the held-out part of own
documents is a task of the list ``heldout``. Packaged and own tasks, and mteb's that a mirror serves (``DREAM_TASKS``), are
written once for every entry of ``tasks``, to ``work/tasks/<entry>/<task>``, so that an entry's evaluation depends on its own
folder alone; :func:`load` reads them back. mteb keeps its own cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dream.data import beir, documents, sources
from dream.data.lists import of, resolve
from dream.data.own import HELD_OUT, held_out, is_documents
from dream.data.tasks import mirror, mteb, own, packaged
from dream.data.tasks.base import Task
from dream.data.tasks.packaged import PACKAGED
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, write_json

if TYPE_CHECKING:
    from dream.config import Config

FOLDER = Path("work/tasks")
TABLES = ("corpus", "queries", "qrels")
__all__ = [
    "Task",
    "assets",
    "build",
    "check",
    "kind",
    "load",
    "mirrored",
    "of",
    "parts",
    "reads",
    "resolve",
    "write",
    "write_entry",
    "written",
]


def kind(name: str, config: Config) -> str:
    """``packaged``, ``own``, ``heldout`` (of own documents), ``mirror`` or ``mteb``."""
    if name in PACKAGED or name in config.own:
        return "packaged" if name in PACKAGED else "own"
    if held_out(name, config):
        return "heldout"
    return "mirror" if name in config.mirror or name.endswith(mirror.LOCAL) else "mteb"


def mirrored(config: Config) -> Config:
    """The configuration with the tasks that the mirror at ``DREAM_TASKS`` serves, and the content of each."""
    names = [name for name in of(config) if kind(name, config) in ("mirror", "mteb")]
    return config.model_copy(update={"mirror": mirror.found(names)})


def assets(name: str) -> tuple[str, ...]:
    """Packaged data that a task reads."""
    return PACKAGED[name].assets if name in PACKAGED else ()


def reads(names: list[str], config: Config) -> list[str]:
    """Settings that :func:`build` reads for these tasks, as ``section.knob``: a stage that writes them may have no others."""
    found = ["own"]
    for name in filter(None, (held_out(task, config) for task in names)):
        found += ["data.development", *sources.get(name, config).reads]
    for task in (PACKAGED[name] for name in names if name in PACKAGED):
        found += ["data.task_queries", "data.task_documents", "data.seed"]
        found += [knob for listed in task.reads for knob in (sources.reads(config) if listed == "sources" else [listed])]
    return list(dict.fromkeys(found))


def check(names: list[str], config: Config) -> None:
    """Stop with one line if a task is unknown or its data is not at hand."""
    for name in names:
        match kind(name, config):
            case "own":
                if is_documents(config.own[name]):
                    raise DreamError(f"tasks: {name} has no queries", f"Evaluate its held-out part: {name}{HELD_OUT}")
                beir.check(config.own[name])
            case "heldout":
                documents.check(config.own[name.removesuffix(HELD_OUT)])
            case "mirror":
                mirror.check(name)
            case "mteb":
                mteb.check(name)


def build(name: str, config: Config) -> Task:
    """Make a packaged or own task, or one of a mirror, from its source. :func:`load` reads what was written."""
    match kind(name, config):
        case "own":
            return own.build(name, config.own[name])
        case "heldout":
            return own.held_out(name.removesuffix(HELD_OUT), config)
        case "mirror":
            return mirror.build(name, config.mirror[name])
        case "mteb":
            raise DreamError(f"{name} is not a packaged task", f"Choose from {', '.join(PACKAGED)}")
    return packaged.build(name, config)


def write(task: Task, folder: Path) -> None:
    """Write a task to ``folder/<name>/``: corpus, queries and qrels as parquet, the rest as task.json."""
    with replacing_folder(Path(folder) / task.name) as temporary:
        for table in TABLES:
            getattr(task, table).to_parquet(temporary / f"{table}.parquet", index=False)
        facts = ("name", "suite", "description", "licence", "revision", "notes", "drop_identical_ids")
        part = {"part": task.part} if task.part else {}
        write_json(temporary / "task.json", {name: getattr(task, name) for name in facts} | part)


def write_entry(entry: str, config: Config, folder: Path) -> list[str]:
    """Build all tasks but those that mteb loads of one entry of ``tasks`` into ``folder``, one corpus in memory at a time.

    Returns:
        The names of all its tasks, mteb's too, as ``folder/entry.json`` holds them.
    """
    names = resolve([entry], config)
    for name in names:
        if kind(name, config) != "mteb":
            write(build(name, config), folder)
    write_json(Path(folder) / "entry.json", {"tasks": names})
    return names


def written(root: Path = FOLDER) -> dict[str, Path]:
    """Task name → its folder, for every task that was written under ``root``; of a task in several entries the newest."""
    files = sorted(Path(root).glob("[!.]*/[!.]*/task.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.parent.name: path.parent for path in files}


def parts(name: str, config: Config, root: Path = FOLDER) -> Iterator[Task]:
    """A task's parts, one at a time: one of a task that was written, one or more of mteb's (scores are averaged).

    Args:
        name: a task of an entry of ``config.tasks``; the first entry that holds it is read.
        root: where the entries' folders are.

    Raises:
        DreamError: ``prepare`` has not written the task, the name is unknown, or mteb's data cannot be had.
    """
    entry = next((entry for entry in config.tasks if name in resolve([entry], config)), None)
    if kind(name, config) == "mteb" and not (entry and (Path(root) / entry / name).exists()):
        yield from mteb.parts(name)
        return
    if entry is None:
        raise DreamError(f"task {name} is in no entry of tasks", "List it under `tasks` in params.yaml")
    place = Path(root) / entry / name
    facts = read_json(place / "task.json")
    yield Task(**facts, **{table: pd.read_parquet(place / f"{table}.parquet") for table in TABLES})


def load(name: str, config: Config, root: Path = FOLDER) -> Task:
    """A task that has one part. See :func:`parts`."""
    found = list(parts(name, config, root))
    if len(found) != 1:
        raise DreamError(f"task {name} has {len(found)} parts", "Use tasks.parts and average their scores")
    return found[0]
