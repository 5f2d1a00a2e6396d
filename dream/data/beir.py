"""BEIR-format folders and zips: corpus.jsonl, queries.jsonl, qrels/<split>.tsv, read with one clear line per fault.

Rules, where the format leaves room (counted in the set's notes):

* ids are read as text; a tab or line break in one is an error, a slash is allowed (ids never become file names);
* a document without title and text is left out, and so are judgements of it; a judged query without text is an error;
* grades are kept, judgements of zero or below are left out (not relevant), of two on one pair the last counts;
* a query without a relevant document is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa

from dream.assets.wheels import build_once
from dream.data.tables import CORPUS, QRELS, QUERIES
from dream.errors import DreamError
from dream.files import cache_folder, sha256, unzip

BLOCK = 10_000  # lines that are Python objects at a time; the rest of a file is Arrow's text
FORM = "A set is a folder or zip with corpus.jsonl, queries.jsonl and qrels/test.tsv"


@dataclass(frozen=True)
class BeirSet:
    """Tables of one set: corpus (id, title, text), queries (id, text), qrels (query_id, doc_id, relevance)."""

    corpus: pd.DataFrame
    queries: pd.DataFrame
    qrels: pd.DataFrame
    notes: list[str]


def folder_of(path: str) -> Path:
    """The folder that holds ``corpus.jsonl``: a zip is unpacked once into the cache.

    Raises:
        DreamError: the path is missing, is neither folder nor zip, or holds no corpus.jsonl.
    """
    place = Path(os.environ.get("DVC_ROOT", ".")) / Path(path).expanduser()
    if not place.exists():
        raise DreamError(f"own data {path} is missing", "Correct its path under `own` in params.yaml")
    if place.is_file():
        archive = place
        size = archive.stat().st_size
        place = cache_folder() / "own" / sha256(archive)[:24]
        build_once(place, 6 * size, lambda temporary: unzip(archive, temporary))
    inside = [p for p in [place, *sorted(p for p in place.iterdir() if p.is_dir())] if (p / "corpus.jsonl").is_file()]
    if not inside:
        raise DreamError(f"{path} holds no corpus.jsonl", FORM)
    return inside[0]


def splits(path: str) -> list[str]:
    """Names of the splits that have judgements, e.g. ``['test', 'train']``."""
    return sorted(p.stem for p in (folder_of(path) / "qrels").glob("*.tsv"))


def check(path: str) -> None:
    """Stop with one line if a file of the set is missing."""
    folder = folder_of(path)
    for name in ("queries.jsonl", "qrels/test.tsv"):
        if not (folder / name).is_file():
            raise DreamError(f"{path} holds no {name}", FORM)


def read(path: str, split: str = "test") -> BeirSet:
    """Read one split of a set: the whole corpus, and the queries that have a relevant document in this split.

    Raises:
        DreamError: a file is missing, a line is malformed (file:line), an id is unknown or repeated, nothing is left.
    """
    folder, notes = folder_of(path), []
    label = Path(path).name
    for name in ("queries.jsonl", f"qrels/{split}.tsv"):
        if not (folder / name).is_file():
            raise DreamError(f"{path} holds no {name}", FORM)
    corpus = _table(folder / "corpus.jsonl", label, CORPUS)
    queries = _table(folder / "queries.jsonl", label, QUERIES)
    qrels = _qrels(folder / "qrels" / f"{split}.tsv", label, set(queries["id"]), set(corpus["id"]))

    empty = (corpus["title"].str.strip() == "") & (corpus["text"].str.strip() == "")
    if empty.any():
        notes.append(f"{int(empty.sum())} documents without title and text left out")
        qrels = qrels[~qrels["doc_id"].isin(corpus["id"][empty])]
        corpus = corpus[~empty]
    judged = qrels["query_id"].nunique()
    qrels = qrels[qrels["relevance"] > 0].reset_index(drop=True)
    relevant = set(qrels["query_id"])
    if judged > len(relevant):
        notes.append(f"{judged - len(relevant)} judged queries without a relevant document left out")
    queries = queries[queries["id"].isin(relevant)].reset_index(drop=True)
    blank = queries["id"][queries["text"].str.strip() == ""]
    if len(blank):
        raise DreamError(
            f"{label}/queries.jsonl: query {blank.iloc[0]!r} has no text", "Give it a text or remove its judgements"
        )
    if queries.empty:
        raise DreamError(
            f"{path} has no query with a relevant document in qrels/{split}.tsv", "An empty set cannot be used"
        )
    return BeirSet(corpus.reset_index(drop=True), queries, qrels, notes)


def _table(path: Path, label: str, columns: list[str]) -> pd.DataFrame:
    """Read a JSON-lines file with ``_id`` and text fields; missing titles are empty."""
    schema = pa.schema([(name, pa.large_string()) for name in columns])
    records, blocks = _records(path, label, columns), []
    while block := list(islice(records, BLOCK)):
        blocks.append(pa.RecordBatch.from_pylist(block, schema=schema))
    if not blocks:
        raise DreamError(f"{label}/{path.name} is empty", "An empty set cannot be used")
    return pa.Table.from_batches(blocks).combine_chunks().to_pandas()


def _records(path: Path, label: str, columns: list[str]) -> Iterator[dict[str, str]]:
    """The values of every line, by column."""
    seen: set[str] = set()
    for place, line in _lines(path, label):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DreamError(f"{place}: not valid JSON ({error.msg})", "Correct this line") from None
        if not isinstance(record, dict) or record.get("_id") in (None, ""):
            raise DreamError(f"{place}: no _id", 'A line is {"_id": …, "text": …}')
        name = str(record["_id"])
        if any(character in name for character in "\t\r\n"):
            raise DreamError(
                f"{place}: id {name!r} holds a tab or a line break", "qrels are tab-separated: choose other ids"
            )
        if name in seen:
            raise DreamError(f"{place}: id {name!r} appears twice", "Ids must be unique: remove or rename one")
        seen.add(name)
        values = {"id": name}
        for column in columns[1:]:
            value = record.get(column) or ""
            if not isinstance(value, str):
                raise DreamError(f"{place}: {column} is not a text", "Write it as a JSON string")
            values[column] = value
        yield values


def _qrels(path: Path, label: str, queries: set[str], corpus: set[str]) -> pd.DataFrame:
    rows: dict[tuple[str, str], int] = {}
    for number, (place, line) in enumerate(_lines(path, label)):
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != 3:
            raise DreamError(f"{place}: {len(fields)} columns, expected query-id, corpus-id and score, tab-separated")
        try:
            grade = int(fields[2])
        except ValueError:
            if number == 0:
                continue  # the header
            raise DreamError(f"{place}: score {fields[2]!r} is not a whole number", "Correct this line") from None
        for name, known, what in ((fields[0], queries, "queries"), (fields[1], corpus, "corpus")):
            if name not in known:
                raise DreamError(
                    f"{place}: id {name!r} is not in {what}.jsonl", "Correct the id or remove this judgement"
                )
        rows[fields[0], fields[1]] = grade
    return pd.DataFrame([(q, d, grade) for (q, d), grade in rows.items()], columns=QRELS)


def _lines(path: Path, label: str) -> Iterator[tuple[str, str]]:
    """(place for messages, line) of every line that is not blank."""
    name = f"{label}/{path.parent.name + '/' if path.suffix == '.tsv' else ''}{path.name}"
    number = 0
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{name}:{number}", line
    except UnicodeDecodeError:
        raise DreamError(f"{name}:{number + 1}: not valid UTF-8", "Save the file as UTF-8") from None
