"""Models and data by reference: packaged in wheels, on the hub, or in a local folder.

A model reference is ``packaged/<name>`` (see :mod:`dream.assets.registry`), a hub id ``owner/name[@revision]`` or the
path of a local folder (absolute, starting with ``./`` or ``../``, or existing). Whatever the kind, ``model_path``
gives a local folder with safetensors weights. Assets lie in the machine-wide cache ``$DREAM_CACHE``. What a resolved
config needs of them is told by :mod:`dream.data.needs`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from dream.assets import hub, models, wheels
from dream.assets.registry import DATA, MODELS, WHEELS
from dream.errors import DreamError

PACKAGED = "packaged/"


def kind(reference: str) -> str:
    """``packaged``, ``local`` or ``hub``; a packaged name that does not exist is a :class:`DreamError`.

    >>> kind("packaged/minilm"), kind("./runs/mine"), kind("owner/name")
    ('packaged', 'local', 'hub')
    """
    if reference.startswith(PACKAGED):
        _known(reference.removeprefix(PACKAGED), MODELS, "packaged model")
        return "packaged"
    if reference.startswith(("/", "./", "../", "~")) or Path(reference).is_dir():
        return "local"
    if hub.split_revision(reference)[0].count("/") != 1:  # a revision may hold one: owner/name@refs/pr/1
        raise DreamError(
            f"model {reference!r} is neither packaged, a folder nor a hub id",
            f"Use {', '.join(PACKAGED + name for name in MODELS)}, owner/name, owner/name@revision or the path of a folder",
        )
    return "hub"


def model_path(reference: str, layers: int | None = None) -> Path:
    """Local folder of a model, fetched or converted if needed.

    Args:
        reference: packaged name, hub id or local folder.
        layers: keep only the first so many layers of a decoder (a copy in the cache).

    Raises:
        DreamError: the reference is unknown, cannot be fetched, or has no safetensors weights.
    """
    match kind(reference):
        case "packaged":
            folder = models.packaged(reference.removeprefix(PACKAGED))
        case "local":
            folder = models.require_safetensors(Path(reference).expanduser())
        case _:
            folder = models.require_safetensors(hub.download(reference))
    return models.first_layers(folder, layers) if layers else folder


def data_path(name: str) -> Path:
    """Local file of packaged data (gzipped JSON lines), fetched if needed. Names: ``registry.DATA``."""
    data = DATA[_known(name, DATA, "packaged data set")]
    return wheels.unpacked(WHEELS[data.wheel]) / data.member


def content_hash(reference: str, layers: int | None = None) -> str:
    """SHA-256 over the files of a model folder: it changes when a weight changes."""
    return models.weights_hash(model_path(reference, layers))


def _known(name: str, names: dict[str, Any], what: str) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(names)}"
        raise DreamError(f"{name!r} is not a {what}", hint)
    return name
