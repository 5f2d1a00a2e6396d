"""The paper's training data: Wikipedia articles cut into 16 chunks, with one generated question per article.

Articles of Tevatron/wikipedia-nq-corpus are streamed from the hub and joined from their consecutive rows; articles
are taken by a hash of their title, so that the draw does not follow the alphabet [open]. An article that is longer
than 16 chunks gives its first 16 [open]; shorter ones are left out. No public file states which commit of the repository the
paper used: the one that is read is that of its main branch, asked for once and told in the passages' notes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dream.assets import hub
from dream.data.sources.base import Source
from dream.data.tables import PASSAGES, text_id
from dream.errors import DreamError
from dream.files import cache_folder, replacing, value_hash

if TYPE_CHECKING:
    from dream.config import Config

DATASET = "Tevatron/wikipedia-nq-corpus"
CHUNKS = 16
ONE_IN = 4  # share of the titles that may be drawn


def passages(config: Config) -> pd.DataFrame:
    """Chunks of as many articles as there are instances to prepare, streamed once and kept in the cache."""
    wanted = _wanted(config)
    kept = _kept(config, wanted)
    if not kept.exists():
        commit = hub.dataset_commit(DATASET)
        rows = itertools.islice(chunked(articles(_stream(commit)), config.data.passage_words, config.data.seed), wanted)
        table = pd.DataFrame(_rows(rows, wanted), columns=PASSAGES)
        table.attrs["notes"] = [f"articles of {DATASET} at commit {commit}"]
        with replacing(kept) as temporary:
            table.to_parquet(temporary)
    return pd.read_parquet(kept)


def _wanted(config: Config) -> int:
    """Articles to chunk: as many as there are instances to prepare, and the held-out ones."""
    trained = config.data.instances / (config.questions.per_set * len(config.data.sources))
    return math.ceil(trained / (1 - config.data.development))


def _kept(config: Config, wanted: int) -> Path:
    key = value_hash([DATASET, wanted, config.data.passage_words, config.data.seed, CHUNKS, ONE_IN])[:16]
    return cache_folder() / "wikipedia" / f"{key}.parquet"


def _stream(commit: str) -> Iterable[dict]:
    from datasets import load_dataset

    try:
        return load_dataset(DATASET, revision=commit, split="train", streaming=True)
    except Exception as error:  # the hub's clients raise many kinds; each means that it cannot be had
        raise DreamError(
            f"data set {DATASET} cannot be read ({str(error).splitlines()[0][:150]})",
            "Check the network, then run again",
        ) from None


def articles(rows: Iterable[dict]) -> Iterator[tuple[str, list[str]]]:
    """(title, words) of every article: consecutive rows with the same title joined.

    >>> list(articles([{"title": "A", "text": "a b"}, {"title": "A", "text": "c"}, {"title": "B", "text": "d"}]))
    [('A', ['a', 'b', 'c']), ('B', ['d'])]
    """
    for title, group in itertools.groupby(rows, key=lambda row: row["title"]):
        yield title, [word for row in group for word in row["text"].split()]


def chunked(found: Iterable[tuple[str, list[str]]], words: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """(title, 16 chunks of ``words`` words) of the articles that are long enough and drawn by their title's hash."""
    for title, text in found:
        drawn = hashlib.sha256(f"{seed}\0{title}".encode()).digest()[0] % ONE_IN == 0
        if drawn and len(text) >= CHUNKS * words:
            yield title, [" ".join(text[i * words : (i + 1) * words]) for i in range(CHUNKS)]


def _rows(found: Iterable[tuple[str, list[str]]], total: int) -> Iterator[tuple[str, ...]]:
    from tqdm import tqdm

    for title, chunks in tqdm(found, total=total, desc="wikipedia articles", unit="article"):
        for chunk in chunks:
            yield text_id("wikipedia", title, chunk), "wikipedia", title, title, chunk


def check(config: Config) -> None:
    """The chunks are in the cache, or the hub can be reached."""
    wanted = _wanted(config)
    if not _kept(config, wanted).exists():
        hub.check_dataset(DATASET, wanted_by=" (data.sources: wikipedia)")


SOURCE = Source(
    name="wikipedia",
    natural="same_document",
    description="Wikipedia articles in 16 chunks, generated questions (the paper's data)",
    licence="CC BY-SA 3.0",
    passages=passages,
    check=check,
    reads=("data.sources", "data.instances", "data.development", "data.passage_words", "data.seed", "questions.per_set"),
)
