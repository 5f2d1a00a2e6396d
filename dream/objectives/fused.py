"""A teacher that may know more than the encoder: several rankings in one, taught by listwise distillation.

``t = Σ_i z(t_i)`` over the ``teachers``, by default BM25's score ``b_j`` and the attention ``r_j`` of the judge's heads (that of
``adist``); ``z`` takes a question's K numbers less their mean, by their standard deviation;
``loss = KL(softmax(t / tau_t) ‖ softmax(s / tau))``, as in listwise distillation (Cao et al. 2007; Hofstätter et al. 2020, of two
teachers). The sum is made where the answers are (``dream/teachers.py``). With ``encoder``, the size's own untouched one, among
them the student keeps what it knew where the others say nothing. None of these four reads a target: ``bm25``, ``attention``,
``question_likelihood`` (that of ``art``), ``encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned, distinct
from dream.objectives import Given, register
from dream.objectives.taught import Taught, divergence

if TYPE_CHECKING:
    from dream.config import Config

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

    def __init__(
        self,
        teacher: Mapping[str, Sequence[float]],
        temperature: float = 0.05,
        learn_temperature: bool = True,
        *,
        tau_t: float = 0.5,
    ) -> None:
        super().__init__(teacher, temperature, learn_temperature)
        self.tau_t = tau_t

    @classmethod
    def taught_by(cls, knobs: FusedKnobs) -> str:
        return "+".join(knobs.teachers)

    @classmethod
    def build(cls, knobs: Any, config: Config, given: Given, **more: Any) -> Self:
        """See :class:`Objective`; what is summed is the teacher's stage's business."""
        return cls(given.teacher or {}, config.temperature.init, config.temperature.learned, tau_t=knobs.tau_t, **more)

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        return divergence(student, teacher / self.tau_t)
