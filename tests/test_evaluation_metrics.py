"""Metrics: trec_eval's values under our tie rule; the same as beir and mteb; every rule for odd judgements."""

from __future__ import annotations

import math
import random

import numpy as np
import pandas as pd
import pytest

from dream.errors import DreamError
from dream.evaluation import metrics


def frame(rows):
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "relevance"])


def random_run(seed=0, queries=40, documents=150, ties=False):
    rng = random.Random(seed)
    run = {
        f"q{i}": {f"d{j}": float(rng.randint(0, 5)) if ties else rng.random() for j in rng.sample(range(documents), 120)}
        for i in range(queries)
    }
    qrels = frame([(f"q{i}", f"d{j}", rng.randint(1, 3)) for i in range(queries) for j in rng.sample(range(documents), 4)])
    return run, qrels


def test_values_by_hand():
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    row = metrics.per_query(run, frame([("q", "b", 2), ("q", "c", 1), ("q", "x", 1)])).iloc[0]
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert row.ndcg_at_10 == pytest.approx((2 / math.log2(3) + 1 / math.log2(4)) / ideal)
    assert row.recall_at_100 == pytest.approx(2 / 3) and row.mrr_at_10 == pytest.approx(1 / 2)


def test_ties_go_by_id_in_any_insertion_order():
    for order in (["a", "b"], ["b", "a"]):
        table = metrics.per_query({"q": dict.fromkeys(order, 1.0)}, frame([("q", "a", 1)]))
        assert table.mrr_at_10[0] == 1.0, "a stands before b; trec_eval by itself would put b first"


def test_scores_that_float32_cannot_tell_apart_keep_their_order():
    table = metrics.per_query({"q": {"b": 1.0 + 1e-12, "a": 1.0}}, frame([("q", "b", 1)]))
    assert table.mrr_at_10[0] == 1.0


def test_mrr_is_cut_at_ten_and_recall_at_a_hundred():
    run = {"q": {f"d{i:03d}": -float(i) for i in range(120)}}
    assert metrics.per_query(run, frame([("q", "d010", 1)])).mrr_at_10[0] == 0
    assert metrics.per_query(run, frame([("q", "d009", 1)])).mrr_at_10[0] == pytest.approx(0.1)
    assert metrics.per_query(run, frame([("q", "d099", 1)])).recall_at_100[0] == 1
    assert metrics.per_query(run, frame([("q", "d100", 1)])).recall_at_100[0] == 0


def test_odd_judgements_follow_their_rules():
    run = {"q1": {"a": 2.0, "b": 1.0}, "q4": {"a": 1.0}}
    rows = [("q1", "a", -1), ("q1", "b", 1), ("q2", "a", 0), ("q3", "a", 1), ("q1", "b", 2)]
    table = metrics.per_query(run, frame(rows)).set_index("query_id")
    assert list(table.index) == ["q1", "q3"], "q2 has nothing relevant, q4 no judgement"
    assert table.attrs["left_out"] == 1
    assert table.loc["q1", "mrr_at_10"] == 0.5, "a negative grade is not relevant"
    assert table.loc["q3", "ndcg_at_10"] == 0, "nothing was found"
    with pytest.raises(DreamError, match="no query has a relevant document"):
        metrics.per_query(run, frame([("q1", "a", 0)]))


def test_of_a_pair_judged_twice_the_last_grade_counts_also_if_it_is_zero():
    rows = [(query, document, int(grade)) for query, document, grade in ["qa1", "qb2", "qb0", "rb0", "rb3", "qa1", "sc1", "sc0"]]
    assert metrics.judgements(frame(rows)) == {"q": {"a": 1}, "r": {"b": 3}}


@pytest.mark.parametrize("ties", [False, True])
def test_beir_and_mteb_give_the_same_ndcg_on_the_same_run(ties):
    from beir.retrieval.evaluation import EvaluateRetrieval
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    run, qrels = random_run(ties=ties)
    ours = metrics.per_query(run, qrels)["ndcg_at_10"].mean()
    judged = metrics.judgements(qrels)
    explicit = metrics.explicit({q: metrics.rank(hits) for q, hits in run.items()})
    beir = EvaluateRetrieval.evaluate(judged, {q: dict(h) for q, h in explicit.items()}, [10])[0]["NDCG@10"]
    mteb = calculate_retrieval_scores(explicit, judged, [10]).ndcg["NDCG@10"]
    assert ours == pytest.approx(beir, abs=1e-5) and ours == pytest.approx(mteb, abs=1e-5)  # both round to 5 digits
    if ties:  # given raw scores they fall back on trec_eval's tie rule, the other way round
        raw = calculate_retrieval_scores(run, judged, [10]).ndcg["NDCG@10"]
        assert abs(ours - raw) > 1e-3


def test_identical_ids_are_where_beir_and_mteb_differ():
    """Queries that are documents: BEIR drops the hit with the query's id on every task, mteb on tasks that say so."""
    from beir.retrieval.evaluation import EvaluateRetrieval
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    rng = np.random.default_rng(0)
    run = {f"d{i}": {f"d{j}": float(rng.random()) for j in range(30)} | {f"d{i}": 2.0} for i in range(30)}
    qrels = frame([(f"d{i}", f"d{(i + 1) % 30}", 1) for i in range(30)])
    judged = metrics.judgements(qrels)
    kept = metrics.per_query(run, qrels)["ndcg_at_10"].mean()
    dropped = metrics.per_query(run, qrels, drop_identical_ids=True)["ndcg_at_10"].mean()
    assert dropped > kept + 0.01
    assert calculate_retrieval_scores(run, judged, [10]).ndcg["NDCG@10"] == pytest.approx(kept, abs=1e-5)
    copies = {q: dict(hits) for q, hits in run.items()}  # beir removes hits in place
    assert EvaluateRetrieval.evaluate(judged, copies, [10])[0]["NDCG@10"] == pytest.approx(dropped, abs=1e-5)
