"""Every setting in words: what it is for, its value in every recipe, and what it may be.

A sentence has one place. A setting of params.yaml has it there, in the comment of its line (of ``task_lists`` and ``own``, in the
comment above them); an entry of ``sizes`` and ``models`` and a knob that an objective or a system carries, below its type in the
source (:meth:`dream.knobs.Section.described`).
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dream import config as configs
from dream.config import check
from dream.config.resolve import pick
from dream.config.sections import Config, Model, Size
from dream.errors import DreamError
from dream.files import read_yaml
from dream.knobs import RECIPES, Section
from dream.names import hint
from dream.report.tables.render import Line

ENTRIES: dict[str, type[Section]] = {"sizes": Size, "models": Model}  # sections that hold named entries
NAMED = ("task_lists", "own")  # and those that hold one value under each name
COMPUTED = ("roles", "knobs", "probes", "mirror")
WIDE = 2**31  # an upper limit from here on is the machine's, not the setting's


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, the sentence that says what it is for, its value in every recipe (``required`` where an entry
    must give it), and what it may be, in words."""

    name: str
    meaning: str
    values: dict[str, Any] | None
    allowed: str

    def default(self) -> str:
        """Its value, and those of recipes that differ from the packaged one.

        >>> Setting("k", "", {"packaged": 8, "smoke": 4, "paper": 8, "adapt": 8}, "").default()
        '8 (smoke: 4)'
        """
        if self.values is None:
            return "required"
        first, *others = RECIPES
        found = [f"{r}: {_yaml(self.values[r])}" for r in others if self.values[r] != self.values[first]]
        return _yaml(self.values[first]) + (f" ({', '.join(found)})" if found else "")


def settings(params: Path | str = "params.yaml") -> list[Setting]:
    """Every setting: of params.yaml in its order, then those that objectives and systems carry.

    Raises:
        DreamError: params.yaml cannot be read, or holds something that is no setting.
    """
    configs.load(params)
    raw, said = read_yaml(params), comments(Path(params).read_text(encoding="utf-8"))
    resolved = {recipe: {key: pick(value, recipe, key) for key, value in raw.items()} for recipe in RECIPES}
    found: list[Setting] = []
    for name, field in Config.model_fields.items():
        if name in ENTRIES:
            found += _entries(f"{name}.NAME", ENTRIES[name])
        elif name in NAMED:
            found.append(Setting(f"{name}.NAME", said.get(name, ""), None, _words(typing.get_args(field.annotation)[1])))
        elif name not in COMPUTED:
            found += _section(name, field, resolved, said)
    for name in sorted(check.carriers()):
        carrier = check.carrier(name)
        if carrier.Knobs is not None:
            values = {recipe: carrier.Knobs.resolve(recipe).model_dump(mode="json") for recipe in RECIPES}
            for knob, meaning in carrier.Knobs.described():
                each = {recipe: values[recipe][knob] for recipe in RECIPES}
                found.append(Setting(f"{name}.{knob}", meaning, each, _allowed(carrier.Knobs.model_fields[knob])))
    return found


def named(found: list[Setting], name: str | None) -> list[Setting]:
    """The settings that a name stands for: all, a section (``heads``), one in full (``heads.count``), or all that end in it.

    Raises:
        DreamError: no setting has the name.
    """
    if name is None:
        return found
    parts = {setting.name: setting.name.split(".") for setting in found}
    chosen = [s for s in found if s.name == name or s.name.startswith(f"{name}.")] or [
        s for s in found if s.name.endswith(f".{name}")
    ]
    if not chosen:
        raise DreamError(
            f"setting {name!r} is unknown",
            hint(name, [*parts, *{p for ps in parts.values() for p in ps}], "Leave it out to see all"),
        )
    return chosen


def lines(found: Iterable[Setting]) -> Iterator[Line]:
    """Three lines a setting: name and values, what it is for, what it may be."""
    for setting in found:
        yield f"{setting.name}: {setting.default()}", "bold"
        yield f"    {setting.meaning}", ""
        yield f"    {setting.allowed}", "dim"
        yield "", ""


def comments(text: str) -> dict[str, str]:
    """Dotted key → the comment of its line in a YAML text, else the one in the lines above it.

    >>> comments("# Both\\na:  # first\\n  b: 1  # second\\n\\n# More\\nc: x#y\\n")
    {'a': 'first', 'a.b': 'second', 'c': 'More'}
    """
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if whole := re.fullmatch(r"\s*#\s?(.*)", line):
            above.append(whole[1])
            continue
        if match := re.match(r"(\s*)([\w.-]+):(?:\s|$)", line):
            indent, key = len(match[1]), match[2]
            parents = [*(parent for parent in parents if parent[0] < indent), (indent, key)]
            behind = re.search(r"\s#\s+(.*)", line)
            found[".".join(name for _, name in parents)] = " ".join(behind[1].split() if behind else " ".join(above).split())
        above = []
    return {key: value for key, value in found.items() if value}


def _section(name: str, field: FieldInfo, values: dict[str, Any], said: dict[str, str]) -> Iterator[Setting]:
    """A setting of params.yaml, or all of a section."""
    if _is_section(field.annotation):
        for key, inner in field.annotation.model_fields.items():  # type: ignore[union-attr]
            yield from _section(f"{name}.{key}", inner, values, said)
        return
    each = {recipe: _at(values[recipe], name) for recipe in RECIPES}
    yield Setting(name, said.get(name, ""), each, "auto | " * (name == "recipe") + _allowed(field))


def _entries(name: str, section: type[Section]) -> Iterator[Setting]:
    for key, meaning in section.described():
        field = section.model_fields[key]
        values = None if field.is_required() else dict.fromkeys(RECIPES, field.default)
        yield Setting(f"{name}.{key}", meaning, values, _allowed(field))


def _at(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return values


def _yaml(value: Any) -> str:
    """A value as params.yaml would have it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) and value.strip() and value.isprintable() else json.dumps(value, ensure_ascii=False)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _allowed(field: FieldInfo) -> str:
    return _words(field.annotation, field.metadata)


def _words(kind: Any, limits: Iterable[Any] = ()) -> str:
    """What a type allows, in words.

    >>> from dream.knobs import Fraction, Positive
    >>> _words(Literal["a", "b"] | None), _words(list[Positive]), _words(Fraction), _words(bool)
    ('a | b | null', 'list of: whole number, at least 1', 'number, at least 0, at most 1', 'true | false')
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _words(inside[0], [*_flat(inside[1:]), *limits])
    if origin is Literal:
        return " | ".join(map(_yaml, inside))
    if origin in (typing.Union, types.UnionType):
        return " | ".join("null" if one is type(None) else _words(one, limits) for one in inside)
    if origin is list:
        return f"list of: {_words(inside[0])}"
    if origin is dict:
        return f"mapping to: {_words(inside[1])}"
    said = {bool: "true | false", int: "whole number", float: "number", str: "text"}[kind]
    return ", ".join([said, *_bounds(limits, whole=kind is int)])


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else [one]


def _bounds(limits: Iterable[Any], whole: bool) -> Iterable[str]:
    """The limits of a number, of a whole one those that it may reach; of several on one side the last, which is the narrowest."""
    found = {}
    for limit in limits:
        for key, said, step in (("ge", "at least", 0), ("gt", "above", 1), ("le", "at most", 0), ("lt", "below", -1)):
            value = getattr(limit, key, None)
            if value is not None and value < WIDE:
                reached = f"{'at least' if step > 0 else 'at most'} {value + step}"
                found[key[0]] = reached if whole and step else f"{said} {value}"
    return found.values()
