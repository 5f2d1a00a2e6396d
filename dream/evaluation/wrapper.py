"""Our encoder as an mteb model: ``mteb.evaluate(MtebEncoder(encoder), tasks=…)`` runs every task mteb has.

The pipeline itself evaluates through :mod:`dream.cells`, which keeps scores per query; this is for users of mteb, and for
the test that both give the same nDCG@10. The model's revision is a hash of its content, prompts and length: mteb skips a
model whose name and revision it has seen, so a stale result cannot be taken for a new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.types import PromptType
from torch import Tensor
from torch.utils.data import DataLoader

from dream.encoder import Encoder
from dream.files import value_hash


class MtebEncoder:
    """mteb's encoder protocol.

    Args:
        encoder: the model; its prompts are put before queries and documents.
        name: ``owner/name`` in mteb's results.
        max_length: tokens per text (default: the encoder's).

    Raises:
        DreamError: the model has no positions for ``max_length`` tokens.
    """

    def __init__(self, encoder: Encoder, name: str = "dream-bench/encoder", max_length: int | None = None) -> None:
        self.encoder, self.max_length = encoder, encoder.check_length(max_length or encoder.max_length)
        self.prompts = {PromptType.query: encoder.query_prompt, PromptType.document: encoder.document_prompt}
        prompts = [encoder.query_prompt, encoder.document_prompt]
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": value_hash([encoder.fingerprint(), *prompts, self.max_length]),
                "embed_dim": encoder.dimension,
                "max_tokens": self.max_length,
                "framework": ["PyTorch"],
                "similarity_fn_name": "cosine",
                "use_instructions": any(prompts),
            }
        )

    def encode(
        self, inputs: DataLoader, *, prompt_type: PromptType | None = None, show_progress_bar: bool = False, **_: Any
    ) -> np.ndarray:
        """Embed all texts of a loader, sorted by length, in the loader's order; [n, d] float32."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.prompts.get(prompt_type, "") if prompt_type else ""
        return self.encoder.encode(texts, prompt, self.max_length, progress="encode" if show_progress_bar else None)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of every pair [n, m]; embeddings have unit length."""
        return _tensor(embeddings1) @ _tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of rows with the same number [n]."""
        return (_tensor(embeddings1) * _tensor(embeddings2)).sum(dim=-1)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
