"""DREAM: the next-token loss of a frozen judge on the target passage, given the retriever's scores (method.md, section 1).

``p = softmax(s / tau)`` over the K candidates is injected into the judge's selected heads with the gate
``g = sigmoid(gamma)`` (``dream/judge/attention.py``); the loss is the mean cross-entropy of the target's tokens. Its
gradient reaches the encoder, tau and gamma; the judge gets none.

Controls, one parameter each: ``injection.gate=off`` injects nothing and ``injection.scores=uniform`` injects
p = 1/K. Neither lets a gradient reach the encoder: nothing is learned, neither tau nor gate, and the encoder stays as it
was. It is the row that shows what training adds.

``dream.judge=lora`` is the paper's ablation: the judge's own LoRA is optimised together with the encoder's, with the same
learning rate and targets [open]. It is an objective's parameter like tau: clipped, checkpointed and resumed with the
others, saved beside the encoder's adapter as ``judge_adapter/`` and used by nothing afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dream.errors import DreamError
from dream.files import read_json, write_json
from dream.instances import CandidateSet
from dream.knobs import Positive, Recipes, Tuned
from dream.objectives import Given, Objective, Temperature, ranking_logs, register, similarities

if TYPE_CHECKING:
    from dream.config import Config
    from dream.judge import Judge
    from dream.judge.flops import Flops
    from dream.judge.model import Reading


class DreamKnobs(Tuned):
    """Settings of DREAM beside the section ``injection``; the packaged temperature by the search of docs/search.md."""

    judge: Literal["frozen", "lora"] = "frozen"
    """frozen: the paper's method; lora: the judge is trained with the encoder, its ablation."""
    r: Positive = 32
    """Rank of the judge's LoRA [open]."""
    alpha: Positive = 64
    """Its alpha [open]."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("dream")
class Dream(Objective):
    """The paper's objective.

    Args:
        judge: the frozen LLM.
        heads: its ``(layer, head)`` pairs into which p is injected.
        temperature, learn_temperature: tau at the start, and whether log tau is optimised.
        rows, budget: see :class:`dream.judge.Injection`.
        gate: ``learned``, ``fixed`` or ``off`` (nothing is injected: the control).
        gate_init: g at the start.
        scores: ``learned``, or ``uniform`` (p = 1/K: the control).
        gap_every: steps between measurements of the loss gap.
        lora: rank, alpha and targets (None: the attention projections) of a LoRA on the judge; None: it stays frozen.
    """

    Knobs = DreamKnobs
    needs = frozenset({"judge", "heads"})
    uses = ("dream/judge",)
    no_gradient = "Its loss does not depend on the scores: check heads, injection.rows and injection.gate"

    def __init__(
        self,
        judge: Judge,
        heads: Sequence[tuple[int, int]],
        temperature: float = 0.05,
        learn_temperature: bool = True,
        *,
        rows: str = "query",
        budget: str = "paper",
        gate: str = "learned",
        gate_init: float = 0.5,
        scores: str = "learned",
        gap_every: int = 4,
        lora: tuple[int, int, list[str] | None] | None = None,
    ) -> None:
        from dream.judge import Injection

        super().__init__()
        # A frozen judge is the same in every process: held outside the module tree, it is neither saved, nor moved,
        # nor synchronised with what is trained. With a LoRA it is inside.
        self._held = (judge,)
        self.injection = Injection(heads=tuple((layer, head) for layer, head in heads), rows=rows, budget=budget)
        self.tau = Temperature(temperature, learn_temperature)
        gamma = torch.logit(torch.tensor(gate_init, dtype=torch.float32))
        if gate == "learned":
            self.gamma = nn.Parameter(gamma)
        else:
            self.register_buffer("gamma", gamma)
        self.injects, self.uniform, self.gap_every = gate != "off", scores == "uniform", gap_every
        self.expects_gradient = self.injects and not self.uniform
        if not self.expects_gradient:
            self.requires_grad_(False)
        self.adapter: Any = judge.add_lora(*lora) if lora else None

    @classmethod
    def build(cls, knobs: DreamKnobs, config: Config, given: Given) -> Dream:
        start, injection = config.temperature, config.injection
        own = {name: getattr(injection, name) for name in ("rows", "budget", "gate", "gate_init", "scores", "gap_every")}
        if knobs.judge == "lora":
            own["lora"] = (knobs.r, knobs.alpha, config.roles["judge"].lora_targets)
        assert given.judge is not None
        return cls(given.judge, given.heads, start.init, start.learned, **own)

    @classmethod
    def check(cls, knobs: DreamKnobs, config: Config) -> None:
        if knobs.judge == "lora" and (config.injection.gate == "off" or config.injection.scores == "uniform"):
            raise DreamError(
                "dream.judge=lora trains the judge, but injection.gate=off and injection.scores=uniform train nothing",
                "Set dream.judge=frozen for these controls",
            )

    @property
    def judge(self) -> Judge:
        """The LLM, frozen unless ``dream.judge`` is lora."""
        return self._held[0]

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        scores, tau, gate = similarities(queries, passages), self.tau(), self.gamma.sigmoid()
        losses, logs = [], {"tau": tau.item(), **ranking_logs(scores, sets, tau)}
        for s, candidates in zip(scores, sets, strict=True):
            reading = self.judge.read(candidates)
            found = self.judge.target_losses(candidates, self._p(s, tau), gate, self.injection, reading=reading)
            losses.append(found.mean())
            self.flops += self._operations(candidates, reading, found.requires_grad).total
            if self.injects and len(losses) == 1 and self.step % self.gap_every == 0:
                logs["gap"] = self._gap(candidates, gate, reading)
        return torch.stack(losses).mean(), logs | {"gate": self.state()["gate"]}

    def _p(self, scores: Tensor, tau: Tensor) -> Tensor | None:
        """The distribution over candidates that is injected, ``[questions, K]``; None where nothing is."""
        if not self.injects:
            return None
        if self.uniform:
            return torch.full_like(scores, 1 / scores.shape[1])
        return (scores / tau).softmax(-1)

    @torch.no_grad()
    def _gap(self, candidates: CandidateSet, gate: Tensor, reading: Reading) -> float:
        """The signal in one set: its first question's loss with p on a wrong candidate minus with p on the gold one.

        Of a micro-batch's first set, every ``injection.gap_every`` steps, without a graph, on the documents read anyway.
        """
        first, k = candidates.questions[0], len(candidates.passages)
        right = torch.eye(k, device=gate.device)[first.gold]
        twice = dataclasses.replace(candidates, questions=(first, first))
        step = self._operations(twice, reading, graph=False)
        self.flops += step.suffixes + step.vocabulary  # the documents are read already
        right_loss, wrong_loss = self.judge.target_losses(
            twice, torch.stack([right, right.roll(1)]), gate, self.injection, reading=reading
        )
        return (wrong_loss - right_loss).item()

    def _operations(self, candidates: CandidateSet, reading: Reading, graph: bool) -> Flops:
        """Operations of one set's step, with a backward pass where the loss has a graph."""
        from dream.judge.flops import asked, fast_step

        lowest = min(layer for layer, _ in self.injection.heads) if graph else None
        adapter = sum(p.numel() for p in self.adapter.parameters() if p.requires_grad) if self.adapter else 0
        rows, targets = asked(self.judge.prompt.suffixes(candidates))
        return fast_step(self.judge.model.config, reading.length, rows, targets, lowest, adapter)

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item(), "gate": self.gamma.sigmoid().item() if self.injects else 0.0}

    def save(self, folder: Path) -> None:
        if self.adapter is None:
            return
        self.adapter.save_pretrained(folder / "judge_adapter", safe_serialization=True, save_embedding_layers=False)
        (folder / "judge_adapter" / "README.md").unlink()  # peft's empty model card
        settings = read_json(folder / "judge_adapter" / "adapter_config.json")
        settings |= {"target_modules": sorted(settings["target_modules"]), "base_model_name_or_path": self.judge.reference}
        write_json(folder / "judge_adapter" / "adapter_config.json", settings)
