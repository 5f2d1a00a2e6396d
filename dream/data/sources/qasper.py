"""Qasper: yes/no questions about papers; the target is the evidence, the candidates the paper's paragraphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dream.data import packaged
from dream.data.sources.base import Source, Tables
from dream.data.tables import frames

if TYPE_CHECKING:
    from dream.config import Config


def load(config: Config) -> Tables:
    """Questions whose evidence stands verbatim in the paper; all paragraphs of 260 papers."""
    pairs, paragraphs = packaged.qasper()
    return frames("qasper", pairs, paragraphs)


SOURCE = Source(
    name="qasper",
    natural="same_document",
    description="Qasper: yes/no questions on paragraphs of research papers",
    licence="CC BY 4.0",
    load=load,
    assets=("qasper",),
)
