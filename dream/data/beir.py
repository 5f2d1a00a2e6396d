"""BEIR-format folders and zips: corpus.jsonl, queries.jsonl, qrels/<split>.tsv, read with one clear line per fault.

Rules, where the format leaves room (what is left out or changed is counted in the set's notes):

* an id is a JSON string, or a JSON number by its digits in the file (``1`` is ``"1"``, ``1.0`` is ``"1.0"``); two that are
  equal then are an error, and so are control characters in one; a slash is allowed (ids never become file names);
* a NUL or half a surrogate pair in a text is read as U+FFFD, the replacement character;
* a document without a visible character in title and text is left out, and so are judgements of it; a judged query without
  one is an error;
* grades are whole numbers within ±``LARGEST_GRADE``; judgements of zero or below are left out (not relevant); a pair may be
  judged twice if both grades are equal;
* a query without a relevant document is left out;
* the set may lie in folders of the zip or folder, as long as it is the only one there;
* a byte order mark, Windows line ends and a header in qrels are accepted, hidden files (``._corpus.jsonl``, ``__MACOSX``)
  are ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from dream.assets.wheels import build_once
from dream.data.own import hidden, place_of
from dream.data.tables import CORPUS, QRELS, QUERIES, blank, check_id, copies, grade
from dream.errors import DreamError
from dream.files import cache_folder, sha256, unpacked_size, unzip

BLOCK = 10_000  # lines that are Python objects at a time; the rest of a file is Arrow's text
FORM = "A set is a folder or zip with corpus.jsonl, queries.jsonl and qrels/test.tsv"
HEADER = (  # words that a column's name may be, letters alone
    {"queryid", "qid", "query", "topic", "topicid"},
    {"corpusid", "docid", "docno", "documentid", "document", "doc", "did", "passageid", "pid"},
    {"score", "relevance", "rel", "grade", "label", "judgement", "judgment"},
)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Number(str):
    """A JSON number by its digits in the file."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_int=Number, parse_float=Number).decode


def parse(line: str, place: str) -> Any:
    """The JSON value of a line, its numbers by their digits; what is none is an error that names the place."""
    try:
        return _decode(line)
    except ValueError as error:
        raise DreamError(f"{place}: not valid JSON ({getattr(error, 'msg', error)})", "Correct this line") from None
    except RecursionError:
        raise DreamError(f"{place}: JSON nested too deeply", "Leave out what no column needs, such as metadata") from None


@dataclass(frozen=True)
class BeirSet:
    """Tables of one set: corpus (id, title, text), queries (id, text), qrels (query_id, doc_id, relevance)."""

    corpus: pd.DataFrame
    queries: pd.DataFrame
    qrels: pd.DataFrame
    notes: list[str]


def unpacked(path: str, as_zip: bool = False) -> Path:
    """What a path under ``own`` stands for: a folder, a file, or the folder in the cache that a zip is unpacked to once.

    Args:
        path: as in params.yaml.
        as_zip: a file can only be a zip.

    Raises:
        DreamError: the path is missing, or the zip is damaged.
    """
    place = place_of(path)
    if not place.exists():
        raise DreamError(f"own data {path} is missing", "Correct its path under `own` (params.yaml, or -S)")
    if place.is_dir() or not (as_zip or place.suffix.lower() == ".zip"):
        return place
    archive, place = place, cache_folder() / "own" / sha256(place)[:24]
    if not place.exists():
        build_once(place, unpacked_size(archive), lambda temporary: unzip(archive, temporary))
    return place


def folder_of(path: str) -> Path:
    """The one folder that holds ``corpus.jsonl``, at whatever depth: a zip is unpacked once into the cache.

    Raises:
        DreamError: the path is missing, is neither folder nor zip, or does not hold one corpus.jsonl.
    """
    place = unpacked(path, as_zip=True)
    if (place / "corpus.jsonl").is_file():
        return place
    inside = [folder.relative_to(place) for folder in _sets(place)]
    if len(inside) != 1:
        found = f"several sets, in {inside[0]} and {inside[1]}" if inside else "no corpus.jsonl"
        raise DreamError(f"{path} holds {found}", FORM)
    return place / inside[0]


def _sets(place: Path) -> Iterator[Path]:
    """Folders below ``place`` that hold a corpus.jsonl."""
    for folder, names, _ in os.walk(place):
        names[:] = sorted(name for name in names if not hidden(Path(name)))
        yield from (Path(folder, name) for name in names if Path(folder, name, "corpus.jsonl").is_file())


