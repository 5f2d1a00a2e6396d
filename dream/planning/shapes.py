"""The shape of a transformer and the numbers that follow from it, from its configuration alone: no weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from dream.errors import DreamError
from dream.files import read_json

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


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
        """The same model with its first layers only.

        Raises:
            DreamError: it has fewer.
        """
        if (layers or 0) > self.layers:
            raise DreamError(f"{self.name} has {self.layers} layers, its record asks for {layers}", f"Use at most {self.layers}")
        return self if layers is None else replace(self, layers=layers)

    def lora(self, r: int, targets: list[str] | None) -> int:
        """Parameters of LoRA matrices of rank ``r`` on these modules of all layers (None: the attention projections)."""
        return self.layers * r * sum(sum(self.sides.get(target, ())) for target in targets or ATTENTION)

    @property
    def sides(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear modules."""
        q, kv, wide = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        several = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        return dict(zip(LINEAR, [*several, (self.hidden, wide), (self.hidden, wide), (wide, self.hidden)], strict=True))

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
