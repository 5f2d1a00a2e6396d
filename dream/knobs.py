"""What a setting is: a typed, frozen section that refuses what it does not know, and the knobs that one file carries.

An objective (``dream/objectives``) or an evaluated system (``dream/systems``) states its own settings as a subclass of
:class:`Knobs` in its own file, with the values of every recipe. The configuration (``dream/config``) collects them; params.yaml
may override each (``infonce: {negatives: batch}``) and needs none.
"""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dream import names
from dream.errors import DreamError

BASE = "packaged"  # the recipe that the others build on: one without a value takes this one's
RECIPES = (BASE, "smoke", "paper", "adapt")


def distinct(values: list) -> list:
    """The list, if nothing stands in it twice."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} stands there twice. Name each once")
    return values


def _model(reference: str) -> str:
    name, at, revision = reference.partition("@")
    if not reference.isprintable() or reference != reference.strip() or not name or (at and not revision):
        raise ValueError("is no model. Use packaged/<name>, owner/name, owner/name@revision or the path of a folder")
    return reference


Positive = Annotated[int, Field(gt=0, lt=2**31)]
Processes = Annotated[int, Field(gt=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DType = Literal["float32", "bfloat16", "float16", "auto"]
Pooling = Literal["last", "mean", "cls"]
Name = Annotated[str, AfterValidator(names.require)]
Names = Annotated[list[Name], AfterValidator(distinct)]
SomeNames = Annotated[list[Name], Field(min_length=1), AfterValidator(distinct)]
ModelReference = Annotated[str, AfterValidator(_model)]
Recipes = dict[str, dict[str, Any]]  # recipe → knob → value


class Section(BaseModel):
    """A section of settings: unknown keys, wrong types and numbers that are not finite are refused, values stay."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def described(cls) -> Iterator[tuple[str, str]]:
        """Every setting with the sentence that stands below it in the source."""
        for owner in reversed([c for c in cls.__mro__ if issubclass(c, Section) and c.model_fields]):
            (parsed,) = ast.parse(inspect.getsource(owner)).body
            body = getattr(parsed, "body", [])
            for line, below in zip(body, [*body[1:], None], strict=True):
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id in cls.model_fields:
                    text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                    yield line.target.id, " ".join(str(text).split())


class Knobs(Section):
    """Settings of one objective or evaluated system; ``recipes`` holds what each recipe sets in the defaults' place."""

    recipes: ClassVar[Recipes] = {}

    @classmethod
    def resolve(cls, recipe: str, overrides: dict[str, Any] | None = None) -> Self:
        """The values of one recipe: the defaults, then what its base recipe sets, then its own, then ``overrides``.

        Raises:
            ValidationError: a key is unknown or a value is refused.
        """
        return cls.model_validate({**cls.recipes.get(BASE, {}), **cls.recipes.get(recipe, {}), **(overrides or {})})


class Tuned(Knobs):
    """Knobs of an objective that may have its own learning rate and temperature (null: the common ones)."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the LoRA weights, in place of training.learning_rate."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """tau at the start, in place of temperature.init."""


WORDS = {  # pydantic's kinds of faults, in words that name the remedy
    "dict_type": "settings are needed here (key: value)",
    "model_type": "settings are needed here (key: value)",
    "list_type": "a list is needed here ([a, b])",
    "string_type": "a text is needed here",
    "too_short": "at least one entry is needed here",
}


def problem(error: ValidationError, section: type[BaseModel], above: str = "") -> DreamError:
    """The first problem that pydantic found as one line, unknown keys first, with the nearest known key for each.

    Args:
        error: what was raised.
        section: the class that was validated.
        above: where its values stand (``infonce``); empty for the whole file.
    """
    found = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    place = [part for part in found["loc"] if part != "[key]"]
    key = ".".join(str(part) if names.RULE.fullmatch(str(part)) else ascii(part) for part in [above, *place] if part != "")
    if found["type"] == "extra_forbidden":
        hint = names.hint(str(place[-1]), _section(section, place[:-1]).model_fields, "Remove it")
        return DreamError(f"{key} is not a known setting", hint)
    if found["type"] == "missing":
        return DreamError(f"{key} is missing", "Add it (params.yaml in the repository shows every setting)")
    message = f"{key}: {WORDS.get(found['type']) or found['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    given = repr(found["input"])
    shown = isinstance(found["input"], dict | Section)
    return DreamError(message if shown else f"{message} (got {given[:80]}{'…' * (len(given) > 80)})")


def _section(section: type[BaseModel], place: list[str | int]) -> type[BaseModel]:
    """The section that stands at a place below ``section``, such as ``models``, ``minilm``."""
    found: Any = section
    for key in place:
        entries = typing.get_args(found)  # of a mapping of names to sections
        found = entries[-1] if entries else found.model_fields[key].annotation
    return found
