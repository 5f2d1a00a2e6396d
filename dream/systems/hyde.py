"""``hyde``: the judge writes passages that would answer the query, and the untouched encoder searches with them.

What the judge knows comes in when a query is asked, and nothing is trained (HyDE, Gao et al. 2022, arXiv 2212.10496). The query's
vector is the mean of its own and those of N written passages, each of unit length, brought to unit length again. Passages are
kept in a journal under ``$DVC_ROOT/.dream``: a stopped evaluation goes on, and another encoder has none written twice.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field
from tqdm import tqdm

from dream import assets, knobs
from dream.data.instruct import Instruct
from dream.data.tasks.base import Task
from dream.files import Journal, lasting, value_hash
from dream.knobs import Positive, Recipes, Seed
from dream.systems import register
from dream.systems.encoder import Dense

if TYPE_CHECKING:
    from dream.config import Config, Model


class HyDEKnobs(knobs.Knobs):
    """Settings of the written passages."""

    passages: Positive = 8
    """Passages written for each query."""
    max_new_tokens: Positive = 128
    """Longest passage, in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Of sampling."""
    prompt: str = "Please write a passage to answer the question.\nQuestion: {query}\nPassage:"
    """What the judge is asked for; {query} stands for the query."""
    batch: Positive = 32
    """Queries that are asked about together."""
    seed: Seed = 0
    """Of sampling."""

    recipes: ClassVar[Recipes] = {
        "packaged": {"passages": 2, "max_new_tokens": 48},
        "smoke": {"passages": 1, "max_new_tokens": 16},
        "paper": {"passages": 8, "max_new_tokens": 128},
    }


@register("hyde")
class HyDE(Dense):
    """An encoder whose queries are joined by passages that a model writes."""

    Knobs = HyDEKnobs
    reads = ("roles.encoder", "roles.judge", "knobs.hyde")
    uses = ("dream/systems/encoder.py",)
    author: Author

    @classmethod
    def build(cls, config: Config, device: str | None = None) -> HyDE:
        found = cls.of("hyde", config.roles["encoder"], "encoder", config, device)
        found.author = Author(config.roles["judge"], config.knobs["hyde"], device)
        found.settings |= {"author": found.author.identity, "passages": found.author.knobs.model_dump(mode="json")}
        return found

    @property
    def flops(self) -> float:
        """Operations of the embeddings and of what was written; both count what they cost when they were made."""
        return super().flops + self.author.flops

    def queries(self, task: Task) -> np.ndarray:
        own, written = super().queries(task), self.author.passages(list(task.queries["text"]))
        texts = sorted({text for several in written for text in several})
        vectors = self.encoder.encode(texts, self.rules.document_prompt, **self._limits) if texts else np.empty((0, own.shape[1]))
        place = {text: number for number, text in enumerate(texts)}
        joined = [
            np.stack([vector, *(vectors[place[t]] for t in several)]).mean(0)
            for vector, several in zip(own, written, strict=True)
        ]
        found = np.stack(joined).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Author:
    """A model that writes passages for queries, each batch once.

    Args:
        record: the model; it is loaded when something has to be written.
        knobs: what is asked of it.
        device: by default CUDA if there is one, else CPU.

    Attributes:
        flops: of all passages that were asked for, 2 × weights × tokens, whenever they were written.
    """

    def __init__(self, record: Model, knobs: HyDEKnobs, device: str | None = None) -> None:
        self.record, self.knobs, self.device, self.flops = record, knobs, device, 0.0
        self.identity = [record.model, assets.content_hash(record.model), record.adapter, record.layers, record.dtype]

    @cached_property
    def model(self) -> Instruct:
        return Instruct(self.record, self.device)

    @cached_property
    def journal(self) -> Journal:
        key = value_hash([self.identity, self.knobs.model_dump(mode="json")])[:16]
        return Journal(lasting(f"hyde-{key}", "journal.jsonl"))

    def passages(self, queries: list[str]) -> list[list[str]]:
        """``hyde.passages`` texts for every query; one without a visible character is left out."""
        distinct = sorted(set(queries), key=lambda query: (len(query), query))  # a batch is padded to its longest
        batches = [distinct[i : i + self.knobs.batch] for i in range(0, len(distinct), self.knobs.batch)]
        found: dict[str, list[str]] = {}
        for batch in tqdm(batches, desc="hyde passages", unit="batch", leave=False):
            key = value_hash(batch)
            if key not in self.journal.done:
                self.journal.add(key, self._write(batch, int(key[:8], 16)))
            answer = self.journal.done[key]
            self.flops += answer["flops"]
            found |= zip(batch, answer["passages"], strict=True)
        return [[text for text in found[query] if text.strip()] for query in queries]

    def _write(self, batch: list[str], drawn: int) -> dict:
        said, before = [[self.knobs.prompt.replace("{query}", query)] for query in batch], self.model.tokens
        seed = (drawn + self.knobs.seed) % 2**32
        passages = self.model.write(said, self.knobs.max_new_tokens, self.knobs.passages, self.knobs.temperature, seed)
        weights = sum(p.numel() for p in self.model.model.parameters())
        return {"passages": passages, "flops": 2.0 * weights * (self.model.tokens - before)}
