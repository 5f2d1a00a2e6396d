"""Texts cut into passages of so many words; in scripts without spaces two characters count as one word."""

from __future__ import annotations

import re
from collections.abc import Iterator

import regex

# Letters of scripts that set no spaces: Han, kana, Bopomofo, Yi, and those whose words a dictionary has to find (Thai, Khmer …)
_SPACELESS = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{lb=SA}]&&[\p{L}\p{M}\p{N}]]"
_WORD = re.compile(r"\S{1,100}")  # what is longer is no word, and would make a passage of any length
_UNIT = regex.compile(rf"(?:{_SPACELESS}\p{{M}}*){{1,2}}[^\s\p{{L}}\p{{N}}]*|[\S--{_SPACELESS}]{{1,100}}", regex.V1)


def words(text: str) -> list[tuple[int, int]]:
    """First character and one past the last of every word.

    >>> [text[a:b] for text in ["Ant  bee", "蜜蜂有五只眼睛。Five"] for a, b in words(text)]
    ['Ant', 'bee', '蜜蜂', '有五', '只眼', '睛。', 'Five']
    """
    found = _WORD.finditer(text) if text.isascii() else _UNIT.finditer(text)
    return [match.span() for match in found]


def cut(text: str, most: int, overlap: int) -> Iterator[str]:
    """Passages of at most ``most`` words and of even length; each begins with the last ``overlap`` words of the one before.

    >>> list(cut("a b c d e f g", 4, 1)), list(cut("a b c", 4, 1))
    (['a b', 'b c d', 'd e f g'], ['a b c'])
    """
    spans = words(text)
    pieces = 1 if len(spans) <= most else -(-len(spans) // (most - overlap))
    for piece in range(pieces):
        start, end = (place * len(spans) // pieces for place in (piece, piece + 1))
        if start < end:
            yield text[spans[max(0, start - overlap)][0] : spans[end - 1][1]]
