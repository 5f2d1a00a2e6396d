"""DREAM: the next-token loss of a frozen judge on the target passage, given the retriever's scores (method.md, section 1).

``p = softmax(s / tau)`` over the K candidates is injected into the judge's selected heads with the gate
``g = sigmoid(gamma)`` (``dream/judge/attention.py``); the loss is the mean cross-entropy of the target's tokens. Its
gradient reaches the encoder, tau and gamma; the judge gets none.

Controls, one parameter each: ``injection.gate=off`` injects nothing and ``injection.scores=uniform`` injects
p = 1/K. Neither lets a gradient reach the encoder, which then stays as it was: the row that shows what training adds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dream.instances import CandidateSet
from dream.judge import Injection
from dream.judge.flops import fast_step
from dream.objectives import Objective, Temperature, ranking_logs, register, similarities


@register("dream")
class Dream(Objective):
    """The paper's objective."""

    needs_judge = True

    def __init__(self, config, judge=None, heads=()) -> None:
        super().__init__(config)
        knobs = config.injection
        # The judge is frozen and the same in every process: held outside the module tree, it is neither saved,
        # nor moved, nor synchronised with what is trained.
        self._held = (judge,)
        self.injection = Injection(heads=tuple(map(tuple, heads)), rows=knobs.rows, budget=knobs.budget)
        self.tau = Temperature(config)
        gamma = torch.logit(torch.tensor(knobs.gate_init, dtype=torch.float32))
        if knobs.gate == "learned":
            self.gamma = nn.Parameter(gamma)
        else:
            self.register_buffer("gamma", gamma)
        self.expects_gradient = knobs.gate != "off" and knobs.scores == "learned"
        if knobs.gate == "off":
            self.requires_grad_(False)

    @property
    def judge(self):
        """The frozen LLM."""
        return self._held[0]

    def loss(self, sets: Sequence[CandidateSet], encoder) -> tuple[Tensor, dict[str, float]]:
        scores, tau, gate = similarities(sets, encoder), self.tau(), self.gamma.sigmoid()
        losses, logs = [], {"tau": tau.item(), **ranking_logs(scores, sets, tau)}
        if self.config.injection.gate == "off":
            with torch.no_grad():
                plain = torch.stack([self.judge.target_losses(c).mean() for c in sets]).mean()
            return plain, logs | {"gate": 0.0}
        for s, candidates in zip(scores, sets, strict=True):
            p = (s / tau).softmax(-1) if self.config.injection.scores == "learned" else torch.full_like(s, 1 / s.shape[1])
            reading = self.judge.read(candidates)
            losses.append(self.judge.target_losses(candidates, p, gate, self.injection, reading=reading).mean())
            self._count(candidates)
            if len(losses) == 1:
                logs["gap"] = self._gap(candidates, gate, reading)
        return torch.stack(losses).mean(), logs | {"gate": gate.item()}

    @torch.no_grad()
    def _gap(self, candidates: CandidateSet, gate: Tensor, reading) -> float:
        """The signal in one set: its first question's loss with p on a wrong candidate minus with p on the gold one.

        One set a step, without a graph, on the documents that are read anyway.
        """
        first, k = candidates.questions[0], len(candidates.passages)
        right = torch.eye(k, device=gate.device)[first.gold]
        twice = dataclasses.replace(candidates, questions=(first, first))
        right_loss, wrong_loss = self.judge.target_losses(
            twice, torch.stack([right, right.roll(1)]), gate, self.injection, reading=reading
        )
        return (wrong_loss - right_loss).item()

    def _count(self, candidates: CandidateSet) -> None:
        """Add the operations of one set's step (``dream/judge/flops.py``)."""
        documents, suffixes = self.judge.prompt.documents(candidates), self.judge.prompt.suffixes(candidates)
        self.flops += fast_step(
            self.judge.model.config,
            len(documents.ids),
            [len(s.ids) - 1 for s in suffixes],
            sum(s.target[1] - s.target[0] for s in suffixes),
            min(layer for layer, _ in self.injection.heads),
        ).total

    def state(self) -> dict[str, float]:
        gate = 0.0 if self.config.injection.gate == "off" else self.gamma.sigmoid().item()
        return {"tau": self.tau().item(), "gate": gate}
