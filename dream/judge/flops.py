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
    """Operations of one candidate set's step, by part.

    Attributes:
        documents: the forward pass over the shared prefix.
        suffixes: the forward pass over the questions' suffixes behind it.
        vocabulary: logits of the rows that predict target tokens.
        backward: gradients, 0 where nothing has a graph.
    """

    documents: float
    suffixes: float
    vocabulary: float
    backward: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def head_width(config: Any) -> int:
    """Components of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def weights_per_layer(config: Any) -> int:
    """Weights of one decoder layer that take part in matrix products."""
    attention = config.hidden_size * head_width(config) * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size


def pairs(rows: int, before: int = 0) -> float:
    """(row, key) pairs that ``rows`` causal rows see behind ``before`` keys.

    >>> pairs(3), pairs(2, before=10)
    (6.0, 23.0)
    """
    return rows * before + rows * (rows + 1) / 2


def attention_flops(config: Any, seen: float) -> float:
    """Scores and mixtures of one layer for so many (row, key) pairs: two products."""
    return 4 * config.num_attention_heads * head_width(config) * seen


def asked(suffixes: Sequence[Suffix]) -> tuple[list[int], int]:
    """Tokens read of every suffix (the last target token predicts nothing), and the target tokens of all together."""
    return [len(s.ids) - 1 for s in suffixes], sum(s.target[1] - s.target[0] for s in suffixes)


def fast_step(config: Any, documents: int, suffixes: list[int], targets: int, lowest: int | None, adapter: int = 0) -> Flops:
    """Operations of :meth:`dream.judge.Judge.target_losses` and its backward pass.

    Args:
        config: the judge's config.
        documents: tokens of the shared prefix.
        suffixes: tokens read of every question's suffix.
        targets: target tokens of all questions together (rows with logits); see :func:`asked`.
        lowest: the lowest selected layer; below it there is no graph. None: there is none at all.
        adapter: weights of the judge's LoRA, 0 for a frozen judge. With one, every layer and the documents have a graph,
            and its own weights cost a product forward and two backward.
    """
    layers, rows = config.num_hidden_layers, sum(suffixes)
    dense = 2 * weights_per_layer(config)
    read = attention_flops(config, pairs(documents))
    asking = attention_flops(config, sum(pairs(n, documents) for n in suffixes))
    vocabulary = 2 * config.hidden_size * config.vocab_size * targets
    backward = 0
    if lowest is not None:
        above = layers if adapter else layers - lowest
        backward = above * (dense * rows + 2 * asking) + vocabulary
        backward += bool(adapter) * layers * (dense * documents + 2 * read) + 4 * adapter * (documents + rows)
    return Flops(
        documents=layers * (dense * documents + read) + 2 * adapter * documents,
        suffixes=layers * (dense * rows + asking) + 2 * adapter * rows,
        vocabulary=vocabulary,
        backward=backward,
    )


def likelihoods(config: Any, documents: Documents, suffixes: Sequence[Suffix]) -> float:
    """Operations of :meth:`dream.judge.Judge.passage_log_likelihood`: every passage is read alone, forward only.

    What pads the shorter ones is not counted.
    """
    rows, targets = asked(suffixes)
    return sum(fast_step(config, len(one.ids), rows, targets, None).total for one in documents.alone())


def leave_one_out(config: Any, documents: Documents, suffixes: Sequence[Suffix]) -> float:
    """Operations of :meth:`dream.judge.Judge.leave_one_out`: the documents once, every suffix once a document, forward only."""
    (rows, targets), times = asked(suffixes), len(documents.spans)
    return fast_step(config, len(documents.ids), rows * times, targets * times, None).total


def masses(config: Any, documents: Documents, suffixes: Sequence[Suffix], layers: int) -> float:
    """Operations of :meth:`dream.judge.Judge.document_masses` in the lowest ``layers``, forward only."""
    whole = fast_step(config, len(documents.ids), [len(s.ids) for s in suffixes], 0, None).total
    return whole * layers / config.num_hidden_layers


def plain_step(config: Any, tokens: int, lowest: int) -> Flops:
    """Operations of one full-sequence forward with all logits and autograd's own backward pass, for one question."""
    return fast_step(config, 0, [tokens], tokens, lowest)
