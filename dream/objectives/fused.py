"""A teacher that may know more than the encoder: BM25 and the judge's retrieval heads, fused, taught by listwise distillation.

``t = z(b) + z(r)``: ``b_j`` is the BM25 score of candidate j for the question, ``r_j`` the attention of the judge's heads on it
(the teacher of ``adist``), ``z`` takes a question's K numbers less their mean, by their standard deviation;
``loss = KL(softmax(t / tau_t) ‖ softmax(s / tau))``, as in listwise distillation (Cao et al. 2007; Hofstätter et al. 2020, of two
teachers). The sum is made where the answers are (teacher ``lexical_attention``). The loss reads no target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import register
from dream.objectives.taught import Taught, divergence


class FusedKnobs(Tuned):
    """Settings of the fused teacher."""

    tau_t: Annotated[float, Field(gt=0)] = 0.5
    """Temperature of the teacher [open], of the sum of two standardised scores."""

    recipes: ClassVar[Recipes] = {}


@register("fused")
class Fused(Taught):
    """Distillation of BM25 and the judge's attention together.

    Args:
        teacher: question id → t of each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        tau_t: see :class:`FusedKnobs`.
    """

    Knobs = FusedKnobs
    teacher_name = "lexical_attention"

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

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        return divergence(student, teacher / self.tau_t)
