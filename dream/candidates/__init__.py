"""Candidate sets: for every instance the K passages among which the judge will look.

``same_document``  passages of the target's own group (the paper)
``bm25``           the source's passages that BM25 ranks highest for the query
``dense``          the same with an encoder
``hybrid``         reciprocal rank fusion of both

``auto`` takes what suits each source. A new strategy is one file with a function and one entry in ``RETRIEVERS``.
What a retriever does not find is filled at random, and passages with the same text are one (``sets.py``).
"""

from dream.candidates.bm25 import BM25Index
from dream.candidates.sets import STRATEGIES, build

__all__ = ["STRATEGIES", "BM25Index", "build"]