def splits(path: str) -> list[str]:
    """Names of the splits that have judgements, e.g. ``['test', 'train']``."""
    return sorted(p.stem for p in (folder_of(path) / "qrels").glob("*.tsv") if not hidden(p))


def check(path: str) -> None:
    """Stop with one line if a file of the set is missing."""
    folder = folder_of(path)
    for name in ("queries.jsonl", "qrels/test.tsv"):
        if not (folder / name).is_file():
            raise DreamError(f"{path} holds no {name}", FORM)


def test_queries(path: str) -> list[str]:
    """Texts of all queries that the set judges in its test split; nothing where there is no such split."""
    folder, label = folder_of(path), Path(path).name
    judged = folder / "qrels" / "test.tsv"
    if not judged.is_file() or not (folder / "queries.jsonl").is_file():
        return []
    names = {line.split("\t", 1)[0] for _, line in lines(judged, label)}
    return [query["text"] for query in _records(folder / "queries.jsonl", label, QUERIES, Counter()) if query["id"] in names]


def read(path: str, split: str = "test") -> BeirSet:
    """Read one split of a set: the whole corpus, and the queries that have a relevant document in this split.

    Raises:
        DreamError: a file is missing, a line is malformed (file:line), an id is unknown or repeated, nothing is left.
    """
    label = Path(path).name
    whole = tables(path, split)
    corpus, queries, qrels, notes = whole.corpus, whole.queries, whole.qrels, list(whole.notes)
    empty = corpus["title"].map(blank) & corpus["text"].map(blank)
    if empty.any():
        notes.append(f"{int(empty.sum())} documents without title and text left out")
        qrels = qrels[~qrels["doc_id"].isin(corpus["id"][empty])]
        corpus = corpus[~empty]
    notes += copies(corpus, qrels)
    judged = qrels["query_id"].nunique()
    qrels = qrels[qrels["relevance"] > 0].reset_index(drop=True)
    relevant = set(qrels["query_id"])
    if judged > len(relevant):
        notes.append(f"{judged - len(relevant)} judged queries without a relevant document left out")
    queries = queries[queries["id"].isin(relevant)].reset_index(drop=True)
    mute = queries["id"][queries["text"].map(blank)]
    if len(mute):
        raise DreamError(f"{label}/queries.jsonl: query {mute.iloc[0]!r} has no text", "Give it a text or remove its judgements")
    if queries.empty:
        raise DreamError(f"{path} has no query with a relevant document in qrels/{split}.tsv", "An empty set cannot be used")
    return BeirSet(corpus.reset_index(drop=True), queries, qrels, notes)


def tables(path: str, split: str = "test") -> BeirSet:
    """A set as its files hold it: all documents, all queries, and the split's judgements of every grade."""
    folder, label = folder_of(path), Path(path).name
    counts: Counter[str] = Counter()
    for name in ("queries.jsonl", f"qrels/{split}.tsv"):
        if not (folder / name).is_file():
            raise DreamError(f"{path} holds no {name}", FORM)
    corpus = _table(folder / "corpus.jsonl", label, CORPUS, counts)
    queries = _table(folder / "queries.jsonl", label, QUERIES, counts)
    qrels = _qrels(folder / "qrels" / f"{split}.tsv", label, set(queries["id"]), set(corpus["id"]), counts)
    return BeirSet(corpus, queries, qrels, [f"{count} {what}" for what, count in counts.items()])


