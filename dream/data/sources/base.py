"""What a training source is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from dream.data.tables import Tables

if TYPE_CHECKING:
    from dream.config import Config


FITTING = "fitting"  # natural strategy: same_document where the documents have enough passages, else bm25


def _nothing(config: Config) -> None:
    """A source that needs nothing beyond its assets."""


def _no_passages(config: Config) -> pd.DataFrame:
    raise NotImplementedError("a source gives load or passages")


@dataclass(frozen=True)
class Source:
    """One training source.

    Attributes:
        name: as in ``data.sources``.
        natural: candidate strategy that suits it (``candidates.source: auto``), or :data:`FITTING`.
        load: config → passages and instances (``attrs["notes"]``: what was left out); None where questions have to be generated.
        passages: config → passages alone, of sources whose questions are generated.
        assets: packaged data that it reads.
        check: stops with one line if something else that it needs is not at hand.
        reads: settings that its functions read, as ``section.knob``.
    """

    name: str
    natural: str
    description: str
    licence: str
    load: Callable[[Config], Tables] | None = None
    passages: Callable[[Config], pd.DataFrame] = _no_passages
    assets: tuple[str, ...] = ()
    check: Callable[[Config], None] = _nothing
    reads: tuple[str, ...] = ()

    @property
    def needs_questions(self) -> bool:
        """True if the source has passages but no questions of its own."""
        return self.load is None
