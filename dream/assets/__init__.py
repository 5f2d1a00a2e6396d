"""Models and data by reference: packaged in wheels, on the hub, or in a local folder.

A model reference is ``packaged/<name>`` (see :mod:`dream.assets.registry`), a hub id ``owner/name[@revision]`` or the
path of a local folder (absolute, starting with ``./`` or ``../``, or existing). Whatever the kind, ``model_path``
gives a local folder with safetensors weights. Assets lie in the machine-wide cache ``$DREAM_CACHE``.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from dream.assets import hub, models, wheels
from dream.assets.registry import DATA, MODELS, WHEELS
from dream.config import Config
from dream.errors import DreamError
from dream.files import sha256

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
    if reference.count("/") != 1:
        raise DreamError(
            f"model {reference!r} is neither packaged, a folder nor a hub id",
            f"Use {', '.join(PACKAGED + name for name in MODELS)}, owner/name or the path of a folder",
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


def model_references(config: Config) -> dict[str, str]:
    """Model reference → what the resolved config needs it for."""
    from dream.data import sources

    same = config.size.encoder == config.size.judge
    needed = {config.size.encoder: "encoder, judge" if same else "encoder"}
    needed.setdefault(config.size.judge, "judge")
    if config.candidates.source in ("dense", "hybrid"):
        needed.setdefault(config.candidates.dense_model, "candidates.dense_model")
    if any(sources.get(name, config).needs_questions for name in sources.of(config)):
        needed.setdefault(config.questions.generator, "questions.generator")
    for system in config.references:
        if system in config.published:
            published = config.published[system]
            for reference in (published.model, published.adapter):
                if reference:
                    needed.setdefault(reference, f"published: {system}")
    return needed


def check_available(config: Config) -> None:
    """Stop with one line, within seconds, if a model or data set that the config needs is not at hand.

    Nothing is downloaded: hub models and data sets must be in the local cache or the hub must answer, local folders
    must hold safetensors weights, names must be known.
    """
    from dream.data import sources, tasks

    for reference in model_references(config):
        match kind(reference):
            case "hub":
                hub.check_model(reference)
            case "local":
                models.require_safetensors(Path(reference).expanduser())
    for name in sources.of(config):
        sources.get(name, config).check(config)
    tasks.check(tasks.of(config), config)


def ensure(config: Config) -> list[dict[str, Any]]:
    """Fetch and convert everything that the resolved config needs; return one record an asset.

    Records: name, kind, used_for, package, version, wheel_sha256, licence, content_sha256 (converted folder or file).
    """
    from dream.data import sources, tasks

    records = []
    for reference, use in model_references(config).items():
        layers = config.size.encoder_layers if reference == config.size.encoder else None
        content_hash(reference, layers)
        record = {"name": reference, "kind": "model", "used_for": use, "content_sha256": content_hash(reference)}
        if kind(reference) == "packaged":
            model = MODELS[reference.removeprefix(PACKAGED)]
            record |= _origin(model.wheel) | {"licence": model.licence}
        records.append(record)
    names = {name: f"source {source}" for source in sources.of(config) for name in sources.get(source, config).assets}
    names |= {name: f"task {task}" for task in tasks.of(config) for name in tasks.assets(task)}
    for name, use in sorted(names.items()):
        record = {"name": name, "kind": "data", "used_for": use, "content_sha256": sha256(data_path(name))}
        records.append(record | _origin(DATA[name].wheel) | {"licence": DATA[name].licence})
    return records


def _origin(package: str) -> dict[str, str]:
    wheel = WHEELS[package]
    return {
        "package": package,
        "version": wheel.version,
        "wheel_sha256": wheel.sha256,
        "package_licence": wheel.licence,
    }


def _known(name: str, names: dict[str, Any], what: str) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(names)}"
        raise DreamError(f"{name!r} is not a {what}", hint)
    return name
