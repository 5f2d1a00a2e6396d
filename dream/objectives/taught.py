"""What objectives share that learn from a teacher's table (``dream/teachers.py``): reading it, tau, and KL(teacher ‖ student)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.knobs import Tuned
from dream.objectives import Given, Objective, Temperature, ranking_logs, similarities

if TYPE_CHECKING:
    from dream.config import Config


class Taught(Objective):
    """An objective whose loss of a question is a function of its similarities and of the teacher's K numbers.

    Args:
        teacher: question id → K numbers in the order of the set.
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        own: knobs of the objective's own; the others are as its ``Knobs`` say.
    """

    knobs: Any
    needs = frozenset({"teacher"})
    uses = ("dream/objectives/taught.py",)

    def __init__(
        self, teacher: Mapping[str, Sequence[float]], temperature: float = 0.05, learn_temperature: bool = True, **own: Any
    ) -> None:
        super().__init__()
        self.tau, self.teacher, self.knobs = Temperature(temperature, learn_temperature), teacher, self.Knobs(**own)

    @classmethod
    def build(cls, knobs: Tuned, config: Config, given: Given, **more: Any) -> Self:
        """See :class:`Objective`; knobs that no other objective has are arguments of the same name, ``more`` are further ones."""
        own = knobs.model_dump(exclude=set(Tuned.model_fields))
        return cls(given.teacher or {}, config.temperature.init, config.temperature.learned, **own, **more)

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        scores, tau = similarities(queries, passages), self.tau()
        losses = [self.losses(s / tau, table(self.teacher, c, s), c) for s, c in zip(scores, sets, strict=True)]
        return torch.cat(losses).mean(), {"tau": tau.item(), **ranking_logs(scores, sets, tau)}

    def losses(self, student: Tensor, teacher: Tensor, candidates: CandidateSet) -> Tensor:
        """Loss of every question of a set, ``[Q]``, from ``s / tau`` and the teacher's numbers, ``[Q, K]`` both."""
        raise NotImplementedError

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item()}


def table(teacher: Mapping[str, Sequence[float]], candidates: CandidateSet, scores: Tensor) -> Tensor:
    """The teacher's numbers for a set, ``[Q, K]``, with dtype and device of ``scores``.

    Raises:
        DreamError: the teacher has none for a question, others than K, or one that is not finite.
    """
    rows = []
    for question in candidates.questions:
        values = teacher.get(question.id)
        if values is None or len(values) != len(candidates.passages):
            raise DreamError(f"the teacher has no scores for question {question.id}", "Run `dvc repro teacher`")
        if not all(map(math.isfinite, values)):
            raise DreamError(
                f"the teacher's score of question {question.id} is not finite",
                "Set the dtype of the teacher's model to float32 and run `dvc repro teacher`",
            )
        rows.append(list(values))
    return torch.tensor(rows, dtype=scores.dtype, device=scores.device)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of every row, ``[Q]``."""
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def without_target(scores: Tensor, candidates: CandidateSet) -> Tensor:
    """``[Q, K - 1]``: every row without the passage that is its question's target."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[range(len(scores)), [q.gold for q in candidates.questions]] = False
    return scores[keep].view(len(scores), -1)
