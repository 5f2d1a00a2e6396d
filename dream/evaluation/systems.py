"""What can be evaluated: one registry, one way to search.

``bm25`` and ``untrained`` need nothing; an entry of ``published`` in params.yaml is a model that others trained; every
objective is a trained system with a seed. A new kind of system is one function in ``BUILDERS``; metrics, statistics and
report stay as they are. A system has ``settings``, everything that its numbers depend on, which travels with them.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dream import manifest
from dream.config import Config, Published
from dream.data.tasks.base import Task
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.evaluation import cache, search
from dream.files import read_json
from dream.instances import passage_texts

MODELS = Path("work/models")
Run = dict[str, dict[str, float]]
# Our name of a pooling → that of a sentence-transformers folder.
SENTENCE_TRANSFORMERS_POOLING = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


class System(Protocol):
    """Something that ranks the documents of a task."""

    name: str
    settings: dict[str, Any]
    sections: tuple[str, ...]  # of params.yaml, that decide its scores
    flops: float

    def search(self, task: Task, depth: int) -> Run:
        """The best ``depth`` documents of every query, with scores, ordered by (−score, id)."""


class Lexical:
    """BM25 over title and text; documents that share no term with the query are no hits."""

    sections = ("bm25", "evaluate")

    def __init__(self, config: Config) -> None:
        from dream.candidates.bm25 import describe

        self.name, self.flops, self.config = "bm25", 0.0, config.bm25
        self.settings = {
            **config.bm25.model_dump(mode="json"),
            "library": f"bm25s {importlib.metadata.version('bm25s')}",
            "analyser": f"{describe(config.bm25)}; title and text",
        }

    def search(self, task: Task, depth: int) -> Run:
        from dream.candidates.bm25 import BM25Index

        index = BM25Index(documents(task), self.config, ids=list(task.corpus["id"]))
        ids, scores = index.search(list(task.queries["text"]), depth)
        return {
            query: dict(zip(hits, values.tolist(), strict=True))
            for query, hits, values in zip(task.queries["id"], ids, scores, strict=True)
        }


class Dense:
    """An encoder with its rules; cosine similarity, exact search."""

    sections = ("encoder", "evaluate")

    def __init__(self, name: str, encoder: Encoder, rules: Published, config: Config, **more: Any) -> None:
        self.name, self.encoder, self.rules, self.knobs = name, encoder, rules, config.evaluate
        self.fingerprint = encoder.fingerprint()
        self.settings = {
            "model": rules.model,
            "adapter": rules.adapter,
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
            queries = self.encoder.encode(
                list(task.queries["text"]), self.rules.query_prompt, ids=list(task.queries["id"]), **self._limits
            )
            self._last = key, queries, corpus
        return self._last[1], self._last[2]

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
    def _limits(self) -> dict[str, int]:
        return {"max_length": self.rules.max_length, "token_budget": self.knobs.token_budget}


def load(name: str, config: Config, seed: int | None = None, device: str | None = None) -> System:
    """Load a system.

    Args:
        name: ``bm25``, ``untrained``, a name under ``published``, or a trained objective.
        config: the resolved config.
        seed: of a trained system.
        device: where an encoder runs; default: the first GPU, else the CPU.

    Raises:
        DreamError: the name is unknown, a trained system has no seed or was trained with other settings.
    """
    if name in BUILDERS:
        return BUILDERS[name](config, device)
    if name in config.published:
        return _published(name, config, device)
    if name in config.objectives or seed is not None:
        return _trained(name, config, seed, device)
    known = [*BUILDERS, *config.published, *config.objectives]
    near = difflib.get_close_matches(name, known, n=1)
    raise DreamError(
        f"system {name!r} is unknown", f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(known)}"
    )


def documents(task: Task) -> list[str]:
    """What is encoded and indexed of every document: title and text, as mteb and BEIR do."""
    return list(passage_texts(task.corpus))


def _own_rules(config: Config, adapter: str | None = None) -> Published:
    knobs = config.evaluate
    return Published(
        model=config.size.encoder,
        adapter=adapter,
        query_prompt=knobs.query_prompt,
        document_prompt=knobs.document_prompt,
        max_length=knobs.max_length,
        dtype=knobs.dtype,
    )


def _bm25(config: Config, device: str | None) -> System:
    return Lexical(config)


def _untrained(config: Config, device: str | None) -> System:
    encoder = Encoder.load(config, device=device)
    return Dense("untrained", encoder, _own_rules(config), config, layers=config.size.encoder_layers)


def _trained(name: str, config: Config, seed: int | None, device: str | None) -> System:
    if seed is None:
        raise DreamError(f"system {name!r} is trained: which seed?", "Add --seed")
    folder = MODELS / f"{name}-{seed}"
    manifest.check(folder, config)
    encoder = Encoder.load(config, adapter=folder / "adapter", device=device)
    return Dense(name, encoder, _own_rules(config, str(folder / "adapter")), config, layers=config.size.encoder_layers)


def _published(name: str, config: Config, device: str | None) -> System:
    from dream.assets import model_path

    rules = config.published[name]
    folder = Path(model_path(rules.model))
    encoder = Encoder.from_pretrained(
        folder,
        adapter=rules.adapter,
        dtype=rules.dtype,
        pooling=rules.pooling or own_pooling(folder),
        max_length=rules.max_length,
        append_eos=rules.append_eos,
        token_budget=config.evaluate.token_budget,
        trust_remote_code=config.encoder.trust_remote_code,
        reference=rules.model,
        device=device,
    )
    return Dense(name, encoder, rules, config)


BUILDERS: dict[str, Callable[[Config, str | None], System]] = {"bm25": _bm25, "untrained": _untrained}


def own_pooling(folder: Path) -> str:
    """The pooling that a sentence-transformers folder asks for.

    Raises:
        DreamError: it does not say, or has modules that we do not run (a dense layer after pooling).
    """
    remedy = "Set pooling to last, mean or cls in its `published` entry"
    if not (folder / "modules.json").exists():
        raise DreamError(f"{folder} does not say how it pools (no modules.json)", remedy)
    kinds = {m["type"].rsplit(".", 1)[-1]: m["path"] for m in read_json(folder / "modules.json")}
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise DreamError(f"{folder} has a module that is not supported: {sorted(unknown)[0]}", "Choose another model")
    settings = read_json(folder / kinds.get("Pooling", "1_Pooling") / "config.json")
    modes = {f"pooling_mode_{theirs}": ours for ours, theirs in SENTENCE_TRANSFORMERS_POOLING.items()}
    chosen = [ours for theirs, ours in modes.items() if settings.get(theirs)]
    chosen = chosen or [{"lasttoken": "last"}.get(m, m) for m in [settings.get("pooling_mode")] if m]
    if len(chosen) != 1 or chosen[0] not in modes.values():
        raise DreamError(f"{folder} pools in a way that is not supported", remedy)
    return chosen[0]
