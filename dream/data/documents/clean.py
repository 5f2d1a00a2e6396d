"""What stands in many documents and is about none: repeated lines (navigation, footers) and texts that stand there twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

from dream.data.documents.files import Document
from dream.data.documents.sections import Section

FEWEST = 5  # documents in which a line must stand to be furniture
LARGEST = 2_000_000  # different lines that are counted; of more, those seen once are forgotten


def digest(text: str) -> bytes:
    """16 bytes for a text, white space aside."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Lines:
    """In how many documents each line stands; a line is counted once a document."""

    def __init__(self) -> None:
        self.documents, self._counts = 0, Counter[bytes]()

    def add(self, sections: Iterable[Section]) -> None:
        """Count a document's lines."""
        self.documents += 1
        self._counts.update({digest(line) for section in sections for line in section.text.splitlines() if line.strip()})
        if len(self._counts) > LARGEST:
            self._counts = Counter({line: count for line, count in self._counts.items() if count > 1})

    def repeated(self, share: float) -> set[bytes]:
        """The lines that stand in more than this share of the documents, and in five of them."""
        return {line for line, count in self._counts.items() if count >= FEWEST and count > share * self.documents}


class Seen:
    """Texts by what they say: the first name of each."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self.copies, self.example = 0, ""

    def is_copy(self, text: str, name: str) -> bool:
        """Whether the text was there before; counted, with an example."""
        first = self._first.setdefault(digest(text), name)
        if first == name:
            return False
        self.copies += 1
        self.example = self.example or f"{name} repeats {first}"
        return True


def whole(document: Document) -> str:
    """All of a document's words, to tell copies by."""
    return "\n".join([document.title, *("\n".join([*section.path, section.text]) for section in document.sections)])


def without(text: str, repeated: set[bytes], dropped: Counter[str]) -> str:
    """A text without its repeated lines, which are counted in ``dropped``."""
    kept = []
    for line in text.splitlines():
        if line.strip() and digest(line) in repeated:
            dropped[" ".join(line.split())] += 1
        else:
            kept.append(line)
    return "\n".join(kept)
