"""What a size will need, before an hour of GPU time is spent: parameters, FLOPs, memory, disk, hours.

Everything follows from configurations (``models/*.json`` or a model folder's config.json); no weights are read. Every figure and
its formula: docs/scale.md. These are upper bounds: every text is counted at its longest.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

from dream import objectives, teachers
from dream.config import Config, stages
from dream.data import needs, tasks
from dream.data.tasks.packaged import PACKAGED
from dream.errors import DreamError
from dream.files import read_json
from dream.planning.shapes import LINEAR, Model, model
from dream.report.results.agreement import settings
from dream.report.tables.render import Table, fields, grouped

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
PROCESS_GIB = 0.65  # Python with torch, transformers, peft and the training data loaded, and the libraries of a first step
QUANTIZED = {"8bit": 1.0, "4bit": 0.5625}  # bytes per weight, with the constants of blocks of 64
LABELS = 16  # tokens of PASSAGES:, QUESTION:, TARGET PASSAGE: and blank lines
ASKING = 64  # tokens of the request for a question, with a chat's marks
WORDS = 1.4  # tokens per English word
PAIR = (
    15  # bytes per (row, column) of attention over all chunks while one layer is computed: logits, weights, products, gradients
)
LOGIT = 12  # bytes per logit: itself, its log-softmax, its gradient, in float32
GIB = 2**30
LONGEST = 512  # tokens of a text in evaluation where a record says nothing
CARDS = (24, 40, 80)
TFLOPS = 100.0
RUNS = Path("reports/results/runs")


def overrides(settings: list[str]) -> dict[str, Any]:
    """``key=value`` as ``dvc exp run -S`` takes it, with plus signs or without: dotted keys and YAML values.

    >>> overrides(["training.micro_batch=1", "++qrhead.depth=20", "seeds=[0, 1]"])
    {'training.micro_batch': 1, 'qrhead.depth': 20, 'seeds': [0, 1]}

    Raises:
        DreamError: there is no equals sign, or the value is no YAML.
    """
    from ruamel.yaml import YAML, YAMLError

    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.lstrip("+").partition("=")
        try:
            found[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            equals = ""
        if not (key and equals):
            raise DreamError(f"-S {setting} is no setting", "Write it as section.knob=value")
    return found


def estimate(
    config: Config, tflops: float | None = None, runs: Path | None = None, device_gib: float | None = None
) -> dict[str, Any]:
    """All the numbers for a resolved config.

    Args:
        config: the settings.
        tflops: sustained throughput in TFLOP/s.
        runs: run records; stages with the same settings took the hours that they took.
        device_gib: a card beside those of :data:`CARDS`.
    """
    encoder, judge = _models(config)
    flops, rate = _flops(config, encoder, judge), tflops or TFLOPS
    measured = {row: took for row, took in _measured(config, runs).items() if row in flops} if runs else {}
    memory = _memory(config, encoder, judge)
    return {
        "size": config.model.size, "recipe": config.recipe, "objectives": config.objectives, "seeds": config.seeds,
        "parameters": {
            "encoder": encoder.backbone, "lora": encoder.lora(config.training.lora.r, config.roles["encoder"].lora_targets),
            "judge": judge.parameters,
        },
        "flops": flops, "memory_gib": {k: v / GIB for k, v in memory.items()},
        "lm_memory_gib": {k: v / GIB for k, v in _lm_memory(config, encoder, judge).items()},
        "cards": cards(config, device_gib),
        "disk_gib": {k: v / GIB for k, v in _disk(config, encoder, judge).items()},
        "hours": {k: measured[k]["hours"] if k in measured else v / rate / 1e12 / 3600 for k, v in flops.items()},
        "measured": measured, "tflops": rate, "tasks": _tasks(config), "readings": _readings(config, judge),
    }  # fmt: skip


def _models(config: Config) -> tuple[Model, Model]:
    """Encoder and judge, which has the heads that are asked for."""
    encoder, judge = (model(config.roles[role].model).first(config.roles[role].layers) for role in ("encoder", "judge"))
    config.heads.require(judge.layers, judge.heads)
    return encoder, judge


def _needing(config: Config, *what: str) -> list[str]:
    """The objectives asked for that need one of these of the judge."""
    return [name for name in config.objectives if objectives.find(name).needs & set(what)]


def _flops(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    """Per stage; training per run and objective family."""
    k, knobs, limits = config.candidates.count, config.training, config.judge
    questions, sets = config.candidates.questions_per_set, knobs.steps * knobs.batch
    length, again = config.encoder.max_length, 1.5 if knobs.gradient_checkpointing else 1
    encode = 2 * encoder.forward_flops((k + questions) * length, length // 2) * again
    documents = k * limits.passage_tokens
    read = judge.forward_flops(documents, documents // 2)
    suffix = questions * (limits.query_tokens + limits.target_tokens + LABELS)
    asked, targets = judge.forward_flops(suffix, documents), 2.0 * judge.embeddings * questions * limits.target_tokens
    probes = min(config.heads.probes, config.data.instances)
    longest = config.roles["encoder"].max_length or LONGEST
    texts = sum(_tasks(config)[kind] for kind in ("documents", "queries"))
    found = {"heads": probes * (read + asked)}
    if "generator" in needs.roles(config):
        found |= {"questions": _questions(config)}
    for name in config.objectives:
        if teacher := objectives.find(name).taught_by(config.knobs[name]):
            each = [_teacher(config, one, judge, read, asked, targets) for one in teachers.several(teacher)]
            found[f"teacher, {name}"] = min(sets, config.data.instances) * sum(each)
    found["train, without judge"] = sets * encode
    found["train, with judge"] = sets * (encode + read + 2 * (asked + targets))
    if _needing(config, "lm"):
        halves = 2 * encoder.forward_flops(2 * k * length, length // 2) * again
        every = 4.0 * judge.layers * judge.heads * judge.head_dim * documents**2
        forward, logits = judge.forward_flops(documents, limits.passage_tokens // 2), 2.0 * judge.embeddings * documents
        found["train, with LM"] = sets * (halves + 4 * forward + 3 * every + 2 * logits)
    return found | {"evaluate, one system": encoder.forward_flops(texts * longest, longest // 2)}


def _questions(config: Config) -> float:
    """Of writing all questions: every passage asked about is read with the request, and answered at full length."""
    knobs, record = config.questions, config.roles["generator"]
    writer = model(record.model).first(record.layers)
    tokens = ASKING + config.data.passage_words * WORDS + knobs.max_new_tokens
    asked = min(config.data.instances, knobs.limit or config.data.instances) * len(knobs.kinds)
    return asked * (writer.forward_flops(round(tokens), round(tokens / 2)) + 2.0 * writer.embeddings * knobs.max_new_tokens)


def _teacher(config: Config, name: str, judge: Model, read: float, asked: float, targets: float) -> float:
    """Of one candidate set: forward passes only. ``read``, ``asked``, ``targets``: documents, suffixes behind them, logits."""
    k, limits, questions = config.candidates.count, config.judge, config.candidates.questions_per_set
    if name == "bm25":
        return 0.0
    if name.startswith(teachers.MODELS) or name == teachers.OWN:
        record = config.roles[name.removeprefix(teachers.MODELS)]
        length = record.max_length or LONGEST
        return model(record.model).first(record.layers).forward_flops((k + questions) * length, length // 2)
    if teachers.needs_heads(name):
        return read + asked
    if name == "leave_one_out":
        return read + k * (asked + targets)
    if name == "question_likelihood":
        line = limits.passage_tokens + limits.query_tokens + LABELS
        return k * questions * (judge.forward_flops(line, line // 2) + 2.0 * judge.embeddings * limits.query_tokens)
    line = limits.passage_tokens + limits.query_tokens + limits.target_tokens + LABELS
    return k * (questions * judge.forward_flops(line, line // 2) + targets)


def _encoder_memory(config: Config, encoder: Model, texts: int) -> dict[str, float]:
    """Bytes of a process that trains the encoder on so many texts at once."""
    knobs, width = config.training, BYTES[config.roles["encoder"].dtype]
    tokens, per_layer = texts * config.encoder.max_length, encoder.activations(width)
    kept = tokens * (
        encoder.layers * encoder.hidden * width + per_layer
        if knobs.gradient_checkpointing
        else (encoder.layers + 1) * per_layer  # and what the backward pass of one layer holds at a time
    )
    lora = encoder.lora(knobs.lora.r, config.roles["encoder"].lora_targets)
    return {
        "process": PROCESS_GIB * GIB, "encoder weights": float(encoder.backbone * width), "LoRA, gradients, Adam": lora * 16.0,
        "encoder activations": float(kept),
    }  # fmt: skip


def _memory(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    """Bytes at the peak of training with the frozen judge, part by part."""
    micro, k, limits = config.training.micro_batch, config.candidates.count, config.judge
    record, questions = config.roles["judge"], config.candidates.questions_per_set
    width, documents = BYTES[record.dtype], k * limits.passage_tokens
    inner = judge.layers * judge.per_layer  # embeddings and output layer stay as they are
    weights = inner * QUANTIZED.get(record.quantization, width) + (judge.parameters - inner) * width
    suffix = questions * (limits.query_tokens + limits.target_tokens + LABELS)
    cache = documents * judge.layers * 2 * judge.kv_heads * judge.head_dim * width
    injected = 3 * config.heads.count * documents * width  # logits and weights of the selected heads only
    graph = suffix * (judge.layers * judge.activations(width) + injected)
    return {
        **_encoder_memory(config, encoder, micro * (k + questions)),
        "judge weights": float(weights), "judge, documents": float(cache),
        "judge, graph and logits": float(micro * graph + limits.target_tokens * judge.vocabulary * 4 * 2),
    }  # fmt: skip


def _lm_memory(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    """Bytes at the peak of training the judge's model with the encoder, on chunks that attend to all others; {} if nobody does.

    Its layers are computed again in the backward pass: one of them, or the logits, is there at a time.
    """
    if not (names := _needing(config, "lm")):
        return {}
    own: dict[str, Any] = {**config.knobs}
    knobs, micro, k = own[names[0]], config.training.micro_batch, config.candidates.count
    trained = getattr(knobs, "lm", "lora") == "lora"
    return {
        **_encoder_memory(config, encoder, micro * 2 * k),
        **lm_memory(judge, config.roles["judge"].dtype, k, config.judge.passage_tokens, micro, knobs.r if trained else 0),
    }


def lm_memory(judge: Model, dtype: str, chunks: int, length: int, micro: int = 1, r: int = 0) -> dict[str, float]:
    """Bytes of the LM's own part, for ``micro`` sets of so many chunks of so many tokens, with a LoRA of rank ``r`` on all
    linear layers (0: none)."""
    width, tokens, lora = BYTES[dtype], chunks * length, judge.lora(r, list(LINEAR))
    copies = 4 * sum(inputs for inputs, _ in judge.sides.values()) if lora and width < 4 else 0  # a LoRA reads float32
    layer = tokens * (judge.activations(width) + copies) + PAIR * judge.heads * tokens**2
    cached = 2 * judge.heads * judge.head_dim * width  # other chunks' keys and values, one for every query head
    return {
        "LM weights": float(judge.parameters * width), "LM, LoRA, gradients, Adam": 16.0 * lora,
        "LM, layers' inputs, keys, values": float(micro * tokens * judge.layers * (judge.hidden * width + cached)),
        "LM, one layer or the logits": float(max(layer, LOGIT * tokens * judge.vocabulary)),
    }  # fmt: skip


def totals(config: Config) -> dict[str, float]:
    """Peak in GiB of the training processes that are asked for, by what they hold beside the encoder."""
    encoder, judge = _models(config)
    memory, lm = _memory(config, encoder, judge), _lm_memory(config, encoder, judge)
    found = peaks(memory) | ({"total with LM": sum(lm.values())} if lm else {})
    return {kind.removeprefix("total "): value / GIB for kind, value in found.items()}


def _changes(config: Config) -> list[tuple[str, str, Any]]:
    """Settings that take less memory: as ``-S`` takes them; section, role or objective; values. What changes results is last."""
    record, knobs, count = config.roles["judge"], config.training, config.candidates.count
    own: dict[str, Any] = {**config.knobs}
    named = f"models.{config.sizes[config.model.size].judge}.quantization"
    found: list[tuple[str, str, Any]] = []
    if knobs.micro_batch > 1:
        found.append(("training.micro_batch=1", "training", {"micro_batch": 1}))
    if not knobs.gradient_checkpointing:
        found.append(("training.gradient_checkpointing=true", "training", {"gradient_checkpointing": True}))
    if record.quantization == "none":
        found += [(f"{named}={kind}", "judge", {"quantization": kind}) for kind in QUANTIZED]
    found += [(f"++{name}.r=32", name, {"r": 32}) for name in _needing(config, "lm") if own[name].r > 32]
    return [*found, (f"candidates.count={count // 2}", "candidates", {"count": count // 2})] if count > 3 else found


def _with(config: Config, changes: tuple[tuple[str, str, Any], ...]) -> Config:
    """The configuration with these changes."""
    for _, section, values in changes:
        place = next((name for name in ("roles", "knobs") if section in getattr(config, name)), None)
        if place:
            several = getattr(config, place)
            config = config.model_copy(update={place: several | {section: several[section].model_copy(update=values)}})
        else:
            config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    return config


def cards(config: Config, device_gib: float | None = None) -> list[dict[str, Any]]:
    """For cards of 24, 40 and 80 GiB and the given one: does each kind of training fit, and if not, with which fewest changes."""
    several = [chosen for n in range(len(_changes(config)) + 1) for chosen in combinations(_changes(config), n)]
    options = [o for o in several if sum("quantization" in change[0] for change in o) < 2]
    needed = [(" ".join(change[0] for change in option), totals(_with(config, option))) for option in options]
    found: list[dict[str, Any]] = []
    for card in sorted({*map(float, CARDS), *([device_gib] if device_gib else [])}):
        for kind, gib in needed[0][1].items():
            fitting = next(((text, by[kind]) for text, by in needed if fits_in(by[kind], card)), None)
            least = min(by[kind] for _, by in needed)
            say = (
                f"does not fit: {least:.1f} GiB at least" if fitting is None
                else f"fits with {fitting[0]}: {fitting[1]:.1f} GiB" if fitting[0] else "fits"
            )  # fmt: skip
            found.append({"card_gib": card, "training": kind, "gib": gib, "fits": fits_in(gib, card), "verdict": say})
    return found


def fits_in(gib: float, card: float) -> bool:
    """Whether so much fits a card with a tenth of it kept free."""
    return gib < 0.9 * card


def _measured(config: Config, folder: Path) -> dict[str, dict[str, Any]]:
    """Hours of the stages that ran with these very settings, by row of the estimate: the mean of their run records."""
    records = [record for path in sorted(folder.glob("*.json")) for record in read_json(path) if record.get("settings")]
    if not records:
        return {}
    wanted = {name: settings(content) for name, content in stages.files(config).items()}

    def ran(record: dict[str, Any]) -> bool:
        ours, theirs = wanted.get(record["settings"], {}), settings(record["config"])
        return bool(ours) and all(key in ours and ours[key] == value for key, value in theirs.items())

    found: dict[str, dict[str, Any]] = {}
    for row, groups in _rows(config):
        runs = [[r for r in records if r["settings"] in group and ran(r)] for group in groups]
        if all(runs):
            hours = sum(sum(r["wall_s"] for r in group) / len(group) for group in runs) / 3600
            machines = sorted({_machine(r["hardware"]) for group in runs for r in group})
            found[row] = {"hours": hours, "runs": sum(map(len, runs)), "machine": ", ".join(machines)}
            if flops := sum(r["flops"] for group in runs for r in group):
                found[row]["tflops"] = flops / sum(r["wall_s"] for group in runs for r in group) / 1e12
    return found


def _rows(config: Config) -> Iterator[tuple[str, list[set[str]]]]:
    """Rows of the estimate and the settings of the stages that they stand for: the mean of each set, summed."""
    lm, judge = _needing(config, "lm"), _needing(config, "judge")
    yield from (("questions", [{"questions"}]), ("heads", [{"heads"}]))
    yield from ((f"teacher, {name}", [{f"teacher-{name}"}]) for name in config.objectives)
    alone = [name for name in config.objectives if name not in (*lm, *judge)]
    for row, several in (("without judge", alone), ("with judge", judge), ("with LM", lm)):
        yield f"train, {row}", [{f"train-{name}" for name in several}]
    yield "evaluate, one system", [{f"evaluate-{name}-{entry}" for name in config.objectives} for entry in config.tasks]


def _machine(hardware: dict[str, Any]) -> str:
    return ", ".join(hardware["accelerators"]) or f"{hardware['cpu']}, {hardware['cores']} cores"


def _readings(config: Config, judge: Model) -> dict[str, Any]:
    """The store of the judge's readings (``dream/judge/store.py``): sets, GiB of all, and why none is kept, if none is.

    A token takes layers × 2 (key, value) × key/value heads × width of a head × bytes of the dtype.
    """
    record, sets, budget = config.roles["judge"], config.sets_read, config.judge.cache_gib
    tokens = config.candidates.count * (config.judge.passage_tokens + 1) + LABELS
    gib = sets * tokens * judge.layers * 2 * judge.kv_heads * judge.head_dim * BYTES[record.dtype] / GIB
    training = [
        f"{name}.judge=lora trains the judge" for name, own in config.knobs.items() if getattr(own, "judge", "") == "lora"
    ]
    off = (
        "judge.cache_gib is 0" if not budget
        else f"a judge in {record.quantization} promises no stable bytes" if record.quantization != "none"
        else f"they would take more than judge.cache_gib ({budget:g})" if gib > budget
        else next(iter(training), "")
    )  # fmt: skip
    return {"sets": sets, "gib": gib, "off": off}


def _tasks(config: Config) -> dict[str, Any]:
    """Documents and queries of the tasks whose size is known, and the names of the others (``unknown``)."""
    with resources.files("dream.planning").joinpath("corpora.csv").open(encoding="utf-8") as stream:
        sizes = {row["task"]: (int(row["documents"]), int(row["queries"])) for row in csv.DictReader(stream)}
    limits = (config.data.task_documents or 0, config.data.task_queries or 0)
    names = tasks.resolve(config.tasks, config)
    known = {name: limits if name in PACKAGED and all(limits) else sizes.get(name) for name in names}
    documents, queries = (sum(size[i] for size in known.values() if size) for i in (0, 1))
    return {"documents": documents, "queries": queries, "unknown": [name for name, size in known.items() if not size]}


def _disk(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    known = _tasks(config)["documents"]
    weights = {config.roles["encoder"].model: encoder.parameters, config.roles["judge"].model: judge.parameters}
    runs = len(config.objectives) * len(config.seeds)
    systems = runs + len(config.references)
    return {
        "model weights": 2.0 * sum(weights.values()),
        "adapters": runs * 4.0 * encoder.lora(config.training.lora.r, config.roles["encoder"].lora_targets),
        "embeddings (fp16)": 2.0 * known * encoder.hidden * systems,
        "evaluation corpora (about)": 1200.0 * known,
        "judge's readings": 0.0 if (kept := _readings(config, judge))["off"] else kept["gib"] * GIB,
    }


def peaks(memory: dict[str, float]) -> dict[str, float]:
    """Peak of a training process with the judge's model and without it, in the unit given."""
    without = sum(value for part, value in memory.items() if not part.startswith("judge"))
    return {"total without judge": without, "total with judge": sum(memory.values())}


