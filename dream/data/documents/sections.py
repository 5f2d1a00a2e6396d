"""A text under its headings: Markdown by CommonMark's rules (markdown-it), HTML through Markdown (markdownify)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

FURNITURE = ("script", "style", "noscript", "template", "svg", "nav", "footer", "form", "button")
_FRONT = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)(?:\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"^title:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A stretch of a document's text.

    Attributes:
        path: the headings that it stands under, outermost first.
        text: its own text, without that of the sections below it.
    """

    path: tuple[str, ...]
    text: str


def markdown(text: str) -> tuple[str, list[Section]]:
    """The title (of the front matter, else the first heading if nothing stands before it; else empty) and the sections.

    A heading with nothing below it is a section with itself as its text, so that no word is lost.

    >>> markdown("# Bees\\n\\nFive eyes.\\n\\n## Wax\\nMade by workers.")
    ('Bees', [Section(path=('Bees',), text='Five eyes.'), Section(path=('Bees', 'Wax'), text='Made by workers.')])
    """
    from markdown_it import MarkdownIt

    text, title = text.replace("\r\n", "\n").replace("\r", "\n"), ""
    if front := _FRONT.match(text):
        named = _TITLE.search(front[1])
        title, text = (named[1].strip("\"'") if named else ""), text[front.end() :]
    lines, tokens = text.split("\n"), MarkdownIt("commonmark").disable("inline").parse(text)
    heads: list[tuple[int, int, int, str]] = [(0, 0, 0, "")]  # first line, one past the last, level, text
    for token, inside in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            first, end = token.map
            heads.append((first, end, int(token.tag[1]), inside.content.replace("\n", " ").strip("*_` ")))
    found: list[Section] = []
    above: list[tuple[int, str]] = []
    for place, (_, start, level, head) in enumerate(heads):
        end, deeper = (heads[place + 1][0], heads[place + 1][2]) if place + 1 < len(heads) else (len(lines), 0)
        body = "\n".join(lines[start:end]).strip("\n")
        above = [one for one in above if one[0] < level]
        path = tuple(name for _, name in above)
        if head:
            above.append((level, head))
        if body.strip():
            found.append(Section((*path, head) if head else path, body))
        elif head and deeper <= level:
            found.append(Section(path, head))
    if not title and len(heads) > 1 and not "".join(lines[: heads[1][0]]).strip():
        title = heads[1][3]
    return title, found


def html(data: bytes) -> tuple[str, list[Section]]:
    """The page's title and sections; scripts, navigation, footers and forms are left out.

    Bytes, because a page states its encoding itself.
    """
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(data, "lxml")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for tag in soup(["title", *FURNITURE]):
        tag.decompose()
    plain: Any = {f"escape_{kind}": False for kind in ("asterisks", "underscores", "misc")}
    written = MarkdownConverter(heading_style="ATX", strip=["a", "img", "b", "strong", "i", "em"], **plain).convert_soup(soup)
    first, found = markdown(written)
    return title or first, found
