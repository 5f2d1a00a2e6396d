"""Candidate sets: K passages, the positive where it belongs, the same sets for the same seed."""

import math
import shutil

import bm25s
import numpy as np
import pandas as pd
import pytest
import Stemmer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import make_model
from test_models_of_others import library, quiet_libraries, write_folder  # noqa: F401

from dream import assets
from dream import config as configs
from dream.candidates import BM25Index, bm25, build, round_trip
from dream.candidates.dense import DenseIndex
from dream.candidates.sets import mixed
from dream.config import Model
from dream.data.tables import INSTANCES, PASSAGES
from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.objectives import check_sets

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
        DreamError, match=f"source squad: candidates.count is 31, .* {pool} different passages. Set .* to {pool} or"
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
    index = BM25Index(["cat dog", "cat cat bird", "fish bird bird bird"], SETTINGS.model_copy(update={"stemmer": "none"}))
    ids, scores = index.search(["cat"], 3)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = {d: idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * n / 3)) for d, tf, n in ((0, 1, 2), (1, 2, 3))}
    np.testing.assert_allclose(
        [dict(zip(ids[0], scores[0], strict=True))[d] for d in expected], list(expected.values()), rtol=1e-5
    )
    assert len(ids[0]) == 2, "a document without the word is no hit"


def test_bm25_does_not_depend_on_order_or_company():
    names = ["e", "d", "c", "b", "a"]
    index, turned = BM25Index(TEXTS, SETTINGS, names), BM25Index(TEXTS[::-1], SETTINGS, names[::-1])
    queries = ["cats", "dog running", "unheard of", ""]
    ids, scores = index.search(queries, 5)
    for other in (
        turned.search(queries, 5),
        zip(*((one[0] for one in index.search([q], 5)) for q in queries), strict=True),
    ):
        assert [listed(ids), listed(scores)] == list(map(listed, other))
    assert listed(ids)[2:] == [[], []], "nothing matches, nothing is found"
    assert len(index.search(["cats"], 2)[0][0]) == 2


def listed(arrays):
    return [array.tolist() for array in arrays]


WORDS = ["the", "of", "cat", "cats", "running", "run", "élan", "x1", "a", *(f"word{i}" for i in range(40))]


def random_texts(rng, count, longest):
    """Texts of frequent and rare words, empty ones and copies among them."""
    shares = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(longest + 1), p=shares / shares.sum())) for _ in range(count)]
    return [texts[i] for i in np.where(rng.random(count) < 0.3, rng.integers(count, size=count), np.arange(count))]


def plain_bm25(texts, chosen, ids, queries, k):
    """The definition: bm25s's scores of all documents, tokenised at once, sorted by (−score, id); 0 is no hit."""
    more = {"stopwords": "en" if chosen.stopwords == "english" else [], "show_progress": False}
    more["stemmer"] = Stemmer.Stemmer("english") if chosen.stemmer == "english" else None
    index = bm25s.BM25(method="lucene", k1=chosen.k1, b=chosen.b)
    tokens = bm25s.tokenize(texts, **more)
    index.index(tokens if any(tokens.ids) else bm25s.tokenization.Tokenized([[0]] * len(texts), {"": 0}), show_progress=False)
    for words in bm25s.tokenize(queries, return_ids=False, **more):
        known = [word for word in words if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(texts), np.float32)
        best = sorted(np.flatnonzero(scores), key=lambda i, scores=scores: (-scores[i], ids[i]))[:k]
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
    assert BM25Index(["bird", "fish", "fish", "bird"], SETTINGS).search(["fish bird"], 2)[0][0].tolist() == [0, 1]


def test_bm25_scores_few_documents_of_a_large_index(monkeypatch):
    monkeypatch.setattr(bm25, "LARGE", 0)
    rng = np.random.default_rng(0)
    index = BM25Index([f"{text} name{i % 400}" for i, text in enumerate(random_texts(rng, 4000, 30))], SETTINGS)
    scored = [len(index._finder._candidates(tokens, 5)) for tokens in index._tokens(["the cat of name7", "the word3 name8 run"])]
    assert all(5 <= count < 40 for count in scored)


def test_bm25_of_empty_documents():
    for queries in (["cat"], ["", "."]):
        assert all(len(found) == 0 for found in BM25Index(["", "."], SETTINGS).search(queries, 5)[1])


