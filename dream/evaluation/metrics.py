"""nDCG@10, recall@100 and MRR@10 of every query, computed by trec_eval (pytrec_eval).

Rules, the same for every system:

* graded relevance counts in nDCG with gain = grade (trec_eval's); a grade of 0 or below is not relevant;
* a query without a relevant document is left out of every mean, and counted;
* a hit that no judgement names is not relevant;
* a query for which the system found nothing scores 0;
* hits are ranked by (−score, document id). trec_eval ranks equal scores by falling id and reads scores in float32, so
  it is given the ranks instead of the scores;
* ``drop_identical_ids`` removes hits whose id is the query's before anything is counted: BEIR's rule on every task,
  mteb's on some (there a task says so). It changes ArguAna and Quora-like tasks, whose queries are documents too.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pytrec_eval

from dream.errors import DreamError

Run = Mapping[str, Mapping[str, float]]  # query id → document id → score
METRICS = {"ndcg_at_10": "ndcg_cut_10", "recall_at_100": "recall_100", "mrr_at_10": "recip_rank"}


def per_query(run: Run, qrels: pd.DataFrame, drop_identical_ids: bool = False) -> pd.DataFrame:
    """Score a run.

    Args:
        run: hits and scores of each query.
        qrels: ``query_id, doc_id, relevance``.
        drop_identical_ids: see the module's docstring.

    Returns:
        One row per query with a relevant document, by id: ``query_id, ndcg_at_10, recall_at_100, mrr_at_10``.
        ``attrs["left_out"]`` counts the judged queries without one.

    Raises:
        DreamError: no query has a relevant document.
    """
    relevant = judgements(qrels)
    left_out = qrels["query_id"].nunique() - len(relevant)
    if not relevant:
        raise DreamError("no query has a relevant document", "A task needs judgements above 0")
    ranked = {query: rank(run.get(query, {}), query if drop_identical_ids else None) for query in relevant}
    # MRR@10 is the reciprocal rank in a run cut at 10: trec_eval's recip_rank has no cut of its own.
    cut = {query: hits[:10] for query, hits in ranked.items()}
    values = _evaluate(relevant, ranked, {"ndcg_cut_10", "recall_100"})
    first = _evaluate(relevant, cut, {"recip_rank"})
    rows = [
        {
            "query_id": query,
            **{ours: (values[query] | first[query])[theirs] for ours, theirs in METRICS.items()},
        }
        for query in sorted(relevant)
    ]
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def judgements(qrels: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Relevant documents and grades of each query that has one; of a pair judged twice the last grade counts.

    >>> rows = [("q", "a", 2), ("q", "b", -1), ("r", "a", 0)]
    >>> judgements(pd.DataFrame(rows, columns=["query_id", "doc_id", "relevance"]))
    {'q': {'a': 2}}
    """
    found: dict[str, dict[str, int]] = {}
    last = qrels.drop_duplicates(["query_id", "doc_id"], keep="last")
    for query, document, grade in zip(last["query_id"], last["doc_id"], last["relevance"], strict=True):
        if grade > 0:
            found.setdefault(str(query), {})[str(document)] = int(grade)
    return found


def rank(hits: Mapping[str, float], without: str | None = None) -> list[str]:
    """Document ids by (−score, id), best first.

    >>> rank({"b": 1.0, "a": 1.0, "c": 2.0}), rank({"b": 1.0, "a": 1.0}, without="a")
    (['c', 'a', 'b'], ['b'])
    """
    return [d for d, _ in sorted(hits.items(), key=lambda hit: (-hit[1], hit[0])) if d != without]


def explicit(ranked: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
    """A run whose scores are its ranks: no two are equal, in any precision.

    >>> explicit({"q": ["c", "a"]})
    {'q': {'c': 2.0, 'a': 1.0}}
    """
    return {query: {d: float(len(hits) - i) for i, d in enumerate(hits)} for query, hits in ranked.items()}


def _evaluate(relevant: dict[str, dict[str, int]], ranked: dict[str, list[str]], measures: set[str]):
    return pytrec_eval.RelevanceEvaluator(relevant, measures).evaluate(explicit(ranked))