def too_large(found: dict[str, Any], device_gib: float) -> list[str]:
    """The kinds of training that do not fit a device, as the table of cards names them."""
    by_kind = {row["training"]: row["gib"] for row in found["cards"]}
    return [f"train {kind}" for kind, gib in by_kind.items() if not fits_in(gib, device_gib)]


def fits(found: dict[str, Any], device_gib: float | None) -> bool | None:
    """Whether all trainings fit a device; None where its memory is not known."""
    return None if device_gib is None else not too_large(found, device_gib)


def _verdict(found: dict[str, Any], device_gib: float | None, device: str) -> str:
    if device_gib is None:
        return "unknown device: give --device-gib"
    large, name = too_large(found, device_gib), f"{device} ({device_gib:.0f} GiB)"
    return f"{' and '.join(large)} {'do' if len(large) > 1 else 'does'} NOT fit {name}" if large else f"fits {name}"


def tables(found: dict[str, Any], device_gib: float | None, device: str) -> list[Table]:
    """The estimate as tables."""
    import pandas as pd

    def table(name: str, title: str, head: list[str], rows: list[tuple], notes: list[str]) -> Table:
        data = pd.DataFrame(rows, columns=[h.lower() for h in head])
        shown = [fields(r[0], *(_amount(kind, v) for kind, v in zip(head[1:], r[1:], strict=True))) for r in rows]
        return Table(name, title, data, head, shown, notes)

    parameters = zip(("encoder (no output layer)", "LoRA, trained", "judge, frozen"), found["parameters"].values(), strict=True)
    memory = [*found["memory_gib"].items(), *peaks(found["memory_gib"]).items()]
    lm = found["lm_memory_gib"]
    work = [(stage, value, found["hours"][stage]) for stage, value in found["flops"].items()]
    verdict = _verdict(found, device_gib, device)
    by_card = [(f"{c['card_gib']:g} GiB", f"train {c['training']}", c["gib"], c["verdict"]) for c in found["cards"]]
    title = f"size {found['size']}, recipe {found['recipe']}"
    kept = found["readings"]
    state = f"off ({kept['off']})" if kept["off"] else "on: a later epoch, seed or sweep reads no document anew"
    store = f"The judge's readings of {grouped(kept['sets'])} sets take {kept['gib']:.1f} GiB; the store is {state}."
    return [
        table("parameters", f"Parameters, {title}", ["Part", "Parameters"], list(parameters), []),
        table("work", "Work", ["Stage", "FLOPs", "Hours"], work, _notes(found)),
        table("memory", "Memory at the peak of training", ["Part", "GiB"], memory, [f"Verdict: {verdict} (10 % kept free)."]),
        *([table("lm", "The same with the judge's model trained as LM", ["Part", "GiB"],
                 [*lm.items(), ("total with LM", sum(lm.values()))], [])] if lm else []),
        table("cards", "Cards, 10 % kept free", ["Card", "Stage", "GiB", "Verdict"], by_card, []),
        table("disk", "Disk", ["Part", "GiB"], list(found["disk_gib"].items()), [store]),
    ]  # fmt: skip


