"""Exact dense search with any sentence-transformers model: packaged, hub or local folder.

The library itself encodes, so that modules, pooling, case and prompts (``query`` and ``document``) are those of the folder,
where the model's record does not name others. Two things are ours: texts are cut at :data:`MAX_LENGTH` tokens or the model's
own length, whichever is less, and scores are cosines; a model that compares vectors otherwise, or gives no vector of a text,
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dream import assets
from dream.candidates.bm25 import top
from dream.errors import DreamError
from dream.files import read_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from dream.config import Model

MAX_LENGTH = 128  # tokens of a passage: candidates are cut to fewer anyway
POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}  # our name → the library's
CHUNK = 256


class DenseIndex:
    """Embeddings of texts, searched exactly; scores are cosines in float32, ties go to the smaller id.

    Args:
        texts: documents, title and text joined.
        record: the encoder; where neither it nor its folder says how to pool, the library takes the mean, of a causal model
            the last token.
        ids: one per text, unique.

    Raises:
        DreamError: the model is sparse, a reranker or one of many vectors per text, it does not compare by cosine, or its record
            asks for something that the library does not do.
    """

    def __init__(self, texts: Sequence[str], record: Model, ids: Sequence[str], progress: bool = False) -> None:
        self.progress, self.record, self.model = progress, record, load(record)
        order = np.argsort(np.array(ids, dtype=object), kind="stable")
        self.ids = np.array(ids, dtype=object)[order]
        self.embeddings = self._encode(self.model.encode_document, [texts[i] for i in order], record.document_prompt)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores of the k best documents, each of shape (queries, min(k, documents))."""
        k = min(k, len(self.ids))
        ids, scores = np.empty((len(queries), k), dtype=object), np.empty((len(queries), k), dtype=np.float32)
        encoded = self._encode(self.model.encode_query, list(queries), self.record.query_prompt)
        for start in range(0, len(queries), CHUNK):
            similarity = encoded[start : start + CHUNK] @ self.embeddings.T
            for row, found in enumerate(similarity, start):
                best = top(found, k)
                ids[row], scores[row] = self.ids[best], found[best]
        return ids, scores

    def _encode(self, encode: Callable[..., np.ndarray], texts: list[str], prompt: str | None) -> np.ndarray:
        return encode(
            texts, prompt=prompt, batch_size=32, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=self.progress
        ).astype(np.float32)


def load(record: Model) -> SentenceTransformer:
    """The model of a record, ready to encode at most :data:`MAX_LENGTH` tokens. See :class:`DenseIndex` for what is refused."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    name, folder = f"candidates.dense_model {record.model}", assets.model_path(record.model, record.layers)
    file = folder / "config_sentence_transformers.json"
    kind = (read_json(file) if file.is_file() else {}).get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise DreamError(f"{name} is a {kind}", "Choose a model of one vector per text")
    if record.append_eos:
        raise DreamError(f"{name}: append_eos is not supported here", "Choose a model without it")
    weights = {"use_safetensors": True, "dtype": getattr(torch, record.dtype)}
    model = SentenceTransformer(str(folder), model_kwargs=weights, trust_remote_code=record.trust_remote_code)
    if record.adapter:
        model.load_adapter(str(assets.model_path(record.adapter)))
    similarity = str(model.similarity_fn_name)
    if similarity != "cosine" and not (similarity in ("dot", "euclidean") and isinstance(model[-1], Normalize)):
        raise DreamError(f"{name} compares vectors by {similarity}", "Choose one by cosine")
    modules: list[Any] = [module for module in model if record.pooling and hasattr(module, "pooling_mode")]
    for module in modules:
        has, module.pooling_mode = module.pooling_mode, POOLING[str(record.pooling)]
        if has != module.pooling_mode and (folder / "modules.json").is_file():
            raise DreamError(f"{name}: the model's own pooling is {has}, not {record.pooling}", "Leave pooling out of its record")
    limits = (model.max_seq_length, record.max_length, MAX_LENGTH)
    model.max_seq_length = min(limit for limit in limits if limit)
    return model
