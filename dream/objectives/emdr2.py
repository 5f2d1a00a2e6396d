"""EMDR²: the likelihood of the target with the candidate as a latent variable, the frozen judge as its reader.

REALM (Guu et al. 2020, arXiv 2002.08909) and EMDR² (Sachan et al. 2021, arXiv 2106.05346): ``loss = − log Σ_j p_j exp(l_j)`` with
``p = softmax(s / tau)`` and ``l_j`` the log-likelihood of the target given candidate j (teacher ``likelihood``), of the whole
target or per token (``emdr2.per``). The reader is frozen, so this is the retriever's half of both.

Where the target is itself a candidate its likelihood stands above the others by many nats and the loss tends to InfoNCE's;
``emdr2.mask_target: true`` takes it out of p.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.knobs import Recipes, Tuned
from dream.objectives import Given, register
from dream.objectives.taught import Taught, without_target

if TYPE_CHECKING:
    from dream.config import Config


class EMDR2Knobs(Tuned):
    """Settings of EMDR²."""

    per: Literal["sequence", "token"] = "sequence"
    """sequence: l_j sums over the target's tokens, as in the papers; token: their mean."""
    mask_target: bool = False
    """True: the passage that is the target takes no part in p."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("emdr2")
class EMDR2(Taught):
    """Marginal likelihood over the candidates.

    Args:
        teacher: question id → the judge's mean log-likelihood of the target given each candidate.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        tokens: question id → tokens of its target, for ``per="sequence"``.
        per, mask_target: see :class:`EMDR2Knobs`.
    """

    Knobs = EMDR2Knobs
    knobs: EMDR2Knobs
    teacher_name = "likelihood"

    def __init__(self, *args: Any, tokens: Mapping[str, int] | None = None, **own: Any) -> None:
        super().__init__(*args, **own)
        self.tokens = tokens or {}

    @classmethod
    def build(cls, knobs: Tuned, config: Config, given: Given, **more: Any) -> Self:
        return super().build(knobs, config, given, tokens=given.tokens, **more)

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        if self.knobs.per == "sequence":
            teacher = teacher * teacher.new_tensor([self._length(q.id) for q in candidates.questions])[:, None]
        if self.knobs.mask_target:
            student, teacher = without_target(student, candidates), without_target(teacher, candidates)
        return -(student.log_softmax(-1) + teacher).logsumexp(-1)

    def _length(self, question: str) -> int:
        if not (length := self.tokens.get(question)):
            raise DreamError(f"the teacher has no length of the target of question {question}", "Run `dvc repro teacher`")
        return length
