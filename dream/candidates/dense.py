"""Exact dense search with any sentence-transformers model: packaged, hub or local folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dream import assets
from dream.candidates.bm25 import top

MAX_LENGTH = 128  # tokens of a passage: candidates are cut to fewer anyway
CHUNK = 256


class DenseIndex:
    """Embeddings of texts, searched exactly; scores are cosines in float32, ties go to the smaller id.

    Args:
        texts: documents, title and text joined.
        reference: the encoder (see :mod:`dream.assets`); a folder without sentence-transformers files is mean pooled.
        ids: one per text, unique.
    """

    def __init__(self, texts: Sequence[str], reference: str, ids: Sequence[str], progress: bool = False) -> None:
        from sentence_transformers import SentenceTransformer

        self.progress = progress
        self.model = SentenceTransformer(
            str(assets.model_path(reference)), model_kwargs={"use_safetensors": True}, trust_remote_code=False
        )
        self.model.max_seq_length = min(self.model.max_seq_length or MAX_LENGTH, MAX_LENGTH)
        order = np.argsort(np.array(ids, dtype=object), kind="stable")
        self.ids = np.array(ids, dtype=object)[order]
        self.embeddings = self._encode([texts[i] for i in order])

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores of the k best documents, each of shape (queries, min(k, documents))."""
        k = min(k, len(self.ids))
        ids, scores = np.empty((len(queries), k), dtype=object), np.empty((len(queries), k), dtype=np.float32)
        encoded = self._encode(list(queries))
        for start in range(0, len(queries), CHUNK):
            similarity = encoded[start : start + CHUNK] @ self.embeddings.T
            for row, found in enumerate(similarity, start):
                best = top(found, k)
                ids[row], scores[row] = self.ids[best], found[best]
        return ids, scores

    def _encode(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(
            texts, batch_size=32, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=self.progress
        ).astype(np.float32)
