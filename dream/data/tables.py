"""Small tools on tables of passages and queries: ids, grades, normalised text, seeded draws."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from dream.errors import DreamError

Tables = tuple[pd.DataFrame, pd.DataFrame]  # passages and instances
PASSAGES = ["passage_id", "source", "group", "title", "text"]
INSTANCES = ["instance_id", "source", "group", "query", "target_id"]
CORPUS = ["id", "title", "text"]
QUERIES = ["id", "text"]
QRELS = ["query_id", "doc_id", "relevance"]

LARGEST_GRADE = 10_000  # trec_eval allocates 8 bytes for every grade up to a query's largest; without memory it scores 0
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}  # control, format (zero-width, BOM), surrogate and separators
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # control, line separators, surrogates
_GRADE = re.compile(r"([+-]?)0*([0-9]+)(?:\.([0-9]*))?")


def check_id(name: str, place: str) -> None:
    """Stop at an id with a control character, a line separator or half a surrogate pair.

    The metrics' C library cuts an id at NUL, qrels and cells are tables of lines, and files are UTF-8.
    """
    if found := _UNFIT.search(name):
        raise DreamError(f"{place}: id {name!r} holds {found[0]!r}", "Choose ids without control characters and surrogates")


def grade(text: str, place: str) -> int:
    """A judgement's grade: a whole number in plain digits, ``1`` or ``1.0``, of at most :data:`LARGEST_GRADE` either way.

    >>> grade("1", ""), grade("2.0", ""), grade("-1", "")
    (1, 2, -1)
    """
    shown, parts = repr(text if len(text) <= 40 else f"{text[:37]}..."), _GRADE.fullmatch(text)
    if not parts:
        raise DreamError(f"{place}: score {shown} is not a number in plain digits", "Correct it, to 1 for example")
    sign, digits, decimals = parts.groups(default="")
    if decimals.strip("0"):
        raise DreamError(
            f"{place}: score {shown} is not a whole number", "trec_eval's gain is a whole grade: scale or round all scores"
        )
    if len(digits) > 9 or int(digits) > LARGEST_GRADE:
        raise DreamError(
            f"{place}: score {shown} is outside -{LARGEST_GRADE} to {LARGEST_GRADE}",
            "trec_eval keeps a counter for every grade up to the largest: scale the scores down",
        )
    return int(sign + digits)


def blank(text: str) -> bool:
    r"""Whether a text shows nothing: it is empty, or all spaces, control and zero-width characters (Unicode categories).

    >>> blank(" \n\u200b\ufeff"), blank("?")
    (True, False)
    """
    return all(unicodedata.category(character) in INVISIBLE for character in text)


def copies(corpus: pd.DataFrame, qrels: pd.DataFrame) -> list[str]:
    """A note that counts documents with the title and text of a relevant one that its query does not judge, if there are any.

    Args:
        corpus: id, title, text.
        qrels: query_id, doc_id, relevance; every pair once.
    """
    several = corpus[corpus.duplicated(["title", "text"], keep=False)]
    kind = dict(zip(several["id"], several.groupby(["title", "text"], sort=False).ngroup(), strict=True))
    asked: dict[int, set[str]] = {}
    for query, doc, relevance in qrels[QRELS].itertuples(index=False):
        if relevance > 0 and doc in kind:
            asked.setdefault(kind[doc], set()).add(query)
    pairs = zip(qrels["query_id"], qrels["doc_id"], strict=True)
    judged = Counter(doc for query, doc in pairs if query in asked.get(kind.get(doc, -1), ()))
    count = sum(judged[doc] < len(asked.get(number, ())) for doc, number in kind.items())
    note = f"{count} documents repeat the text of a relevant one and are not judged: a hit on one counts as wrong"
    return [note] if count else []


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
    """64-bit hash of the normalised text: a set of these stands for a set of texts in 1/20 of the memory.

    A text without a word ("?") is itself.
    """
    return int.from_bytes(hashlib.blake2b((normalise(text) or text.strip()).encode(), digest_size=8).digest())


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


def frames(source: str, pairs: Iterable[tuple[str, str, str, str]], extra: Iterable[tuple[str, str, str]] = ()) -> Tables:
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
