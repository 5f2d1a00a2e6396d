"""What a whole configuration must keep before anything runs: names are known, and a name stands for one thing.

Two cells never share a file, and no entry of params.yaml takes the place of something else. Names that are equal but for case
are one name, as on file systems that do not tell them apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from dream import names as rules
from dream.config.sections import Config
from dream.data import own
from dream.data.lists import HELD_OUT, LISTS
from dream.data.sources import SOURCES
from dream.data.tasks.packaged import PACKAGED
from dream.errors import DreamError
from dream.knobs import RECIPES
from dream.names import hint


def trained() -> dict[str, str]:
    """Names of the objectives."""
    return rules.registered("objectives")


def built_in() -> dict[str, str]:
    """Names of the evaluated systems that have a file of their own and need no entry in params.yaml."""
    return rules.registered("systems")


def rerankers() -> dict[str, str]:
    """Names of the systems in which the judge reranks the hits of another."""
    return rules.registered("systems", "reranker")


def carriers() -> set[str]:
    """Names that may carry knobs of their own, a section of params.yaml each."""
    return {*trained(), *built_in(), *rerankers()}


def carrier(name: str) -> Any:
    """The class of an objective or of a system with a file of its own; None for all others."""
    if name in trained():
        return importlib.import_module("dream.objectives").find(name)
    if name in rerankers() or name in built_in():
        return importlib.import_module("dream.systems").find(name)
    return None


def reads(teacher: str) -> tuple[str, ...]:
    """The settings that decide the answers of a teacher that an objective names."""
    return tuple(importlib.import_module("dream.teachers").reads(teacher))


def taught_by_models(config: Config) -> Iterator[tuple[str, str]]:
    """Every objective that learns from an entry of ``models``, and the entry."""
    for name in config.objectives:
        if taught := carrier(name).taught_by(config.knobs[name]):
            teachers = importlib.import_module("dream.teachers")
            found = [one for one in teachers.several(taught) if one.startswith(teachers.MODELS)]
            yield from ((name, one.removeprefix(teachers.MODELS)) for one in found)


def objectives(config: Config) -> None:
    """Let every objective that runs look at the settings that it would be trained with."""
    for name in config.objectives:
        carrier(name).check(config.knobs[name], config)


def snapshots(config: Config) -> None:
    """Every snapshot lies within a run, before its end, which is evaluated anyway."""
    kept = {"training": config.training.snapshots, "adapt": config.adapt.snapshots if config.recipe == "adapt" else []}
    pairs = config.training.steps * config.training.batch * config.candidates.questions_per_set
    for section, listed in kept.items():
        if (most := max(listed, default=0)) >= pairs:
            fewer = f"Raise training.steps, or leave them out: -S {section}.snapshots=[]"
            raise DreamError(f"{section}.snapshots: {most} is not less than the {pairs} pairs of a run", fewer)


def adapting(config: Config) -> None:
    """The recipe ``adapt`` has documents to adapt to, and a packaged control task that is not theirs."""
    control = config.adapt.control
    if control not in PACKAGED or control == "development":
        raise DreamError(
            f"adapt.control: {control!r} is no packaged task", hint(control, [name for name in PACKAGED if name != "development"])
        )
    if config.recipe != "adapt":
        return
    if not config.objectives:
        raise DreamError("recipe adapt trains an objective, and objectives is empty", "Name one in objectives")
    if all(own.place_of(path).exists() for path in config.own.values()) and not own.documents(config):
        raise DreamError(
            "recipe adapt needs documents of your own, and `own` names none", "Add -S +own.NAME=/path/to/documents (docs/own.md)"
        )


def names(config: Config) -> None:
    """Stop before anything runs if a list of params.yaml names something unknown, or a name stands for two things.

    Tasks that are neither packaged, own nor a list are mteb's: the stage ``assets`` asks mteb, which takes seconds.

    Raises:
        DreamError: one line with the key, the name and the remedy.
    """
    adapting(config)
    _known(config)
    _one_thing(config)
    for name in config.task_lists:
        _ends(name, config.task_lists)
    _cells(config)


def _known(config: Config) -> None:
    models = list(config.models)
    systems = [*built_in(), *rerankers(), *models, *trained()]
    choices = {
        "objectives": (config.objectives, trained()),
        "references": (config.references, [*built_in(), *models]),
        "rerankers": (config.rerankers, rerankers()),
        "data.sources": (config.data.sources, [*SOURCES, *config.own]),
        "report.reference_system": ([config.report.reference_system], systems),
    }
    for key, (names, known) in choices.items():
        for name in names:
            if name in known:
                continue
            if name in systems:  # the right name in the wrong list
                place = "rerankers" if name in rerankers() else "objectives" if name in trained() else "references"
                raise DreamError(f"{key}: {name!r} belongs to `{place}`", "List it there")
            raise DreamError(f"{key}: {name!r} is unknown", hint(name, known))
    if HELD_OUT in config.tasks and not own.documents(config):
        raise DreamError(
            f"tasks: {HELD_OUT} is empty: no own set is documents without queries", "Name a folder of documents under `own`"
        )
    if not config.data.sources and not config.own:
        raise DreamError("data.sources is empty and there is no own set to train on", "Name a source")


def _one_thing(config: Config) -> None:
    taken = {name.casefold(): what for name, what in _given()}
    mteb = {name for members in LISTS.values() for name in members}  # tell case apart: no file bears a task's name alone
    sections = {"task_lists": "a task list", "own": "an own set", "models": "a model"}
    for section, what in sections.items():
        for name in getattr(config, section):
            other = "an mteb task" if name in mteb else taken.get(name.casefold())
            if other:
                raise DreamError(f"{section}: {name!r} is already the name of {other}", "Choose another name")
            taken[name.casefold()] = f"{what} ({name})"
    for name in config.own:
        if other := taken.get(f"{name}{own.HELD_OUT}".casefold()):
            raise DreamError(f"own: the held-out part of {name!r} would have the name of {other}", "Choose another name")


def _given() -> Iterator[tuple[str, str]]:
    """Every name that the code gives, and what it stands for."""
    for what, found in (
        ("a recipe", RECIPES), ("a file beside the tasks", ["entry.json"]), ("a system", [*built_in(), *rerankers()]),
        ("an objective", trained()), ("a packaged training source", SOURCES), ("a packaged task", PACKAGED),
        ("a list of mteb tasks", LISTS), ("the list of held-out documents", [HELD_OUT]),
    ):  # fmt: skip
        yield from ((name, what) for name in found)


def _ends(name: str, lists: dict[str, list[str]], above: tuple[str, ...] = ()) -> None:
    if name in above:
        raise DreamError(f"task_lists: {' → '.join((*above, name))} never ends", "A list may not hold itself")
    for entry in lists.get(name, ()):
        _ends(entry, lists, (*above, name))


def _cells(config: Config) -> None:
    """Over everything that params.yaml defines, listed or not: a system switched on later meets no file of another."""
    systems: list[tuple[str, int | None, int | None]] = [
        (name, None, None) for name in (*built_in(), *rerankers(), *config.models)
    ]
    systems += [(name, seed, at) for name in trained() for seed in config.seeds for at in (None, *config.training.snapshots)]
    held_out = [HELD_OUT, *(f"{name}{own.HELD_OUT}" for name in config.own)]
    entries = dict.fromkeys([*config.tasks, *config.task_lists, *config.own, *held_out, *PACKAGED, *LISTS])
    seen: dict[str, tuple[str, int | None, str, int | None]] = {}
    for system, seed, pairs in systems:
        for entry in entries:
            ours = (system, seed, entry, pairs)
            theirs = seen.setdefault(rules.cell(*ours).casefold(), ours)
            if theirs != ours:
                raise DreamError(
                    f"{_said(*theirs)} and {_said(*ours)} would share the file {rules.cell(*ours)}",
                    "Rename a model or a task list",
                )


def _said(system: str, seed: int | None, entry: str, pairs: int | None) -> str:
    after = "" if pairs is None else f" after {pairs} pairs"
    return f"{system}{'' if seed is None else f' with seed {seed}'}{after} on {entry}"
