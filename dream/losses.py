"""DREAM, InfoNCE and REPLUG as losses of sentence-transformers, for ``SentenceTransformerTrainer``.

The dataset has the columns of the library's other losses, in this order: the anchor (a query), the positive (its target
passage) and one or more negatives; names do not matter, and a label column is not read. A row is one candidate set with one
question, a batch is the mean over its rows.

A trainer gives a loss token ids, but DREAM's judge reads texts. :class:`TextCollator` leaves the texts of every batch beside
their tokens. So a loss has the texts of exactly what was encoded, from whatever dataset and in whatever order: there is no row
number that could point into another one.

The candidates of a row are shuffled (:func:`candidate_set`): a judge that reads them in order would else learn that the first
one is the target. The order depends on the row's texts and the seed alone, so a row has the same one in every epoch and batch,
as a set of the pipeline has (``dream/candidates``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from torch.nn.functional import normalize

from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.judge import Judge
from dream.objectives import Objective, check_sets
from dream.objectives.dream import Dream
from dream.objectives.infonce import InfoNCE
from dream.objectives.replug import RePlug

TEXT = "text"  # of a column's features: the texts that its tokens were made of


@dataclass
class TextCollator(SentenceTransformerDataCollator):
    """The trainer's own collator, which leaves every column's texts (without prompts) beside its tokens.

    A trainer that is given a collator does not tell it the training arguments' prompts:
    ``TextCollator(model.preprocess, prompts=args.prompts)``.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        columns = [name for row in features[:1] for name in row if f"{name}_input_ids" in batch]
        return batch | {f"{name}_{TEXT}": [row[name] for row in features] for name in columns}


def candidate_set(anchor: str, positive: str, *negatives: str, seed: int = 0) -> CandidateSet:
    """One row of a dataset as a candidate set: the passages in shuffled order, and the question.

    The head detection (:func:`dream.judge.heads.detect`) reads such sets too.

    Args:
        anchor, positive, negatives: the row's texts.
        seed: another seed is another order.

    Raises:
        DreamError: there is no negative, or one has the positive's text; the line names the anchor.
    """
    passages, order = (positive, *negatives), shuffled(anchor, (positive, *negatives), seed)
    found = CandidateSet(
        id=repr(anchor if len(anchor) <= 60 else f"{anchor[:57]}..."),
        source="",
        passage_ids=tuple(f"negative_{i}" if i else "positive" for i in order),
        passages=tuple(passages[i] for i in order),
        questions=(Question(_digest(anchor, *passages).hex(), anchor, order.index(0)),),
    )
    try:
        check_sets([found])
    except DreamError as error:
        raise DreamError(error.what, "Mend this row of the dataset: anchor, positive, negative_1, …") from None
    return found


def shuffled(anchor: str, passages: Sequence[str], seed: int = 0) -> list[int]:
    """Places of a row's passages in the order of their hashes with the anchor: it says nothing about where they stood.

    >>> shuffled("Oslo?", ["A city.", "A river.", "A lake."]), shuffled("Oslo?", ["A lake.", "A river.", "A city."])
    ([0, 2, 1], [2, 0, 1])
    """
    return sorted(range(len(passages)), key=lambda i: _digest(str(seed), anchor, passages[i]))


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()


