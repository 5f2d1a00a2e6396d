"""Filter of generated questions by the judge's loss: kept is a question that makes its passage easier to write.

gain(q, y) = L(y | N/A) − L(y | q), in nats a token: the judge's mean cross-entropy on the target passage y in the prompt of
method.md, section 1, item 3, without any candidate, once after the content-free query of section 2 and once after the question.
A question that says nothing about its passage gains nothing, whatever its words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from dream.instances import CandidateSet, Question, passage_texts
from dream.judge.model import Judge

if TYPE_CHECKING:
    from dream.config import Config


@torch.no_grad()
def gains(judge: Judge, questions: list[str], targets: list[str]) -> np.ndarray:
    """The gain of every question on its target's text; both are cut to the judge's limits."""
    nothing = judge.read(judge.prompt.documents(CandidateSet("", "", (), (), ())))
    found = []
    for query, target in zip(tqdm(questions, desc="loss gap of questions", unit="question"), targets, strict=True):
        asked = CandidateSet("", "", ("",), (target,), (Question("", "", 0), Question("", query, 0)))
        empty, full = judge.target_losses(asked, reading=nothing).tolist()
        found.append(empty - full)
    return np.array(found)


def keep(questions: pd.DataFrame, passages: pd.DataFrame, config: Config, judge: Judge | None = None) -> pd.DataFrame:
    """The questions whose gain is above ``questions.gap_filter`` (null keeps all), in their order.

    Args:
        questions: source, target_id, query.
        passages: passage_id, title, text of their targets, and others.
        config: ``questions.gap_filter``, ``roles.judge`` and ``judge``.
        judge: by default the configuration's.
    """
    least = config.questions.gap_filter
    if least is None or questions.empty:
        return questions
    texts = dict(zip(passages["passage_id"], passage_texts(passages), strict=True))
    found = gains(judge or Judge.build(config), list(questions["query"]), [texts[name] for name in questions["target_id"]])
    return questions[found > least].reset_index(drop=True)
