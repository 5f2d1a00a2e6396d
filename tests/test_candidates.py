"""Candidate sets: K passages, the positive where it belongs, the same sets for the same seed."""

import math

import bm25s
import numpy as np
import pandas as pd
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from dream import config as configs
from dream.candidates import BM25Index, bm25, build, round_trip
from dream.candidates.sets import mixed
from dream.data.tables import INSTANCES, PASSAGES
from dream.errors import DreamError

SETTINGS = configs.load().bm25


def config(**more):
    defaults = {"candidates.count": 4, "candidates.questions_per_set": 1}
    return configs.load(overrides=defaults | {k.replace("__", "."): v for k, v in more.items()})


def data(source="squad", groups=6, size=5, questions=2):
    """Groups of passages; question i of a group asks about passage i with its own words."""
    passages, instances = [], []
    for g in range(groups):
        for p in range(size):
            passages.append((f"{source}-{g}-{p}", source, f"g{g}", f"title{g}", f"about topic{g} thing{p} in words"))
        for q in range(questions):
            instances.append((f"{source}-q-{g}-{q}", source, f"g{g}", f"topic{g} thing{q}", f"{source}-{g}-{q}"))
    return pd.DataFrame(passages, columns=PASSAGES), pd.DataFrame(instances, columns=INSTANCES)


def targets(sets, instances):
    wanted = dict(zip(instances["instance_id"], instances["target_id"], strict=True))
    for row in sets.itertuples():
        for name, gold in zip(row.instance_ids, row.gold, strict=True):
            assert row.passage_ids[gold] == wanted[name]
        yield row


def test_same_document_sets_hold_the_target_and_its_own_group_only():
    passages, instances = data()
    sets, summary = build(config(), passages, instances)
    group = dict(zip(passages["passage_id"], passages["group"], strict=True))
    for row in targets(sets, instances):
        assert len(set(row.passage_ids)) == 4 and {group[i] for i in row.passage_ids} == {row.group}
    assert len(sets) == 12 and summary[0]["strategy"] == "same_document" and summary[0]["pool"] == 5
    assert len({tuple(row.gold) for row in sets.itertuples()}) > 1  # the positive has no fixed place


def test_questions_share_sets():
    passages, instances = data(questions=3)
    sets, summary = build(config(candidates__questions_per_set=2), passages, instances)
    assert sorted(len(row.instance_ids) for row in targets(sets, instances)) == [1] * 6 + [2] * 6
    assert summary[0]["instances"] == 18 and summary[0]["sets"] == 12


def test_same_seed_same_sets_other_seed_others_whatever_the_order_of_rows():
    passages, instances = data()
    one, _ = build(config(), passages, instances)
    again, _ = build(config(), passages, instances)
    pd.testing.assert_frame_equal(one, again)
    other, _ = build(config(candidates__seed=1), passages, instances)
    assert list(one["set_id"]) != list(other["set_id"])


def test_small_groups_are_dropped_and_counted():
    passages, instances = data()
    passages = passages[~((passages["group"] == "g0") & passages["passage_id"].str.endswith(("3", "4")))]
    sets, summary = build(config(), passages, instances)
    assert len(sets) == 10 and summary[0]["dropped_in_small_groups"] == 2


@pytest.mark.parametrize(("strategy", "pool"), [("same_document", 5), ("bm25", 30)])
def test_k_larger_than_the_pool_is_one_line(strategy, pool):
    with pytest.raises(
        DreamError, match=f"source squad: candidates.count is 31, .* {pool} passages. Set .* to {pool} or"
    ):
        build(config(candidates__source=strategy, candidates__count=31), *data())


def test_bm25_finds_the_positive_and_says_how_often():
    passages, instances = data("boolq")
    instances.loc[0, "query"] = "topic3 thing4"  # asks about another passage than its target
    sets, summary = build(config(), passages, instances)
    list(targets(sets, instances))
    record = summary[0]
    assert record["strategy"] == "bm25" and record["instances"] == 12 and record["positive_mean_rank"] >= 1
    assert record["positive_found"] < 1 and record["positive_first"] == round(11 / 12, 4)
    free, summary = build(config(candidates__include_positive=False), passages, instances)
    assert len(free) == len(list(targets(free, instances))) == 11
    assert summary[0]["dropped_without_positive"] == 1


