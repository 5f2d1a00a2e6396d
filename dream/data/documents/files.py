"""Files → documents: a folder of .txt, .md, .html and .pdf at any depth, or one table of texts, alone in its folder or named.

A file of another kind is skipped and counted; one that cannot be read is named with what to do about it, and the others are
read. Only where nothing is left is it an error.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dream.data import beir
from dream.data.documents import sections, tables
from dream.data.documents.sections import Section
from dream.data.own import below
from dream.data.tables import blank
from dream.errors import DreamError, visible

SHOWN = 3  # names that a note gives


@dataclass(frozen=True)
class Document:
    """One document: its name in the set, the group that is held out together, its title and its sections."""

    name: str
    group: str
    title: str
    sections: list[Section]


class Unreadable(Exception):
    """Why a file gives no text, and what to do about it."""


@dataclass
class Found:
    """The files of a set: those that are read, and what was seen of the others."""

    root: Path
    files: list[Path]
    skipped: Counter[str] = field(default_factory=Counter)
    unread: dict[str, list[str]] = field(default_factory=dict)
    empty: int = 0

    def notes(self) -> list[str]:
        """What was not read, in words."""
        found = []
        if self.skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            found.append(f"{self.skipped.total()} files of other kinds skipped ({kinds})")
        for why, names in sorted(self.unread.items()):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            found.append(f"not read: {', '.join(names[:SHOWN])}{more}: {why}")
        if self.empty:
            found.append(f"{self.empty} documents without text left out")
        return found


def find(path: str) -> Found:
    """The files to read at a path of ``own``; a zip is unpacked once.

    Raises:
        DreamError: nothing is there, or nothing of a kind that is read.
    """
    place = beir.unpacked(path)
    inside = [place] if place.is_file() else list(below(place))
    root = place.parent if place.is_file() else place
    corpora = [file for file in inside if file.name == "corpus.jsonl"]
    if len(corpora) > 1:
        raise DreamError(
            f"{path} holds several sets, {corpora[0].relative_to(root)} and {corpora[1].relative_to(root)}", beir.FORM
        )
    if corpora:
        return Found(root, corpora)
    texts, listed = ([file for file in inside if file.suffix.lower() in kinds] for kinds in (READERS, tables.READERS))
    found = Found(root, texts or (listed if len(listed) == 1 else []))  # a table is read where it stands alone
    kept = set(found.files)
    found.skipped.update(file.suffix.lower() or "without ending" for file in inside if file not in kept)
    return found


def check(path: str) -> None:
    """Stop with one line if there is no file that could hold a document."""
    found = find(path)
    if not found.files:
        raise nothing(path, found)


def nothing(path: str, found: Found) -> DreamError:
    """The error of a set that gives no document."""
    seen = "; ".join(found.notes()) or "it is empty"
    remedy = f"Name a folder with {', '.join(READERS)}, or one {', '.join(tables.READERS)} file, under `own`"
    return DreamError(f"own data {path} holds no document ({seen})", remedy)


def documents(found: Found) -> Iterator[Document]:
    """Every document that has a text, in the order of the files' names; what is left out is counted in ``found``."""
    for file in found.files:
        for document in _of(file, found):
            if all(blank(section.text) for section in document.sections):
                found.empty += 1
                continue
            yield document


def _of(file: Path, found: Found) -> Iterator[Document]:
    if read := READERS.get(file.suffix.lower()):
        name = visible(file.relative_to(found.root).as_posix())
        try:
            title, parts = read(file)
        except Unreadable as error:
            found.unread.setdefault(str(error), []).append(name)
            return
        yield Document(name, name, title or visible(file.stem), parts)
        return
    for row in tables.rows(file):
        yield Document(row["id"], row["group"], row["title"], [Section((), row["text"])])


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with its mark."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not wide:
        raise Unreadable("it is binary, no text. Leave it out or convert it to text")
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("it is not UTF-8. Save it as UTF-8") from None


def _plain(file: Path) -> tuple[str, list[Section]]:
    return "", [Section((), decoded(file.read_bytes()))]


def _markdown(file: Path) -> tuple[str, list[Section]]:
    return sections.markdown(decoded(file.read_bytes()))


def _html(file: Path) -> tuple[str, list[Section]]:
    data = file.read_bytes()
    if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("it is binary, no text. Leave it out or convert it to text")
    return sections.html(data)


def _pdf(file: Path) -> tuple[str, list[Section]]:
    import logging

    from pypdf import PdfReader
    from pypdf.errors import FileNotDecryptedError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its remarks on odd files say nothing that helps
    try:
        reader = PdfReader(file)
        text = "\n".join(page.extract_text() for page in reader.pages)
        title = str((reader.metadata and reader.metadata.title) or "")
    except FileNotDecryptedError:
        raise Unreadable("it asks for a password. Save it without one") from None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # what pypdf raises on broken files
        raise Unreadable("it is not a complete PDF. Get it again, or print it anew") from None
    if blank(text):
        raise Unreadable("it has no text, as scanned pages have none. Give it a text layer by OCR (ocrmypdf)")
    return title, [Section((), text)]


READERS: dict[str, Callable[[Path], tuple[str, list[Section]]]] = {
    ".txt": _plain, ".md": _markdown, ".markdown": _markdown, ".html": _html, ".htm": _html, ".pdf": _pdf,
}  # fmt: skip
