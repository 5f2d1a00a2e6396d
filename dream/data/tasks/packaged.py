"""Evaluation tasks from packaged data. Identical query texts are one query with several relevant documents.

HumanEval and MBPP pair texts as mteb's HumanEvalRetrieval and MBPPRetrieval do (problem text → solution) but hold
164 and 500 pairs where mteb's hold 158 and 974, and other character totals: their scores are not comparable with
mteb's, so they keep names of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from dream.data import code, development, packaged
from dream.data.packaged import Pair
from dream.data.sources.squad import in_training
from dream.data.tables import CORPUS, QRELS, QUERIES, draw, rng, text_id
from dream.data.tasks.base import Task, make

if TYPE_CHECKING:
    from dream.config import Config

Texts = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Packaged:
    """One packaged task: ``pairs`` gives the judged pairs, ``more`` further documents (title, text).

    ``reads`` are the settings that they read beside those that every task reads; ``sources`` stands for what the training
    sources of the config read.
    """

    description: str
    licence: str
    pairs: Callable[[Config], list[Pair]]
    more: Callable[[Config], Texts] = lambda config: ()
    assets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def _boolq(config: Config) -> list[Pair]:
    seen = {pair.title.casefold() for pair in packaged.boolq("train")}
    return [pair for pair in packaged.boolq("validation") if pair.title.casefold() not in seen]


def _boolq_passages(config: Config) -> Texts:
    return ((pair.title, pair.text) for half in ("train", "validation") for pair in packaged.boolq(half))


def _squad(config: Config) -> list[Pair]:
    trained = {"squad", "squad-generated"} & set(config.data.sources)
    return [pair for pair in packaged.squad() if not (trained and in_training(pair.group))]


def _mteb_differs(here: str, there: str) -> str:
    return f"{here}; mteb's task of this form has {there}: scores are not comparable"


PACKAGED: dict[str, Packaged] = {
    "boolq": Packaged(
        "Search questions on titles unseen in training → Wikipedia passage, among the passages of both halves",
        "CC BY-SA 3.0", _boolq, _boolq_passages, assets=("boolq-train", "boolq-validation"),
    ),
    "drop": Packaged(
        "Questions that need counting or comparing → passage", "CC BY-SA 4.0", lambda c: packaged.drop(),
        assets=("drop",),
    ),
    "squad": Packaged(
        "Questions → paragraph of a Wikipedia article", "CC BY-SA 4.0", _squad, assets=("squad",), reads=("data.sources",),
        notes=("if SQuAD is trained on too, its articles are split between training and this task",),
    ),
    "sciq": Packaged("Science questions → support text", "CC BY-NC 3.0", lambda c: packaged.sciq(), assets=("sciq",)),
    "humaneval": Packaged(
        "Description of a programming problem → solution", "MIT", lambda c: packaged.humaneval(), assets=("humaneval",),
        notes=(_mteb_differs("164 problems, descriptions without examples", "158 pairs and other character totals"),),
    ),
    "mbpp": Packaged(
        "Description of a programming problem → solution", "CC BY 4.0", lambda c: packaged.mbpp(), assets=("mbpp",),
        notes=(_mteb_differs("the 500 problems of the test half", "974 pairs"),),
    ),
    "docstring-networkx": Packaged(
        "First sentence of a docstring → function, in a package that is not trained on", "BSD-3-Clause",
        lambda c: code.pairs("networkx"),
    ),
    "docstring-statsmodels": Packaged(
        "First sentence of a docstring → function, in a package that is not trained on", "BSD-3-Clause",
        lambda c: code.pairs("statsmodels"),
    ),
    "development": Packaged(
        "Questions of the training sources' held-out groups → target: settings are searched here, tables leave it out",
        "that of each source", development.pairs, reads=("sources", "data.development"),
        notes=("held-out groups of the training sources (data.development)",),
    ),
}  # fmt: skip


def build(name: str, config: Config) -> Task:
    """Build a packaged task, drawn down to ``data.task_queries`` and ``data.task_documents``."""
    task = PACKAGED[name]
    notes = list(task.notes)
    if name.startswith("docstring-"):
        package = name.removeprefix("docstring-")
        notes.append(f"{package} {code.versions((package,))[package]}")
    corpus, queries, qrels = tables(name, task.pairs(config), task.more(config))
    corpus, queries, qrels, drawn = drawn_down(
        name, corpus, queries, qrels, config.data.task_queries, config.data.task_documents, config.data.seed
    )
    return make(
        name,
        "packaged",
        corpus,
        queries,
        qrels,
        description=task.description,
        licence=task.licence,
        notes=notes + drawn,
    )


def tables(name: str, pairs: Iterable[Pair], more: Texts = ()) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """corpus, queries and qrels of query–passage pairs; equal texts are one document, equal queries one query."""
    corpus: dict[str, tuple] = {}
    queries: dict[str, tuple] = {}
    qrels: dict[tuple[str, str], tuple] = {}
    for query, _, title, text in pairs:
        doc, asked = text_id("d", title, text), text_id("q", query)
        corpus[doc] = (doc, title, text)
        queries[asked] = (asked, query)
        qrels[asked, doc] = (asked, doc, 1)
    for title, text in more:
        doc = text_id("d", title, text)
        corpus.setdefault(doc, (doc, title, text))
    return (
        pd.DataFrame(corpus.values(), columns=CORPUS),
        pd.DataFrame(queries.values(), columns=QUERIES),
        pd.DataFrame(qrels.values(), columns=QRELS),
    )


def drawn_down(
    name: str,
    corpus: pd.DataFrame,
    queries: pd.DataFrame,
    qrels: pd.DataFrame,
    max_queries: int | None,
    max_documents: int | None,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[str]]:
    """At most so many queries and documents, drawn with the seed; relevant documents of drawn queries always stay.

    Returns:
        The three tables and notes that say from how many was drawn (none if nothing was left out).
    """
    all_queries, all_documents = len(queries), len(corpus)
    corpus, queries = corpus.sort_values("id", ignore_index=True), queries.sort_values("id", ignore_index=True)
    if max_queries is not None:
        queries = queries.iloc[draw(len(queries), max_queries, rng(seed, "queries", name))]
        qrels = qrels[qrels["query_id"].isin(queries["id"])]
    if max_documents is not None and len(corpus) > max_documents:
        relevant = corpus["id"].isin(qrels["doc_id"])
        others = corpus[~relevant]
        room = max(0, max_documents - int(relevant.sum()))
        others = others.iloc[draw(len(others), room, rng(seed, "documents", name))]
        corpus = pd.concat([corpus[relevant], others])
    notes = []
    if len(queries) < all_queries or len(corpus) < all_documents:
        notes.append(f"drawn: {len(queries)} of {all_queries} queries, {len(corpus)} of {all_documents} documents")
    return corpus, queries, qrels, notes
