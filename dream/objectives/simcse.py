"""SimCSE: two dropout views of one text against the views of all others; no pairs, no judge (Gao et al. 2021, arXiv 2104.08821).

Every different text of the global batch, questions and passages alike, is embedded twice with other dropout:
``loss = − log softmax_j(z_i · z'_j / tau)[i]``, mean over the texts. It is the floor: what training gives without any label.
Dropout is the LoRA's. Its B is 0 at first, so the views of the first step are equal and only the other texts teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dream.errors import DreamError
from dream.instances import CandidateSet, plain
from dream.knobs import Fraction, Recipes, Tuned
from dream.objectives import Given, Objective, Temperature, check_finite, ranking_logs, register, vectors

if TYPE_CHECKING:
    from dream.config import Config
    from dream.encoder import Encoder


class SimCSEKnobs(Tuned):
    """Settings of SimCSE."""

    dropout: Fraction | None = 0.1
    """Dropout of the encoder's LoRA, in place of training.lora.dropout (null: that one); .1 is the paper's."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("simcse")
class SimCSE(Objective):
    """Contrast of dropout views.

    Args:
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
    """

    Knobs = SimCSEKnobs
    whole_batch = True

    def __init__(self, temperature: float = 0.05, learn_temperature: bool = True) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learn_temperature)

    @classmethod
    def build(cls, knobs: SimCSEKnobs, config: Config, given: Given) -> SimCSE:
        return cls(config.temperature.init, config.temperature.learned)

    @classmethod
    def check(cls, knobs: SimCSEKnobs, config: Config) -> None:
        where = "training.lora.dropout" if knobs.dropout is None else "simcse.dropout"
        if not (config.training.lora.dropout if knobs.dropout is None else knobs.dropout):
            raise DreamError(f"{where} is 0: both views of a text would be the same", "Raise it")

    def embed(self, sets: Sequence[CandidateSet], encoder: Encoder) -> tuple[list[Tensor], list[Tensor]]:
        """Both views of every set's texts, its questions first, ``[Q + K, d]`` each."""
        first, second = ([torch.cat(pair) for pair in zip(*vectors(sets, encoder), strict=True)] for _ in range(2))
        return first, second

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        """See :class:`Objective`; ``queries`` are the first views of every set's texts, ``passages`` the second ones."""
        texts = [plain(text) for s in sets for text in (*(q.text for q in s.questions), *s.passages)]
        once = sorted({text: place for place, text in reversed(list(enumerate(texts)))}.values())  # a copy is no negative
        first, second = (torch.cat(list(views))[once] for views in (queries, passages))
        scores, tau = check_finite(first @ second.T), self.tau()
        loss = cross_entropy(scores / tau, torch.arange(len(once), device=scores.device))
        asked = [a[: len(s.questions)] @ b[len(s.questions) :].T for a, b, s in zip(queries, passages, sets, strict=True)]
        return loss, {"tau": tau.item(), **ranking_logs(asked, sets, tau)}

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item()}