def test_retrieved_sets_take_other_questions_whose_target_they_hold():
    passages, instances = data("boolq")
    alone, _ = build(config(), passages, instances)
    sets, _ = build(config(candidates__questions_per_set=3), passages, instances)
    list(targets(sets, instances))
    used = [name for ids in sets["instance_ids"] for name in ids]
    assert sorted(used) == sorted(instances["instance_id"]), "every instance is used once"
    assert len(sets) < len(alone) and max(map(len, sets["instance_ids"])) > 1
    first = {ids[0]: set(passage_ids) for ids, passage_ids in zip(alone["instance_ids"], alone["passage_ids"], strict=True)}
    for ids, passage_ids in zip(sets["instance_ids"], sets["passage_ids"], strict=True):
        assert set(passage_ids) == first[ids[0]], "the set stays the first question's own"


class Letters:
    """A stand-in for an encoder: nearest by the last digit of the passage."""

    def __init__(self, texts, reference, ids, progress=False):
        self.ids, self.last = list(ids), [t.split("thing")[1][0] for t in texts]

    def search(self, queries, k):
        found = [sorted(self.ids, key=lambda i: (self.last[self.ids.index(i)] != q[-1], i))[:k] for q in queries]
        return np.array(found, dtype=object), None


@pytest.mark.parametrize("strategy", ["dense", "hybrid"])
def test_dense_and_hybrid_sets(strategy, monkeypatch):
    monkeypatch.setattr("dream.candidates.sets.DenseIndex", Letters)
    passages, instances = data("boolq")
    sets, summary = build(config(candidates__source=strategy), passages, instances)
    assert len(list(targets(sets, instances))) == 12 and summary[0]["strategy"] == strategy
    if strategy == "dense":
        first = sets[sets["set_id"] == "set-boolq-q-0-0"].iloc[0]
        assert set(first["passage_ids"]) == {f"boolq-{g}-0" for g in range(4)}
    else:
        assert summary[0]["positive_found"] >= 0.75  # a fused rank, no longer the first of either list


def test_sources_are_mixed_evenly():
    tables = [pd.DataFrame({"source": [name] * n, "i": range(n)}) for name, n in (("a", 30), ("b", 10))]
    rows = mixed(tables)
    for start in range(0, 40, 8):
        assert rows["source"][start : start + 8].value_counts()["a"] == 6
    assert list(rows["i"][rows["source"] == "a"]) == list(range(30))


TEXTS = ["the cat sat", "a dog ran after the cat", "dogs run", "nothing here", "cats and dogs and cats"]


def test_bm25_is_the_formula():
    index = BM25Index(
        ["cat dog", "cat cat bird", "fish bird bird bird"], SETTINGS.model_copy(update={"stemmer": "none"})
    )
    ids, scores = index.search(["cat"], 3)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = {d: idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * n / 3)) for d, tf, n in ((0, 1, 2), (1, 2, 3))}
    np.testing.assert_allclose(
        [dict(zip(ids[0], scores[0], strict=True))[d] for d in expected], list(expected.values()), rtol=1e-5
    )
    assert scores[0][-1] == 0


def test_bm25_does_not_depend_on_order_or_company():
    names = ["e", "d", "c", "b", "a"]
    index, turned = BM25Index(TEXTS, SETTINGS, names), BM25Index(TEXTS[::-1], SETTINGS, names[::-1])
    queries = ["cats", "dog running", "unheard of", ""]
    ids, scores = index.search(queries, 5)
    for other in (
        turned.search(queries, 5),
        [np.concatenate(x) for x in zip(*(index.search([q], 5) for q in queries), strict=True)],
    ):
        assert ids.tolist() == other[0].tolist() and scores.tolist() == other[1].tolist()
    assert ids[2].tolist() == ids[3].tolist() == ["a", "b", "c", "d", "e"]  # nothing matches: the tie rule alone
    assert index.search(["cats"], 2)[0].shape == (1, 2)


WORDS = ["the", "of", "cat", "cats", "running", "run", "élan", "x1", "a", *(f"word{i}" for i in range(40))]


