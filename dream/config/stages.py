"""What each stage may read: one small JSON per stage, objective and evaluated system under ``reports/config``.

The stage ``configure`` writes them (:func:`files`), every other stage reads its own (:func:`load`) and nothing else of
params.yaml: a knob that is not in the file cannot be read, so no stage depends on a knob that DVC does not see. Two
configurations that agree in a file share the stage's result: sizes share the judge's heads, objectives share all but their own
knobs.

Beside knobs, the file of an objective or a system holds ``code``, the content hashes of the files that only it uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from dream.config import check
from dream.config.sections import Config
from dream.data import examples, needs, sources, tasks
from dream.data.own import HELD_OUT, documents
from dream.errors import DreamError
from dream.files import folder_hash, read_json, sha256
from dream.names import cell

FOLDER = Path("reports/config")
ROOT = Path(__file__).resolve().parent.parent.parent
JUDGE = ("roles.judge", "judge", "training.threads")
TEACHER = ("training.threads", "training.steps", "training.batch", "training.block", "probes")
ASSETS = ("references", "candidates.source", "candidates.count", "judge", "heads", "encoder")
READINGS = ("judge.cache_gib", "training.steps", "training.batch", "data.instances", "probes")  # no stage depends on it
PREPARE = ("sources", "instances", "task_queries", "task_documents", "passage_words", "development", "seed")
ADAPT = ("adapt", "objectives", "seeds", "roles.encoder", "evaluate", "training.threads", "bm25", "candidates.rrf_k",
         "questions.round_trip", "report.resamples", "report.confidence", "report.seed")  # fmt: skip
QUESTIONS = ("roles.generator", "questions", "data.seed")
ENOUGH = ("adapt.queries", "data.development", "probes", "training.batch", "candidates.count")  # dream.data.development.enough


def files(config: Config) -> dict[str, dict[str, Any]]:
    """File name (without ending) → what it holds, for every stage of the pipeline that this configuration runs."""
    evaluated, trained_on = _tasks(config, config.tasks), _part(config, *sources.reads(config))
    roles = needs.roles(config)
    used = [f"roles.{role}" for role in roles]
    remote = config.questions.endpoint and any(sources.get(name, config).needs_questions for name in sources.of(config))
    asked = QUESTIONS if "generator" in roles else QUESTIONS[1:] if remote else ()
    shown = {"questions": {"examples": examples.read(config.questions.examples)}} if asked else {}
    filtered = ("bm25",) if asked and config.questions.round_trip else ()
    weighed = JUDGE if asked and config.questions.gap_filter is not None else ()
    counted = ENOUGH if asked and config.recipe == "adapt" else ()
    dense = ("roles.dense",) if "dense" in roles else ()
    found = {
        "assets": _join(_part(config, *used, *ASSETS), evaluated, trained_on),
        "questions": _join(
            _part(config, *asked, *filtered, *weighed, *counted),
            shown,
            trained_on if asked else _part(config, "data.sources", "own"),
        ),
        "prepare": _join(_part(config, *_named("data", *PREPARE)), evaluated, trained_on),
        "candidates": _part(config, "candidates", "bm25", "own", *dense),
        "heads": _part(config, *JUDGE, "heads"),
        "signal": _part(config, *JUDGE, "heads.seed", *_named("injection", "rows", "budget", "gate_init", "diagnostic")),
        "readings": _part(config, *READINGS),
        "adapt": _adapt(config),
        "report": _join(config.model_dump(mode="json", exclude={"mirror"}), _part(config, "judge.cache_gib")),
    }
    for name in config.objectives:
        found |= _of_objective(config, name)
    for entry in config.tasks:
        members = _tasks(config, [entry])
        reads = [knob for knob in tasks.reads(tasks.resolve([entry], config), config) if knob != "own"]
        found[f"tasks-{entry}"] = _join(_part(config, *reads), evaluated if "tasks" in reads else members, _own(config, reads))
        for name in [*config.objectives, *config.evaluated_only]:
            own = _part(config, "evaluate", "training.threads", *_reads(config, name))
            code = {} if name in config.objectives else _code(config, name)
            found[f"evaluate-{cell(name, None, entry)}"] = _join(own, members, code)
    return found


def load(name: str, folder: Path | str = FOLDER) -> Config:
    """The part of the configuration that a stage may read; any other setting is an :class:`AttributeError`.

    Raises:
        DreamError: ``configure`` has not written the file.
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise DreamError(f"{path} is missing", "Run it through `dvc repro`, whose first stage writes it")
    return read(read_json(path))


def cut(config: Config, name: str) -> Config:
    """The same of a whole configuration in memory: what the stage with this file would read."""
    return read(files(config)[name])


def read(settings: dict[str, Any]) -> Config:
    """The same of a file's content; what an older file holds and today's code does not know is left out."""
    values = {key: value for key, value in settings.items() if key not in ("code", "needs", "teacher")}
    carried = values.pop("knobs", {})
    built: Config = _build(Config, values)
    known = check.carriers() & set(carried)
    built.knobs.update({name: _build(check.carrier(name).Knobs, carried[name]) for name in sorted(known)})
    return built


