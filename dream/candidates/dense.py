"""Exact dense search with any sentence-transformers model: packaged, hub or local folder.

The library itself encodes, so that modules, pooling, case and prompts (``query`` and ``document``) are those of the folder.
Two things are ours: texts are cut at :data:`MAX_LENGTH` tokens or the model's own length, whichever is less, and scores are
cosines; a model that compares vectors otherwise, or gives no vector of a text, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dream import assets
from dream.candidates.bm25 import top
from dream.errors import DreamError
from dream.files import read_json

MAX_LENGTH = 128  # tokens of a passage: candidates are cut to fewer anyway
CHUNK = 256


class DenseIndex:
    """Embeddings of texts, searched exactly; scores are cosines in float32, ties go to the smaller id.

    Args:
        texts: documents, title and text joined.
        reference: the encoder (see :mod:`dream.assets`); a folder without sentence-transformers files is mean pooled.
        ids: one per text, unique.

    Raises:
        DreamError: the model is sparse, a reranker or one of many vectors per text, or it does not compare by cosine.
    """

    def __init__(self, texts: Sequence[str], reference: str, ids: Sequence[str], progress: bool = False) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Normalize

        self.progress, folder = progress, assets.model_path(reference)
        file = folder / "config_sentence_transformers.json"
        kind = (read_json(file) if file.is_file() else {}).get("model_type") or "SentenceTransformer"
        if kind != "SentenceTransformer":
            raise DreamError(f"candidates.dense_model {reference} is a {kind}", "Choose a model of one vector per text")
        self.model = SentenceTransformer(str(folder), model_kwargs={"use_safetensors": True}, trust_remote_code=False)
        similarity = str(self.model.similarity_fn_name)
        if similarity != "cosine" and not (similarity in ("dot", "euclidean") and isinstance(self.model[-1], Normalize)):
            raise DreamError(f"candidates.dense_model {reference} compares vectors by {similarity}", "Choose one by cosine")
        self.model.max_seq_length = min(self.model.max_seq_length or MAX_LENGTH, MAX_LENGTH)
        order = np.argsort(np.array(ids, dtype=object), kind="stable")
        self.ids = np.array(ids, dtype=object)[order]
        self.embeddings = self._encode(self.model.encode_document, [texts[i] for i in order])

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores of the k best documents, each of shape (queries, min(k, documents))."""
        k = min(k, len(self.ids))
        ids, scores = np.empty((len(queries), k), dtype=object), np.empty((len(queries), k), dtype=np.float32)
        encoded = self._encode(self.model.encode_query, list(queries))
        for start in range(0, len(queries), CHUNK):
            similarity = encoded[start : start + CHUNK] @ self.embeddings.T
            for row, found in enumerate(similarity, start):
                best = top(found, k)
                ids[row], scores[row] = self.ids[best], found[best]
        return ids, scores

    def _encode(self, encode: Callable[..., np.ndarray], texts: list[str]) -> np.ndarray:
        return encode(
            texts, batch_size=32, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=self.progress
        ).astype(np.float32)
