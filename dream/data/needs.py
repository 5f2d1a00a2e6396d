"""What a resolved config needs of models and data: named, checked before anything heavy starts, fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream import assets
from dream.assets import hub, models
from dream.assets.registry import DATA, MODELS, WHEELS
from dream.data import sources, tasks
from dream.files import sha256

if TYPE_CHECKING:
    from dream.config import Config


def model_references(config: Config) -> dict[str, str]:
    """Model reference → what the resolved config needs it for."""
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
    for reference in model_references(config):
        match assets.kind(reference):
            case "hub":
                hub.check_model(reference)
            case "local":
                models.require_safetensors(Path(reference).expanduser())
    for name in sources.of(config):
        sources.get(name, config).check(config)
    tasks.check(tasks.of(config), config)


def ensure(config: Config) -> list[dict[str, Any]]:
    """Fetch and convert everything that the resolved config needs; return one record an asset.

    Records: name, kind, used_for, content_sha256 (converted folder or file); of packaged ones package, version,
    wheel_sha256 and licence, of hub models revision, the commit that was found.
    """
    records = []
    for reference, use in model_references(config).items():
        layers = config.size.encoder_layers if reference == config.size.encoder else None
        assets.content_hash(reference, layers)
        record = {"name": reference, "kind": "model", "used_for": use, "content_sha256": assets.content_hash(reference)}
        if assets.kind(reference) == "hub":
            record["revision"] = hub.commit(reference)
        if assets.kind(reference) == "packaged":
            model = MODELS[reference.removeprefix(assets.PACKAGED)]
            record |= _origin(model.wheel) | {"licence": model.licence}
        records.append(record)
    names = {name: f"source {source}" for source in sources.of(config) for name in sources.get(source, config).assets}
    names |= {name: f"task {task}" for task in tasks.of(config) for name in tasks.assets(task)}
    for name, use in sorted(names.items()):
        record = {"name": name, "kind": "data", "used_for": use, "content_sha256": sha256(assets.data_path(name))}
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
