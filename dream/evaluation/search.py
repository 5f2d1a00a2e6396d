"""Exact search: every document is scored against every query, in bounded memory, with one answer.

The answer does not depend on chunk size, query batch, threads or device: a matrix product gives approximate float32
scores (its rounding depends on its shape), everything within the rounding error of the k-th best is kept, and what is
kept is scored again, one float64 dot product per pair, rounded once to float32. Hits are ordered by (−score, document
id): equal scores go by the id in string order, at the cut too.

Cost: one pass over the documents (float16, memory-mapped), one matrix product and one comparison per chunk. Memory:
about ``4 · chunk · (dimension + queries per batch)`` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from dream.errors import DreamError

QUERIES = 1024  # queries per batch, at most
RESCORED = 8192  # candidates of a query scored again at once


@dataclass(frozen=True)
class Hits:
    """Positions of documents [q, k] (int64) and scores [q, k] (float32), best first; k is at most the corpus size."""

    positions: np.ndarray
    scores: np.ndarray


def exact(
    queries: np.ndarray,
    documents: np.ndarray,
    ids: Sequence[str],
    k: int,
    *,
    chunk: int = 100_000,
    query_batch: int = QUERIES,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> Hits:
    """The ``k`` best documents of every query by inner product.

    Args:
        queries: [q, d] float32.
        documents: [n, d] float16 or float32, a memory map or an array.
        ids: document ids, the tie rule.
        k: hits per query.
        chunk: documents per step; bounds memory, changes no result.
        query_batch: queries per pass over the documents.
        device: where the matrix product runs.
        label: of a progress bar (None: no bar).

    Raises:
        DreamError: queries and documents differ in dimension.
    """
    if queries.shape[1] != documents.shape[1]:
        raise DreamError(
            f"queries have {queries.shape[1]} numbers, documents {documents.shape[1]}",
            "They come from different models: delete the embedding cache and run again",
        )
    k = min(k, len(documents))
    ranks = id_ranks(ids)
    out = Hits(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
    steps = -(-len(queries) // query_batch) * -(-len(documents) // chunk)
    with tqdm(total=steps, desc=label, unit="chunk", disable=label is None) as bar:
        for start in range(0, len(queries), query_batch):
            rows = slice(start, start + query_batch)
            kept = _candidates(queries[rows], documents, k, chunk, device, bar)
            for row, positions in enumerate(kept, start):
                out.positions[row], out.scores[row] = _order(queries[row], documents, positions, ranks, k)
    return out


def _candidates(
    queries: np.ndarray, documents: np.ndarray, k: int, chunk: int, device: torch.device | str, bar: tqdm
) -> list[np.ndarray]:
    """Per query, positions that include the k best: all whose approximate score is within rounding of the k-th best."""
    wanted = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    positions = [np.empty(0, np.int64) for _ in queries]
    scores = [np.empty(0, np.float32) for _ in queries]
    longest = 0.0
    for first in range(0, len(documents), chunk):
        part = torch.from_numpy(np.array(documents[first : first + chunk])).to(device).float()
        longest = max(longest, float(part.norm(dim=1).max()))
        # A float32 dot product of d terms is off by at most e = d · 2⁻²⁴ · |q| · |x|. The k-th best true score is at
        # least the k-th best product − e, so a true hit's product is at least that − 2 e; doubled for good measure.
        margins = 4 * queries.shape[1] * 2.0**-24 * lengths * longest
        product = (wanted @ part.T).cpu().numpy()
        for row, (values, margin) in enumerate(zip(product, margins, strict=True)):
            known = scores[row]
            best = known if len(known) >= k else values
            floor = _kth(best, k) if len(best) >= k else -np.inf
            new = np.flatnonzero(values >= floor - margin)
            if not len(new):
                continue
            positions[row] = np.concatenate([positions[row], new + first])
            scores[row] = np.concatenate([known, values[new]])
            if len(scores[row]) > 2 * k:  # drop what can no longer be among the k best
                keep = scores[row] >= _kth(scores[row], k) - margin
                positions[row], scores[row] = positions[row][keep], scores[row][keep]
        bar.update()
    return positions


def _kth(values: np.ndarray, k: int) -> float:
    """The k-th largest value."""
    return np.partition(values, len(values) - k)[len(values) - k]


def _order(query: np.ndarray, documents: np.ndarray, positions: np.ndarray, ranks: np.ndarray, k: int):
    """Score candidates once more, each by itself, and return the k best by (−score, id)."""
    positions, exact_query = np.sort(positions), query.astype(np.float64)  # sorted: a memory map is read in order
    blocks = [positions[i : i + RESCORED] for i in range(0, len(positions), RESCORED)]
    scores = np.concatenate([(documents[b].astype(np.float64) * exact_query).sum(axis=1) for b in blocks]).astype(np.float32)
    best = np.lexsort((ranks[positions], -scores))[:k]
    return positions[best], scores[best]


def id_ranks(ids: Sequence[str]) -> np.ndarray:
    """Place of each id in string order (code points).

    >>> id_ranks(["b", "a", "c"]).tolist()
    [1, 0, 2]
    """
    ranks = np.empty(len(ids), np.int64)
    ranks[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return ranks
