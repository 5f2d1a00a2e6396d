"""The benchmarks run end to end on tiny random models, compare equal losses, and write what the report reads."""

import json
import math
import sys

import pandas as pd
import pytest
import reference
import torch

from benchmarks import common, data_size, diagnostic, dream_over_infonce, judge_step, models, pairs_per_second, rankings, teacher
from dream.data.tasks import base
from dream.files import write_json
from dream.manifest import ROOT

SMALL = ["--judge", "tiny", "--candidates", "3", "--passage", "8", "--repetitions", "2", "--dtype", "float32"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "FOLDER", tmp_path)

    def run(module, name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *SMALL, *arguments])
        module.main()
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert {"name", "ratio", "reference", "device", "threads", "versions"} <= record.keys()
        assert record["name"] == name and record["ratio"] > 0
        return record

    return run


def test_judge_step(bench):
    record = bench(judge_step, "judge_step", "--no-peak")
    assert max(record["relative_difference"].values()) < 1e-4
    assert len(record["seconds"]["fast"]) == 2 and record["memory_ratio"] > 0 and record["tokens_per_s"]["fast"] > 0
    assert record["ratio_first"] > 0 and record["ratio_later"] > 0 and len(record["seconds"]["later"]) == 2


def test_later_steps_find_every_reading_and_first_ones_none_in_whatever_order():
    """The turns alternate: a step that came before the other's reading read the documents itself, and half the times were wrong."""
    judge, sets, made = reference.both()[0], [reference.candidate_set(seed=s) for s in range(3)], []
    sides = common.stored(judge, lambda candidates: (judge.read(candidates), made.append(judge.store.told())), sets)
    for name in ("later", "first", "first", "later", "later"):
        for candidates in sets:
            sides[name](candidates)
    counts = [(told["found"], told["made"]) for told in made]
    later, first = [counts[i] for i in (0, 1, 2, *range(9, 15))], counts[3:9]
    assert later == [(n, 3) for n in range(1, 10)] and first == [(0, n) for n in range(1, 7)] and judge.store is None


@pytest.mark.parametrize("questions", [1, 2])
def test_teacher(bench, questions):
    record = bench(teacher, "teacher", "--questions", str(questions))
    assert record["relative_difference"] < 1e-4 and record["gflop"] > 0
    assert len(record["seconds"]["plain"]) == len(record["seconds"]["fast"]) == 2


@pytest.mark.parametrize("questions", [1, 3])
def test_pairs_per_second(bench, questions):
    record = bench(pairs_per_second, "pairs_per_second", "--encoder", "tiny", "--questions", str(questions))
    assert record["relative_difference"] < 1e-4
    assert record["gflop"] > 0 and record["judge_tokens_per_s"] > 0 and 0 < record["share_of_matmul_rate"] < 1
    assert record["seeds"]["count"] == 3 and record["seeds"]["ratio"] > 0 and record["pairs_per_s"]["later"] > 0
    assert record["pairs_per_s"]["fast"] == pytest.approx(questions / record["median_s"]["fast"], rel=0.05)


def test_dream_over_infonce(bench):
    record = bench(dream_over_infonce, "dream_over_infonce", "--encoder", "tiny")
    assert len(record["measured"]) == 4 and all(min(m["ratio"], m["ratio_later"]) > 0 for m in record["measured"].values())
    # the judge is the same for all sizes: the larger the encoder, the less it adds
    ratios = [record["counted_for_the_paper"][size]["1"] for size in ("0.5b", "1b", "3b", "8b")]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] > 1


def test_diagnostic(bench, tmp_path, monkeypatch):
    device = torch.device("cpu")
    judge, heads = models.judge("tiny", torch.float32, device, 8)
    sets = common.instances(6, 3, 8, 1, judge.model.config.vocab_size)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write_json("work/heads/heads.json", {"selected": heads})
    monkeypatch.setattr(diagnostic.Judge, "build", lambda config: judge)
    monkeypatch.setattr(diagnostic, "load_sets", lambda: sets)
    monkeypatch.setattr(sys, "argv", ["diagnostic", "--instances", "4"])
    diagnostic.main()
    record = json.loads((tmp_path / "diagnostic.json").read_text())
    assert record["instances"] == 4 and record["judge"] == "random" and (tmp_path / "diagnostic.md").exists()


def test_rankings_are_scored_as_evaluation_scores_them():
    """Two queries, three hits each: nDCG@10 by hand, of hits in the order of the teacher's numbers."""
    corpus = pd.DataFrame({"id": list("abc"), "title": ["", "T", ""], "text": ["one", "two", "three"]})
    queries = pd.DataFrame({"id": ["q2", "q1"], "text": ["second", "first"]})
    qrels = pd.DataFrame({"query_id": ["q1", "q2"], "doc_id": ["a", "b"], "relevance": [1, 1]})
    task = base.make("mine", "own", corpus, queries, qrels, description="", licence="", notes=[])
    sets = rankings.found(task, {"q2": {"a": 0.1, "b": 0.3, "c": 0.2}, "q1": {"c": 0.5, "a": 0.4, "b": 0.3}})
    assert [(one.id, one.passage_ids, one.questions[0].text) for one in sets] == [
        ("q1", ("c", "a", "b"), "first"), ("q2", ("b", "c", "a"), "second")
    ]  # fmt: skip
    assert sets[0].passages == ("three", "one", "T two")
    found = rankings.values(task, sets, {"q1": [0.0, 2.0, 1.0], "q2": [1.0, 3.0, 2.0]})
    assert found.tolist() == pytest.approx([1, 1 / math.log2(4)])


@pytest.mark.slow
def test_rankings(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["rankings", "--queries", "20", "--count", "6", "--passage-tokens", "32"])
    rankings.main()
    record = json.loads((tmp_path / "rankings-drop.json").read_text())
    assert set(record["rankings"]) == set(rankings.TEACHERS) and record["queries"] == 20
    assert record["rankings"]["encoder"]["difference"] == 0
    assert len({one["ndcg_at_10"] for one in record["rankings"].values()}) > 1


def test_data_size(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "FOLDER", tmp_path)
    monkeypatch.setattr(data_size, "TEST_QUERIES", 20)
    monkeypatch.setattr(sys, "argv", ["data_size", "--passages", "300", "--instances", "40", "--candidates", "3"])
    data_size.main()
    record = json.loads((tmp_path / "data_size.json").read_text())
    assert record["name"] == "data_size" and record["ratio"] > 0 and record["instances"] == record["plain_queries"] == 40
    assert set(record["peak_gib"]) == {"prepare", "candidates", "plain"} and 0 < max(record["peak_gib"].values()) < 2
    assert min(record["passages_per_s"].values()) > 0 and record["positive_found"] > 0.8


def test_the_papers_shapes_have_the_papers_sizes():
    from dream.judge.flops import weights_per_layer

    weights = {n: weights_per_layer(models.shape(s)) * s["num_hidden_layers"] / 1e9 for n, s in models.SHAPES.items()}
    assert weights["0.5b"] == pytest.approx(0.36, abs=0.01) and weights["1b"] == pytest.approx(0.97, abs=0.01)
    assert weights["3b"] == pytest.approx(2.82, abs=0.02) and weights["8b"] == pytest.approx(6.98, abs=0.02)
