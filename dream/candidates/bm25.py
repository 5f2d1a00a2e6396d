"""BM25 with one analyser for candidates and for the BM25 row of the tables: bm25s (Lucene's formula) and Snowball.

Lower case, words of two letters or more (``bm25s``'s pattern; with ``bm25.tokenizer: auto`` see :func:`words_and_pairs`),
optional English stop words, optional Snowball stemmer. A document that shares no word with the query is no hit. Ranking
does not depend on batches or on the order of insertion: ties in score go to the smaller id.

Texts are read once, in turn, and kept as numbers: four bytes a word, and eight bytes for every word of a document in the
index. A search scores every document, in a large index only those that can be among the k best: the same bits either way.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

if TYPE_CHECKING:
    from dream.config.sections import BM25


WORDS = re.compile(r"(?u)\b\w\w+\b")  # bm25s's own pattern
LARGE = 100_000  # documents; in a smaller index it is faster to score all of them
# Letters of scripts that set no spaces: those of Lucene's CJKAnalyzer, and what Unicode's line breaking (UAX 14) leaves to
# a dictionary: Thai, Lao, Khmer, Burmese …
_CJK = "".join(rf"\p{{scx={script}}}" for script in ("Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "Yi"))
_SPACELESS = rf"[[{_CJK}\p{{lb=SA}}]&&[\p{{L}}\p{{M}}\p{{N}}]]"
# Letters, digits and the marks that are vowels (Hindi, Tamil, Arabic …), which Python's \w leaves out.
_LETTER = r"[\p{L}\p{N}_[\p{M}--\p{Script=Inherited}][\p{M}&&\p{scx=Arab}]]"
_PIECE = regex.compile(rf"(?P<stretch>{_SPACELESS}+)|[{_LETTER}--{_SPACELESS}]{{2,}}", regex.V1)


def words_and_pairs(text: str) -> list[str]:
    """Words of two characters or more; in scripts without spaces every two neighbours, as Lucene's CJKAnalyzer does.

    A character is what a reader takes for one (a letter with its marks); one that stands alone is a word. In Latin
    script these are the words of ``bm25.tokenizer: words``.

    >>> words_and_pairs("a tokyo 東京都 2 で"), words_and_pairs("ที่นี่ हिन्दी")
    (['tokyo', '東京', '京都', 'で'], ['ที่นี่', 'हिन्दी'])
    """
    if text.isascii():
        return WORDS.findall(text)  # the same words in a third of the time
    found = []
    for piece in _PIECE.finditer(text):
        if (stretch := piece["stretch"]) is None:
            found.append(piece[0])
            continue
        characters = regex.findall(r"\X", unicodedata.normalize("NFKC", stretch))
        found += map("".join, pairwise(characters)) if len(characters) > 1 else characters
    return found


def new_tokenizer(settings: BM25) -> Any:
    """bm25s's tokenizer as ``config.bm25`` describes it."""
    import bm25s
    import Stemmer

    return bm25s.tokenization.Tokenizer(
        lower=True,
        stopwords="en" if settings.stopwords == "english" else [],
        stemmer=Stemmer.Stemmer("english") if settings.stemmer == "english" else None,
        splitter=words_and_pairs if settings.tokenizer == "auto" else WORDS.findall,
    )


def describe(settings: BM25) -> str:
    """The analyser in words, for a table's footnote."""
    pairs = ", in scripts without spaces every two neighbouring characters (as Lucene's CJKAnalyzer)"
    return (
        f"bm25s, Lucene's formula, k1 {settings.k1}, b {settings.b}, stemmer {settings.stemmer}, "
        f"stop words {settings.stopwords}, lower case, words of two or more characters"
        f"{pairs if settings.tokenizer == 'auto' else ''}"
    )


