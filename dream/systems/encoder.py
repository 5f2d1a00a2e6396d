"""Dense retrievers: a record of ``models`` as it is, the ``untrained`` encoder of the size, and what was trained from it.

All go one way: the record's rules, an adapter or none. So an untrained encoder and a reference of the same record have the same
scores to the last digit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dream import manifest, models
from dream.data.tasks.base import Task
from dream.encoder import Encoder
from dream.evaluation import cache, search
from dream.systems import Run, System, documents, register

if TYPE_CHECKING:
    from dream.config import Config, Model
    from dream.config.sections import Evaluate
    from dream.models import Rules

TRAINED = Path("work/models")


@register("untrained")
class Dense(System):
    """An encoder with its rules; cosine similarity, exact search.

    Args:
        name: of the system.
        encoder: loaded by these rules.
        rules: prompts and length.
        knobs: section ``evaluate``.
        adapter: what was put onto the record's model.
    """

    reads: ClassVar[tuple[str, ...]] = ("roles.encoder",)

    def __init__(self, name: str, encoder: Encoder, rules: Rules, knobs: Evaluate, adapter: str | None = None) -> None:
        self.name, self.encoder, self.rules, self.knobs = name, encoder, rules, knobs
        self.fingerprint = encoder.fingerprint()
        more: dict[str, Any] = {}
        if encoder.adapter_base:
            more["adapter_base"] = encoder.adapter_base
        if encoder.head is not None:
            more["head"] = [{"module": type(module).__name__, **module.get_config_dict()} for module in list[Any](encoder.head)]
        self.settings = {
            "model": rules.model,
            "adapter": adapter or rules.adapter,
            "layers": rules.layers,
            "pooling": encoder.pooling,
            "append_eos": encoder.append_eos,
            "max_length": rules.max_length,
            "query_prompt": rules.query_prompt,
            "document_prompt": rules.document_prompt,
            "dtype": encoder.dtype,
            "similarity": "cosine, exact, corpus vectors rounded to float16",
            "checkpoint": self.fingerprint,
            **more,
        }
        self._last: tuple[tuple[str, str], np.ndarray, np.ndarray] | None = None

    @classmethod
    def build(cls, config: Config, device: str | None = None) -> Dense:
        return cls.of("untrained", config.roles["encoder"], "encoder", config, device)

    @classmethod
    def of(
        cls,
        name: str,
        record: Model,
        key: str,
        config: Config,
        device: str | None = None,
        adapter: Path | None = None,
        strength: float = 1.0,
    ) -> Self:
        """The system of a record of ``models``, named ``key`` in errors, with an adapter at some strength."""
        rules, knobs = models.rules(record, f"models.{key}"), config.evaluate
        encoder = Encoder.load(rules, adapter=adapter, token_budget=knobs.token_budget, device=device, strength=strength)
        return cls(name, encoder, rules, knobs, str(adapter) if adapter else None)

    @property
    def flops(self) -> float:
        """Operations of the embeddings so far, about 2 × weights × tokens; a cached vector counts what it cost."""
        return self.encoder.flops_per_token * self.encoder.tokens

    def search(self, task: Task, depth: int) -> Run:
        queries, corpus = self.vectors(task)
        ids = list(task.corpus["id"])
        hits = search.exact(
            queries,
            corpus,
            ids,
            depth,
            chunk=self.knobs.search_chunk,
            device=self.encoder.device,
            label=f"search {task.name}",
        )
        return {
            query: {ids[p]: float(s) for p, s in zip(places, values, strict=True)}
            for query, places, values in zip(task.queries["id"], hits.positions, hits.scores, strict=True)
        }

    def vectors(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of queries (float32) and corpus (float16, cached) in the order of the task's tables."""
        key = (task.revision, task.part)
        if self._last is None or self._last[0] != key:
            corpus = self.corpus(task)
            self._last = key, self.queries(task), corpus
        return self._last[1], self._last[2]

    def queries(self, task: Task) -> np.ndarray:
        """Embeddings of the queries, float32, unit length."""
        return self.encoder.encode(
            list(task.queries["text"]), self.rules.query_prompt, ids=list(task.queries["id"]), **self._limits
        )

    def corpus(self, task: Task) -> np.ndarray:
        """Embeddings of the corpus, through the cache."""
        return cache.embeddings(
            self.encoder,
            documents(task),
            list(task.corpus["id"]),
            prompt=self.rules.document_prompt,
            fingerprint=self.fingerprint,
            label=f"encode {task.name}",
            **self._limits,
        )

    @property
    def _limits(self) -> dict[str, Any]:
        return {"max_length": self.rules.max_length, "token_budget": self.knobs.token_budget}


def recorded(name: str, config: Config, device: str | None = None) -> Dense:
    """A record of ``models`` as it is."""
    return Dense.of(name, config.roles[name], name, config, device)


def trained(
    name: str, seed: int, config: Config, device: str | None = None, pairs: int | None = None, strength: float = 1.0
) -> Dense:
    """The encoder of the size with the adapter that a run left, or had after some of its pairs, at some strength.

    Raises:
        DreamError: there is none, or it was trained with other settings.
    """
    folder = TRAINED / f"{name}-{seed}" / ("" if pairs is None else f"snapshots/{pairs}")
    manifest.check(f"train-{name}-{seed}", folder)
    return Dense.of(name, config.roles["encoder"], "encoder", config, device, folder / "adapter", strength)
