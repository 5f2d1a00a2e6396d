"""SQuAD-1k: paragraphs of Wikipedia articles, each article a group: the paper's shape with human questions.

``squad`` takes the questions of SQuAD; ``squad-generated`` takes the same paragraphs and asks the stage ``questions``
to write the questions, as the paper does, so that both kinds can be compared. If the task ``squad`` is evaluated in
the same run, its articles are split: see :func:`in_training`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pandas as pd

from dream.data import packaged
from dream.data.lists import of as evaluated
from dream.data.sources.base import Source, Tables
from dream.data.tables import frames

if TYPE_CHECKING:
    from dream.config import Config


def load(config: Config) -> Tables:
    """1,000 questions on 803 paragraphs of 48 articles (half of the articles if the task ``squad`` is evaluated)."""
    pairs = packaged.squad()
    if "squad" in evaluated(config):
        pairs = [pair for pair in pairs if in_training(pair.group)]
    return frames("squad", pairs)


def passages(config: Config) -> pd.DataFrame:
    """The paragraphs alone, under the name ``squad-generated``."""
    found = load(config)[0].assign(source="squad-generated")
    return found.assign(passage_id=found["passage_id"].str.replace("squad-", "squad-generated-"))


def in_training(article: str) -> bool:
    """Whether an article is trained on when SQuAD serves both training and evaluation: half of them, by hash."""
    return hashlib.sha256(article.encode()).digest()[0] % 2 == 0


SOURCE = Source(
    name="squad",
    natural="same_document",
    description="SQuAD-1k: questions on paragraphs of 48 Wikipedia articles",
    licence="CC BY-SA 4.0",
    load=load,
    assets=("squad",),
    reads=("tasks", "task_lists", "own"),
)
GENERATED = Source(
    name="squad-generated",
    natural="same_document",
    description="Paragraphs of SQuAD-1k with generated questions",
    licence="CC BY-SA 4.0",
    passages=passages,
    assets=("squad",),
    reads=("tasks", "task_lists", "own"),
)
