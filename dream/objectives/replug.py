"""REPLUG LSR: the retriever imitates how much each candidate helps the frozen LM on the target (method.md, section 3).

Teacher ``Q_j = softmax_j(mean log-likelihood of y given d_j and q / tau_lm)``, student ``P_j = softmax_j(s_j / tau)``,
``loss = KL(Q ‖ P)``; the REPLUG paper writes KL(P ‖ Q), which is ``replug.direction: student_teacher``. The teacher does
not depend on the encoder: the stage ``teacher`` computes its log-likelihoods once and they are read from there.

The target passage is itself a candidate. ``replug.mask_target: false`` keeps it (the teacher then nearly always prefers
it); ``true`` takes it out of both distributions.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import register
from dream.objectives.taught import Taught, divergence, without_target


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
class RePlug(Taught):
    """Distillation of the frozen LM's preferences.

    Args:
        teacher: question id → the judge's mean log-likelihood of the target given each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        direction, tau_lm, mask_target: see :class:`RePlugKnobs`.
    """

    Knobs = RePlugKnobs
    knobs: RePlugKnobs
    teacher_name = "likelihood"

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        teacher = teacher / self.knobs.tau_lm
        if self.knobs.mask_target:
            student, teacher = without_target(student, candidates), without_target(teacher, candidates)
        if self.knobs.direction == "teacher_student":
            return divergence(student, teacher)
        return divergence(teacher, student)
