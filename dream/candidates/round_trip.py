"""Round-trip filter of generated questions: kept is what a retriever leads back to the passage it was written from."""

from __future__ import annotations

import pandas as pd

from dream.candidates.bm25 import BM25Index
from dream.config import Config
from dream.instances import passage_texts


def keep(questions: pd.DataFrame, passages: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The questions whose passage is among BM25's ``questions.round_trip`` best of all passages of its source.

    Args:
        questions: source, target_id, query.
        passages: passage_id, title, text of every passage of the source, asked about or not.
        config: ``questions.round_trip`` (0 keeps all) and ``bm25``.

    Returns:
        Rows of ``questions`` in their order.
    """
    k = config.questions.round_trip
    if not k or questions.empty:
        return questions
    found, _ = BM25Index(passage_texts(passages), config.bm25, list(passages["passage_id"])).search(list(questions["query"]), k)
    hit = [target in set(row) for target, row in zip(questions["target_id"], found, strict=True)]
    return questions[hit].reset_index(drop=True)
