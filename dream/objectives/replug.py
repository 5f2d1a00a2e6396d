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
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.objectives import Objective, Temperature, gold, ranking_logs, register, similarities

TEACHER = Path("work/teacher/replug/teacher.parquet")


@register("replug")
class RePlug(Objective):
    """Distillation of the frozen LM's preferences."""

    needs = frozenset({"teacher"})
    needs_teacher = True

    def __init__(self, config, judge=None, heads=(), teacher: dict[str, Sequence[float]] | None = None) -> None:
        super().__init__(config)
        self.tau, self.knobs = Temperature(config), config.replug
        self.teacher = teacher if teacher is not None else load_teacher()

    def loss(self, sets: Sequence[CandidateSet], encoder) -> tuple[Tensor, dict[str, float]]:
        scores, tau = similarities(sets, encoder), self.tau()
        losses = torch.cat([self._divergence(s, c, tau) for s, c in zip(scores, sets, strict=True)])
        return losses.mean(), {"tau": tau.item(), **ranking_logs(scores, sets, tau)}

    def _divergence(self, scores: Tensor, candidates: CandidateSet, tau: Tensor) -> Tensor:
        """KL of every question of a set, ``[questions]``."""
        teacher = [self._likelihoods(q.id, candidates) for q in candidates.questions]
        teacher = torch.tensor(teacher, dtype=scores.dtype, device=scores.device)
        student, teacher = scores / tau, teacher / self.knobs.tau_lm
        if self.knobs.mask_target:
            keep = torch.ones_like(scores, dtype=torch.bool)
            keep[torch.arange(len(scores)), gold(candidates, scores.device)] = False
            student, teacher = (x[keep].view(len(scores), -1) for x in (student, teacher))
        log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
        if self.knobs.direction == "teacher_student":
            return (log_q.exp() * (log_q - log_p)).sum(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def _likelihoods(self, question: str, candidates: CandidateSet) -> list[float]:
        values = self.teacher.get(question)
        if values is None or len(values) != len(candidates.passages):
            raise DreamError(f"{TEACHER} has no teacher scores for question {question}", "Run `dvc repro teacher`")
        if not all(map(math.isfinite, values)):
            raise DreamError(
                f"{TEACHER}: a score of question {question} is not finite",
                "Set judge.dtype to float32 and run `dvc repro teacher`",
            )
        return list(values)

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item()}


def load_teacher(path: Path = TEACHER) -> dict[str, Sequence[float]]:
    """Mean log-likelihoods per question id, each a list over the K candidates in the order of the set."""
    if not path.exists():
        raise DreamError(f"{path} is missing", "Run `dvc repro teacher`")
    table = pd.read_parquet(path)
    return dict(zip(table.instance_id, table.log_likelihoods, strict=True))
