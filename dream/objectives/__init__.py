"""Training objectives, one file each, registered by name.

Adding an objective is adding one file to this folder: a class with the decorator ``@register("name")`` that fulfils
:class:`Objective`, with its own knobs and what it needs of the judge. Nothing else changes: the configuration, the pipeline, the
loop (``dream/training.py``), the evaluation and the report take it by its name in ``objectives:`` of params.yaml. See
docs/objectives.md.

The classes take plain arguments, so that they are losses for anybody's training script (``dream/losses.py``);
:meth:`Objective.build` is the one place that reads a configuration. Heavy libraries are imported where they are used: the
configuration imports these files to know their knobs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dream import names
from dream.errors import DreamError
from dream.instances import CandidateSet, plain
from dream.knobs import Knobs

if TYPE_CHECKING:
    from dream.config import Config
    from dream.encoder import Encoder
    from dream.judge import Judge

REGISTRY: dict[str, type[Objective]] = {}


@dataclass(frozen=True)
class Given:
    """What an objective is given, as far as it needs it: the judge, its retrieval heads, a teacher's table by question.

    ``tokens`` counts the target tokens of every question, where the teacher reads a target.
    """

    judge: Judge | None = None
    heads: Sequence[tuple[int, int]] = ()
    teacher: dict[str, Sequence[float]] | None = None
    tokens: dict[str, int] | None = None


class Objective(nn.Module):
    """What the loop asks of an objective. Its own ``nn.Parameter``s (tau, gate) are optimised with the encoder's.

    Attributes:
        Knobs: its own settings, with the values of every recipe.
        needs: of ``judge`` (:meth:`loss` asks the frozen LLM), ``lm`` (it trains the judge's model as its own), ``heads``
            (the judge's retrieval heads, where there is a signal), ``teacher`` (the table of stage ``teacher``).
        teacher_name: the teacher in ``dream/teachers.py`` that it learns from; see :meth:`taught_by`.
        uses: code that it depends on beside its own file and what all objectives share.
        whole_batch: its loss is one of the whole global batch, not a mean over sets; the loop then caches gradients.
        expects_gradient: False for a control whose encoder cannot learn by design (no scores are injected); the loop
            then accepts a gradient of zero.
        no_gradient: what to do when the encoder gets no gradient in step 1, for the loop's error.
    """

    Knobs: ClassVar[type[Knobs]] = Knobs
    needs: ClassVar[frozenset[str]] = frozenset()
    teacher_name: ClassVar[str | None] = None
    uses: ClassVar[tuple[str, ...]] = ()
    whole_batch = False
    expects_gradient = True
    no_gradient = "Its loss does not depend on the scores: check the objective and its settings"

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0  # operations of the judge so far; the loop adds the encoder's
        self.step = 0  # set by the loop before every step

    @classmethod
    def build(cls, knobs: Any, config: Config, given: Given) -> Self:
        """The objective that a configuration describes.

        Args:
            knobs: its own :attr:`Knobs`.
            config: the sections ``temperature``, ``training`` and, where it needs the judge, ``injection`` and ``judge``.
            given: what it needs.
        """
        raise NotImplementedError

    @classmethod
    def taught_by(cls, knobs: Any) -> str | None:
        """The teacher that it needs with these knobs: a name in ``dream/teachers.py``, ``models.<name>``, or None."""
        return cls.teacher_name

    @classmethod
    def check(cls, knobs: Any, config: Config) -> None:
        """Stop, before anything runs, at knobs that do not go with the rest of the configuration."""

    def loss(self, sets: Sequence[CandidateSet], encoder: Encoder) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the sets (a scalar with a graph) and numbers for the training curves."""
        return self.from_vectors(*self.embed(sets, encoder), sets)

    def embed(self, sets: Sequence[CandidateSet], encoder: Encoder) -> tuple[list[Tensor], list[Tensor]]:
        """What :meth:`from_vectors` reads, from the encoder. See :func:`vectors`."""
        return vectors(sets, encoder)

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        """:meth:`loss` of vectors from any encoder.

        Args:
            queries: unit vectors of every set's questions, ``[Q, d]`` each.
            passages: unit vectors of every set's candidates, ``[K, d]`` each.
            sets: their texts and targets.
        """
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
    if name not in REGISTRY:
        known = names.registered("objectives")
        if name not in known:
            raise DreamError(f"objectives: {name!r} is unknown", names.hint(name, known))
        importlib.import_module(f"{__name__}.{known[name]}")
    return REGISTRY[name]


class Temperature(nn.Module):
    """tau of ``p = softmax(s / tau)``: log tau is optimised, or kept fixed (paper, equation 5; [open])."""

    def __init__(self, start: float, learned: bool = True) -> None:
        super().__init__()
        log_tau = torch.tensor(start, dtype=torch.float32).log()
        if learned:
            self.log_tau = nn.Parameter(log_tau)
        else:
            self.register_buffer("log_tau", log_tau)

    def forward(self) -> Tensor:
        """The temperature, a positive scalar."""
        return self.log_tau.exp()


def vectors(sets: Sequence[CandidateSet], encoder: Encoder) -> tuple[list[Tensor], list[Tensor]]:
    """Unit vectors of every set's questions ``[Q, d]`` and passages ``[K, d]``, in one pass of the encoder, with its prompts.

    Raises:
        DreamError: see :func:`check_sets`.
    """
    check_sets(sets)
    texts = [
        text
        for s in sets
        for text in (*(encoder.query_prompt + q.text for q in s.questions), *(encoder.document_prompt + p for p in s.passages))
    ]
    parts = encoder.embed(texts).split([n for s in sets for n in (len(s.questions), len(s.passages))])
    return list(parts[::2]), list(parts[1::2])


def similarities(queries: Sequence[Tensor], passages: Sequence[Tensor]) -> list[Tensor]:
    """Cosine similarities of every set's questions and passages, ``[Q, K]`` each, with a graph (paper, equation 2).

    Raises:
        DreamError: see :func:`check_finite`.
    """
    return [check_finite(q @ p.T) for q, p in zip(queries, passages, strict=True)]


def load_teacher(path: Path) -> tuple[dict[str, Sequence[float]], dict[str, int]]:
    """A teacher's numbers per question id, each a list over the K candidates in the order of the set, and its target's tokens."""
    import pandas as pd

    if not path.exists():
        raise DreamError(f"{path} is missing", "Run `dvc repro teacher`")
    table = pd.read_parquet(path)
    if missing := {"instance_id", "scores", "tokens"} - set(table.columns):
        raise DreamError(f"{path} has no column {min(missing)}", "Run `dvc repro -f teacher`")
    return dict(zip(table.instance_id, table.scores, strict=True)), dict(zip(table.instance_id, table.tokens, strict=True))


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
            "Lower training.learning_rate, or set the encoder's dtype to float32 (models in params.yaml)",
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