class ObjectiveLoss(nn.Module):
    """Any objective that is a function of the vectors of questions and candidates, as a loss of sentence-transformers.

    What the objective learns itself (log tau, gamma) are parameters of the loss, which the trainer optimises. They move little
    at the rate of the weights; ``learning_rate_mapping={"log_tau|gamma": 0.05}`` of the training arguments gives them their own.

    Args:
        model: the encoder that is trained. Its vectors are scaled to unit length here, whether or not it does so itself.
        objective: the objective.
        seed: of the candidates' order.

    Attributes:
        logs: numbers of the last batch, with DREAM tau, gate, gold_rank (1 = first), entropy (nats) and, every few steps,
            the loss gap (nats a token).

    Raises:
        DreamError: the objective embeds other texts too (Revela).
    """

    def __init__(self, model: SentenceTransformer, objective: Objective, seed: int = 0) -> None:
        super().__init__()
        if type(objective).from_vectors is Objective.from_vectors:
            raise DreamError(
                f"{type(objective).__name__} is no function of the vectors of questions and candidates",
                "Choose another objective, or train with dream.training",
            )
        self.model, self.objective, self.seed = model, objective, seed
        self.logs: dict[str, float] = {}

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Mean loss of a batch, a scalar with a graph to the model.

        Args:
            sentence_features: of every column, anchor first: tokens as the model's ``preprocess`` makes them, and their texts.
            labels: not read.

        Raises:
            DreamError: the texts are not there, or a row is no candidate set.
        """
        columns = list(sentence_features)
        rows = _rows(columns)
        sets = self.sets(rows)
        anchors, *passages = embed_columns(self.model, [{k: v for k, v in c.items() if k != TEXT} for c in columns])
        queries = normalize(anchors.float(), dim=-1)[:, None]  # [batch, 1, d]
        stacked = normalize(torch.stack(passages, dim=1).float(), dim=-1)  # [batch, K, d]
        candidates = [own[shuffled(row[0], row[1:], self.seed)] for own, row in zip(stacked, rows, strict=True)]
        loss, self.logs = self.objective.from_vectors(list(queries), candidates, sets)
        self.objective.step += self.model.training
        return loss

    def sets(self, rows: Sequence[Sequence[str]]) -> list[CandidateSet]:
        """The candidate sets of a batch's rows."""
        return [candidate_set(*row, seed=self.seed) for row in rows]

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows of the loss."""
        return {"objective": type(self.objective).__name__, "seed": self.seed, **self.objective.state()}


def _rows(columns: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The texts of a batch by row: anchor, positive, negatives."""
    if len(columns) < 3:
        raise DreamError(
            f"the dataset has {len(columns)} columns of text, at least three are needed",
            "Give it an anchor, a positive and one or more negatives, in this order",
        )
    if any(TEXT not in column for column in columns):
        raise DreamError(
            "the batch holds tokens without the texts that they were made of, which the judge reads",
            "Give the trainer data_collator=TextCollator(model.preprocess, prompts=args.prompts)",
        )
    return list(zip(*(column[TEXT] for column in columns), strict=True))


class DreamLoss(ObjectiveLoss):
    """DREAM: the next-token loss of a frozen judge on the positive, given the model's scores (paper, equation 10).

    Args:
        model, seed: see :class:`ObjectiveLoss`.
        judge: the frozen LLM.
        heads: its ``(layer, head)`` pairs that get the scores, such as ``ranked(detect(judge, sets).mean)[:16]`` of
            :mod:`dream.judge.heads`.
        temperature, learn_temperature: tau at the start, and whether log tau is optimised.
        options: of :class:`dream.objectives.dream.Dream`: rows, budget, gate, gate_init, scores, gap_every, lora.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        judge: Judge,
        heads: Sequence[tuple[int, int]],
        temperature: float = 0.05,
        learn_temperature: bool = True,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, Dream(judge, heads, temperature, learn_temperature, **options), seed)


class InfoNCELoss(ObjectiveLoss):
    """InfoNCE: softmax cross-entropy of the positive against its row's negatives, with a learned temperature.

    Args:
        model: see :class:`ObjectiveLoss`.
        temperature, learn_temperature: tau at the start, and whether log tau is optimised.
        options: of :class:`dream.objectives.infonce.InfoNCE`; ``negatives="batch"`` takes the passages of the batch's other
            rows too, but for copies of the positive.
    """

    def __init__(
        self, model: SentenceTransformer, temperature: float = 0.05, learn_temperature: bool = True, **options: Any
    ) -> None:
        super().__init__(model, InfoNCE(temperature, learn_temperature, **options))


class ReplugLoss(ObjectiveLoss):
    """REPLUG LSR: the model imitates how much each candidate helps the judge on the positive.

    The judge reads a row when it first comes, with one candidate at a time; K numbers a row are kept for the next epochs.

    Args:
        model: see :class:`ObjectiveLoss`.
        judge: the frozen LLM.
        temperature, learn_temperature: tau at the start, and whether log tau is optimised.
        options: of :class:`dream.objectives.replug.RePlug`: direction, tau_lm, mask_target.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        judge: Judge,
        temperature: float = 0.05,
        learn_temperature: bool = True,
        **options: Any,
    ) -> None:
        teacher: dict[str, Sequence[float]] = {}
        super().__init__(model, RePlug(teacher, temperature, learn_temperature, **options))
        self.judge, self.teacher = judge, teacher

    def sets(self, rows: Sequence[Sequence[str]]) -> list[CandidateSet]:
        sets = super().sets(rows)
        for candidates in sets:
            (question,) = candidates.questions
            if question.id not in self.teacher:
                self.teacher[question.id] = self.judge.passage_log_likelihood(candidates)[0].tolist()
        return sets
