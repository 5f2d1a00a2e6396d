"""A folder of mteb's tasks for machines without network: ``dream-report fetch`` fills it, ``DREAM_TASKS`` names it.

``FOLDER/<task>/`` is a set in BEIR's form (corpus.jsonl, queries.jsonl, qrels/<split>.tsv) with a task.json that says where it
comes from and what it holds. It is served under mteb's name only if it is what was fetched (a content hash in task.json) and
its counts and characters are those that mteb ships for the task (``mteb/descriptive_stats``); what differs is served as
``<task>-local``, with the reason in its notes. Neither needs mteb's own import, which takes seconds.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from dream.data import beir
from dream.data.tasks import mteb
from dream.data.tasks.base import Task
from dream.data.tasks.packaged import PACKAGED
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, root, sha256, value_hash, write_json

VARIABLE, LOCAL = "DREAM_TASKS", "-local"
FACTS = ("description", "licence", "drop_identical_ids", "part")  # of a task, kept in task.json
COUNTS = ("documents", "queries", "judgements", "characters of documents", "characters of queries")


def save(name: str, folder: Path, source: str | None = None) -> dict[str, Any]:
    """Write a task to ``folder/<name>``, whole or not at all.

    Args:
        name: of the task in mteb.
        folder: the mirror.
        source: a BEIR-format folder or zip to read in place of what mteb loads.

    Returns:
        What task.json holds: name, split, source, revision, the counts, content and what the task says of itself.

    Raises:
        DreamError: mteb has no such task, it has several parts, or its data cannot be had or read.
    """
    if name in PACKAGED:
        raise DreamError(f"{name} is a packaged task", "It needs no network and no mirror: list it under `tasks`")
    found = mteb.get(name)
    if len(found) > 1 or len(found[0].hf_subsets) * len(found[0].eval_splits) > 1:
        members = ", ".join(task.metadata.name for task in found) if len(found) > 1 else ""
        raise DreamError(
            f"task {name} has several parts, and a mirror holds tasks of one", f"Fetch its members: {members}" if members else ""
        )
    (task,) = found
    (split,) = task.eval_splits
    if source is None:
        tables, origin, revision = (
            _loaded(name),
            f"mteb data set {task.metadata.dataset['path']}",
            task.metadata.dataset["revision"],
        )
    else:
        tables, origin, revision = _read(source, split), *_origin(source)
    part = mteb.label(name, name, found[0].hf_subsets[0], split)
    facts = mteb.facts(task)
    mteb.made(name, part, *tables, **facts)  # what cannot be served is not saved
    for column, table in (("query_id", tables[1]), ("doc_id", tables[0])):
        if unknown := sorted(set(tables[2][column]) - set(table["id"])):
            raise DreamError(f"task {name}: its judgements name {unknown[0]!r}, which is not there", "A mirror cannot hold it")
    record = {"name": name, "split": split, "source": origin, "revision": revision, **counts(*tables), **facts, "part": part}
    del record["notes"]
    with replacing_folder(folder / name) as temporary:
        beir.write(temporary, *tables, split=split)
        record["content"] = _content(temporary, split)
        write_json(temporary / "task.json", record)
    return record


def _loaded(name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    (tables,) = [mteb.tables(name, *part) for part in mteb.loaded(name)]
    return tables


def _read(source: str, split: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of a set of one's own, with the queries of this split."""
    if not Path(source).expanduser().exists():
        raise DreamError(f"--from {source} is missing", "Name a BEIR-format folder or zip")
    found = beir.tables(str(Path(source).expanduser().absolute()), split)
    return found.corpus, found.queries[found.queries["id"].isin(set(found.qrels["query_id"]))], found.qrels


def _origin(source: str) -> tuple[str, str]:
    """Name and content hash of a set of one's own."""
    path = Path(source).expanduser()
    return path.name, sha256(path) if path.is_file() else value_hash({str(p.relative_to(path)): sha256(p) for p in _files(path)})


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def counts(corpus: pd.DataFrame, queries: pd.DataFrame, judged: pd.DataFrame) -> dict[str, int]:
    """Counts and characters of a task, as mteb counts them: a document is its title and text, joined and stripped."""
    documents = (len(f"{title} {text}".strip()) for title, text in zip(corpus["title"], corpus["text"], strict=True))
    judgements = int((judged["relevance"] != 0).sum())
    values = len(corpus), len(queries), judgements, sum(documents), int(queries["text"].map(len).sum())
    return dict(zip(COUNTS, values, strict=True))


def shipped(name: str, split: str) -> dict[str, int] | None:
    """The same numbers as mteb ships them for a task of one part, or None where it ships none.

    >>> shipped("SciFact", "test")["characters of documents"]
    7771451
    """
    (package,) = importlib.util.find_spec("mteb").submodule_search_locations  # type: ignore[union-attr, misc]
    file = next(Path(package, "descriptive_stats").glob(f"*/{name}.json"), None)
    found = read_json(file).get(split) if file else None
    if not found or not found.get("documents_text_statistics") or not found.get("queries_text_statistics"):
        return None
    documents, queries = (found[f"{what}_text_statistics"]["total_text_length"] for what in ("documents", "queries"))
    judged = found["relevant_docs_statistics"]["num_relevant_docs"]
    asked = found.get("num_queries") or round(judged / found["relevant_docs_statistics"]["average_relevant_docs_per_query"])
    return dict(zip(COUNTS, (found["num_samples"] - asked, asked, judged, documents, queries), strict=True))