class BM25Index:
    """An index over texts.

    Args:
        texts: documents, title and text joined; read once.
        settings: ``config.bm25``.
        ids: one per text, unique; ties go to the smaller one. Default: the texts' positions.
        progress: show progress bars.
    """

    def __init__(self, texts: Iterable[str], settings: BM25, ids: Sequence[str] | None = None, progress: bool = False) -> None:
        import bm25s

        self.progress = progress
        self._tokenizer = new_tokenizer(settings)
        documents = Documents(self._tokens(texts, learn=True))
        self.ids = np.array(ids if ids is not None else range(len(documents)), dtype=object)
        # documents stand in the order of their ids, so that a stable sort by score breaks ties by id
        documents.order = np.argsort(self.ids, kind="stable")
        self.ids = self.ids[documents.order]
        vocabulary = self._tokenizer.get_vocab_dict()
        kept: Documents | list[list[int]] = documents
        if not documents.words:  # nothing but stop words: every score is 0
            kept, vocabulary = [[0]] * len(self.ids), {"": 0}
        self._index = bm25s.BM25(method="lucene", k1=settings.k1, b=settings.b, csc_backend="scipy")
        self._index.index(bm25s.tokenization.Tokenized(kept, dict(vocabulary)), show_progress=progress)
        self._finder = TopDocuments(self._index)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Sequence[str], k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The k best documents of every query that share a word with it.

        Args:
            queries: texts.
            k: at most so many documents; fewer where fewer score above 0.

        Returns:
            For every query its ids, and their scores (float32, above 0), by score downwards, then by id.
        """
        from tqdm import tqdm

        ids, scores = [], []
        asked = tqdm(queries, desc="BM25", unit="query", disable=not self.progress, mininterval=1)
        for tokens in self._tokens(asked):
            best, found = self._finder(tokens, min(k, len(self)))
            ids.append(self.ids[best])
            scores.append(found)
        return ids, scores

    def _tokens(self, texts: Iterable[str], learn: bool = False) -> Iterator[list[int]]:
        """Token ids of each text; words that are new are given an id (``learn``) or left out."""
        return self._tokenizer.streaming_tokenize(texts, update_vocab=learn, allow_empty=False)


class Documents:
    """Lists of token ids in one array of int32: what bm25s iterates over, in the order ``order``.

    Attributes:
        words: the token ids of all documents, one after the other.
        ends: [n + 1], where each document begins and ends.
        order: the places in which documents are given out.
    """

    def __init__(self, documents: Iterable[list[int]]) -> None:
        self.words, self.ends = array("i"), array("q", [0])
        for words in documents:
            self.words.extend(words)
            self.ends.append(len(self.words))
        self.order: Sequence[int] | np.ndarray = range(len(self))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (self.words[self.ends[i] : self.ends[i + 1]].tolist() for i in self.order)


class TopDocuments:
    """The k best documents of a query, in a large index without a score for every document.

    Words are added in the order of the most that they can give. Once the words that are left cannot bring an unseen
    document among the k best, only documents near enough to the k-th best so far stay; they are scored as bm25s scores
    all: float32, in the order of the query's words. So the answer is that of the full scores above 0, bit for bit.

    Args:
        index: an index in which every word has a document; a word's documents stand in ascending order.
    """

    def __init__(self, index: Any) -> None:
        self.index, scores = index, index.scores
        self.values, self.rows, self.starts = scores["data"], scores["indices"], scores["indptr"]
        self.most = np.maximum.reduceat(self.values, self.starts[:-1])  # what a word can give, [words]
        self.partial = np.zeros(scores["num_docs"], dtype=np.float32)  # zero between queries

    def __call__(self, tokens: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores (float32) of the k best that score above 0, by score downwards, then by position.

        Args:
            tokens: token ids of the query, repeated as in the query.
            k: at most the number of documents.
        """
        if tokens and len(self.partial) >= LARGE:
            seen = self._candidates(tokens, k)
            scores = np.zeros(len(seen), dtype=np.float32)
            for token in tokens:
                scores += self._given(token, seen)
        else:
            seen, scores = np.arange(len(self.partial)), self.index.get_scores_from_ids(tokens)
        best = top(scores, k)
        best = best[scores[best] > 0]
        return seen[best], scores[best]

    def _column(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the documents that hold a word (ascending), and what it gives them."""
        place = slice(self.starts[token], self.starts[token + 1])
        return self.rows[place], self.values[place]

    def _given(self, token: int, positions: np.ndarray) -> np.ndarray:
        """What a word gives to some documents (ascending positions)."""
        rows, values = self._column(token)
        places = np.minimum(np.searchsorted(rows, positions), len(rows) - 1)
        return np.where(rows[places] == positions, values[places], np.float32(0))

    def _candidates(self, tokens: list[int], k: int) -> np.ndarray:
        """Ascending positions that include the k best; fewer than k if fewer hold a word of the query."""
        words, counts = np.unique(tokens, return_counts=True)
        most = counts * self.most[words].astype(np.float64)
        order = np.argsort(-most, kind="stable")
        words, counts, most = words[order], counts[order].astype(np.float32), most[order]
        # a float32 sum of n terms is off by at most n · 2⁻²⁴ of itself, in whatever order; doubled for good measure
        margin = 2 * len(tokens) * 2.0**-24 * most.sum()
        left = most.sum() - np.cumsum(most) + 2 * margin  # so much a partial sum may still grow, against the k-th best
        seen, place = np.empty(0, dtype=self.rows.dtype), 0
        while place < len(words) and (len(seen) < k or left[place - 1] >= _kth(self.partial[seen], k)):
            rows, values = self._column(words[place])
            before = self.partial[rows]
            self.partial[rows] = before + counts[place] * values
            seen, place = np.concatenate([seen, rows[before == 0]]), place + 1
        near = np.sort(seen)
        partial = self.partial[near]
        self.partial[seen] = 0
        while len(near) >= k:
            keep = partial >= _kth(partial, k) - left[place - 1]
            near, partial = near[keep], partial[keep]
            if place == len(words):
                break
            partial += counts[place] * self._given(words[place], near)
            place += 1
        return near


def _kth(values: np.ndarray, k: int) -> float:
    """The k-th largest value."""
    return float(np.partition(values, len(values) - k)[len(values) - k])


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores, ties by position.

    >>> top(np.array([1.0, 3.0, 3.0, 0.0, 1.0]), 3).tolist()
    [1, 2, 0]
    """
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    border = _kth(scores, k)
    above = np.flatnonzero(scores > border)
    level = np.flatnonzero(scores == border)[: k - len(above)]
    inside = np.sort(np.concatenate([above, level]))
    return inside[np.argsort(-scores[inside], kind="stable")]
