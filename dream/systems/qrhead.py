"""``qrhead``: BM25's best documents in the order that the frozen judge's own heads give them, without any training.

The judge reads the documents and the question in its usual prompt; a document's score is the sum, over the selected
heads, of their calibrated attention on it (Zhang et al. 2025; ``dream/judge/heads.py``). It shows what the judge
knows before anything is trained from it. Documents below ``qrhead.depth`` keep BM25's order below the reranked ones.

A prompt holds at most ``qrhead.per_prompt`` passages, each cut at ``judge.passage_tokens``; more documents are read
in several prompts in BM25's order and ranked together by score. Scores of two prompts come from two softmaxes, so one
prompt for all is the plain reading and the default of every recipe.

What is evaluated without the judge does not depend on the judge's code or heads.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from tqdm import tqdm

from dream import knobs, manifest
from dream.data.tasks.base import Task
from dream.errors import DreamError
from dream.evaluation import metrics
from dream.files import read_json
from dream.instances import CandidateSet, Question
from dream.judge import Judge, flops, heads
from dream.judge.prompt import HEADER, QUESTION, SEPARATOR
from dream.knobs import Positive, Recipes
from dream.systems import Run, System, documents, find, reranker

if TYPE_CHECKING:
    from dream.config import Config

HEADS = Path("work/heads")


class QRHeadKnobs(knobs.Knobs):
    """Settings of the reranker."""

    depth: Positive = 40
    """BM25's best documents that are reranked; the others keep their order below."""
    per_prompt: Annotated[Positive, Field(ge=2)] = 40
    """Passages the judge reads in one prompt; more documents are several prompts."""

    recipes: ClassVar[Recipes] = {
        "packaged": {"depth": 8, "per_prompt": 8},
        "smoke": {"depth": 4, "per_prompt": 4},
        "paper": {"depth": 40, "per_prompt": 40},
    }


@reranker("qrhead")
class QRHead(System):
    """The judge as a reranker of another system's hits.

    ``flops`` counts the judge's operations so far; the first stage is not counted, as in its own row.

    Args:
        judge: the frozen LLM.
        selected: the ``(layer, head)`` pairs whose attention is summed.
        knobs: how many documents, and how many in a prompt.
        drop_low_tokens: see ``heads.drop_low_tokens``.
        first: the system that finds the candidates.

    Raises:
        DreamError: a full prompt is longer than the judge's positions.
    """

    Knobs = QRHeadKnobs
    reads = ("bm25", "roles.judge", "judge", "heads.drop_low_tokens", "knobs.qrhead")
    uses = ("dream/candidates/bm25.py", "dream/systems/bm25.py")
    inputs = (str(HEADS),)
    name = "qrhead"

    def __init__(
        self, judge: Judge, selected: list[tuple[int, int]], knobs: QRHeadKnobs, drop_low_tokens: bool, first: System
    ) -> None:
        self.judge, self.selected, self.first, self.knobs = judge, selected, first, knobs
        self.drop_low_tokens, self.flops = drop_low_tokens, 0.0
        _require_room(judge, self.knobs.per_prompt)
        limits = judge.prompt.limits
        self.settings = {
            "judge": judge.reference,
            "weights": judge.weights,
            "dtype": str(judge.dtype).removeprefix("torch."),
            "heads": [list(head) for head in selected],
            "reranked": f"the best {self.knobs.depth} of {first.name}; the others keep its order below them",
            "prompt": f"at most {self.knobs.per_prompt} passages in {first.name}'s order, best first",
            "passage_tokens": limits.passage,
            "query_tokens": limits.query,
            "drop_low_tokens": self.drop_low_tokens,
            "first_stage": first.settings,
        }

    @classmethod
    def build(cls, config: Config, device: str | None = None) -> QRHead:
        """The reranker with the heads of ``work/heads``.

        Raises:
            DreamError: the heads are missing or were selected with other settings or in another judge.
        """
        manifest.check("heads", HEADS)
        found: dict[str, Any] = read_json(HEADS / "heads.json")
        judge = Judge.build(config, device)
        if found["weights"] != judge.weights:
            raise DreamError(f"{HEADS} belongs to other weights than {judge.reference}", "Run `dvc repro heads`")
        selected = [tuple(head) for head in found["selected"]]
        return cls(judge, selected, config.knobs["qrhead"], config.heads.drop_low_tokens, find("bm25").build(config))

    def search(self, task: Task, depth: int) -> Run:
        """The first stage's ``depth`` hits of every query, the best ``qrhead.depth`` of them reranked."""
        texts = dict(zip(task.corpus["id"], documents(task), strict=True))
        queries = dict(zip(task.queries["id"], task.queries["text"], strict=True))
        found = self.first.search(task, depth)
        bar = tqdm(found.items(), desc=f"rerank {task.name}", unit="query", mininterval=1)
        return {query: self._rerank(queries[query], metrics.rank(hits), texts) for query, hits in bar}

    def _rerank(self, query: str, ranked: list[str], texts: dict[str, str]) -> dict[str, float]:
        """Document → score: the judge's for the first ones, then falling by one below the lowest of them."""
        best, rest = ranked[: self.knobs.depth], ranked[self.knobs.depth :]
        scores: dict[str, float] = {}
        for start in range(0, len(best), self.knobs.per_prompt):
            ids = best[start : start + self.knobs.per_prompt]
            scores |= dict(zip(ids, self._score(query, ids, [texts[i] for i in ids]), strict=True))
        floor = min(scores.values(), default=0.0)
        return scores | {document: floor - place for place, document in enumerate(rest, start=1)}

    def _score(self, query: str, ids: list[str], passages: list[str]) -> list[float]:
        """Scores of the documents of one prompt."""
        candidates = CandidateSet(query, "", tuple(ids), tuple(passages), (Question(query, query, 0),))
        self._count(candidates)
        scores = heads.rerank(self.judge, candidates, self.selected, self.drop_low_tokens)[0].tolist()
        if not all(map(math.isfinite, scores)):
            raise DreamError(
                f"the judge's attention on the documents of query {query[:60]!r} is not finite",
                "Set the judge's dtype to float32 (models in params.yaml)",
            )
        return scores

    def _count(self, candidates: CandidateSet) -> None:
        """Add the operations of one prompt: the documents, the question and the empty question in the layers that are read."""
        prompt = self.judge.prompt
        suffixes = [prompt.suffix(text) for text in (candidates.questions[0].text, "")]
        layers = heads.layers_needed(self.selected)
        self.flops += flops.masses(self.judge.model.config, prompt.documents(candidates), suffixes, layers)


def _require_room(judge: Judge, passages: int) -> None:
    """Stop if a prompt with so many full passages and a full question has more tokens than the judge has positions."""
    prompt, room = judge.prompt, judge.model.config.max_position_embeddings
    marks = 1 + len(prompt.tokens(HEADER)) + len(prompt.tokens(QUESTION)) + passages * len(prompt.tokens(SEPARATOR))
    longest = marks + passages * prompt.limits.passage + prompt.limits.query
    if longest > room:
        raise DreamError(
            f"qrhead.per_prompt is {passages}: a prompt has up to {longest} tokens, the judge reads {room}",
            "Lower qrhead.per_prompt or judge.passage_tokens",
        )
