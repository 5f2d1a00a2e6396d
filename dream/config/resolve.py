"""params.yaml → one :class:`~dream.config.sections.Config` that refuses what it does not know.

A knob in params.yaml is one value or one value per recipe (``{packaged: 8, paper: 16}``). :func:`resolve` picks the recipe's
value, validates every key and type, looks up size and models, and collects the knobs that objectives and systems carry in
their own files. Adding a common knob is one line in params.yaml and one field in ``sections.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dream import knobs, names
from dream.config import check
from dream.config.sections import Config, Model
from dream.errors import DreamError
from dream.files import read_yaml
from dream.knobs import BASE, RECIPES


def load(path: Path | str = "params.yaml", overrides: dict[str, Any] | None = None) -> Config:
    """Read and resolve a params file.

    Args:
        path: the YAML file.
        overrides: dotted keys and values put over the file's, as ``dvc exp run -S`` does.

    Raises:
        DreamError: see :func:`dream.files.read_yaml` and :func:`resolve`.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise DreamError(f"{path} holds no settings", "params.yaml in the repository shows every setting")
    for key, value in (overrides or {}).items():
        _put(raw, key.split("."), value)
    return resolve(raw, f"{path} with the settings given" if overrides else str(path))


def _put(place: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set a value by the parts of its dotted key; a name that holds dots itself is found.

    >>> sizes = {"0.5b": {"judge": "a"}}
    >>> _put(sizes, ["0", "5b", "judge"], "b")
    >>> sizes
    {'0.5b': {'judge': 'b'}}
    """
    for n in range(len(parts) - 1, 0, -1):
        if isinstance(inner := place.get(".".join(parts[:n])), dict):
            _put(inner, parts[n:], value)
            return
    if len(parts) == 1:
        place[parts[0]] = value
    else:
        _put(place.setdefault(parts[0], {}), parts[1:], value)


def resolve(raw: dict[str, Any], source: str = "params.yaml") -> Config:
    """Resolve the values of one recipe and validate them, so that nothing runs on a wrong one.

    Raises:
        DreamError: a size, recipe or model is not defined, a key is unknown or missing, a value has the wrong type or is out of
            range, or the names do not stand (see :func:`dream.config.check.names`).
    """
    try:
        return _resolve(raw)
    except DreamError as error:
        raise DreamError(f"{source}: {error.what}", error.remedy) from None


def _resolve(raw: dict[str, Any]) -> Config:
    sizes, model = _section(raw, "sizes"), _section(raw, "model")
    size = model.get("size")
    if not isinstance(size, str) or not isinstance(sizes.get(size), dict):
        raise DreamError(f"model.size {size!r} is not defined", f"Choose one of {', '.join(map(str, sizes))}, or add it to sizes")
    recipe = raw.get("recipe", "auto")
    if recipe == "auto":
        recipe = sizes[size].get("recipe")
    if recipe not in RECIPES:
        raise DreamError(f"recipe {recipe!r} is not defined", f"Choose auto, {', '.join(RECIPES)}")
    values = {key: pick(value, recipe, str(key)) for key, value in raw.items()} | {"recipe": recipe}
    carried = {key: values.pop(key) for key in check.carriers() & set(values) - set(Config.model_fields)}
    if odd := {"roles", "knobs", "probes", "mirror"} & set(values):
        raise DreamError(f"{min(odd)} is not a known setting", "Remove it")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise knobs.problem(error, Config) from None
    check.names(config)
    probes = max(config.heads.probes, config.injection.diagnostic)
    config = config.model_copy(update={"probes": probes, "knobs": _knobs(config, carried)})
    config = config.model_copy(update={"roles": _roles(config)})
    check.objectives(config)
    check.snapshots(config)
    return config


def _section(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _roles(config: Config) -> dict[str, Model]:
    """The records of the models in use, by role."""
    named = {
        "encoder": ("sizes", config.size.encoder),
        "judge": ("sizes", config.size.judge),
        "generator": ("questions.generator", config.questions.generator),
        "dense": ("candidates.dense_model", config.candidates.dense_model),
        **{name: ("references", name) for name in config.references if name in config.models},
        **{model: (f"{name}.teacher", model) for name, model in check.taught_by_models(config)},
    }
    for key, name in named.values():
        if name not in config.models:
            raise DreamError(f"{key}: {name!r} is no entry of models", names.hint(name, config.models))
    if config.questions.endpoint:  # another machine's model writes the questions
        del named["generator"]
    return {role: _computing(config.models[name]) for role, (_, name) in named.items()}


def _computing(record: Model) -> Model:
    """A record with the dtype that ``auto`` stands for on this machine: so it is written into every result."""
    if record.dtype != "auto":
        return record
    import torch

    from dream.judge.model import pick_dtype

    dtype = pick_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu")
    return record.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def _knobs(config: Config, carried: dict[str, Any]) -> dict[str, knobs.Knobs]:
    """The settings that objectives and systems carry in their own files: of those that run or are named in params.yaml."""
    found = {}
    for name in dict.fromkeys([*config.objectives, *config.rerankers, *config.references, *carried]):
        carrier = check.carrier(name)
        if carrier is None or carrier.Knobs is None:
            continue
        overrides = carried.get(name)
        if overrides is not None and not isinstance(overrides, dict):
            raise DreamError(f"{name}: {knobs.WORDS['dict_type']} (got {str(overrides)[:80]!r})")
        try:
            found[name] = carrier.Knobs.resolve(config.recipe, overrides)
        except ValidationError as error:
            raise knobs.problem(error, carrier.Knobs, name) from None
    return found


def pick(value: Any, recipe: str, key: str) -> Any:
    """Replace every ``{recipe: value}`` mapping in a value of params.yaml by ``recipe``'s, or that of the recipe it builds on.

    Raises:
        DreamError: a mapping has no value for the recipe, or a key that is nearly a recipe's name.
    """
    if not isinstance(value, dict):
        return value
    if set(value) & set(RECIPES) and (odd := [n for n in value if n not in RECIPES and names.near(str(n), RECIPES)]):
        raise DreamError(f"{key}: {odd[0]!r} is no recipe", names.hint(odd[0], RECIPES))
    if value and set(value) <= set(RECIPES):
        if not value.keys() & {recipe, BASE}:
            raise DreamError(f"{key} has no value for recipe {recipe!r}", f"Add `{recipe}: …` to it")
        return value[recipe if recipe in value else BASE]
    return {k: pick(v, recipe, f"{key}.{k}") for k, v in value.items()}
