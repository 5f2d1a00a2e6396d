"""Training objectives, one file each, registered by name.

Adding an objective is adding one file to this folder: a class with the decorator ``@register("name")`` that fulfils
:class:`Objective`. Nothing else changes: the loop (``dream/training.py``), the instances, the encoder, LoRA, the
evaluation and the report take it by its name in ``objectives:`` of params.yaml. See docs/objectives.md.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dream.config import Config
from dream.errors import DreamError
from dream.instances import CandidateSet, plain

if TYPE_CHECKING:
    from dream.encoder import Encoder

REGISTRY: dict[str, type[Objective]] = {}


class Objective(nn.Module):
    """What the loop asks of an objective. Its own ``nn.Parameter``s (tau, gate) are optimised with the encoder's.

    Attributes:
        needs: of ``judge`` (:meth:`loss` asks the frozen LLM), ``lm`` (it trains the judge's model as its own), ``heads``
            (the judge's retrieval heads, where there is a signal), ``teacher`` (log-likelihoods of stage ``teacher``).
        needs_judge: True where :meth:`loss` asks the frozen LLM; the loop then loads it once per process.
        needs_teacher: True where :meth:`loss` reads the likelihoods that stage ``teacher`` computed once.
        expects_gradient: False for a control whose encoder cannot learn by design (no scores are injected); the loop
            then accepts a gradient of zero.
        no_gradient: what to do when the encoder gets no gradient in step 1, for the loop's error.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    needs_judge = False
    needs_teacher = False
    expects_gradient = True
    no_gradient = "Its loss does not depend on the scores: check the objective and its settings"

    def __init__(self, config: Config, judge: Any = None, heads: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.config = config
        self.flops = 0.0  # operations of the judge so far; the loop adds the encoder's
        self.step = 0  # set by the loop before every step

    def loss(self, sets: Sequence[CandidateSet], encoder: Encoder) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the sets (a scalar with a graph) and numbers for the training curves."""
        raise NotImplementedError

    def state(self) -> dict[str, float]:
        """The learned scalars in their natural unit (tau, gate), for the model's state.json."""
        return {}

    def save(self, folder: Path) -> None:
        """Write other trained weights than the encoder's into the model's folder; most objectives have none."""


def register(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: make an objective available under ``name``."""

    def add(cls: type[Objective]) -> type[Objective]:
        REGISTRY[name] = cls
        return cls

    return add


def find(name: str) -> type[Objective]:
    """The class behind a name in params.

    Raises:
        DreamError: no file in this folder registers the name.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        known = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(sorted(REGISTRY))}"
        raise DreamError(f"objectives: {name!r} is unknown", known)
    return REGISTRY[name]


def own_section(name: str) -> tuple[str, ...]:
    """The section of params.yaml that bears the objective's name, where there is one."""
    return (name,) if name in Config.model_fields else ()


class Temperature(nn.Module):
    """tau of ``p = softmax(s / tau)``: log tau is optimised, or kept fixed (paper, equation 5; [open])."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        log_tau = torch.tensor(config.temperature.init, dtype=torch.float32).log()
        if config.temperature.learned:
            self.log_tau = nn.Parameter(log_tau)
        else:
            self.register_buffer("log_tau", log_tau)

    def forward(self) -> Tensor:
        """The temperature, a positive scalar."""
        return self.log_tau.exp()


def similarities(sets: Sequence[CandidateSet], encoder: Encoder) -> list[Tensor]:
    """Cosine similarities of every set's questions and passages, in one pass of the encoder.

    Returns:
        One tensor ``[questions, K]`` a set, with a graph, in the range −1 to 1 (paper, equation 2).

    Raises:
        DreamError: see :func:`check_sets` and :func:`check_finite`.
    """
    check_sets(sets)
    texts = [text for s in sets for text in (*(q.text for q in s.questions), *s.passages)]
    vectors = iter(encoder.embed(texts).split([n for s in sets for n in (len(s.questions), len(s.passages))]))
    return [check_finite(queries @ passages.T) for queries, passages in zip(vectors, vectors, strict=True)]


def check_sets(sets: Sequence[CandidateSet]) -> None:
    """Stop at a batch that no objective is defined for.

    Raises:
        DreamError: there is no set, or a set has fewer than two candidates, no question, a question whose target is not
            among its candidates, or a second candidate with a target's text.
    """
    if not sets:
        raise DreamError("a training batch holds no candidate set", "Run `dvc repro candidates`")
    for s in sets:
        problem = (
            f"{len(s.passages)} candidates, at least two are needed" if len(s.passages) < 2
            else "no question" if not s.questions
            else "a question whose target is not a candidate" if any(not 0 <= q.gold < len(s.passages) for q in s.questions)
            else "a copy of a target among its negatives" if _copies(s)
            else None
        )  # fmt: skip
        if problem:
            raise DreamError(f"candidate set {s.id} has {problem}", "Run `dvc repro candidates`")


def _copies(s: CandidateSet) -> bool:
    """Whether a target's text stands twice in its set."""
    texts = list(map(plain, s.passages))
    return any(texts.count(texts[q.gold]) > 1 for q in s.questions)


def check_finite(scores: Tensor) -> Tensor:
    """Return similarities as they are; stop if one is NaN or infinite.

    Raises:
        DreamError: training diverged, or the encoder's dtype overflows.
    """
    if not scores.isfinite().all():
        raise DreamError(
            "the encoder's similarities are not finite",
            "Lower training.learning_rate, or set encoder.dtype to float32",
        )
    return scores


def gold(candidates: CandidateSet, device: torch.device) -> Tensor:
    """Index of every question's target among the candidates, ``[questions]``."""
    return torch.tensor([q.gold for q in candidates.questions], device=device)


@torch.no_grad()
def ranking_logs(scores: Sequence[Tensor], sets: Sequence[CandidateSet], tau: Tensor) -> dict[str, float]:
    """Mean rank of the gold candidate (1 = first) and mean entropy of p (nats), over all questions of a batch."""
    ranks, entropies = [], []
    for s, candidates in zip(scores, sets, strict=True):
        of_gold = s.gather(1, gold(candidates, s.device)[:, None])
        ranks.append((s > of_gold).sum(1).float() + 1)
        log_p = (s / tau).log_softmax(-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return {"gold_rank": torch.cat(ranks).mean().item(), "entropy": torch.cat(entropies).mean().item()}
