"""Names: one rule for all of them, and a name stands for one thing.

Names of sizes, task lists, own sets, published models, objectives and tasks become file names, parts of DVC's stage names
and words of a command that a shell reads. :data:`RULE` keeps them safe there; :func:`check` keeps them apart: two cells
never share a file, and no entry of params.yaml takes the place of something else. Names that are equal but for case are
one name, as on file systems that do not tell them apart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dream.errors import DreamError

if TYPE_CHECKING:
    from dream.config import Config

RULE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
RECIPES = ("packaged", "smoke", "paper")
BUILT_IN = ("bm25", "untrained")  # systems that need no entry in params.yaml
RERANKERS = ("qrhead",)


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
    near = difflib.get_close_matches(name, known := list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else otherwise.format(", ".join(known) or "none")


def cell(system: str, seed: int | None, entry: str) -> str:
    """``<system>-<tasks>``, or ``<objective>-<seed>-<tasks>`` for a trained system: a cell's name and its files'.

    >>> cell("bm25", None, "general"), cell("dream", 0, "general")
    ('bm25-general', 'dream-0-general')
    """
    return "-".join(str(part) for part in (system, seed, entry) if part is not None)


def objectives() -> list[str]:
    """The names that the files of dream/objectives register, read without importing them: that would load torch."""
    texts = (path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "objectives").glob("*.py"))
    return sorted(name for text in texts for name in re.findall(r'^@register\("([^"]+)"\)', text, re.MULTILINE))


def check(config: Config) -> None:
    """Stop before anything runs if a list of params.yaml names something unknown, or a name stands for two things.

    Tasks that are neither packaged, own nor a list are mteb's: the stage ``assets`` asks mteb, which takes seconds.

    Raises:
        DreamError: one line with the key, the name and the remedy.
    """
    _known(config)
    _one_thing(config)
    for name in config.task_lists:
        _ends(name, config.task_lists)
    _cells(config)


def _known(config: Config) -> None:
    from dream.data.sources import SOURCES

    trained, published = objectives(), list(config.published)
    systems = [*BUILT_IN, *RERANKERS, *published, *trained]
    choices = {
        "objectives": (config.objectives, trained),
        "references": (config.references, [*BUILT_IN, *published]),
        "data.sources": (config.data.sources, [*SOURCES, *config.own]),
        "report.reference_system": ([config.report.reference_system], systems),
    }
    for key, (names, known) in choices.items():
        for name in names:
            if name in known:
                continue
            if name in systems:  # the right name in the wrong list
                place = "rerankers" if name in RERANKERS else "objectives" if name in trained else "references"
                raise DreamError(f"{key}: {name!r} belongs to `{place}`", "List it there")
            raise DreamError(f"{key}: {name!r} is unknown", hint(name, known))
    if not config.data.sources and not config.own:
        raise DreamError("data.sources is empty and there is no own set to train on", "Name a source")


def _one_thing(config: Config) -> None:
    from dream.data.lists import LISTS

    taken = {name.casefold(): what for name, what in _given()}
    mteb = {name for members in LISTS.values() for name in members}  # tell case apart: no file bears a task's name alone
    sections = {"task_lists": "a task list", "own": "an own set", "published": "a published model"}
    for section, what in sections.items():
        for name in getattr(config, section):
            other = "an mteb task" if name in mteb else taken.get(name.casefold())
            if other:
                raise DreamError(f"{section}: {name!r} is already the name of {other}", "Choose another name")
            taken[name.casefold()] = f"{what} ({name})"


def _given() -> Iterator[tuple[str, str]]:
    """Every name that the code gives, and what it stands for."""
    from dream.data.lists import LISTS
    from dream.data.sources import SOURCES
    from dream.data.tasks.packaged import PACKAGED

    for what, found in (
        ("a recipe", RECIPES), ("a file beside the tasks", ["made_with.json", "entry.json"]),
        ("a system", [*BUILT_IN, *RERANKERS, "hybrid"]),
        ("an objective", objectives()), ("a packaged training source", SOURCES), ("a packaged task", PACKAGED),
        ("a list of mteb tasks", LISTS),
    ):  # fmt: skip
        yield from ((name, what) for name in found)


def _ends(name: str, lists: dict[str, list[str]], above: tuple[str, ...] = ()) -> None:
    if name in above:
        raise DreamError(f"task_lists: {' → '.join((*above, name))} never ends", "A list may not hold itself")
    for entry in lists.get(name, ()):
        _ends(entry, lists, (*above, name))


def _cells(config: Config) -> None:
    """Over everything that params.yaml defines, listed or not: a system switched on later meets no file of another."""
    from dream.data.lists import LISTS
    from dream.data.tasks.packaged import PACKAGED

    systems = [(name, None) for name in (*BUILT_IN, *RERANKERS, *config.published)]
    systems += [(name, seed) for name in objectives() for seed in config.seeds]
    entries = dict.fromkeys([*config.tasks, *config.task_lists, *config.own, *PACKAGED, *LISTS])
    seen: dict[str, tuple[str, int | None, str]] = {}
    for system, seed in systems:
        for entry in entries:
            ours = (system, seed, entry)
            theirs = seen.setdefault(cell(*ours).casefold(), ours)
            if theirs != ours:
                raise DreamError(
                    f"{_said(*theirs)} and {_said(*ours)} would share the file {cell(*ours)}", "Rename a model or a task list"
                )


def _said(system: str, seed: int | None, entry: str) -> str:
    return f"{system}{'' if seed is None else f' with seed {seed}'} on {entry}"
