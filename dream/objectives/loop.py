"""LOOP: the retriever imitates how much worse the frozen judge does on the target when a candidate is hidden from it.

Atlas' leave-one-out perplexity distillation (Izacard et al. 2022, arXiv 2208.03299): ``c_j`` is the mean cross-entropy of the
target with candidate j hidden and all others in sight (teacher ``leave_one_out``);
``loss = KL(softmax(c / tau_l) ‖ softmax(s / tau))``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import register
from dream.objectives.taught import Taught, divergence


class LoopKnobs(Tuned):
    """Settings of LOOP."""

    tau_l: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the teacher (mean cross-entropy per token)."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("loop")
class Loop(Taught):
    """Distillation of what the judge misses.

    Args:
        teacher: question id → the judge's mean cross-entropy of the target without each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        tau_l: see :class:`LoopKnobs`.
    """

    Knobs = LoopKnobs
    knobs: LoopKnobs
    teacher_name = "leave_one_out"

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        return divergence(student, teacher / self.knobs.tau_l)
