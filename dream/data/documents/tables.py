"""One file of documents, a row each: .jsonl (BEIR's corpus.jsonl is one), .parquet or .csv, read in turn.

Columns by their usual names, case aside; only a text is needed. Rows with one ``group`` are parts of one document: they are
held out together, and are each other's candidates.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from dream.data import beir
from dream.data.tables import check_id
from dream.errors import DreamError

COLUMNS = {
    "id": ("_id", "id", "doc_id", "docid", "docno", "document_id", "passage_id", "pid"),
    "title": ("title", "headline", "heading", "subject"),
    "text": ("text", "contents", "content", "body", "passage", "document", "page_content"),
    "group": ("group", "page", "url", "uri"),
}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
Row = tuple[str, dict[str, Any]]


def rows(path: Path) -> Iterator[dict[str, str]]:
    """id, title, text and group of every row; a row without an id is named by its place, without a group by its id.

    Raises:
        DreamError: the file cannot be read, has no column of texts, a text is none, or an id appears twice.
    """
    found = READERS[path.suffix.lower()](path)
    first = next(found, None)
    if first is None:
        raise DreamError(f"{path.name} is empty", "An empty set cannot be used")
    seen: set[str] = set()
    for number, (place, row) in enumerate(chain([first], found), 1):
        row = {str(key).strip().lower(): value for key, value in row.items()}
        if number == 1 and not set(COLUMNS["text"]) & set(row):
            names = ", ".join(map(repr, row)) or "none"
            raise DreamError(f"{place}: no column of texts (columns: {names[:200]})", "Name it `text`, beside `id` and `title`")
        values = {name: _text(row, name, place) for name in COLUMNS}
        values["id"] = values["id"] or str(number)
        values["group"] = values["group"] or values["id"]
        check_id(values["id"], place)
        if values["id"] in seen:
            raise DreamError(f"{place}: id {values['id']!r} appears twice", "Ids must be unique: remove or rename one")
        seen.add(values["id"])
        yield values


def _text(row: dict[str, Any], name: str, place: str) -> str:
    """The value of the first column of this kind that has one; a number is an id by its digits."""
    value = next((row[key] for key in COLUMNS[name] if row.get(key) is not None), "")
    if isinstance(value, int) and name in ("id", "group"):
        value = str(value)
    if not isinstance(value, str):
        raise DreamError(f"{place}: {name} is not a text", "Write it as a text")
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def _jsonl(path: Path) -> Iterator[Row]:
    for place, line in beir.lines(path, path.parent.name):
        record = beir.parse(line, place)
        if not isinstance(record, dict):
            raise DreamError(f"{place}: no JSON object", 'A line is {"id": …, "title": …, "text": …}')
        yield place, {key: str(value) if isinstance(value, beir.Number) else value for key, value in record.items()}


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = {key for keys in COLUMNS.values() for key in keys}
    try:
        opened = pq.ParquetFile(path)
        columns = [name for name in opened.schema_arrow.names if name.strip().lower() in known]
        number = 0
        for batch in opened.iter_batches(1000, columns=columns or None):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}, row {number}", row
    except pa.ArrowException as error:
        raise DreamError(f"{path.name} is not a complete parquet file ({str(error)[:150]})", "Write it again") from None


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            mark = max(",;\t", key=stream.readline().count)
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=mark, strict=True)
            for row in reader:
                if None in row:
                    raise DreamError(f"{path.name}:{reader.line_num}: more cells than the header names", "Quote the texts")
                yield f"{path.name}:{reader.line_num}", row
    except UnicodeDecodeError:
        raise DreamError(f"{path.name} is not UTF-8", "Save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise DreamError(f"{path.name} is not valid CSV ({error})", "Export it again, with quotes around texts") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv}
