"""Attention distillation: the retriever imitates the attention that the judge's own retrieval heads pay to each candidate.

FiD-KD (Izacard and Grave 2021, arXiv 2012.04584) and Atlas' ADist (Izacard et al. 2022, arXiv 2208.03299), with the frozen judge
and DREAM's heads in the reader's place: ``r_j`` is the calibrated attention mass of the question's rows on candidate j, mean over
the selected heads (teacher ``attention``); ``loss = KL(softmax(r / tau_a) ‖ softmax(s / tau))``. If it does as well as DREAM,
DREAM is its heads' ranking, distilled. The loss reads no target: questions and passages are enough.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import register
from dream.objectives.taught import Taught, divergence


class ADistKnobs(Tuned):
    """Settings of attention distillation."""

    tau_a: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the teacher [open], of masses as ``standardise`` makes them."""
    standardise: Literal["none", "question"] = "question"
    """question: a question's masses less their mean, by their standard deviation (about .03); none: as they are."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("adist")
class ADist(Taught):
    """Distillation of the judge's attention.

    Args:
        teacher: question id → calibrated attention mass on each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        tau_a, standardise: see :class:`ADistKnobs`.
    """

    Knobs = ADistKnobs
    knobs: ADistKnobs
    teacher_name = "attention"

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        if self.knobs.standardise == "question":
            spread = teacher.std(-1, correction=0, keepdim=True)
            teacher = (teacher - teacher.mean(-1, keepdim=True)) / spread.clamp(min=1e-12)
        return divergence(student, teacher / self.knobs.tau_a)
