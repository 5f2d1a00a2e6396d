"""Exact search: equal to brute force with the tie rule, whatever the chunk, the batch and the dtype."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dream.errors import DreamError
from dream.evaluation.search import exact


def brute_force(queries, documents, ids, k):
    """The definition: float64 products rounded to float32, sorted by (−score, id)."""
    scores = (queries[:, None].astype(np.float64) * documents[None].astype(np.float64)).sum(-1).astype(np.float32)
    return [sorted(range(len(ids)), key=lambda i: (-row[i], ids[i]))[:k] for row in scores]


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 6), st.integers(1, 70), st.integers(1, 64),
    st.integers(1, 7), st.sampled_from([1, 2, 16]), st.booleans(),
)  # fmt: skip
def test_equals_brute_force_with_many_ties(seed, count, queries, k, chunk, batch, dimension, copies):
    """Small whole numbers and repeated documents make most scores equal: the tie rule decides, at the cut too."""
    rng = np.random.default_rng(seed)
    corpus = rng.integers(-2, 3, (count, dimension)).astype(np.float16)
    if copies:
        corpus = corpus[rng.integers(0, count, count)]
    asked = rng.integers(-2, 3, (queries, dimension)).astype(np.float32)
    ids = [f"d{i}" for i in rng.permutation(count)]
    hits = exact(asked, corpus, ids, k, chunk=chunk, query_batch=batch)
    assert hits.positions.tolist() == brute_force(asked, corpus, ids, k)
    assert (np.diff(hits.scores, axis=1) <= 0).all()


def test_chunk_and_batch_change_no_bit():
    rng = np.random.default_rng(0)
    documents, asked = unit(rng, 3000, 64).astype(np.float16), unit(rng, 33, 64)
    documents[100:200] = documents[:100]  # ties
    ids = [f"d{i}" for i in range(3000)]
    reference = exact(asked, documents, ids, 50)
    assert reference.positions.tolist() == brute_force(asked, documents, ids, 50)
    for chunk, batch in ((17, 33), (700, 1), (999, 32), (3000, 5), (100_000, 1024)):
        other = exact(asked, documents, ids, 50, chunk=chunk, query_batch=batch)
        assert (other.positions == reference.positions).all() and (other.scores == reference.scores).all()
    order = rng.permutation(3000)
    moved = exact(asked, documents[order], [ids[i] for i in order], 50)
    assert (order[moved.positions] == reference.positions).all() and (moved.scores == reference.scores).all()


def test_a_collapsed_space_is_ordered_by_id():
    documents = np.ones((500, 8), np.float16)
    ids = [f"{i:03d}" for i in range(500)][::-1]
    hits = exact(np.ones((2, 8), np.float32), documents, ids, 5, chunk=90)
    assert [[ids[p] for p in row] for row in hits.positions] == [["000", "001", "002", "003", "004"]] * 2


def test_reads_a_memory_map_and_small_corpora(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "d.npy", unit(rng, 3, 4).astype(np.float16))
    hits = exact(unit(rng, 2, 4), np.load(tmp_path / "d.npy", mmap_mode="r"), ["a", "b", "c"], 10)
    assert hits.positions.shape == (2, 3)


def test_two_dimensions_are_refused():
    with pytest.raises(DreamError, match="queries have 3 numbers, documents 4"):
        exact(np.ones((1, 3), np.float32), np.ones((2, 4), np.float16), ["a", "b"], 1)
