"""A set of documents → its table of passages, read once for a content and its settings.

Documents are read one at a time into a file beside the result; a second pass over that file drops what stands in many of them
and cuts the rest. So memory holds one document, 16 bytes for every line and passage, and the table at the end.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dream.data.documents import clean, cut, files
from dream.data.documents.files import Document, Found
from dream.data.documents.sections import Section
from dream.data.tables import PASSAGES, blank
from dream.errors import visible
from dream.files import folder_hash, lasting, read_json, replacing_folder, sha256, value_hash, write_json

if TYPE_CHECKING:
    from dream.config import Config
    from dream.config.sections import Data

BLOCK = 5_000  # passages that are Python objects at a time
SCHEMA = pa.schema([(name, pa.large_string()) for name in PASSAGES])
READS = ("data.passage_words", "data.passage_overlap", "data.boilerplate")


def passages(name: str, path: str, config: Config) -> pd.DataFrame:
    """The passages of an own set of documents.

    Args:
        name: of the set; ids are ``<name>:<document>#<number>``.
        path: as under ``own``.
        config: ``data.passage_words``, ``data.passage_overlap`` and ``data.boilerplate``.

    Returns:
        passage_id, source, group (the document), title (with the headings above the passage), text;
        ``attrs["notes"]``: what was left out, with an example each.

    Raises:
        DreamError: there is no document, or a table of texts is malformed.
    """
    found = files.find(path)
    if not found.files:
        raise files.nothing(path, found)
    kept = lasting("documents", _key(name, found, config.data))
    if not kept.exists():
        with replacing_folder(kept) as folder:
            _write(name, path, found, config.data, folder)
    table = pd.read_parquet(kept / "passages.parquet")
    table.attrs["notes"] = read_json(kept / "notes.json")
    return table


def _key(name: str, found: Found, data: Data) -> str:
    """Content hash of what the passages depend on: the files, the settings, the code."""
    content = [(file.relative_to(found.root).as_posix(), sha256(file)) for file in found.files]
    settings = [getattr(data, knob.removeprefix("data.")) for knob in READS]
    return value_hash(
        [name, ascii(content), sorted(found.skipped.items()), settings, folder_hash(Path(__file__).parent, "*.py")]
    )[:24]


def _write(name: str, path: str, found: Found, data: Data, folder: Path) -> None:
    """passages.parquet and notes.json."""
    lines, copies = clean.Lines(), clean.Seen()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass", dir=folder) as spool:
        for document in tqdm(files.documents(found), desc=f"documents of {name}", unit="document", leave=False):
            if not copies.is_copy(clean.whole(document), document.name):
                lines.add(document.sections)
                spool.write(json.dumps(dataclasses.astuple(document)) + "\n")
        if not lines.documents:
            raise files.nothing(path, found)
        repeated, dropped, twice = lines.repeated(data.boilerplate), Counter[str](), clean.Seen()
        rows = _rows(name, _spooled(spool), data, repeated, dropped, twice)
        with pq.ParquetWriter(folder / "passages.parquet", SCHEMA) as writer:
            while block := list(islice(rows, BLOCK)):
                writer.write_table(pa.Table.from_pylist([dict(zip(PASSAGES, row, strict=True)) for row in block], SCHEMA))
    notes = found.notes()
    if copies.copies:
        notes.append(f"{copies.copies} copies of documents dropped, such as: {copies.example}")
    if dropped:
        line, count = max(dropped.items(), key=lambda one: (one[1], one[0]))
        notes.append(f"{dropped.total()} lines dropped that stand in more than {data.boilerplate:.0%} of {lines.documents} "
                     f"documents, such as ({count} times): {visible(line[:80])}")  # fmt: skip
    if twice.copies:
        notes.append(f"{twice.copies} copies of passages dropped, such as: {twice.example}")
    write_json(folder / "notes.json", notes)


def _spooled(spool: IO[str]) -> Iterator[Document]:
    spool.seek(0)
    for line in spool:
        name, group, title, parts = json.loads(line)
        yield Document(name, group, title, [Section(tuple(path), text) for path, text in parts])


def _rows(
    name: str, found: Iterator[Document], data: Data, repeated: set[bytes], dropped: Counter[str], twice: clean.Seen
) -> Iterator[tuple[str, ...]]:
    """Every passage as a row of :data:`PASSAGES`."""
    for document in found:
        number = 0
        for section in document.sections:
            title = " > ".join(dict.fromkeys(filter(None, [document.title, *section.path])))
            text = clean.without(section.text, repeated, dropped) if repeated else section.text
            for passage in cut.cut(text, data.passage_words, data.passage_overlap):
                number += 1
                passage_id = f"{name}:{document.name}#{number}"
                if not blank(passage) and not twice.is_copy(passage, passage_id):
                    yield passage_id, name, document.group, title, passage
