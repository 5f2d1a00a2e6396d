"""ART: the retriever imitates how likely the frozen judge finds the question, given each candidate alone.

Sachan et al. 2023 (arXiv 2206.10658): ``u_j`` is the mean log-likelihood of the question's tokens after candidate j (teacher
``question_likelihood``); ``loss = KL(softmax(u / tau_u) ‖ softmax(s / tau))``. DREAM asks how well candidates explain the target,
ART how well they explain the question: it reads no target, so questions and passages are enough. Its candidates are those of the
candidate set, not the trained retriever's own, fetched anew in every step.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import register
from dream.objectives.taught import Taught, divergence


class ARTKnobs(Tuned):
    """Settings of ART."""

    tau_u: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the teacher [open], of log-likelihoods in nats a token."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("art")
class ART(Taught):
    """Distillation of the question's likelihood.

    Args:
        teacher: question id → mean log-likelihood of the question, given each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        tau_u: see :class:`ARTKnobs`.
    """

    Knobs = ARTKnobs
    knobs: ARTKnobs
    teacher_name = "question_likelihood"

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        return divergence(student, teacher / self.knobs.tau_u)
