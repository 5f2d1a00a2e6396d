"""Round-trip filter of generated questions: kept is what a retriever leads back to the passage it was written from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dream.candidates.bm25 import BM25Index
from dream.candidates.sets import Texts
from dream.instances import passage_texts

if TYPE_CHECKING:
    from dream.config import Config


def keep(questions: pd.DataFrame, passages: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The questions whose passage is among BM25's ``questions.round_trip`` best of all passages of its source.

    A passage with the same text is the same passage; a question without a word that any passage holds leads nowhere.

    Args:
        questions: source, target_id, query.
        passages: passage_id, title, text of every passage of the source, asked about or not.
        config: ``questions.round_trip`` (0 keeps all) and ``bm25``.

    Returns:
        Rows of ``questions`` in their order; ``attrs["wordless"]`` counts the questions without such a word (0 where
        all are kept).
    """
    k = config.questions.round_trip
    if not k or questions.empty:
        return questions
    index, texts = BM25Index(passage_texts(passages), config.bm25, list(passages["passage_id"])), Texts(passages)
    found, _ = index.search(list(questions["query"]), k)
    hit = [texts.of(target) in map(texts.of, names) for target, names in zip(questions["target_id"], found, strict=True)]
    kept = questions[hit].reset_index(drop=True)
    kept.attrs["wordless"] = sum(not len(names) for names in found)
    return kept
