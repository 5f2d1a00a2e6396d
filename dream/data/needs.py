"""What a resolved config needs of models and data: named, checked before anything heavy starts, fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream import assets
from dream.assets import hub
from dream.assets.models import require_safetensors
from dream.assets.registry import DATA, MODELS, WHEELS
from dream.data import sources, tasks
from dream.files import read_json, sha256

if TYPE_CHECKING:
    from dream.config import Config, Model


def roles(config: Config) -> dict[str, Model]:
    """The models that the resolved config loads, by role: ``config.roles`` without an idle generator or dense encoder."""
    idle = set()
    if not any(sources.get(name, config).needs_questions for name in sources.of(config)):
        idle.add("generator")
    if config.candidates.source not in ("dense", "hybrid"):
        idle.add("dense")
    return {role: record for role, record in config.roles.items() if role not in idle}


def check_available(config: Config) -> None:
    """Stop with one line, within seconds, if a model or data set that the config needs is not at hand.

    Nothing is downloaded: hub models and data sets must be in the local cache or the hub must answer, local folders
    must hold safetensors weights, names must be known.
    """
    references = [name for record in roles(config).values() for name in (record.model, record.adapter) if name]
    for reference in dict.fromkeys(references):
        match assets.kind(reference):
            case "hub":
                hub.check_model(reference)
            case "local":
                require_safetensors(Path(reference).expanduser())
    for name in sources.of(config):
        sources.get(name, config).check(config)
    tasks.check(tasks.of(config), config)


def models(roles: dict[str, Model]) -> dict[str, dict[str, Any]]:
    """Fetch and convert the models of these roles; what each role stands on.

    Returns:
        Role → name (the reference), kind ("model"), content_sha256 of the whole folder and licence; of packaged ones package,
        version and wheel_sha256, of hub models revision, the commit that was found; layers where some are cut, and adapter,
        a record of the same form, where there is one.
    """
    found = {}
    for role, record in roles.items():
        found[role] = _model(record.model) | ({"licence": record.licence} if record.licence else {})
        if record.layers:
            assets.model_path(record.model, record.layers)
            found[role]["layers"] = record.layers
        if record.adapter:
            found[role]["adapter"] = _model(record.adapter)
    return found


def data(config: Config) -> list[dict[str, Any]]:
    """Fetch the packaged data of the config's sources and tasks; a record each, by name.

    Records: name, kind ("data"), used_for, content_sha256, licence; package, version, wheel_sha256 and licence of the package.
    """
    used = {name: f"source {source}" for source in sources.of(config) for name in sources.get(source, config).assets}
    used |= {name: f"task {task}" for task in tasks.of(config) for name in tasks.assets(task)}
    return [
        {"name": name, "kind": "data", "used_for": use, "content_sha256": sha256(assets.data_path(name))}
        | _origin(DATA[name].wheel) | {"licence": DATA[name].licence}
        for name, use in sorted(used.items())
    ]  # fmt: skip


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The assets that stage ``assets`` recorded in a folder (a file per role and ``data.json``), each once, adapters too."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        record = read_json(path)
        found += record["assets"] if path.name == "data.json" else [record, record.get("adapter", {})]
    return list({record["name"]: record for record in found if "name" in record}.values())


def _model(reference: str) -> dict[str, Any]:
    found = {"name": reference, "kind": "model", "content_sha256": assets.content_hash(reference)}
    match assets.kind(reference):
        case "hub":
            found["revision"] = hub.commit(reference)
        case "packaged":
            packaged = MODELS[reference.removeprefix(assets.PACKAGED)]
            found |= _origin(packaged.wheel) | {"licence": packaged.licence}
    return found


def _origin(package: str) -> dict[str, str]:
    wheel = WHEELS[package]
    return {
        "package": package,
        "version": wheel.version,
        "wheel_sha256": wheel.sha256,
        "package_licence": wheel.licence,
    }
