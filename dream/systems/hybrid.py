"""``hybrid``: BM25 and the untouched encoder of the size, by reciprocal rank fusion. It costs no training.

A document's score is the sum, over the two rankings, of ``1 / (candidates.rrf_k + its rank)`` (Cormack et al. 2009);
a document that one of them does not find has that one's part not. Both rank ``depth`` documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dream.data.tasks.base import Task
from dream.evaluation.metrics import rank
from dream.systems import Run, System, find, register

if TYPE_CHECKING:
    from dream.config import Config


@register("hybrid")
class Hybrid(System):
    """Reciprocal rank fusion of systems.

    Args:
        systems: whose rankings are fused.
        k: the constant of the fusion: the greater, the less the first places count.
    """

    reads = ("bm25", "roles.encoder", "candidates.rrf_k")
    uses = ("dream/candidates/bm25.py", "dream/systems/bm25.py", "dream/systems/encoder.py")
    name = "hybrid"

    def __init__(self, systems: Iterable[System], k: int) -> None:
        self.systems, self.k = list(systems), k
        self.settings = {"rrf_k": k, "fused": {system.name: system.settings for system in self.systems}}

    @classmethod
    def build(cls, config: Config, device: str | None = None) -> Hybrid:
        return cls([find(name).build(config, device) for name in ("bm25", "untrained")], config.candidates.rrf_k)

    @property
    def flops(self) -> float:
        """Operations of the fused systems so far."""
        return float(sum(system.flops for system in self.systems))

    def search(self, task: Task, depth: int) -> Run:
        return fuse([system.search(task, depth) for system in self.systems], self.k, depth)


def fuse(runs: Iterable[Run], k: int, depth: int) -> Run:
    """The best ``depth`` documents of every query by the sum of ``1 / (k + rank)`` over runs, ranks from 1.

    >>> fuse([{"q": {"a": 9.0, "b": 5.0}}, {"q": {"b": 0.3}}], 1, 2)
    {'q': {'b': 0.8333333333333333, 'a': 0.5}}
    """
    scores: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for run in runs:
        for query, hits in run.items():
            for place, document in enumerate(rank(hits), start=1):
                scores[query][document] += 1 / (k + place)
    return {query: {d: found[d] for d in rank(found)[:depth]} for query, found in scores.items()}