def write(folder: Path, corpus: pd.DataFrame, queries: pd.DataFrame, qrels: pd.DataFrame, split: str = "test") -> None:
    """Write tables as a set that :func:`tables` reads back as they are."""
    for name, table in (("corpus", corpus), ("queries", queries)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            for row in tqdm(table.itertuples(index=False), desc=name, total=len(table), unit="text", leave=False):
                named = {"_id" if key == "id" else key: value for key, value in row._asdict().items()}
                stream.write(json.dumps(named) + "\n")
    (folder / "qrels").mkdir()
    qrels.to_csv(folder / "qrels" / f"{split}.tsv", sep="\t", index=False, header=["query-id", "corpus-id", "score"], quoting=3)


def _table(path: Path, label: str, columns: list[str], counts: Counter[str]) -> pd.DataFrame:
    """Read a JSON-lines file with ``_id`` and text fields; missing titles are empty."""
    schema = pa.schema([(name, pa.large_string()) for name in columns])
    records, blocks = _records(path, label, columns, counts), []
    while block := list(islice(records, BLOCK)):
        blocks.append(pa.RecordBatch.from_pylist(block, schema=schema))
    if not blocks:
        raise DreamError(f"{label}/{path.name} is empty", "An empty set cannot be used")
    return pa.Table.from_batches(blocks).combine_chunks().to_pandas()


def _records(path: Path, label: str, columns: list[str], counts: Counter[str]) -> Iterator[dict[str, str]]:
    """The values of every line, by column."""
    seen: set[str] = set()
    for place, line in lines(path, label):
        record = parse(line, place)
        name = record.get("_id") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            raise DreamError(f"{place}: no _id that is a text or a number", 'A line is {"_id": …, "text": …}')
        name = str(name)
        check_id(name, place)
        if name in seen:
            raise DreamError(f"{place}: id {name!r} appears twice", "Ids must be unique: remove or rename one")
        seen.add(name)
        values = {"id": name}
        for column in columns[1:]:
            value = record.get(column)
            if value is None:
                value = ""
            if type(value) is not str:
                raise DreamError(f"{place}: {column} is not a text", "Write it as a JSON string")
            values[column], found = _UNSTORABLE.subn("\N{REPLACEMENT CHARACTER}", value)
            if found:
                counts["texts with NUL or half a surrogate pair, read as U+FFFD"] += 1
        yield values


def _qrels(path: Path, label: str, queries: set[str], corpus: set[str], counts: Counter[str]) -> pd.DataFrame:
    rows: dict[tuple[str, str], tuple[int, str]] = {}
    for number, (place, line) in enumerate(lines(path, label)):
        fields = line.rstrip("\n").split("\t")
        if len(fields) != 3:
            raise DreamError(f"{place}: {len(fields)} columns, expected query-id, corpus-id and score, tab-separated")
        if number == 0 and _is_header(fields, place, queries, corpus):
            continue
        judged = grade(fields[2], place)
        for name, known, what in ((fields[0], queries, "queries"), (fields[1], corpus, "corpus")):
            if name not in known:
                raise DreamError(f"{place}: id {name!r} is not in {what}.jsonl", _remedy(name, known))
        before, first = rows.setdefault((fields[0], fields[1]), (judged, place))
        if before != judged:
            raise DreamError(
                f"{first} and {place}: document {fields[1]!r} has the scores {before} and {judged} for query {fields[0]!r}",
                "Remove one of these lines",
            )
        if first != place:
            counts["repeated judgements, equal to the first, counted once"] += 1
    return pd.DataFrame([(q, d, judged) for (q, d), (judged, _) in rows.items()], columns=QRELS)


def _is_header(fields: list[str], place: str, queries: set[str], corpus: set[str]) -> bool:
    """Whether a file's first line names its columns; names that are other ones, or in another order, are refused."""
    if all(re.sub("[^a-z]", "", field.lower()) in words for field, words in zip(fields, HEADER, strict=True)):
        return True
    if any(c.isdigit() for c in fields[2]) or fields[0] in queries or fields[1] in corpus:
        return False
    names = ", ".join(repr(field[:40]) for field in fields)
    raise DreamError(f"{place}: the header is {names}, expected query-id, corpus-id, score", "Name and order the columns so")


def _remedy(name: str, known: set[str]) -> str:
    """What to do about an unknown id."""
    if name.strip() in known:
        return f"Remove the space around it: {name.strip()!r} is there"
    spaced = "It holds a space, and columns are separated by tabs: correct" if re.search(r"\s", name) else "Correct"
    return f"{spaced} the id or remove this judgement"


def lines(path: Path, label: str) -> Iterator[tuple[str, str]]:
    """(place for messages, line) of every line that is not blank; a byte that is not UTF-8 is an error that names the line."""
    name = f"{label}/{path.parent.name + '/' if path.suffix == '.tsv' else ''}{path.name}"
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.encode()
            except UnicodeEncodeError:  # a byte that is not UTF-8 was read as half a surrogate pair
                raise DreamError(f"{name}:{number}: not valid UTF-8", "Save the file as UTF-8") from None
            if line.strip():
                yield f"{name}:{number}", line
