"""What the judge's part of a step costs, counted: 2 operations per multiply-add of every matrix product.

Norms, softmaxes and rotations are left out (below 1 % of the sum). A frozen model's backward pass computes gradients of
activations only, one product per forward product with a weight and two per attention product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dream.judge.prompt import Documents, Suffix


@dataclass(frozen=True)
class Flops:
    """Operations of one candidate set's step, by part."""

    documents: float
    suffix_forward: float
    suffix_backward: float
    vocabulary: float
    documents_backward: float = 0.0
    adapter: float = 0.0

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def weights_per_layer(config: Any) -> int:
    """Weights of one decoder layer that take part in matrix products."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * width * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size


def pairs(rows: int, before: int = 0) -> float:
    """(row, key) pairs that ``rows`` causal rows see behind ``before`` keys.

    >>> pairs(3), pairs(2, before=10)
    (6.0, 23.0)
    """
    return rows * before + rows * (rows + 1) / 2


def attention_flops(config: Any, seen: float) -> float:
    """Scores and mixtures of one layer for so many (row, key) pairs: two products."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * config.num_attention_heads * width * seen


def asked(suffixes: Sequence[Suffix]) -> tuple[list[int], int]:
    """Tokens read of every suffix (the last target token predicts nothing), and the target tokens of all together."""
    return [len(s.ids) - 1 for s in suffixes], sum(s.target[1] - s.target[0] for s in suffixes)


def fast_step(
    config: Any, documents: int, suffixes: list[int], targets: int, lowest: int, adapter: int = 0
) -> Flops:
    """Operations of :meth:`dream.judge.Judge.target_losses` and its backward pass.

    Args:
        config: the judge's config.
        documents: tokens of the shared prefix.
        suffixes: tokens read of every question's suffix.
        targets: target tokens of all questions together (rows with logits); see :func:`asked`.
        lowest: the lowest selected layer; below it there is no graph.
        adapter: weights of the judge's LoRA, 0 for a frozen judge. With one, every layer and the documents have a graph,
            and its own weights cost a product forward and two backward.
    """
    layers, rows = config.num_hidden_layers, sum(suffixes)
    lowest = 0 if adapter else lowest
    dense, seen = 2 * weights_per_layer(config), sum(pairs(n, documents) for n in suffixes)
    one = dense * rows + attention_flops(config, seen)
    return Flops(
        documents=layers * (dense * documents + attention_flops(config, pairs(documents))),
        suffix_forward=layers * one,
        suffix_backward=(layers - lowest) * (dense * rows + 2 * attention_flops(config, seen)),
        vocabulary=2 * 2 * config.hidden_size * config.vocab_size * targets,
        documents_backward=bool(adapter) * layers * (dense * documents + 2 * attention_flops(config, pairs(documents))),
        adapter=3 * 2.0 * adapter * (documents + rows),
    )


def likelihoods(config: Any, documents: Documents, suffixes: Sequence[Suffix]) -> float:
    """Operations of :meth:`dream.judge.Judge.passage_log_likelihood`: every passage is read alone, forward only."""
    layers, (rows, targets) = config.num_hidden_layers, asked(suffixes)
    steps = [fast_step(config, len(one.ids), rows, targets, lowest=layers) for one in documents.alone()]
    return sum(step.total - step.vocabulary / 2 for step in steps)


def plain_step(config: Any, tokens: int, lowest: int) -> Flops:
    """Operations of one full-sequence forward with all logits and autograd's own backward pass, for one question."""
    layers, dense, seen = config.num_hidden_layers, 2 * weights_per_layer(config), pairs(tokens)
    return Flops(
        documents=0.0,
        suffix_forward=layers * (dense * tokens + attention_flops(config, seen)),
        suffix_backward=(layers - lowest) * (dense * tokens + 2 * attention_flops(config, seen)),
        vocabulary=2 * 2 * config.hidden_size * config.vocab_size * tokens,
    )