def difference(record: dict[str, Any], content: str, counted: dict[str, int] | None = None) -> str:
    """What keeps a task of the mirror from its name in mteb, in words; nothing where it is mteb's.

    Args:
        record: its task.json.
        content: hash of its files.
        counted: its counts, where the files have been read; else those in task.json stand for them.
    """
    if content != record["content"]:
        return "its files are not those that were fetched"
    ships = shipped(record["name"], record["split"])
    if ships is None:
        return "mteb ships no counts to compare it with"
    for what, theirs in ships.items():
        ours = (counted or record)[what]
        if ours != theirs:
            return f"it has {ours:,} {what}, mteb's has {theirs:,}"
    return ""


def line(record: dict[str, Any]) -> str:
    """What was saved, and under which name it is served."""
    reason = difference(record, record["content"])
    name = f"{record['name']}{LOCAL}, not as mteb's: {reason}" if reason else f"{record['name']}: mteb's counts and characters"
    return f"{record['documents']:,} documents and {record['queries']:,} queries, served as {name}"


def found(names: Iterable[str]) -> dict[str, str]:
    """Those of the tasks that the mirror holds, each with the hash of its files; none where ``DREAM_TASKS`` is not set.

    Raises:
        DreamError: the folder is missing, a ``-local`` task cannot be had, or a task's folder is not whole.
    """
    folder = os.environ.get(VARIABLE)
    if folder and not _root().is_dir():
        raise DreamError(f"{VARIABLE}: {folder} is no folder", "Name one that `dream-report fetch` filled, or unset it")
    return {name: _state(name)[2] for name in names if name.endswith(LOCAL) or (folder and _place(name).exists())}


def check(name: str) -> None:
    """Stop with one line if a task of the mirror cannot be served under this name."""
    record, content, _ = _state(name)
    _fits(name, difference(record, content))


def build(name: str, state: str) -> Task:
    """Read a task of the mirror.

    Args:
        name: mteb's, or with ``-local`` where it differs.
        state: the hash in :func:`found` when the configuration was made.

    Raises:
        DreamError: it changed since then, is not whole, or its name is not this one.
    """
    record, content, now = _state(name)
    if now != state:
        raise DreamError(
            f"task {name} in {VARIABLE} has changed since the configuration was made", "Run `dvc repro -f configure`, then again"
        )
    found = beir.tables(str(_place(name).absolute()), record["split"])
    tables = found.corpus, found.queries, found.qrels
    reason = difference(record, content, counts(*tables))
    _fits(name, reason)
    origin = f"mirror of {record['source']} @ {record['revision']}"
    notes = [f"not mteb's {record['name']}: {reason}"] if reason else []
    facts = {key: record[key] for key in FACTS} | {"notes": [origin, *notes, *found.notes]}
    return mteb.made(name, facts.pop("part"), *tables, suite="local" if reason else "", **facts)


def _fits(name: str, reason: str) -> None:
    mtebs = name.removesuffix(LOCAL)
    if name == mtebs and reason:
        raise DreamError(f"task {name} in {VARIABLE} is not mteb's: {reason}", f"List it as {name}{LOCAL}, or fetch it again")
    if name != mtebs and not reason:
        raise DreamError(f"task {name} in {VARIABLE} is mteb's {mtebs}", f"List it as {mtebs}")


def _root() -> Path:
    return root() / Path(os.environ[VARIABLE]).expanduser()


def _place(name: str) -> Path:
    return _root() / name.removesuffix(LOCAL)


def _state(name: str) -> tuple[dict[str, Any], str, str]:
    """A task's task.json, the hash of its files, and the hash of both."""
    if not os.environ.get(VARIABLE):
        raise DreamError(f"task {name} comes from a mirror, and {VARIABLE} is not set", "Set it to the mirror's folder")
    mtebs, place = name.removesuffix(LOCAL), _place(name)
    try:
        record = read_json(place / "task.json")
        whole = {"name", "split", "source", "revision", "content", *FACTS, *COUNTS} <= set(record)
        content = _content(place, record["split"]) if whole else ""
    except (DreamError, OSError, TypeError) as error:
        why = error.what if isinstance(error, DreamError) else f"{getattr(error, 'filename', place)} is missing"
        raise DreamError(f"task {name} in {VARIABLE} is not whole: {why}", f"Run `dream-report fetch {mtebs}` again") from None
    if not whole or record["name"] != mtebs:
        raise DreamError(f"{place / 'task.json'} does not describe {mtebs}", f"Run `dream-report fetch {mtebs}` again")
    return record, content, value_hash([record, content])


def _content(place: Path, split: str) -> str:
    return value_hash({name: sha256(place / name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")})
