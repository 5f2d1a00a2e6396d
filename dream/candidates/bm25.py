"""BM25 with one analyser for candidates and for the BM25 row of the tables: bm25s (Lucene's formula) and Snowball.

Lower case, words of two letters or more (``bm25s``'s pattern), optional English stop words, optional Snowball stemmer.
Ranking does not depend on batches or on the order of insertion: ties in score go to the smaller id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dream.config import BM25

CHUNK = 256  # queries scored at a time


class BM25Index:
    """An index over texts.

    Args:
        texts: documents, title and text joined.
        settings: ``config.bm25``.
        ids: one per text, unique; ties go to the smaller one. Default: the texts' positions.
        progress: show progress bars.
    """

    def __init__(
        self, texts: Sequence[str], settings: BM25, ids: Sequence[str] | None = None, progress: bool = False
    ) -> None:
        import bm25s

        self.settings, self.progress = settings, progress
        self.ids = np.array(ids if ids is not None else range(len(texts)), dtype=object)
        # documents stand in the order of their ids, so that a stable sort by score breaks ties by id
        self._order = np.argsort(self.ids, kind="stable")
        self.ids = self.ids[self._order]
        self._index = bm25s.BM25(method="lucene", k1=settings.k1, b=settings.b)
        tokens = self._tokens([texts[i] for i in self._order])
        if not any(len(document) for document in tokens.ids):  # nothing but stop words: every score is 0
            tokens = bm25s.tokenization.Tokenized(ids=[[0]] * len(texts), vocab={"": 0})
        self._index.index(tokens, show_progress=progress)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of every query.

        Args:
            queries: texts.
            k: at most so many documents; fewer if the index holds fewer.

        Returns:
            ids and scores (float32), both of shape (queries, min(k, documents)), by score downwards, then by id.
        """
        from tqdm import tqdm

        k = min(k, len(self))
        ids, scores = np.empty((len(queries), k), dtype=object), np.empty((len(queries), k), dtype=np.float32)
        tokens = self._tokens(list(queries), strings=True)
        for row in tqdm(range(len(queries)), desc="BM25", unit="query", disable=not self.progress, mininterval=1):
            known = [token for token in tokens[row] if token in self._index.vocab_dict]
            if known:
                found = np.asarray(self._index.get_scores(known), dtype=np.float32)
            else:
                found = np.zeros(len(self), dtype=np.float32)
            best = top(found, k)
            ids[row], scores[row] = self.ids[best], found[best]
        return ids, scores

    def _tokens(self, texts: list[str], strings: bool = False):
        import bm25s
        import Stemmer

        return bm25s.tokenize(
            texts,
            lower=True,
            stopwords="en" if self.settings.stopwords == "english" else [],
            stemmer=Stemmer.Stemmer("english") if self.settings.stemmer == "english" else None,
            return_ids=not strings,
            show_progress=self.progress,
        )

    def describe(self) -> str:
        """The analyser in words, for a table's footnote."""
        s = self.settings
        return (
            f"bm25s, Lucene's formula, k1 {s.k1}, b {s.b}, stemmer {s.stemmer}, stop words {s.stopwords}, "
            "lower case, words of two or more characters"
        )


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores, ties by position.

    >>> top(np.array([1.0, 3.0, 3.0, 0.0, 1.0]), 3).tolist()
    [1, 2, 0]
    """
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    border = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > border)
    level = np.flatnonzero(scores == border)[: k - len(above)]
    inside = np.sort(np.concatenate([above, level]))
    return inside[np.argsort(-scores[inside], kind="stable")]
