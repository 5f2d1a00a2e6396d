"""Names: one rule for all of them, and a name stands for one thing.

Names of sizes, task lists, own sets, published models, objectives and tasks become file names, parts of DVC's stage names
and words of a command that a shell reads. :data:`RULE` keeps them safe there; ``dream/config/check.py`` keeps them apart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

RULE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")


def require(name: str) -> str:
    """Return a name that keeps the rule; a :class:`ValueError` in words otherwise.

    >>> require("dream-0.5b")
    'dream-0.5b'
    """
    if not RULE.fullmatch(name):
        rule = "Use at most 64 letters, digits, dots, dashes and underscores: first a letter or digit, no dot at the end"
        raise ValueError(f"it cannot be a name. {rule}")
    return name


def hint(name: str, known: Iterable[str], otherwise: str = "Choose from {}") -> str:
    """What to do about an unknown name: the nearest known one, else ``otherwise`` with all of them.

    >>> hint("bm52", ["bm25", "untrained"]), hint("x", ["bm25"])
    ("Did you mean 'bm25'?", 'Choose from bm25')
    """
    found = near(name, known := list(known))
    return f"Did you mean {found!r}?" if found else otherwise.format(", ".join(known) or "none")


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``, if one is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def cell(system: str, seed: int | None, entry: str, pairs: int | None = None) -> str:
    """A cell's name and its files': ``<system>-<tasks>``, of a trained system ``<objective>-<seed>-<tasks>``, of one after some
    of its pairs ``<objective>-<seed>-<pairs>-<tasks>``.

    >>> cell("bm25", None, "general"), cell("dream", 0, "general"), cell("dream", 0, "general", 144)
    ('bm25-general', 'dream-0-general', 'dream-0-144-general')
    """
    return "-".join(str(part) for part in (system, seed, pairs, entry) if part is not None)


def registered(folder: str, decorator: str = "register") -> dict[str, str]:
    """Name → module of what the files of ``dream/<folder>`` register, read without importing them: that would load torch.

    >>> registered("objectives")["infonce"], "bm25" in registered("systems")
    ('infonce', True)
    """
    found: dict[str, str] = {}
    for path in sorted((Path(__file__).parent / folder).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        found |= dict.fromkeys(re.findall(rf'^@{decorator}\("([^"]+)"\)', text, re.MULTILINE), path.stem)
    return found
