"""What can be evaluated, one file each: something that ranks the documents of a task.

``bm25`` and ``untrained`` need no entry in params.yaml; every record of ``models`` is a system under its own name; every
objective is a trained one with a seed. A new kind of system is one file: a class with ``@register("name")`` (or ``@reranker``,
where it reranks another's hits by the judge's heads), what it reads of the configuration, and :meth:`System.search`. Metrics,
statistics and report stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dream import names
from dream.data.tasks.base import Task
from dream.errors import DreamError
from dream.instances import passage_texts

if TYPE_CHECKING:
    from dream.config import Config
    from dream.knobs import Knobs

REGISTRY: dict[str, type[System]] = {}
Run = dict[str, dict[str, float]]


class System:
    """Something that ranks the documents of a task.

    Attributes:
        Knobs: its own settings, where it has any.
        reads: settings that it depends on beside ``evaluate``, as dotted names (see ``dream/config/stages.py``).
        uses: code that only it depends on beside its own file.
        inputs: folders that it reads beside the tasks; their hashes stand in the run record.
        name: as in params.
        settings: everything that its numbers depend on; it travels with them.
        flops: operations so far.
    """

    Knobs: ClassVar[type[Knobs] | None] = None
    reads: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ()
    name: str
    settings: dict[str, Any]
    flops: Any

    @classmethod
    def build(cls, config: Config, device: str | None = None) -> Self:
        """The system that a configuration describes."""
        raise NotImplementedError

    def search(self, task: Task, depth: int) -> Run:
        """The best ``depth`` documents of every query, with scores, ordered by (−score, id)."""
        raise NotImplementedError


def register(name: str) -> Callable[[type[System]], type[System]]:
    """Class decorator: make a system available under ``name``."""

    def add(cls: type[System]) -> type[System]:
        REGISTRY[name] = cls
        return cls

    return add


reranker = register  # listed under `rerankers`: its stage depends on the judge's heads


def registered() -> dict[str, str]:
    """Name → module of every system that has a file."""
    return {**names.registered("systems"), **names.registered("systems", "reranker")}


def find(name: str) -> type[System]:
    """The class behind a name.

    Raises:
        DreamError: no file in this folder registers the name.
    """
    if name not in REGISTRY:
        known = registered()
        if name not in known:
            raise DreamError(f"system {name!r} is unknown", names.hint(name, known))
        importlib.import_module(f"{__name__}.{known[name]}")
    return REGISTRY[name]


def load(name: str, config: Config, seed: int | None = None, device: str | None = None, pairs: int | None = None) -> System:
    """Load a system.

    Args:
        name: one with a file in this folder, a record among ``config.roles``, or a trained objective.
        config: what the stage may read.
        seed: of a trained system.
        device: where an encoder runs; default: the first GPU, else the CPU.
        pairs: a trained system after so many of its pairs (``training.snapshots``); default: after all.

    Raises:
        DreamError: the name is unknown, or a trained system was trained with other settings.
    """
    if name in registered():
        return find(name).build(config, device)
    encoder = importlib.import_module(f"{__name__}.encoder")
    if name in config.roles:
        return encoder.recorded(name, config, device)
    if seed is not None:
        return encoder.trained(name, seed, config, device, pairs)
    if name in names.registered("objectives"):
        raise DreamError(f"system {name!r} is trained: which seed?", "Add --seed")
    raise DreamError(f"system {name!r} is unknown", names.hint(name, [*registered(), *config.roles]))


def stands_on(name: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a system is made of: the record of its model; of one with a file in this folder, its models' by role.

    Args:
        name: a system that is not trained here.
        found: role → record, as :func:`dream.data.needs.models` gives them.
    """
    if name in found:
        return found[name]
    roles = [setting.removeprefix("roles.") for setting in find(name).reads if setting.startswith("roles.")]
    return {role: found[role] for role in roles}


def documents(task: Task) -> list[str]:
    """What is encoded and indexed of every document: title and text, as mteb and BEIR do."""
    return list(passage_texts(task.corpus))
