"""``bm25``: title and text; documents that share no term with the query are no hits."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from dream.candidates.bm25 import BM25Index, describe
from dream.data.tasks.base import Task
from dream.systems import Run, System, documents, register

if TYPE_CHECKING:
    from dream.config import Config
    from dream.config.sections import BM25


@register("bm25")
class Lexical(System):
    """BM25 with the analyser of the section ``bm25``."""

    reads = ("bm25",)
    uses = ("dream/candidates/bm25.py",)

    def __init__(self, knobs: BM25) -> None:
        self.name, self.flops, self.knobs = "bm25", 0.0, knobs
        self.settings = {
            **knobs.model_dump(mode="json"),
            "library": f"bm25s {importlib.metadata.version('bm25s')}",
            "analyser": f"{describe(knobs)}; title and text",
        }

    @classmethod
    def build(cls, config: Config, device: str | None = None) -> Lexical:
        return cls(config.bm25)

    def search(self, task: Task, depth: int) -> Run:
        index = BM25Index(documents(task), self.knobs, ids=list(task.corpus["id"]))
        ids, scores = index.search(list(task.queries["text"]), depth)
        return {
            query: dict(zip(hits, values.tolist(), strict=True))
            for query, hits, values in zip(task.queries["id"], ids, scores, strict=True)
        }