def test_bm25_options():
    plain = SETTINGS.model_copy(update={"stemmer": "none"})
    stops = SETTINGS.model_copy(update={"stopwords": "english"})
    for chosen, query, count in ((SETTINGS, "dog", 3), (plain, "dog", 1), (SETTINGS, "the", 2), (stops, "the", 0)):
        assert len(BM25Index(TEXTS, chosen).search([query], 5)[0][0]) == count
    assert "k1 0.9" in bm25.describe(SETTINGS) and "CJK" not in bm25.describe(SETTINGS)
    assert "scripts without spaces" in bm25.describe(AUTO)


AUTO = SETTINGS.model_copy(update={"tokenizer": "auto"})
ALPHABET = "aäßéıſœZ09_²½ .,-'’!?\n\u0301\u0308αΩжЯ"


@given(st.text(ALPHABET) | st.text(st.characters(max_codepoint=0x24F)))
def test_auto_is_words_in_latin_greek_and_cyrillic(text):
    both = [bm25.new_tokenizer(chosen).splitter for chosen in (SETTINGS, AUTO)]
    assert both[0](text) == both[1](text) and both[0](text.lower()) == both[1](text.lower())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("北京是中国", "北京 京是 是中 中国"),
        ("東京 2020年、A c言語", "東京 2020 年 言語"),
        ("コーヒー ｶﾞﾑ", "コー ーヒ ヒー ガム"),  # ー has no script of its own; half width is full width
        ("서울은 수도", "서울 울은 수도"),
        ("ที่นี่", "ที่นี่"),
        ("ภาษาไทย", "ภา าษ ษา าไ ไท ทย"),
        ("ភាសា", "ភាសា"),
        ("हिन्दी भाषा में", "हिन्दी भाषा में"),  # a word with its vowel marks; `words` finds none here
        ("தமிழ்", "தமிழ்"),
        ("ⵜ C ? 。", ""),
    ],
)
def test_auto_reads_scripts_without_spaces_and_words_with_marks(text, words):
    assert bm25.words_and_pairs(text) == words.split()


@pytest.mark.parametrize("large", [0, bm25.LARGE])
@pytest.mark.parametrize("chosen", [SETTINGS, AUTO])
def test_nothing_that_scores_0_is_found(monkeypatch, large, chosen):
    monkeypatch.setattr(bm25, "LARGE", large)
    index = BM25Index(["C is a language", "R too", "北京是中国的首都", "ประเทศไทย"], chosen)
    found, scores = index.search(["C", "?", "R", "", "unheard", "中国", "ไทย", "language of C"], 4)
    pairs = [[2], [3]] if chosen is AUTO else [[], []]
    assert listed(found) == [[], [], [], [], [], *pairs, [0]]
    assert all((s > 0).all() and len(s) == len(f) for s, f in zip(scores, found, strict=True))


# ------------------------------------------------------------------------------- what BM25 does not find; copies


@pytest.mark.parametrize("strategy", ["bm25", "hybrid"])
def test_what_bm25_does_not_find_is_drawn_with_the_seed_and_counted(strategy, monkeypatch):
    monkeypatch.setattr("dream.candidates.sets.DenseIndex", Letters)
    passages, instances = data("boolq")
    passages["title"], instances["query"] = "", [f"C{i % 5}" for i in range(12)]  # no word of two characters is known
    drawn = set()
    for seed in range(3):
        sets, (record,) = build(config(candidates__source=strategy, candidates__seed=seed), passages, instances)
        assert len(list(targets(sets, instances))) == 12 and record["wordless_queries"] == 12
        assert record["filled_at_random"] == (36 if strategy == "bm25" else 0)
        drawn |= {tuple(sorted(ids)) for ids in sets["passage_ids"]}
        assert all(len(set(ids)) == 4 for ids in sets["passage_ids"])
    assert (len(drawn) > 12) == (strategy == "bm25"), "no fixed passages stand in for hits"
    if strategy == "bm25":
        assert record["positive_found"] == record["positive_found_at_100"] == 0 and record["positive_mean_rank"] is None
        with pytest.raises(DreamError, match="leaves no candidate set .* 12 without positive"):
            build(config(candidates__source=strategy, candidates__include_positive=False), passages, instances)


def test_few_hits_stay_before_what_is_drawn():
    passages, instances = data("boolq")
    instances["query"] = "topic0 thing0"  # ten documents score, the first alone is about both
    free = config(candidates__source="bm25", candidates__count=12, candidates__include_positive=False)
    sets, (record,) = build(free, passages, instances)
    found = {f"boolq-0-{p}" for p in range(5)} | {f"boolq-{g}-0" for g in range(6)}
    assert len(found) == 10 and record["filled_at_random"] == 2 * len(sets) and record["wordless_queries"] == 0
    assert all(found < set(ids) for ids in sets["passage_ids"])
    assert record["dropped_without_positive"] == 12 - len(sets) == 12 - sum(t in found for t in instances["target_id"])
    for seed in range(5):  # a passage that was drawn may be another question's target; no question counts twice
        shared = config(candidates__source="bm25", candidates__count=12, candidates__include_positive=False,
                        candidates__questions_per_set=3, candidates__seed=seed)  # fmt: skip
        sets, (record,) = build(shared, passages, instances)
        assert record["instances"] + record["dropped_without_positive"] == 12


