"""Revela: language modelling with in-batch attention, weighted by the retriever's similarities (method.md, section 3).

The passages of a candidate set are the batch of chunks. For chunk i, in every layer and head,

    h_i = softmax(Q_i K_iᵀ) V_i + Σ_{j≠i} Sim_ij · b_ij,      b_ij = softmax(Q_i K_jᵀ) V_j / (softmax(Q_i K_jᵀ) · ‖V_j‖₂ + 1e-6)

where K_j, V_j come from a plain forward pass of chunk j (no graph), softmax over chunk j is not causal, and
``Sim = softmax_{j≠i}(cos(e(first half of i), e(j)) / tau)`` with a fixed tau of 1e-4. The loss is the next-token
cross-entropy of every chunk, mean per chunk. The division (value normalisation) is a knob. The LM carries LoRA or is
frozen; the questions of the set are not used: Revela learns from chunks alone.

Attention is replaced through transformers' public ``AttentionInterface``; no model class is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from dream import knobs as settings
from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.knobs import Positive, Recipes
from dream.objectives import Given, Objective, check_finite, check_sets, register

if TYPE_CHECKING:
    from dream.config import Config
    from dream.encoder import Encoder

ATTENTION = "dream_revela"


class RevelaKnobs(settings.Knobs):
    """Settings of Revela; the paper's tau teaches the packaged recipe nothing (docs/search.md)."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the LoRA weights, in place of training.learning_rate."""
    tau: Annotated[float, Field(gt=0)] = 1e-4
    """Fixed temperature of Sim."""
    value_normalisation: bool = True
    """Whether another chunk's values are divided by their mean norm."""
    lm: Literal["lora", "frozen"] = "lora"
    """Whether the language model is trained with the encoder."""
    r: Positive = 256
    """Rank of its LoRA, on all linear layers."""
    alpha: Positive = 512
    """Its alpha."""

    recipes: ClassVar[Recipes] = {"packaged": {"tau": 0.01, "r": 32, "alpha": 64}, "paper": {"tau": 1e-4, "r": 256, "alpha": 512}}


@dataclass
class Chunks:
    """What the attention function needs of a set: padding mask ``[N, T]``, and in the second pass Sim and cached K, V."""

    real: Tensor
    normalise: bool
    similarity: Tensor | None = None
    cache: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