def random_texts(rng, count, longest):
    """Texts of frequent and rare words, empty ones and copies among them."""
    shares = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(longest + 1), p=shares / shares.sum())) for _ in range(count)]
    return [texts[i] for i in np.where(rng.random(count) < 0.3, rng.integers(count, size=count), np.arange(count))]


def plain_bm25(texts, chosen, ids, queries, k):
    """The definition: bm25s's scores of all documents, tokenised at once, sorted by (−score, id)."""
    more = {"stopwords": "en" if chosen.stopwords == "english" else [], "show_progress": False}
    more["stemmer"] = Stemmer.Stemmer("english") if chosen.stemmer == "english" else None
    index = bm25s.BM25(method="lucene", k1=chosen.k1, b=chosen.b)
    tokens = bm25s.tokenize(texts, **more)
    index.index(tokens if any(tokens.ids) else bm25s.tokenization.Tokenized([[0]] * len(texts), {"": 0}), show_progress=False)
    for words in bm25s.tokenize(queries, return_ids=False, **more):
        known = [word for word in words if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(texts), np.float32)
        best = sorted(range(len(ids)), key=lambda i, scores=scores: (-scores[i], ids[i]))[:k]
        yield [ids[i] for i in best], scores[best].tobytes()


@pytest.mark.parametrize("large", [0, bm25.LARGE])
@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(1, 12), st.booleans(), st.booleans())
def test_bm25_is_bm25s_with_the_tie_rule(large, seed, count, k, stemmed, stopped):
    rng = np.random.default_rng(seed)
    texts, queries = random_texts(rng, count, 30), [*random_texts(rng, 12, 8), "", "unheard", "cats Cats runs unheard"]
    ids = [f"d{i}" for i in rng.permutation(count)]
    chosen = SETTINGS.model_copy(
        update={"stemmer": "english" if stemmed else "none", "stopwords": "english" if stopped else "none"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "LARGE", large)
        found = BM25Index(iter(texts), chosen, ids).search(queries, k)
    for names, scores, expected in zip(*found, plain_bm25(texts, chosen, ids, queries, k), strict=True):
        assert (names.tolist(), scores.tobytes()) == expected


def test_bm25_ties_between_words_go_by_id_in_a_large_index(monkeypatch):
    monkeypatch.setattr(bm25, "LARGE", 0)
    assert BM25Index(["bird", "fish", "fish", "bird"], SETTINGS).search(["fish bird"], 2)[0].tolist() == [[0, 1]]


def test_bm25_scores_few_documents_of_a_large_index(monkeypatch):
    monkeypatch.setattr(bm25, "LARGE", 0)
    rng = np.random.default_rng(0)
    index = BM25Index([f"{text} name{i % 400}" for i, text in enumerate(random_texts(rng, 4000, 30))], SETTINGS)
    scored = [len(index._finder._candidates(tokens, 5)) for tokens in index._tokens(["the cat of name7", "the word3 name8 run"])]
    assert all(5 <= count < 40 for count in scored)


def test_bm25_of_empty_documents():
    assert BM25Index(["", "."], SETTINGS).search(["cat"], 5)[1].tolist() == [[0.0, 0.0]]


def test_bm25_options():
    plain = SETTINGS.model_copy(update={"stemmer": "none"})
    assert BM25Index(TEXTS, SETTINGS).search(["dog"], 1)[1][0, 0] > 0
    assert (BM25Index(TEXTS, plain).search(["dog"], 5)[1] > 0).sum() == 1
    stops = SETTINGS.model_copy(update={"stopwords": "english"})
    assert (BM25Index(TEXTS, stops).search(["the"], 5)[1] > 0).sum() == 0
    assert "k1 0.9" in BM25Index(TEXTS, SETTINGS).describe()


def test_round_trip_keeps_questions_that_lead_back_to_their_passage():
    passages = pd.DataFrame(
        {"passage_id": list("abc"), "title": "", "text": ["red apples grow", "green pears grow", "blue plums fall"]}
    )
    written = pd.DataFrame({"source": "s", "target_id": list("abc"), "query": ["red apples?", "blue plums?", "what falls?"]})
    for k, targets in {0: "abc", 1: "ac", 3: "abc"}.items():
        config = configs.load(overrides={"questions.round_trip": k})
        assert "".join(round_trip.keep(written, passages, config)["target_id"]) == targets
