"""What every objective trains on: candidate sets, each with K passages and one or more questions.

Files: ``work/data/passages.parquet`` (passage_id, source, group, title, text),
``work/data/instances.parquet`` (instance_id, source, group, query, target_id) and
``work/candidates/candidates.parquet`` (set_id, source, group, passage_ids, instance_ids, gold).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dream.errors import DreamError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Question:
    """A query whose target passage is candidate number ``gold`` of its set."""

    id: str
    text: str
    gold: int


@dataclass(frozen=True)
class CandidateSet:
    """K candidate passages (title and text joined) and the questions asked of them."""

    id: str
    source: str
    passage_ids: tuple[str, ...]
    passages: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def target(self) -> str:
        """Text of the first question's target passage."""
        return self.passages[self.questions[0].gold]


def passage_text(title: str, text: str) -> str:
    """Title and text joined by one space: the form in which mteb and BEIR encode a document.

    >>> passage_text("Oslo", "A city."), passage_text("", "A city.")
    ('Oslo A city.', 'A city.')
    """
    return f"{title} {text}".strip()


def plain(text: str) -> str:
    """A passage with single spaces: two that are equal so are one text, and a copy of a target is no negative.

    >>> plain("Oslo  A city.\\n")
    'Oslo A city.'
    """
    return " ".join(text.split())


def passage_texts(table: pd.DataFrame) -> Iterator[str]:
    """:func:`passage_text` of every row; columns title and text."""
    return map(passage_text, table["title"], table["text"])


def split(sets: Sequence[CandidateSet], probes: int) -> tuple[Sequence[CandidateSet], Sequence[CandidateSet]]:
    """The sets that are trained on, and the last ``probes`` sets.

    Heads are detected and the loss gap is measured on probes; no run trains on one.

    Raises:
        DreamError: the probes would take every set.
    """
    if probes >= len(sets):
        raise DreamError(
            f"{len(sets)} candidate sets are prepared, and heads.probes and injection.diagnostic take {probes} from training",
            "Raise data.instances or lower them",
        )
    return sets[:-probes], sets[-probes:]


def used(sets: Sequence[CandidateSet], steps: int, batch: int, block: int) -> Sequence[CandidateSet]:
    """The sets that training draws from: the first ``steps × batch``, up to a whole block, for every objective and seed.

    A run of more steps draws from these and more: see :func:`dream.training.order`.

    Raises:
        DreamError: there are fewer sets than one batch.
    """
    if len(sets) < batch:
        raise DreamError(
            f"training.batch is {batch}, but only {len(sets)} candidate sets are prepared",
            "Lower it or raise data.instances",
        )
    return sets[: math.ceil(steps * batch / block) * block]


def load_sets(data: Path | str = "work/data", candidates: Path | str = "work/candidates") -> list[CandidateSet]:
    """Read all candidate sets, in the order of the file.

    Raises:
        DreamError: a file is missing, an id appears twice, or a set names a passage or instance that the data does not hold.
    """
    import pandas as pd

    tables = {}
    for name, path, key in (
        ("passages", Path(data) / "passages.parquet", "passage_id"),
        ("instances", Path(data) / "instances.parquet", "instance_id"),
        ("sets", Path(candidates) / "candidates.parquet", "set_id"),
    ):
        if not path.exists():
            raise DreamError(f"{path} is missing", "Run `dvc repro` to make it")
        table = tables[name] = pd.read_parquet(path)
        if len(twice := table[key][table[key].duplicated()]):
            raise DreamError(f"{path}: {key} {twice.iloc[0]!r} appears twice", "Run `dvc repro`")
    passages = dict(zip(tables["passages"].passage_id, passage_texts(tables["passages"]), strict=True))
    queries = dict(zip(tables["instances"].instance_id, tables["instances"]["query"], strict=True))
    sets = []
    for row in tables["sets"].itertuples(index=False):
        try:
            sets.append(
                CandidateSet(
                    id=row.set_id,
                    source=row.source,
                    passage_ids=tuple(row.passage_ids),
                    passages=tuple(passages[i] for i in row.passage_ids),
                    questions=tuple(Question(i, queries[i], int(g)) for i, g in zip(row.instance_ids, row.gold, strict=True)),
                )
            )
        except KeyError as error:
            raise DreamError(
                f"{candidates}: set {row.set_id} names {error}, which {data} does not hold", "Run `dvc repro`"
            ) from None
    return sets