def _of_objective(config: Config, name: str) -> dict[str, dict[str, Any]]:
    """The files of one objective: its teacher's, what it is given, its training."""
    carrier = check.carrier(name)
    teacher = carrier.taught_by(config.knobs[name])
    needs = carrier.needs | ({"teacher"} if teacher else set())
    asked = (*check.reads(teacher), *TEACHER) if teacher else ()
    train = ["roles.encoder", "encoder", "training", "temperature", "probes", f"knobs.{name}"]
    if {"judge", "lm"} & needs:
        train += ["roles.judge", "judge"]
    if "heads" in needs:
        train += _named("injection", "rows", "budget", "gate", "gate_init", "scores", "gap_every")
    given = ("injection.force",) if "heads" in needs else ()
    return {
        f"teacher-{name}": {"teacher": teacher, **_part(config, *asked)},
        f"given-{name}": {"needs": sorted(needs), **_part(config, *given)},
        f"train-{name}": _join(_part(config, *train), _tuned(config, name), _code(config, name)),
    }


def _adapt(config: Config) -> dict[str, Any]:
    """What the stage ``adapt`` reads: nothing where the recipe is another."""
    if config.recipe != "adapt":
        return {}
    asked = [config.adapt.control, *(f"{name}{HELD_OUT}" for name in documents(config))]
    reads = [*ADAPT, *tasks.reads(asked, config), *sources.reads(config)]
    return _join(_part(config, *dict.fromkeys(reads)), {"training": {"snapshots": _kept(config)}})


def _kept(config: Config) -> list[int]:
    """After how many pairs a run keeps its encoder."""
    return sorted({*config.training.snapshots, *(config.adapt.snapshots if config.recipe == "adapt" else [])})


def _tuned(config: Config, name: str) -> dict[str, Any]:
    """What stands in the place of the common settings: an objective's own learning rate, LoRA dropout and initial tau, and the
    snapshots that the recipe ``adapt`` tries."""
    own = config.knobs[name]
    rate, dropout, start = (getattr(own, knob, None) for knob in ("learning_rate", "dropout", "temperature"))
    training: dict[str, Any] = {"learning_rate": rate} if rate else {}
    if config.recipe == "adapt":
        training["snapshots"] = _kept(config)
    if dropout is not None:
        training["lora"] = config.training.lora.model_dump() | {"dropout": dropout}
    return {**({"training": training} if training else {}), **({"temperature": {"init": start}} if start else {})}


def _reads(config: Config, name: str) -> tuple[str, ...]:
    """What an evaluated system reads beside the tasks and the section ``evaluate``."""
    if name in config.objectives:
        return ("roles.encoder",)
    if name in config.models:
        return (f"roles.{name}",)
    return check.carrier(name).reads


def _tasks(config: Config, entries: Iterable[str]) -> dict[str, Any]:
    """Entries of ``tasks`` with their members written out, and the own sets and those of a mirror among them."""
    lists = {entry: tasks.resolve([entry], config) for entry in entries}
    members = {name for names in lists.values() for name in names}
    mirrored = {name: state for name, state in config.mirror.items() if name in members}
    return {
        **({"mirror": mirrored} if mirrored else {}),
        "tasks": list(lists),
        "task_lists": {entry: names for entry, names in lists.items() if names != [entry]},
        "own": {name: path for name, path in config.own.items() if {name, f"{name}{HELD_OUT}"} & members},
    }


def _own(config: Config, reads: list[str]) -> dict[str, Any]:
    """All own sets, for an entry that asks about held-out groups: a set may be a source, and no test query of one is asked."""
    return {"own": dict(config.own)} if "data.development" in reads else {}


def _named(section: str, *keys: str) -> list[str]:
    return [f"{section}.{key}" for key in keys]


def _part(config: Config, *paths: str) -> dict[str, Any]:
    """The plain values of some settings: ``judge`` is a section, ``heads.seed`` one knob, ``roles.judge`` one record."""
    found: dict[str, Any] = {}
    for path in paths:
        *parents, leaf = path.split(".", 1)
        owner, place = config, found
        for name in parents:
            owner, place = getattr(owner, name), place.setdefault(name, {})
        value = owner[leaf] if isinstance(owner, dict) else getattr(owner, leaf)
        place[leaf] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return found


def _join(*parts: dict[str, Any]) -> dict[str, Any]:
    """All parts in one, with sections joined; a later part stands over an earlier one."""
    joined: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            joined[key] = {**joined[key], **value} if isinstance(value, dict) and key in joined else value
    return joined


def _code(config: Config, name: str) -> dict[str, Any]:
    """Content hashes of the code that only this objective or system uses."""
    if name in config.models:
        name = "untrained"
    carrier = check.carrier(name)
    paths = [Path(*carrier.__module__.split(".")).with_suffix(".py"), *map(Path, carrier.uses)]
    return {"code": {str(p): folder_hash(ROOT / p, "*.py") if (ROOT / p).is_dir() else sha256(ROOT / p) for p in paths}}


def _build(section: type[BaseModel], values: dict[str, Any]) -> Any:
    """A section that holds these values and nothing else; they were checked when they were written."""
    found = {}
    for key, value in values.items():
        field = section.model_fields.get(key)
        kind: Any = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, dict):
            found[key] = _build(kind, value)
        elif field:
            found[key] = TypeAdapter(kind).validate_python(value)
    return section.model_construct(**found)
