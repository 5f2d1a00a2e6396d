"""Small tools on tables of passages and queries: stable ids, normalised text, seeded draws."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

PASSAGES = ["passage_id", "source", "group", "title", "text"]
INSTANCES = ["instance_id", "source", "group", "query", "target_id"]
CORPUS = ["id", "title", "text"]
QUERIES = ["id", "text"]
QRELS = ["query_id", "doc_id", "relevance"]


def text_id(prefix: str, *parts: str) -> str:
    """An id that depends on nothing but the text: the same passage keeps its id in every draw.

    >>> text_id("squad", "Oslo", "A city.")
    'squad-42a87a177b7c2ccf'
    """
    return f"{prefix}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


_WORDS = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Lower case, words only, one space: two texts that differ in case, spacing or punctuation are the same.

    >>> normalise("Who  wrote “Emma”?")
    'who wrote emma'
    """
    return " ".join(_WORDS.findall(text.casefold()))


def fingerprint(text: str) -> int:
    """64-bit hash of the normalised text: a set of these stands for a set of texts in 1/20 of the memory."""
    return int.from_bytes(hashlib.blake2b(normalise(text).encode(), digest_size=8).digest())


def rng(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for every seed and name, so that adding one draw does not change another."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8])])


def draw(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Sorted positions of ``count`` of ``size`` rows (all of them if there are no more)."""
    return np.arange(size) if count >= size else np.sort(generator.choice(size, count, replace=False))


def quotas(available: Sequence[int], total: int) -> list[int]:
    """Share ``total`` evenly; what one has too few of goes to the others.

    >>> quotas([1000, 50, 1000], 300)
    [125, 50, 125]
    >>> quotas([10, 10], 100)
    [10, 10]
    """
    shares, left = [0] * len(available), total
    for place, index in enumerate(sorted(range(len(available)), key=lambda i: (available[i], i))):
        shares[index] = min(available[index], left // (len(available) - place))
        left -= shares[index]
    return shares


def frames(source: str, pairs: Iterable[tuple[str, str, str, str]], extra: Iterable[tuple[str, str, str]] = ()):
    """Passages and instances of a source.

    Args:
        source: its name.
        pairs: (query, group, title, text), the text being the query's target.
        extra: (group, title, text) of passages that no query asks about.

    Returns:
        passages (``PASSAGES``) and instances (``INSTANCES``), each id once, in the order of appearance.
    """
    passages: dict[str, tuple] = {}
    instances: dict[str, tuple] = {}
    for query, group, title, text in pairs:
        target = text_id(source, title, text)
        passages.setdefault(target, (target, source, group, title, text))
        instance = text_id(f"{source}-q", query, target)
        instances.setdefault(instance, (instance, source, group, query, target))
    for group, title, text in extra:
        passage = text_id(source, title, text)
        passages.setdefault(passage, (passage, source, group, title, text))
    return pd.DataFrame(passages.values(), columns=PASSAGES), pd.DataFrame(instances.values(), columns=INSTANCES)


def first_per(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Keep the first row of every value of ``column``."""
    return table.drop_duplicates(column).reset_index(drop=True)
