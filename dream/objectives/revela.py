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
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.judge.flops import attention_flops, pairs, weights_per_layer
from dream.objectives import Objective, check_finite, check_sets, register

ATTENTION = "dream_revela"


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
    """The language-modelling baseline: LM and encoder are trained together."""

    needs = frozenset({"lm"})
    no_gradient = "So small a temperature makes Sim a choice of one chunk, which has no gradient: raise revela.tau"

    def __init__(self, config, judge=None, heads=()) -> None:
        super().__init__(config)
        self.knobs = config.revela
        self.lm, self.tokenizer = load_lm(config)
        self.trained_weights = sum(p.numel() for p in self.lm.parameters() if p.requires_grad)

    def loss(self, sets: Sequence[CandidateSet], encoder) -> tuple[Tensor, dict[str, float]]:
        check_sets(sets)
        losses, sharpness = [], []
        for candidates in sets:
            chunks = self.tokenizer(list(candidates.passages), truncation=True, max_length=self.config.judge.passage_tokens)
            if not all(chunks["input_ids"]):
                raise DreamError(f"candidate set {candidates.id} has an empty passage", "Remove empty passages from the data")
            similarity = self.similarity(chunks["input_ids"], candidates.passages, encoder)
            losses.append(self.modelling_loss(chunks["input_ids"], similarity))
            sharpness.append(similarity.detach().max(-1).values.mean().item())
        return torch.stack(losses).mean(), {"top_similarity": sum(sharpness) / len(sharpness)}

    def similarity(self, ids: list[list[int]], passages: Sequence[str], encoder) -> Tensor:
        """Sim ``[N, N]``: rows are first halves (in tokens) as queries, the diagonal is 0, rows sum to 1."""
        halves = self.tokenizer.batch_decode([i[: max(1, len(i) // 2)] for i in ids], skip_special_tokens=True)
        vectors = encoder.embed([*halves, *passages])
        cosine = check_finite(vectors[: len(ids)] @ vectors[len(ids) :].T)
        itself = torch.eye(len(ids), dtype=torch.bool, device=cosine.device)
        return (cosine / self.knobs.tau).masked_fill(itself, float("-inf")).softmax(-1)

    def modelling_loss(self, ids: list[list[int]], similarity: Tensor) -> Tensor:
        """Mean over chunks of the mean next-token cross-entropy with in-batch attention. ``similarity`` is ``[N, N]``."""
        length, device = max(map(len, ids)), similarity.device
        self.flops += self.operations(len(ids), length)
        real = torch.tensor([[True] * len(i) + [False] * (length - len(i)) for i in ids], device=device)
        padded = torch.tensor([i + [0] * (length - len(i)) for i in ids], device=device)
        chunks = Chunks(real, self.knobs.value_normalisation)
        with torch.no_grad():
            self._hidden(padded, chunks)
        chunks.similarity = similarity
        hidden = self._hidden(padded, chunks)
        logits = at_least_float32(self.lm.get_output_embeddings()(hidden[:, :-1].flatten(0, 1)))
        target = padded[:, 1:].masked_fill(~real[:, 1:], -100)
        losses = cross_entropy(logits, target.flatten(), ignore_index=-100, reduction="none")
        return (losses.view_as(target).sum(1) / real[:, 1:].sum(1).clamp(min=1)).mean()

    def operations(self, chunks: int, length: int) -> float:
        """Of one set's step with so many chunks, padded to ``length`` tokens; counted as in ``dream/judge/flops.py``.

        Two forward passes and one backward. Backward: per layer one product with every frozen weight, two per product of the
        own chunk's attention and one per product with the other chunks' keys and values, which have no graph.
        """
        shape, rows = self.lm.config, chunks * length
        dense = 2 * weights_per_layer(shape) * rows
        own = attention_flops(shape, chunks * pairs(length))
        other = attention_flops(shape, rows * rows)
        vocabulary = 2 * shape.hidden_size * shape.vocab_size * chunks * (length - 1)
        adapter = 2 * self.trained_weights * rows
        forward = shape.num_hidden_layers * (dense + own)
        second = shape.num_hidden_layers * (2 * dense + 3 * own + 2 * other)  # forward and backward
        return forward + second + 2 * vocabulary + 4 * adapter

    def _hidden(self, padded: Tensor, chunks: Chunks) -> Tensor:
        """Last hidden states ``[N, T, d]`` of the LM's body."""
        body = self.lm.base_model
        body = body.model.model if hasattr(body, "peft_config") or hasattr(self.lm, "peft_config") else body
        return body(input_ids=padded, chunks=chunks, use_cache=False).last_hidden_state


def load_lm(config) -> tuple[torch.nn.Module, Any]:
    """The judge's model as Revela's LM: own config, in-batch attention, LoRA (float32) or frozen."""
    import copy

    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from dream import assets

    AttentionInterface.register(ATTENTION, in_batch_attention)
    path, knobs = assets.model_path(config.size.judge), config.revela
    settings = copy.deepcopy(AutoConfig.from_pretrained(path))
    lm = AutoModelForCausalLM.from_pretrained(
        path, config=settings, dtype=getattr(torch, config.judge.dtype), use_safetensors=True, attn_implementation=ATTENTION
    )
    if lm.config._attn_implementation != ATTENTION:
        raise DreamError(f"{path} does not take another attention", "Choose a decoder that transformers implements")
    lm.requires_grad_(False)
    if knobs.lm == "lora":
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=knobs.r, lora_alpha=knobs.alpha, lora_dropout=0.0, target_modules="all-linear"
        )
        lm = get_peft_model(lm, lora)
    return lm, AutoTokenizer.from_pretrained(path)
