"""InfoNCE: softmax cross-entropy of the positive against the other candidates (method.md, section 3).

``loss = − log softmax(s / tau)[gold]``, the same learned tau as DREAM. Three knobs make it what its users train today:

* ``infonce.negatives: batch`` takes the passages of the whole global batch as negatives, whatever the micro-batch (Karpukhin et
  al. 2020, arXiv 2004.04906): the loop caches gradients. A passage with the positive's text is none.
* ``infonce.margin`` leaves out negatives of the question's own set that a teacher encoder scores nearly as high as the positive,
  ``s_T(q, n) > s_T(q, d+) − margin · |s_T(q, d+)|``: NV-Retriever's share of the positive's score (Moreira et al. 2024, arXiv
  2407.15831). The candidates themselves are mined by ``candidates.source``.
* ``infonce.confidence`` adds β times the mean log-probability of all candidates: contrastive confidence regularisation (Wang,
  Zhang and Nguyen 2024, arXiv 2401.00165). A surer p is preferred, and a false negative weighs less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from dream.errors import DreamError
from dream.instances import CandidateSet, plain
from dream.knobs import Name, Recipes, Tuned
from dream.objectives import Given, Objective, Temperature, gold, ranking_logs, register, similarities
from dream.objectives.taught import table

if TYPE_CHECKING:
    from dream.config import Config


class InfoNCEKnobs(Tuned):
    """Settings of InfoNCE; the packaged ones by the search of docs/search.md."""

    negatives: Literal["candidates", "batch"] = "candidates"
    """candidates: the question's own set (the paper); batch: the passages of all sets of the global batch."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """Negatives that the teacher scores within this share of the positive's score are left out (.05); null: none is."""
    teacher: Name = "minilm"
    """The entry of models, as it is, whose scores the margin reads."""
    confidence: Annotated[float, Field(ge=0)] = 0.0
    """β of contrastive confidence regularisation; its authors take .1 to 1 with cosine similarities."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None, "teacher": "bge-large"}}


@register("infonce")
class InfoNCE(Objective):
    """The contrastive baseline of the paper, on the same candidate sets.

    Args:
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        negatives, margin, confidence: see :class:`InfoNCEKnobs`.
        teacher: question id → the teacher's score of each candidate, where there is a margin.
    """

    Knobs = InfoNCEKnobs
    uses = ("dream/objectives/taught.py",)

    def __init__(
        self,
        temperature: float = 0.05,
        learn_temperature: bool = True,
        *,
        negatives: str = "candidates",
        margin: float | None = None,
        confidence: float = 0.0,
        teacher: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.tau, self.whole_batch = Temperature(temperature, learn_temperature), negatives == "batch"
        self.margin, self.confidence, self.teacher = margin, confidence, teacher or {}

    @classmethod
    def build(cls, knobs: InfoNCEKnobs, config: Config, given: Given) -> InfoNCE:
        own = knobs.model_dump(include={"negatives", "margin", "confidence"})
        return cls(config.temperature.init, config.temperature.learned, teacher=given.teacher, **own)

    @classmethod
    def taught_by(cls, knobs: InfoNCEKnobs) -> str | None:
        return None if knobs.margin is None else f"models.{knobs.teacher}"

    @classmethod
    def check(cls, knobs: InfoNCEKnobs, config: Config) -> None:
        if knobs.negatives == "batch" and config.training.batch == 1:
            raise DreamError(
                "infonce.negatives is batch, but training.batch is 1: no other set is at hand to take negatives from",
                "Raise training.batch",
            )

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        scores, tau = similarities(queries, passages), self.tau()
        logits, targets = [s / tau for s in scores], [gold(c, s.device) for c, s in zip(sets, scores, strict=True)]
        if self.margin is not None:
            false = [self._false(s, c, t) for s, c, t in zip(scores, sets, targets, strict=True)]
            logits = [x.masked_fill(hidden, float("-inf")) for x, hidden in zip(logits, false, strict=True)]
        if self.whole_batch:
            logits, targets = self._among_all(logits, targets, queries, passages, sets, tau)
        losses = [self._loss(x, t) for x, t in zip(logits, targets, strict=True)]
        return torch.stack(losses).mean(), {"tau": tau.item(), **ranking_logs(scores, sets, tau)}

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the questions of one set."""
        loss = cross_entropy(logits, targets)
        if self.confidence:
            log_p, kept = logits.log_softmax(-1), logits.isfinite()
            loss = loss + self.confidence * (log_p.where(kept, 0.0).sum(-1) / kept.sum(-1)).mean()
        return loss

    def _false(self, scores: Tensor, candidates: CandidateSet, targets: Tensor) -> Tensor:
        """``[Q, K]``: the negatives that the teacher takes for positives."""
        theirs = table(self.teacher, candidates, scores)
        positive = theirs.gather(1, targets[:, None])
        return (theirs > positive - (self.margin or 0.0) * positive.abs()).scatter(1, targets[:, None], False)

    @staticmethod
    def _among_all(logits, targets, queries, passages, sets, tau) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of every set's questions over all sets' passages, ``[Q, ΣK]``; the positive's copies in other sets are out."""
        texts, everything = [plain(text) for s in sets for text in s.passages], torch.cat(list(passages))
        firsts = accumulate((len(s.passages) for s in sets[:-1]), initial=0)
        wide, places = [], []
        for own, target, query, candidates, first in zip(logits, targets, queries, sets, firsts, strict=True):
            others = query @ everything.T / tau
            positives = [plain(candidates.passages[q.gold]) for q in candidates.questions]
            twins = torch.tensor([[text == positive for text in texts] for positive in positives], device=others.device)
            others = others.masked_fill(twins, float("-inf"))
            behind = first + own.shape[1]
            wide.append(torch.cat([others[:, :first], own, others[:, behind:]], dim=1))
            places.append(first + target)
        return wide, places

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item()}
