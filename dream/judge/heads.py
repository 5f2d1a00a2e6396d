"""Which attention heads retrieve: the QRHead procedure as DREAM uses it (method.md, section 2; Zhang et al. 2025).

For a query q and candidates d_1 … d_K in the judge's prompt, head h gives document j the score

    r_h(q, d_j) = mean over the query's rows a of  sum over b in D_j of  alpha_h(a, b)

calibrated by subtracting the same for the content-free query ``N/A`` (the documents' keys and values are reused). Per
head the candidates are ranked by it; the head's score is NDCG@10 against the positive, mean over the probes. Ties share
the mean gain of the places they fill, so a head that gives every document the same scores chance, not luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.judge.attention import Injection
from dream.judge.model import Judge

if TYPE_CHECKING:
    from dream.config.sections import Heads

DEPTH = 10


@dataclass(frozen=True)
class HeadScores:
    """NDCG@10 of every probe question and head, ``[probes, layers, heads]``."""

    per_probe: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """``[layers, heads]``."""
        return self.per_probe.mean(0)


def score_documents(masses: Tensor, calibration: Tensor, lengths: Sequence[int], drop_low_tokens: bool = False) -> Tensor:
    """Calibrated attention of every head on every document.

    Args:
        masses: ``[Q, layers, H, P]`` mean attention of the question's rows on each of P document tokens.
        calibration: ``[layers, H, P]`` the same for the empty query.
        lengths: tokens of each document; they sum to P.
        drop_low_tokens: leave out tokens more than two standard deviations below their document's mean, as QRHead's
            published code does (DREAM's equations do not).

    Returns:
        ``[Q, layers, H, K]``.
    """
    columns = []
    for tokens in (masses - calibration).split(list(lengths), dim=-1):
        if drop_low_tokens and tokens.shape[-1] > 1:
            floor = tokens.mean(-1, keepdim=True) - 2 * tokens.std(-1, keepdim=True)
            tokens = tokens * (tokens >= floor)
        columns.append(tokens.sum(-1))
    return torch.stack(columns, dim=-1)


def ndcg(scores: Tensor, gold: int) -> Tensor:
    """NDCG@10 with one relevant candidate; scores ``[…, K]``, result ``[…]``. Ties share the mean gain of their places.

    >>> ndcg(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]]), gold=1).tolist()
    [0.5, 0.8154648542404175]
    """
    of_gold = scores[..., gold, None]
    above, level = (scores > of_gold).sum(-1), (scores == of_gold).sum(-1)
    places = torch.arange(scores.shape[-1])
    gains = torch.where(places < DEPTH, 1 / torch.log2(places + 2.0), 0.0)
    total = torch.cat([torch.zeros(1), gains.cumsum(0)]).to(scores.device)
    return (total[above + level] - total[above]) / level


def detect(judge: Judge, sets: Sequence[CandidateSet], drop_low_tokens: bool = False) -> HeadScores:
    """Score all heads of the judge on probe sets; every question of a set is a probe."""
    found = []
    for candidates in tqdm(sets, desc="head detection", unit="set"):
        reading = judge.read(candidates)
        masses, calibration = judge.document_masses(candidates, reading)
        lengths = [end - start for start, end in reading.documents.spans]
        scores = score_documents(masses, calibration, lengths, drop_low_tokens)
        found += [ndcg(s, q.gold).cpu().numpy() for s, q in zip(scores, candidates.questions, strict=True)]
    if not found:
        raise DreamError("heads: there is no probe to score heads on", "Raise data.instances or heads.probes")
    return HeadScores(np.stack(found, dtype=np.float64))


def ranked(scores: np.ndarray) -> list[tuple[int, int]]:
    """All heads, best first, as ``(layer, head)``; ties go to the lower layer, then the lower head.

    Args:
        scores: ``[layers, heads]``, such as :attr:`HeadScores.mean`.

    >>> ranked(np.array([[0.1, 0.5], [0.5, 0.9]]))
    [(1, 1), (0, 1), (1, 0), (0, 0)]
    """
    layers, heads = scores.shape
    return sorted(((layer, head) for layer in range(layers) for head in range(heads)), key=lambda h: (-scores[h], h))


def select(scores: np.ndarray, knobs: Heads) -> list[tuple[int, int]]:
    """The heads that carry the retriever's scores.

    ``query_focused``: the best ``count``. ``random``: as many of all heads. ``random_middle``: as many of the middle
    half of the layers, without the best ones [open]. ``all``. ``explicit``: ``heads.explicit``. Each of them within
    ``heads.layers``: the judge's gradient ends at the lowest selected layer.

    Args:
        scores: ``[layers, heads]``.
        knobs: the section ``heads``.
    """
    order, layers = [head for head in ranked(scores) if knobs.may_use(head[0])], len(scores)
    every, best = sorted(order), order[: knobs.count]
    if knobs.strategy == "explicit":
        return [(layer, head) for layer, head in knobs.explicit]
    if knobs.strategy == "all":
        return order
    if knobs.strategy == "query_focused":
        pool = order
    elif knobs.strategy == "random":
        pool = every
    else:
        middle = range(layers // 4, layers - layers // 4)
        pool = [h for h in every if h[0] in middle and h not in best]
    if knobs.count > len(pool):
        raise DreamError(f"heads.count is {knobs.count}, but {knobs.strategy} can choose from {len(pool)} heads", "Lower it")
    if knobs.strategy == "query_focused":
        return best
    chosen = np.random.default_rng(knobs.seed).choice(len(pool), knobs.count, replace=False)
    return [pool[i] for i in sorted(chosen)]


def require_possible(knobs: Heads, judge: Judge) -> None:
    """Stop before the detection if the judge has too few heads for ``heads.count``, or none of ``heads.explicit``."""
    chosen = select(np.zeros((judge.layers, judge.heads)), knobs)
    Injection(tuple(chosen)).validate(judge.layers, judge.heads)


def stability(scores: HeadScores, count: int, resamples: int, seed: int) -> float:
    """Mean overlap of the top ``count`` heads between the probes and bootstrap resamples of them, 0 to 1."""
    flat = scores.per_probe.reshape(len(scores.per_probe), scores.mean.size)
    top = set(np.argsort(-flat.mean(0), kind="stable")[:count].tolist())
    generator, overlaps = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = flat[generator.integers(0, len(flat), len(flat))].mean(0)
        overlaps.append(len(top & set(np.argsort(-drawn, kind="stable")[:count].tolist())) / len(top))
    return float(np.mean(overlaps))


def describe(scores: HeadScores, selected: Sequence[tuple[int, int]], knobs: Heads, judge: Judge) -> dict[str, Any]:
    """The content of ``heads.json``: all heads' scores, the selected ones, probes and stability."""
    return {
        "judge": judge.reference,
        "weights": judge.weights,
        "dtype": str(judge.dtype).removeprefix("torch."),
        "strategy": knobs.strategy,
        "probes": len(scores.per_probe),
        "selected": [list(h) for h in selected],
        "scores": np.round(scores.mean, 6).tolist(),
        "stability": round(stability(scores, min(knobs.count, scores.mean.size), knobs.bootstrap, knobs.seed), 4),
        "best": round(float(scores.mean.max()), 6),
        "mean": round(float(scores.mean.mean()), 6),
    }


def rerank(judge: Judge, candidates: CandidateSet, selected: Sequence[tuple[int, int]], drop_low_tokens: bool = False) -> Tensor:
    """QRHead's retriever: sum of the selected heads' calibrated attention on every candidate, ``[Q, K]``.

    Layers above the highest selected head are not computed.
    """
    reading = judge.read(candidates, layers_needed(selected))
    masses, calibration = judge.document_masses(candidates, reading)
    lengths = [end - start for start, end in reading.documents.spans]
    scores = score_documents(masses, calibration, lengths, drop_low_tokens)
    layers, heads = zip(*selected, strict=True)
    return scores[:, list(layers), list(heads)].sum(1)


def layers_needed(selected: Sequence[tuple[int, int]]) -> int:
    """How many of the judge's layers, from the lowest, the attention of these heads needs.

    >>> layers_needed([(3, 0), (5, 8)])
    6
    """
    return 1 + max(layer for layer, _ in selected)


def chance(candidates: int) -> float:
    """NDCG@10 of a random order with one relevant candidate.

    >>> round(chance(16), 2)
    0.28
    """
    return sum(1 / math.log2(rank + 1) for rank in range(1, min(DEPTH, candidates) + 1)) / candidates