def _notes(found: dict[str, Any]) -> list[str]:
    """What the hours stand for."""
    beside = [name for name in found["objectives"] if objectives.find(name).needs & {"judge", "lm"}]
    runs = f"{len(found['objectives'])} objectives × {len(found['seeds'])} seeds"
    tasks, measured = found["tasks"], found["measured"]
    notes = [
        f"Trained with the judge's model in memory: {', '.join(beside) or 'none'}.",
        f"Upper bounds: every text at its longest. Hours at {found['tflops']:g} TFLOP/s sustained (--tflops); "
        f"training is per run, params asks for {runs}.",
        f"Evaluation counts {grouped(tasks['documents'])} documents and {grouped(tasks['queries'])} queries"
        + (f"; not {', '.join(tasks['unknown'])}: of unknown size." if tasks["unknown"] else "."),
    ]
    for row, took in measured.items():
        rate = f", {took['tflops']:.3g} TFLOP/s" if "tflops" in took else ""
        notes.append(f"Measured with these settings: {row} (runs: {took['runs']}; {took['machine']}{rate}).")
    return notes


def _amount(kind: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if kind == "Parameters":
        return grouped(value)
    if kind == "FLOPs":
        return f"{value:.1e}"
    return f"{value:.2f}" if value >= 0.005 else "< 0.01"


def device() -> tuple[float | None, str]:
    """Memory in GiB and name of the device at hand: the first GPU, else this machine's memory."""
    import os

    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.total_memory / GIB, found.name
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "this machine's memory"
