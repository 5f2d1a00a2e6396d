"""A teacher that may know more than the encoder: several rankings in one, taught by listwise distillation.

``t = Σ_i z(t_i)`` over the ``teachers``, by default BM25's score ``b_j`` and the attention ``r_j`` of the judge's heads (that of
``adist``); ``z`` takes a question's K numbers less their mean, by their standard deviation;
``loss = KL(softmax(t / tau_t) ‖ softmax(s / tau))``, as in listwise distillation (Cao et al. 2007; Hofstätter et al. 2020, of two
teachers). The sum is made where the answers are (``dream/teachers.py``). With ``encoder``, the size's own untouched one, among
them the student keeps what it knew where the others say nothing. None of these four reads a target: ``bm25``, ``attention``,
``question_likelihood`` (that of ``art``), ``encoder``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned, distinct
from dream.objectives import register
from dream.objectives.taught import Taught, divergence

Ranking = Literal["bm25", "attention", "question_likelihood", "encoder"]


class FusedKnobs(Tuned):
    """Settings of the fused teacher."""

    teachers: Annotated[list[Ranking], AfterValidator(distinct)] = Field(default=["bm25", "attention"], min_length=1)
    """What is summed [open]: of bm25, attention, question_likelihood, encoder (docs/search.md)."""
    tau_t: Annotated[float, Field(gt=0)] = 0.5
    """Temperature of the teacher [open], of the sum of standardised scores."""

    recipes: ClassVar[Recipes] = {"adapt": {"teachers": ["encoder", "bm25", "question_likelihood"]}}


@register("fused")
class Fused(Taught):
    """Distillation of several rankings together.

    Args:
        teacher: question id → t of each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        tau_t: see :class:`FusedKnobs`.
    """

    Knobs = FusedKnobs
    knobs: FusedKnobs

    @classmethod
    def taught_by(cls, knobs: FusedKnobs) -> str:
        return "+".join(knobs.teachers)

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        return divergence(student, teacher / self.knobs.tau_t)
