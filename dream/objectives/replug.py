"""REPLUG LSR: the retriever imitates how much each candidate helps the frozen LM on the target (method.md, section 3).

Teacher ``Q_j = softmax_j(mean log-likelihood of y given d_j and q / tau_lm)``, student ``P_j = softmax_j(s_j / tau)``,
``loss = KL(Q ‖ P)``; the REPLUG paper writes KL(P ‖ Q), which is ``replug.direction: student_teacher``. The teacher does
not depend on the encoder: the stage ``teacher`` computes its log-likelihoods once and they are read from there.

The target passage is itself a candidate. ``replug.mask_target: false`` keeps it (the teacher then nearly always prefers
it); ``true`` takes it out of both distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import Given, Objective, Temperature, gold, ranking_logs, register, similarities

if TYPE_CHECKING:
    from dream.config import Config


class RePlugKnobs(Tuned):
    """Settings of REPLUG LSR; the packaged ones by the search of docs/search.md."""

    direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    """teacher_student: KL(Q || P); student_teacher: KL(P || Q), as the REPLUG paper writes."""
    tau_lm: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the teacher (mean log-likelihood per token)."""
    mask_target: bool = False
    """True: the passage that is the target takes no part in either distribution."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("replug")
class RePlug(Objective):
    """Distillation of the frozen LM's preferences.

    Args:
        teacher: question id → the judge's mean log-likelihood of the target given each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        direction, tau_lm, mask_target: see :class:`RePlugKnobs`.
    """

    Knobs = RePlugKnobs
    needs = frozenset({"teacher"})

    def __init__(
        self,
        teacher: dict[str, Sequence[float]],
        temperature: float = 0.05,
        learn_temperature: bool = True,
        *,
        direction: str = "teacher_student",
        tau_lm: float = 0.1,
        mask_target: bool = False,
    ) -> None:
        super().__init__()
        self.tau, self.teacher = Temperature(temperature, learn_temperature), teacher
        self.direction, self.tau_lm, self.mask_target = direction, tau_lm, mask_target

    @classmethod
    def build(cls, knobs: RePlugKnobs, config: Config, given: Given) -> RePlug:
        own = knobs.model_dump(include={"direction", "tau_lm", "mask_target"})
        return cls(given.teacher or {}, config.temperature.init, config.temperature.learned, **own)

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        scores, tau = similarities(queries, passages), self.tau()
        losses = torch.cat([self._divergence(s, c, tau) for s, c in zip(scores, sets, strict=True)])
        return losses.mean(), {"tau": tau.item(), **ranking_logs(scores, sets, tau)}

    def _divergence(self, scores: Tensor, candidates: CandidateSet, tau: Tensor) -> Tensor:
        """KL of every question of a set, ``[questions]``."""
        likelihoods = [self._likelihoods(q.id, candidates) for q in candidates.questions]
        teacher = torch.tensor(likelihoods, dtype=scores.dtype, device=scores.device)
        student, teacher = scores / tau, teacher / self.tau_lm
        if self.mask_target:
            keep = torch.ones_like(scores, dtype=torch.bool)
            keep[torch.arange(len(scores)), gold(candidates, scores.device)] = False
            student, teacher = (x[keep].view(len(scores), -1) for x in (student, teacher))
        log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
        if self.direction == "teacher_student":
            return (log_q.exp() * (log_q - log_p)).sum(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def _likelihoods(self, question: str, candidates: CandidateSet) -> list[float]:
        values = self.teacher.get(question)
        if values is None or len(values) != len(candidates.passages):
            raise DreamError(f"the teacher has no scores for question {question}", "Run `dvc repro teacher`")
        if not all(map(math.isfinite, values)):
            raise DreamError(
                f"the teacher's score of question {question} is not finite",
                "Set the judge's dtype to float32 and run `dvc repro teacher`",
            )
        return list(values)

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item()}