def texts_of(passages, ids):
    by_id = {row.passage_id: f"{row.title} {row.text}".split() for row in passages.itertuples()}
    return [tuple(by_id[i]) for i in ids]


def copied(strategy, groups=6):
    """Every passage twice, once with other white space; the copy's id comes first in BM25's order."""
    passages, instances = data("squad" if strategy == "same_document" else "boolq", groups=groups)
    again = passages.assign(passage_id="a-" + passages["passage_id"], text=passages["text"].str.replace(" ", "\n ") + " ")
    return pd.concat([again, passages], ignore_index=True), instances


@pytest.mark.parametrize("strategy", ["same_document", "bm25", "dense", "hybrid"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("shared", [1, 3])
def test_a_set_holds_no_text_twice_and_the_target_under_its_own_id(strategy, positive, shared, monkeypatch):
    monkeypatch.setattr("dream.candidates.sets.DenseIndex", Letters)
    passages, instances = copied(strategy)
    more = {"candidates__include_positive": positive, "candidates__questions_per_set": shared}
    sets, (record,) = build(config(candidates__source=strategy, **more), passages, instances)
    wanted = dict(zip(instances["instance_id"], instances["target_id"], strict=True))
    for row in sets.itertuples():
        texts = texts_of(passages, row.passage_ids)
        assert len(set(texts)) == len(texts) == 4
        for place, (name, gold) in enumerate(zip(row.instance_ids, row.gold, strict=True)):
            assert texts[gold] == texts_of(passages, [wanted[name]])[0]
            assert place or row.passage_ids[gold] == wanted[name]
        check_sets([CandidateSet("", "", tuple(row.passage_ids), tuple(" ".join(t) for t in texts),
                                 tuple(Question(n, "", g) for n, g in zip(row.instance_ids, row.gold, strict=True)))])  # fmt: skip
    assert record["copies_dropped"] > 0 and record["pool"] == (5 if strategy == "same_document" else 30)
    if positive:
        assert record["instances"] == 12


def test_without_copies_the_sets_are_those_of_the_plain_rule():
    """The K best, or the drawn ones, as they come: the rule on copies changes nothing where there are none."""
    passages, instances = data("boolq")
    sets, (record,) = build(config(), passages, instances)
    index = BM25Index(
        [f"{t} {x}" for t, x in zip(passages["title"], passages["text"], strict=True)], SETTINGS, list(passages["passage_id"])
    )
    for query, ids in zip(instances["query"], index.search(list(instances["query"]), 4)[0], strict=True):
        row = sets[[list(instances["query"][instances["instance_id"] == i[0]]) == [query] for i in sets["instance_ids"]]].iloc[0]
        assert set(row["passage_ids"]) == set(ids)
    assert record["copies_dropped"] == record["filled_at_random"] == 0


@pytest.mark.parametrize("strategy", ["same_document", "bm25"])
def test_copies_are_not_counted_as_passages_of_a_pool(strategy):
    passages, instances = copied(strategy, groups=2)
    pool = 5 if strategy == "same_document" else 10
    assert len(build(config(candidates__source=strategy, candidates__count=pool), passages, instances)[0]) == 4
    if strategy == "same_document":  # a group of copies is a small group
        few = passages[~passages["passage_id"].str.contains("-0-4")]
        sets, (record,) = build(config(candidates__source=strategy, candidates__count=pool), few, instances)
        assert set(sets["group"]) == {"g1"} and record["dropped_in_small_groups"] == 2
    with pytest.raises(DreamError, match=f"{pool} different passages"):
        build(config(candidates__source=strategy, candidates__count=pool + 1), passages, instances)


def test_round_trip_keeps_questions_that_lead_back_to_their_passage():
    passages = pd.DataFrame(
        {"passage_id": list("abc"), "title": "", "text": ["red apples grow", "green pears grow", "blue plums fall"]}
    )
    written = pd.DataFrame({"source": "s", "target_id": list("abc"), "query": ["red apples?", "blue grow?", "what falls?"]})
    for k, targets in {0: "abc", 1: "ac", 2: "ac", 3: "abc"}.items():
        config = configs.load(overrides={"questions.round_trip": k})
        assert "".join(round_trip.keep(written, passages, config)["target_id"]) == targets


@pytest.mark.parametrize(("tokenizer", "kept"), [("words", "a"), ("auto", "abd")])
def test_round_trip_finds_nothing_without_a_word(tokenizer, kept):
    """The passages come first in the order of ids; a copy of the passage is the passage."""
    texts = ["plums fall", "北京是中国的首都", "c", "ประเทศไทย", "plums fall"]
    passages = pd.DataFrame({"passage_id": ["a", "b", "c", "d", "Copy"], "title": "", "text": texts})
    written = pd.DataFrame({"source": "s", "target_id": list("abcd"), "query": ["what plums?", "中国的首都", "C?", "ไทย"]})
    config = configs.load(overrides={"questions.round_trip": 1, "bm25.tokenizer": tokenizer})
    found = round_trip.keep(written, passages, config)
    assert "".join(found["target_id"]) == kept and found.attrs["wordless"] == 4 - len(kept)


SAID = ["the blue cat", "a river of small stones", "Who sat?"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {kind: make_model(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "bert")}


def embedded(folder, **record):
    """Vectors of documents and of queries under a record."""
    index = DenseIndex(SAID, Model(model=str(folder), **record), ["0", "1", "2"])
    return index.embeddings, index._encode(index.model.encode_query, SAID, index.record.query_prompt)


def test_a_dense_model_is_read_as_its_record_says(encoders, tmp_path, monkeypatch):
    """Against the library itself: what the record leaves out is the folder's, what it names stands in its place."""
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "prompts", encoders["bert"], prompts={"query": "the blue ", "document": "a river "})
    plain = library(folder).encode(SAID, prompt="", normalize_embeddings=True)
    asked = library(folder).encode([f"small {text}" for text in SAID], prompt="", normalize_embeddings=True)
    documents, queries = embedded(folder)
    assert np.abs(documents - plain).max() > 0.01 < np.abs(queries - plain).max()
    documents, queries = embedded(folder, document_prompt="", query_prompt="small ", pooling="mean")
    np.testing.assert_allclose(documents, plain, atol=1e-6)
    np.testing.assert_allclose(queries, asked, atol=1e-6)
    short = library(folder)
    short.max_seq_length = 4
    np.testing.assert_allclose(
        embedded(folder, document_prompt="", max_length=4)[0], short.encode(SAID, prompt="", normalize_embeddings=True), atol=1e-6
    )
    for pooling, name in (("cls", "cls"), ("mean", "mean")):  # a transformers folder says nothing of pooling
        same = write_folder(tmp_path / name, encoders["bert"], pooling=name)
        np.testing.assert_allclose(
            embedded(encoders["bert"], pooling=pooling)[0], library(same).encode(SAID, normalize_embeddings=True), atol=1e-6
        )
    half, whole = embedded(encoders["bert"], dtype="bfloat16")[0], embedded(encoders["bert"])[0]
    assert 0 < np.abs(half - whole).max() < 0.05 and half.dtype == np.float32
    cut = assets.model_path(str(encoders["llama"]), 1)
    np.testing.assert_array_equal(embedded(encoders["llama"], layers=1)[0], embedded(cut)[0])
    assert np.abs(embedded(cut)[0] - embedded(encoders["llama"])[0]).max() > 0.01


def test_a_dense_models_adapter_is_part_of_it(encoders, tmp_path):
    import peft
    from transformers import AutoModel

    torch.manual_seed(1)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(AutoModel.from_pretrained(encoders["llama"]), lora)
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = shutil.copytree(encoders["llama"], tmp_path / "merged")
    wrapped.merge_and_unload().save_pretrained(merged)
    with_adapter = embedded(encoders["llama"], adapter=str(tmp_path / "adapter"), pooling="mean")[0]
    np.testing.assert_allclose(with_adapter, embedded(merged, pooling="mean")[0], atol=1e-5)
    assert np.abs(with_adapter - embedded(encoders["llama"], pooling="mean")[0]).max() > 0.01


@pytest.mark.parametrize(
    ("record", "line"), [({"pooling": "cls"}, "the model's own pooling is mean, not cls"), ({"append_eos": True}, "append_eos")]
)
def test_what_a_dense_model_cannot_do_is_one_line(encoders, tmp_path, record, line):
    folder = write_folder(tmp_path / "mean", encoders["bert"])
    with pytest.raises(DreamError, match=rf"candidates.dense_model .*mean: .*{line}"):
        embedded(folder, **record)
