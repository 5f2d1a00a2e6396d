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
from dream.encoder import Encoder, check_adapter, folder_room
from dream.errors import DreamError
from dream.evaluation import cache, folders, search
from dream.instances import passage_texts

MODELS = Path("work/models")
Run = dict[str, dict[str, float]]


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
        encoder.check_length(rules.max_length)
        if encoder.adapter_base:
            more["adapter_base"] = encoder.adapter_base
        if encoder.head is not None:
            more["head"] = [{"module": type(module).__name__, **module.get_config_dict()} for module in encoder.head]
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
    rules, asked = resolve(name, config)
    encoder = Encoder.from_pretrained(
        asked.path,
        adapter=rules.adapter,
        dtype=rules.dtype,
        pooling=rules.pooling,
        max_length=rules.max_length,
        append_eos=rules.append_eos,
        token_budget=config.evaluate.token_budget,
        trust_remote_code=config.encoder.trust_remote_code,
        lower_case=asked.lower_case,
        head=asked.load_head(),
        reference=rules.model,
        device=device,
    )
    return Dense(name, encoder, rules, config)


def resolve(name: str, config: Config) -> tuple[Published, folders.Folder]:
    """An entry of ``published`` with what it leaves to the model's own folder filled in, and the folder. Reads no weight.

    A prompt or a length that the entry gives stands in the folder's place; a pooling or a length that the model does not
    have is refused, since its scores would not be the model's.

    Raises:
        DreamError: the folder asks for something that we do not do (:mod:`dream.evaluation.folders`), entry and folder
            contradict each other, neither says how to pool, or the adapter belongs to another model.
    """
    from dream.assets import model_path

    entry, key = config.published[name], f"published.{name}"
    asked = folders.read(Path(model_path(entry.model)))
    pooling, given = entry.pooling or asked.pooling, entry.model_fields_set
    if pooling is None:
        raise DreamError(f"{entry.model} does not say how it pools (no modules.json)", f"Set {key}.pooling: last, mean or cls")
    if asked.pooling not in (None, pooling):
        raise DreamError(f"{key}.pooling is {pooling}, the model's own is {asked.pooling}", f"Leave {key}.pooling out")
    prompts = {
        f"{kind}_prompt": getattr(entry, f"{kind}_prompt") if f"{kind}_prompt" in given else asked.prompt(kind, name)
        for kind in ("query", "document")
    }
    if any(prompts.values()) and not asked.include_prompt:
        raise DreamError(
            f"{entry.model} leaves its prompts out of the pooling (include_prompt: false), which is not supported",
            f'Set {key}.query_prompt and document_prompt to ""',
        )
    limits = (asked.max_length, folder_room(asked.path, config.encoder.trust_remote_code))
    longest = min((limit for limit in limits if limit), default=entry.max_length)
    if "max_length" in given and entry.max_length > longest:
        raise DreamError(
            f"{key}.max_length {entry.max_length} is more than {entry.model} reads ({longest} tokens)",
            f"Set it to at most {longest}, or leave it out",
        )
    if entry.adapter:
        check_adapter(entry.adapter, entry.model)
    own = {**prompts, "pooling": pooling, "max_length": min(entry.max_length, longest)}
    return entry.model_copy(update=own), asked


BUILDERS: dict[str, Callable[[Config, str | None], System]] = {"bm25": _bm25, "untrained": _untrained}
