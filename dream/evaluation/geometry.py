"""The shape of an embedding space: alignment, uniformity (Wang and Isola, 2020) and a 2-D projection.

For up to ``LIMIT`` (query, positive) pairs of unit vectors:

* alignment = mean ‖e(q) − e(d⁺)‖²: 0 is perfect, 2 is unrelated;
* uniformity = log mean exp(−2 ‖x − y‖²) over all pairs of different points, queries and positives together: 0 is a
  collapsed space, about −4 is evenly spread.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

LIMIT = 5000  # query–positive pairs
SHOWN = 100  # pairs in a projection
BLOCK = 1024


def pairs(queries: pd.DataFrame, corpus: pd.DataFrame, qrels: pd.DataFrame, limit: int = LIMIT, seed: int = 0):
    """Positions of queries and of a relevant document each ([n], [n]): best grade, then lowest id; a seeded draw."""
    relevant = qrels[qrels["relevance"] > 0].sort_values(["query_id", "relevance", "doc_id"], ascending=[True, False, True])
    first = relevant.drop_duplicates("query_id")
    at_query = pd.Series(np.arange(len(queries)), index=queries["id"])
    at_document = pd.Series(np.arange(len(corpus)), index=corpus["id"])
    left, right = at_query[first["query_id"]].to_numpy(), at_document[first["doc_id"]].to_numpy()
    if len(left) > limit:
        keep = np.sort(np.random.default_rng(seed).choice(len(left), limit, replace=False))
        left, right = left[keep], right[keep]
    return left, right


def alignment(queries: np.ndarray, documents: np.ndarray) -> float:
    """Mean squared distance of paired rows.

    >>> alignment(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    2.0
    """
    gap = queries.astype(np.float64) - documents.astype(np.float64)
    return float((gap**2).sum(axis=1).mean())


def uniformity(points: np.ndarray) -> float:
    """Log of the mean Gaussian potential of all pairs of different rows; unit vectors [n, d].

    >>> round(uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])), 6)  # one pair, distance 2
    -8.0
    """
    points, total, count = points.astype(np.float64), 0.0, len(points)
    if count < 2:
        return float("nan")
    for start in range(0, count, BLOCK):
        # ‖x − y‖² = 2 − 2 x·y for unit vectors; a point's pair with itself contributes 1.
        total += np.exp(-4 + 4 * (points[start : start + BLOCK] @ points.T)).sum()
    return float(np.log((total - count) / (count * (count - 1))))


def projection(queries: np.ndarray, documents: np.ndarray, shown: int = SHOWN) -> dict[str, list[list[float]]]:
    """First two principal components of the first ``shown`` pairs, fitted on all, signs fixed."""
    points = np.concatenate([queries, documents]).astype(np.float64)
    centre = points.mean(axis=0)
    _, _, axes = np.linalg.svd(points - centre, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    return {
        name: np.round((vectors[:shown].astype(np.float64) - centre) @ axes.T, 4).tolist()
        for name, vectors in (("queries", queries), ("documents", documents))
    }


def measure(queries: np.ndarray, documents: np.ndarray) -> dict[str, object]:
    """Alignment, uniformity, number of pairs and projection of paired unit vectors."""
    unique = np.unique(documents, axis=0)  # a document that answers two queries is one point
    return {
        "alignment": round(alignment(queries, documents), 6),
        "uniformity": round(uniformity(np.concatenate([queries, unique])), 6),
        "geometry_pairs": len(queries),
        "projection": projection(queries, documents),
    }