def in_batch_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling: float, chunks: Chunks, **_: Any
) -> tuple[Tensor, None]:
    """Attention of all chunks ``[N, heads, T, d]``: causal in the own chunk, plus the weighted other chunks.

    Without similarities (first pass) it is plain causal attention and keeps K and V of the layer.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    own = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    if chunks.similarity is None:
        chunks.cache[module.layer_idx] = key.detach(), value.detach()
    else:
        own = own + others(query, *chunks.cache[module.layer_idx], chunks, scaling)
    return own.transpose(1, 2).contiguous(), None


def others(query: Tensor, keys: Tensor, values: Tensor, chunks: Chunks, scaling: float) -> Tensor:
    """Σ_{j≠i} Sim_ij b_ij for all chunks, ``[N, heads, T, d]``.

    Sim and the division are numbers a row and chunk: they are folded into the attention weights, so that one matrix
    product a head reads the values of all chunks at once (the same sum in another order).
    """
    n, heads, length, _ = query.shape

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).reshape(heads, n * length, -1)

    logits = at_least_float32(flat(query) @ flat(keys).mT) * scaling
    logits = logits.view(heads, n, length, n, length)  # head, chunk i, row, chunk j, column
    weights = logits.masked_fill(~chunks.real, float("-inf")).softmax(-1)
    assert chunks.similarity is not None  # the second pass
    share = chunks.similarity.to(weights.dtype)[:, None]
    if chunks.normalise:
        norms = values.norm(dim=-1).transpose(0, 1)[:, None, None]
        share = share / ((weights * norms).sum(-1) + 1e-6)
    weights = (weights * share[..., None]).to(values.dtype).view(heads, n * length, n * length)
    return (weights @ flat(values)).view(heads, n, length, -1).transpose(0, 1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is raised to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@register("revela")
class Revela(Objective):
    """The language-modelling baseline: LM and encoder are trained together.

    It embeds halves of passages too, so it has no :meth:`from_vectors`.

    Args:
        lm: what :func:`load_lm` gives.
        tokenizer: its tokenizer.
        tau: fixed temperature of Sim.
        passage_tokens: longest chunk.
        value_normalisation: see :class:`RevelaKnobs`.
    """

    Knobs = RevelaKnobs
    needs = frozenset({"lm"})
    uses = ("dream/judge",)
    no_gradient = "So small a temperature makes Sim a choice of one chunk, which has no gradient: raise revela.tau"

    def __init__(
        self, lm: Any, tokenizer: Any, tau: float = 1e-4, passage_tokens: int = 192, value_normalisation: bool = True
    ) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.tau = lm, tokenizer, tau
        self.passage_tokens, self.value_normalisation = passage_tokens, value_normalisation
        self.trained_weights = sum(p.numel() for p in self.lm.parameters() if p.requires_grad)

    @classmethod
    def build(cls, knobs: RevelaKnobs, config: Config, given: Given) -> Revela:
        from dream import assets

        record = config.roles["judge"]
        lora = (knobs.r, knobs.alpha) if knobs.lm == "lora" else None
        lm, tokenizer = load_lm(str(assets.model_path(record.model, record.layers)), record.dtype, lora)
        return cls(lm, tokenizer, knobs.tau, config.judge.passage_tokens, knobs.value_normalisation)

    def loss(self, sets: Sequence[CandidateSet], encoder: Encoder) -> tuple[Tensor, dict[str, float]]:
        check_sets(sets)
        losses, sharpness = [], []
        for candidates in sets:
            chunks = self.tokenizer(list(candidates.passages), truncation=True, max_length=self.passage_tokens)
            if not all(chunks["input_ids"]):
                raise DreamError(f"candidate set {candidates.id} has an empty passage", "Remove empty passages from the data")
            similarity = self.similarity(chunks["input_ids"], candidates.passages, encoder)
            losses.append(self.modelling_loss(chunks["input_ids"], similarity))
            sharpness.append(similarity.detach().max(-1).values.mean().item())
        return torch.stack(losses).mean(), {"top_similarity": sum(sharpness) / len(sharpness)}

    def similarity(self, ids: list[list[int]], passages: Sequence[str], encoder: Encoder) -> Tensor:
        """Sim ``[N, N]``: rows are first halves (in tokens) as queries, the diagonal is 0, rows sum to 1."""
        halves = self.tokenizer.batch_decode([i[: max(1, len(i) // 2)] for i in ids], skip_special_tokens=True)
        texts = [*(encoder.query_prompt + half for half in halves), *(encoder.document_prompt + p for p in passages)]
        vectors = encoder.embed(texts)
        cosine = check_finite(vectors[: len(ids)] @ vectors[len(ids) :].T)
        itself = torch.eye(len(ids), dtype=torch.bool, device=cosine.device)
        return (cosine / self.tau).masked_fill(itself, float("-inf")).softmax(-1)

    def modelling_loss(self, ids: list[list[int]], similarity: Tensor) -> Tensor:
        """Mean over chunks of the mean next-token cross-entropy with in-batch attention. ``similarity`` is ``[N, N]``."""
        length, device = max(map(len, ids)), similarity.device
        self.flops += self.operations(len(ids), length)
        real = torch.tensor([[True] * len(i) + [False] * (length - len(i)) for i in ids], device=device)
        padded = torch.tensor([i + [0] * (length - len(i)) for i in ids], device=device)
        chunks = Chunks(real, self.value_normalisation)
        with torch.no_grad():
            self._hidden(padded, chunks)
        chunks.similarity = similarity
        hidden = self._hidden(padded, chunks)
        logits = at_least_float32(self.lm.get_output_embeddings()(hidden[:, :-1].flatten(0, 1)))
        target = padded[:, 1:].masked_fill(~real[:, 1:], -100)
        losses = cross_entropy(logits, target.flatten(), reduction="none")
        return (losses.view_as(target).sum(1) / real[:, 1:].sum(1).clamp(min=1)).mean()

    def operations(self, chunks: int, length: int) -> float:
        """Of one set's step with so many chunks, padded to ``length`` tokens; counted as in ``dream/judge/flops.py``.

        Two forward passes, the layers of the second once more, and one backward. Backward: per layer one product with every
        frozen weight, two per product of the own chunk's attention and one per product with the other chunks' keys and
        values, which have no graph.
        """
        from dream.judge.flops import attention_flops, pairs, weights_per_layer

        shape, rows = self.lm.config, chunks * length
        dense = 2 * weights_per_layer(shape) * rows
        own = attention_flops(shape, chunks * pairs(length))
        other = attention_flops(shape, rows * rows)
        vocabulary = 2 * shape.hidden_size * shape.vocab_size * chunks * (length - 1)
        adapter = 2 * self.trained_weights * rows
        forward = shape.num_hidden_layers * (dense + own)
        second = shape.num_hidden_layers * (3 * dense + 4 * own + 3 * other)  # forward, forward again and backward
        return forward + second + 2 * vocabulary + 5 * adapter

    def _hidden(self, padded: Tensor, chunks: Chunks) -> Tensor:
        """Last hidden states ``[N, T, d]`` of the LM's body."""
        body = self.lm.base_model
        body = body.model.model if hasattr(self.lm, "peft_config") else body
        return body(input_ids=padded, chunks=chunks, use_cache=False).last_hidden_state


def load_lm(path: str, dtype: str = "float32", lora: tuple[int, int] | None = (256, 512)) -> tuple[Any, Any]:
    """A causal model as Revela's LM with its tokenizer: own config, in-batch attention, a LoRA (rank, alpha; float32) or frozen.

    Its layers are computed again in the backward pass: one layer's attention over all chunks is kept at a time, not all.

    Raises:
        DreamError: the model does not take another attention.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

    AttentionInterface.register(ATTENTION, in_batch_attention)
    lm: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        attn_implementation=ATTENTION,
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    if lm.config._attn_implementation != ATTENTION:
        raise DreamError(f"{path} does not take another attention", "Choose a decoder that transformers implements")
    model = lm.requires_grad_(False)
    if lora:
        r, alpha = lora
        lm = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules="all-linear"))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # of the token embeddings nobody asks for a gradient
    return lm.train(), AutoTokenizer.from_pretrained(path)
