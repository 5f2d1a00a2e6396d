"""What a size will need, before an hour of GPU time is spent: parameters, FLOPs, memory, disk, hours.

Everything follows from configurations (``models/*.json`` or a model folder's config.json); no weights are read. With N
parameters in a model's layers and T tokens, a forward pass costs 2·N·T floating-point operations; a backward pass
through frozen weights, which gives gradients of activations only, costs as much again. So one candidate set costs

    encoder   4·N_e · (K passages + questions) · max_length
    judge     2·N_j · K · passage_tokens               (documents, read once and without a graph)
            + 4·N_j · (query + target + labels)        (what the scores act on)

and the first and largest term of memory is bytes per weight times parameters. Attention's quadratic term is added to
both. These are upper bounds: every text is counted at its longest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from dream import objectives
from dream.config import Config
from dream.errors import DreamError
from dream.files import read_json
from dream.report.tables.render import Table, fields, grouped

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
PROCESS_GIB = 0.65  # Python with torch, transformers, peft and the training data loaded, and the libraries of a first step
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QUANTIZED = {"8bit": 1.0, "4bit": 0.5625}  # bytes per weight, with the constants of blocks of 64
LABELS = 16  # tokens of PASSAGES:, QUESTION:, TARGET PASSAGE: and blank lines
GIB = 2**30
LONGEST = 512  # tokens of a text in evaluation where a record says nothing


@dataclass(frozen=True)
class Model:
    """The shape of a decoder-only transformer, with the numbers that follow from it."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    bias: bool = False
    qk_norm: bool = False
    gated: bool = True

    @classmethod
    def from_config(cls, name: str, config: dict[str, Any]) -> Model:
        """From the keys of a transformers config.json."""
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return cls(
                name, hidden, config["num_hidden_layers"], heads, config.get("num_key_value_heads") or heads,
                config.get("head_dim") or hidden // heads, config["intermediate_size"], config["vocab_size"],
                bool(config.get("tie_word_embeddings", False)),
                bool(config.get("attention_bias", False)) or config.get("model_type") == "qwen2",
                bool(config.get("qk_norm", False)) or config.get("model_type") == "qwen3",
                config.get("model_type") != "bert",
            )  # fmt: skip
        except KeyError as error:
            raise DreamError(
                f"the configuration of {name} has no {error.args[0]}", "plan knows transformers' usual keys only"
            ) from None

    @cached_property
    def per_layer(self) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (q + 2 * kv) + q * self.hidden
        attention += (q + 2 * kv if self.bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def backbone(self) -> int:
        """Parameters without the output layer: what an encoder loads."""
        return self.layers * self.per_layer + self.hidden + self.embeddings

    @property
    def parameters(self) -> int:
        return self.backbone + (0 if self.tied else self.embeddings)

    def first(self, layers: int | None) -> Model:
        """The same model with its first layers only."""
        from dataclasses import replace

        return self if layers is None else replace(self, layers=layers)

    def lora(self, r: int, targets: list[str] | None) -> int:
        """Parameters of LoRA matrices of rank ``r`` on these modules of all layers (None: the attention projections)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "q_proj": self.hidden + q, "k_proj": self.hidden + kv, "v_proj": self.hidden + kv, "o_proj": q +
            self.hidden, "gate_proj": self.hidden + self.intermediate, "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }  # fmt: skip
        return self.layers * r * sum(shapes.get(target, 0) for target in targets or ATTENTION)

    def forward_flops(self, tokens: int, context: int, layers: int | None = None) -> float:
        """Layers only: 2 per weight and token, and 4 per head dimension, head and (token, key) pair of causal
        attention."""
        weights = 2.0 * (layers or self.layers) * self.per_layer * tokens
        return weights + 4.0 * (layers or self.layers) * self.heads * self.head_dim * tokens * context

    def activations(self, width: int) -> int:
        """Bytes that autograd keeps per token and layer when weights are frozen and LoRA sits on the attention.

        Norm inputs and their float32 copies, q, k, v and the attention's output, the two halves of the gated MLP and
        its act.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return width * (4 * self.hidden + 3 * q + 3 * kv + 3 * self.intermediate) + 8 * self.hidden


def model(reference: str) -> Model:
    """The shape of a model by its reference: shipped configurations, a local folder, or the local hub cache."""
    name, _, revision = reference.partition("@")
    shipped = resources.files("dream.planning").joinpath("models", f"{name.split('/')[-1].lower()}.json")
    if shipped.is_file():
        config = json.loads(shipped.read_text(encoding="utf-8"))
        if config["name"] == name:
            return Model.from_config(name, config)
    path = Path(reference).expanduser() / "config.json"
    if not path.exists() and name.count("/") == 1:
        path = _cached(name, revision or None) or path
    if not path.exists():
        raise DreamError(
            f"the configuration of {reference} is not at hand",
            f"Download it (`hf download {name} config.json`) or add one to dream/planning/models",
        )
    return Model.from_config(name, read_json(path))


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def estimate(config: Config, tflops: float) -> dict[str, Any]:
    """All the numbers for a resolved config at a sustained throughput in TFLOP/s."""
    encoder, judge = (model(record.model).first(record.layers) for record in (config.roles["encoder"], config.roles["judge"]))
    flops = _flops(config, encoder, judge)
    memory = _memory(config, encoder, judge)
    return {
        "size": config.model.size, "recipe": config.recipe, "objectives": config.objectives, "seeds": config.seeds,
        "parameters": {
            "encoder": encoder.backbone, "lora": encoder.lora(config.training.lora.r, config.roles["encoder"].lora_targets),
            "judge": judge.parameters,
        },
        "flops": flops, "memory_gib": {k: v / GIB for k, v in memory.items()},
        "disk_gib": {k: v / GIB for k, v in _disk(config, encoder, judge).items()},
        "hours": {k: v / tflops / 1e12 / 3600 for k, v in flops.items()}, "tflops": tflops,
        "documents": _documents(config), "readings": _readings(config, judge),
    }  # fmt: skip


def _flops(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    """Per stage; training per run and objective family."""
    k, knobs, limits = config.candidates.count, config.training, config.judge
    questions, sets = config.candidates.questions_per_set, config.training.steps * config.training.batch
    length = config.encoder.max_length
    encode = 2 * encoder.forward_flops((k + questions) * length, length // 2) * (1.5 if knobs.gradient_checkpointing else 1)
    documents = k * limits.passage_tokens
    read = judge.forward_flops(documents, documents // 2)
    suffix = questions * (limits.query_tokens + limits.target_tokens + LABELS)
    acted = 2 * judge.forward_flops(suffix, documents) + 4.0 * judge.embeddings * questions * limits.target_tokens
    probes = min(config.heads.probes, config.data.instances)
    known, _ = _documents(config)
    longest = config.roles["encoder"].max_length or LONGEST
    evaluated = encoder.forward_flops(known * longest, longest // 2)
    return {
        "heads": probes * (read + judge.forward_flops(suffix, documents)),
        "train, without judge": sets * encode,
        "train, with judge": sets * (encode + read + acted),
        "evaluate, one system": evaluated,
    }


def _memory(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    """Bytes at the peak of training with the judge, part by part."""
    knobs, k, limits = config.training, config.candidates.count, config.judge
    record = config.roles["judge"]
    width, judge_width = BYTES[config.roles["encoder"].dtype], BYTES[record.dtype]
    stored = QUANTIZED.get(record.quantization, judge_width)
    lora = encoder.lora(knobs.lora.r, config.roles["encoder"].lora_targets)
    tokens = knobs.micro_batch * (k + config.candidates.questions_per_set) * config.encoder.max_length
    per_layer = encoder.activations(width)
    kept = tokens * (
        encoder.layers * encoder.hidden * width + per_layer
        if knobs.gradient_checkpointing
        else (encoder.layers + 1) * per_layer  # and what the backward pass of one layer holds at a time
    )
    documents = k * limits.passage_tokens
    suffix = config.candidates.questions_per_set * (limits.query_tokens + limits.target_tokens + LABELS)
    cache = documents * judge.layers * 2 * judge.kv_heads * judge.head_dim * judge_width
    injected = 3 * config.heads.count * documents * judge_width  # logits and weights of the selected heads only
    graph = suffix * (judge.layers * judge.activations(judge_width) + injected)
    return {
        "process": PROCESS_GIB * GIB, "encoder weights": encoder.backbone * width, "LoRA, gradients, Adam": lora * 16.0,
        "encoder activations": float(kept), "judge weights": float(judge.parameters * stored),
        "judge, documents": float(cache),
        "judge, graph and logits": float(knobs.micro_batch * graph + limits.target_tokens * judge.vocabulary * 4 * 2),
    }  # fmt: skip


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


def _documents(config: Config) -> tuple[int, int]:
    """Documents of the tasks whose size is known, and how many tasks are not known."""
    import csv

    with resources.files("dream.planning").joinpath("corpora.csv").open(encoding="utf-8") as stream:
        sizes = {row["task"]: int(row["documents"]) for row in csv.DictReader(stream)}
    names = [name for entry in config.tasks for name in config.task_lists.get(entry, [entry])]
    limit = config.data.task_documents
    known = [sizes.get(name, limit if config.recipe != "paper" else None) for name in names]
    return sum(n for n in known if n), sum(n is None for n in known)


def _disk(config: Config, encoder: Model, judge: Model) -> dict[str, float]:
    known, _ = _documents(config)
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


def fits(found: dict[str, Any], device_gib: float | None) -> bool | None:
    """Whether training with the judge fits a device with a tenth of it kept free; None where its memory is not known."""
    return None if device_gib is None else sum(found["memory_gib"].values()) < 0.9 * device_gib


def tables(found: dict[str, Any], device_gib: float | None, device: str) -> list[Table]:
    """The estimate as tables."""
    import pandas as pd

    sizes = [("encoder (no output layer)", found["parameters"]["encoder"]), ("LoRA, trained",
    found["parameters"]["lora"]),
             ("judge, frozen", found["parameters"]["judge"])]  # fmt: skip
    memory = [*found["memory_gib"].items(), *peaks(found["memory_gib"]).items()]
    verdict = "unknown device: give --device-gib" if device_gib is None else (
        f"fits {device} ({device_gib:.0f} GiB)" if fits(found, device_gib) else f"does NOT fit {device} "
        f"({device_gib:.0f} GiB)"
    )  # fmt: skip
    known, unknown = found["documents"]
    runs = f"{len(found['objectives'])} objectives × {len(found['seeds'])} seeds"
    beside = [name for name in found["objectives"] if objectives.find(name).needs & {"judge", "lm"}]
    notes = [
        f"Trained with the judge's model in memory: {', '.join(beside) or 'none'}.",
        f"Upper bounds: every text at its longest. Hours at {found['tflops']:g} TFLOP/s sustained (--tflops); "
        f"training is per run, params asks for {runs}.",
        f"Evaluation counts {grouped(known)} documents"
        + (f"; {unknown} tasks of unknown size are not counted." if unknown else "."),
    ]

    kept = found["readings"]
    state = f"off ({kept['off']})" if kept["off"] else "on: a later epoch, seed or sweep reads no document anew"
    store = f"The judge's readings of {grouped(kept['sets'])} sets take {kept['gib']:.1f} GiB; the store is {state}."

    def table(name: str, title: str, head: list[str], rows: list[tuple], notes: list[str]) -> Table:
        data = pd.DataFrame(rows, columns=[h.lower() for h in head])
        shown = [fields(r[0], *(_amount(kind, v) for kind, v in zip(head[1:], r[1:], strict=True))) for r in rows]
        return Table(name, title, data, head, shown, notes)

    title = f"size {found['size']}, recipe {found['recipe']}"
    work = [(stage, value, found["hours"][stage]) for stage, value in found["flops"].items()]
    return [
        table("parameters", f"Parameters, {title}", ["Part", "Parameters"], sizes, []),
        table("work", "Work", ["Stage", "FLOPs", "Hours"], work, notes),
        table(
            "memory",
            "Memory at the peak of training",
            ["Part", "GiB"],
            memory,
            [f"Verdict: {verdict} (10 % kept free)."],
        ),
        table("disk", "Disk", ["Part", "GiB"], list(found["disk_gib"].items()), [store]),
    ]


def _amount(kind: str, value: float) -> str:
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
