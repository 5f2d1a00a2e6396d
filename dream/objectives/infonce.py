"""InfoNCE: softmax cross-entropy of the positive against the other candidates (method.md, section 3).

``loss = − log softmax(s / tau)[gold]``, the same learned tau as DREAM. With ``infonce.in_batch_negatives`` the
passages of the other sets in the micro-batch are negatives too; a passage with the positive's text is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dream.instances import CandidateSet, plain
from dream.objectives import (
    Objective,
    Temperature,
    check_finite,
    check_sets,
    gold,
    ranking_logs,
    register,
    similarities,
)


@register("infonce")
class InfoNCE(Objective):
    """The contrastive baseline of the paper, on the same candidate sets."""

    def __init__(self, config, judge=None, heads=()) -> None:
        super().__init__(config)
        self.tau = Temperature(config)

    def loss(self, sets: Sequence[CandidateSet], encoder) -> tuple[Tensor, dict[str, float]]:
        if self.config.infonce.in_batch_negatives:
            return self._in_batch(sets, encoder)
        scores, tau = similarities(sets, encoder), self.tau()
        losses = [cross_entropy(s / tau, gold(c, s.device)) for s, c in zip(scores, sets, strict=True)]
        return torch.stack(losses).mean(), {"tau": tau.item(), **ranking_logs(scores, sets, tau)}

    def _in_batch(self, sets: Sequence[CandidateSet], encoder) -> tuple[Tensor, dict[str, float]]:
        """All passages of the micro-batch are candidates of every question."""
        check_sets(sets)
        passages = [text for s in sets for text in s.passages]
        texts = list(map(plain, passages))
        questions = [q.text for s in sets for q in s.questions]
        vectors = encoder.embed(questions + passages)
        scores = check_finite(vectors[: len(questions)] @ vectors[len(questions) :].T)
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
