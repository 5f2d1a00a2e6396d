"""From token ids to vectors: batches of a bounded size, pooling over real tokens, the check that every vector is finite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.errors import DreamError

POOLINGS = ("last", "mean", "cls")


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Reduce hidden states [n, t, d] to [n, d] in float32 over the real tokens of ``mask`` [n, t], either padding side.

    >>> hidden, mask = torch.arange(6.0).view(1, 3, 2), torch.tensor([[False, True, True]])
    >>> [pool(hidden, mask, how).tolist()[0] for how in POOLINGS]
    [[4.0, 5.0], [3.0, 4.0], [2.0, 3.0]]
    """
    if how == "mean":
        weights = mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    at = (mask * places).argmax(1) if how == "last" else mask.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at].float()


def unique(sequences: Sequence[list[int]]) -> tuple[list[list[int]], np.ndarray]:
    """The different sequences, longest first, and the place of each given one among them.

    Equal lengths are ordered by content: the same set of texts is the same list, in whatever order it comes.

    >>> unique([[7], [5, 6], [7], [3]])
    ([[5, 6], [3], [7]], array([2, 0, 2, 1]))
    """
    ordered = sorted({tuple(s) for s in sequences}, key=lambda s: (-len(s), s))
    place = {s: i for i, s in enumerate(ordered)}
    return [list(s) for s in ordered], np.array([place[tuple(s)] for s in sequences], dtype=np.int64)


def batches(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[slice]:
    """Cut sequences, longest first, into batches of at most ``budget`` padded tokens (a longer one stands alone).

    >>> list(batches([[1] * 4, [1] * 3, [1]], budget=8))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    start = 0
    while start < len(sequences):
        stop = min(start + max(1, budget // len(sequences[start])), len(sequences))
        yield slice(start, stop)
        start = stop


def check_finite(embeddings: np.ndarray, ids: Sequence[str] | None, model: str) -> None:
    """Stop at the first embedding that holds NaN or infinity.

    Raises:
        DreamError: names the text (by id, else by position) and the model.
    """
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        name = ids[first] if ids is not None else f"number {first}"
        raise DreamError(
            f"the embedding of text {name} by {model} is not finite ({int(bad.sum())} of {len(bad)} texts)",
            "Training diverged, or the dtype overflows: look at the loss curve, or set the dtype to float32",
        )


def tokenizer_content(tokenizer: Any) -> Any:
    """What a tokenizer does to a text, without the truncation and padding that its last call left in it."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return sorted(tokenizer.get_vocab().items())
    return {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")}
