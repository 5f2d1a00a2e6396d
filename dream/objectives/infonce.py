"""InfoNCE: softmax cross-entropy of the positive against the other candidates (method.md, section 3).

``loss = − log softmax(s / tau)[gold]``, the same learned tau as DREAM. With ``infonce.in_batch_negatives`` the
passages of the other sets in the micro-batch are negatives too; a passage with the positive's text is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dream.errors import DreamError
from dream.instances import CandidateSet, plain
from dream.knobs import Recipes, Tuned
from dream.objectives import Given, Objective, Temperature, check_finite, gold, ranking_logs, register, similarities

if TYPE_CHECKING:
    from dream.config import Config


class InfoNCEKnobs(Tuned):
    """Settings of InfoNCE; the packaged ones by the search of docs/search.md."""

    in_batch_negatives: bool = False
    """Passages of the micro-batch's other sets as negatives (false = the paper); needs training.micro_batch > 1."""

    recipes: ClassVar[Recipes] = {"packaged": {"temperature": 0.02}, "paper": {"temperature": None}}


@register("infonce")
class InfoNCE(Objective):
    """The contrastive baseline of the paper, on the same candidate sets.

    Args:
        temperature: tau at the start.
        learn_temperature: whether log tau is optimised.
        in_batch_negatives: passages of the batch's other sets are negatives too.
    """

    Knobs = InfoNCEKnobs

    def __init__(self, temperature: float = 0.05, learn_temperature: bool = True, in_batch_negatives: bool = False) -> None:
        super().__init__()
        self.tau, self.in_batch_negatives = Temperature(temperature, learn_temperature), in_batch_negatives

    @classmethod
    def build(cls, knobs: InfoNCEKnobs, config: Config, given: Given) -> InfoNCE:
        return cls(config.temperature.init, config.temperature.learned, knobs.in_batch_negatives)

    @classmethod
    def check(cls, knobs: InfoNCEKnobs, config: Config) -> None:
        if knobs.in_batch_negatives and config.training.micro_batch == 1:
            raise DreamError(
                "infonce.in_batch_negatives: training.micro_batch is 1, so no other set is at hand to take negatives from",
                "Raise training.micro_batch",
            )

    def from_vectors(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        if self.in_batch_negatives:
            return self._in_batch(queries, passages, sets)
        scores, tau = similarities(queries, passages), self.tau()
        losses = [cross_entropy(s / tau, gold(c, s.device)) for s, c in zip(scores, sets, strict=True)]
        return torch.stack(losses).mean(), {"tau": tau.item(), **ranking_logs(scores, sets, tau)}

    def _in_batch(
        self, queries: Sequence[Tensor], passages: Sequence[Tensor], sets: Sequence[CandidateSet]
    ) -> tuple[Tensor, dict[str, float]]:
        """All passages of the micro-batch are candidates of every question."""
        texts = [plain(text) for s in sets for text in s.passages]
        scores = check_finite(torch.cat(list(queries)) @ torch.cat(list(passages)).T)
        tau, row, first, losses, own = self.tau(), 0, 0, [], []
        for candidates in sets:
            own.append(scores[row : row + len(candidates.questions), first : first + len(candidates.passages)])
            of_set = []
            for question in candidates.questions:
                positive = first + question.gold
                twin = torch.tensor(
                    [text == texts[positive] and i != positive for i, text in enumerate(texts)], device=scores.device
                )
                logits = (scores[row] / tau).masked_fill(twin, float("-inf"))
                of_set.append(cross_entropy(logits[None], torch.tensor([positive], device=scores.device)))
                row += 1
            losses.append(torch.stack(of_set).mean())
            first += len(candidates.passages)
        return torch.stack(losses).mean(), {"tau": tau.item(), **ranking_logs(own, sets, tau)}

    def state(self) -> dict[str, float]:
        return {"tau": self.tau().item()}
