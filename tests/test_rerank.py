"""``qrhead``: the order is that of the definition, the rest keeps BM25's; the stage writes a cell like any other."""

import json
from pathlib import Path

import pandas as pd
import pytest
import reference
import torch
import yaml
from test_evaluation_cells import llama, project  # noqa: F401

from dream import config as configs
from dream import manifest, rerank
from dream.data.tasks import base
from dream.errors import DreamError
from dream.evaluation import cells, metrics, systems
from dream.files import write_json
from dream.instances import CandidateSet
from dream.judge import Judge, Limits
from dream.judge.flops import pairs
from dream.judge.prompt import EMPTY_QUERY

HEADS = [(1, 0), (3, 2)]


def both():
    """A judge whose full prompts fit its 512 positions, and its model for the reference."""
    return reference.both(limits=Limits(20, 20, 20))


class First:
    """A first stage whose hits are written down."""

    name, settings, sections, flops = "first", {"order": "given"}, (), 0.0

    def __init__(self, hits):
        self.hits = hits

    def search(self, task, depth):
        return {q: dict(list(hits.items())[:depth]) for q, hits in self.hits.items()}


def config(depth=4, per_prompt=4, **more):
    return configs.load(overrides={"qrhead.depth": depth, "qrhead.per_prompt": per_prompt, **more})


def letters_task():
    texts = {"a": "kept out of", "b": "m", "c": "a longer one here", "d": "zyx", "e": "below"}
    return base.make(
        "letters", "own",
        pd.DataFrame([(i, "", t) for i, t in texts.items()], columns=["id", "title", "text"]),
        pd.DataFrame([("q", "longer x"), ("none", "y"), ("one", "z")], columns=["id", "text"]),
        pd.DataFrame([("q", "c", 1)], columns=["query_id", "doc_id", "relevance"]),
    )  # fmt: skip


HITS = {"q": {"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0, "e": 5.0}, "none": {}, "one": {"d": 1.0}}


def by_hand(model, judge, query, passages):
    """Sum over the heads of the calibrated attention, from full attention matrices."""
    documents = judge.prompt.documents(CandidateSet("", "", tuple(passages), tuple(passages), ()))
    masses = []
    for text in (query, EMPTY_QUERY):
        suffix = judge.prompt.suffix(text)
        rows = tuple(n + len(documents.ids) for n in suffix.query)
        masses.append(reference.head_masses(model, documents.ids + suffix.ids, rows, documents.spans))
    return sum((masses[0] - masses[1])[layer, head] for layer, head in HEADS)


@pytest.mark.parametrize(("depth", "per_prompt"), [(4, 4), (4, 2), (3, 2), (9, 9)])
def test_scores_are_the_definition_and_the_rest_keeps_its_order_below(depth, per_prompt):
    judge, model = both()
    system = rerank.QRHead(judge, HEADS, config(depth, per_prompt), First(HITS))
    task = letters_task()
    run = system.search(task, 100)
    texts, ranked = dict(zip(task.corpus["id"], task.corpus["text"], strict=True)), list("abcde")
    expected = {}
    for start in range(0, min(depth, 5), per_prompt):
        ids = ranked[start : min(start + per_prompt, depth)]
        expected |= dict(zip(ids, by_hand(model, judge, "longer x", [texts[i] for i in ids]).tolist(), strict=True))
    assert max(map(abs, expected.values())) > 1e-3
    assert {i: run["q"][i] for i in expected} == pytest.approx(expected, rel=1e-9)
    order = metrics.rank(run["q"])
    assert order[depth:] == ranked[depth:] and order[:depth] == metrics.rank(expected)
    assert order[:depth] != ranked[:depth], "the judge moves something here"
    assert run["none"] == {} and list(run["one"]) == ["d"]


@pytest.mark.parametrize("selected", [HEADS, [(0, 1), (1, 0)]])
def test_flops_are_those_of_the_prompts_that_were_read(selected):
    """The counter of torch sees the products with weights; the last layer of the documents ends after its keys.

    Where the judge is left below its end, it is left after the next layer's projections of the question.
    """
    from torch.utils.flop_counter import FlopCounterMode

    judge, model = both()
    judge.chunk = None
    system, task = rerank.QRHead(judge, selected, config(4, 4), First({"q": HITS["q"]})), letters_task()
    with FlopCounterMode(display=False) as counter:
        system.search(task, 100)
    dense = reference.counted(counter, ".mm", ".addmm")
    passages = tuple(task.corpus["text"][:4])
    documents = len(judge.prompt.documents(CandidateSet("", "", passages, passages, ())).ids)
    rows = [len(judge.prompt.suffix(text).ids) for text in ("longer x", EMPTY_QUERY)]
    layers = 1 + selected[-1][0]
    matrices = {n: p.numel() for n, p in model.model.layers[-1].named_parameters() if p.ndim > 1}
    skipped = sum(size for n, size in matrices.items() if "mlp" in n or "o_proj" in n)
    begun = 0 if layers == judge.layers else sum(matrices.values()) - skipped
    shapes, heads = judge.model.config, judge.model.config.num_attention_heads
    attention = 4 * heads * shapes.head_dim * (pairs(documents) + sum(pairs(n, documents) for n in rows))
    assert system.flops == dense + 2 * skipped * documents - 2 * begun * sum(rows) + layers * attention
    once = system.flops
    system.search(task, 100)
    assert system.flops == 2 * once


def test_a_prompt_that_the_judge_cannot_hold_is_one_line():
    judge, _ = both()
    with pytest.raises(DreamError, match=r"per_prompt is 40: a prompt has up to \d+ tokens, the judge reads 512"):
        rerank.QRHead(judge, HEADS, config(40, 40), First({}))


def test_broken_weights_end_in_one_line():
    judge, _ = both()
    with torch.no_grad():
        judge.model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(DreamError, match="documents of query 'longer x' is not finite"):
        rerank.QRHead(judge, HEADS, config(), First(HITS)).search(letters_task(), 10)


def test_the_filter_knob_reaches_the_scores(monkeypatch):
    judge, _ = both()
    seen = []
    original = rerank.heads.score_documents
    monkeypatch.setattr(rerank.heads, "score_documents", lambda *a: seen.append(a[3]) or original(*a))
    for on in (False, True):
        rerank.QRHead(judge, HEADS, config(**{"heads.drop_low_tokens": on}), First(HITS)).search(letters_task(), 10)
    assert set(seen[:2]) == {False} and set(seen[2:]) == {True}


def test_rerankers_stand_in_their_own_list():
    with pytest.raises(DreamError, match="references: 'qrhead' belongs to `rerankers`"):
        configs.load(overrides={"references": ["bm25", "qrhead"]})
    with pytest.raises(DreamError, match="rerankers"):
        configs.load(overrides={"rerankers": ["bm25"]})


@pytest.fixture
def heads_folder(project, llama):  # noqa: F811
    """The project of the evaluation tests with a judge, heads, and a params.yaml that names them."""
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["sizes"]["tiny"] = {"encoder": str(llama), "encoder_layers": None, "judge": str(llama), "recipe": "packaged"}
    raw |= {"own": {"tiny": "unused"}, "tasks": ["tiny"], "rerankers": ["qrhead"]}
    raw["judge"] |= {"passage_tokens": 8, "query_tokens": 8}  # the tiny judge has 128 positions
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    resolved = configs.load()
    judge = Judge.from_config(resolved)
    write_json("work/heads/heads.json", {"selected": [[0, 1], [1, 0]], "weights": judge.weights})
    manifest.stamp("work/heads", resolved, "judge", "heads")
    Path("work/tasks/general").rename("work/tasks/tiny")
    manifest.stamp("work/tasks/tiny", resolved, "own")
    return resolved


def test_the_stage_writes_a_cell_like_any_other(heads_folder, capsys):
    from stages import rerank as stage

    stage.main(["--size", "tiny", "--system", "qrhead", "--tasks", "tiny"])
    assert "[evaluate-qrhead-tiny] tiny: nDCG@10" in capsys.readouterr().out
    (record,) = json.loads((cells.CELLS / "qrhead-tiny.json").read_text())
    assert record["system"] == "qrhead" and record["queries"] == 12 and record["seed"] is None
    assert record["settings"]["reranked"] == "the best 8 of bm25; the others keep its order below them"
    assert record["settings"]["heads"] == [[0, 1], [1, 0]] and record["settings"]["first_stage"]["k1"] == 0.9
    (run,) = json.loads((manifest.RUNS / "evaluate-qrhead-tiny.json").read_text())
    assert run["flops"] > 0 and set(run["inputs"]) == {"work/heads", "work/tasks/tiny"}
    first = (cells.CELLS / "qrhead-tiny.csv").read_bytes()
    stage.main(["--size", "tiny", "--system", "qrhead", "--tasks", "tiny"])
    assert first == (cells.CELLS / "qrhead-tiny.csv").read_bytes()
    manifest.check(cells.WORK / "qrhead-tiny", heads_folder)


def test_heads_of_another_judge_are_refused(heads_folder):
    assert systems.BUILDERS["qrhead"] is rerank.build and systems.load("qrhead", heads_folder).name == "qrhead"
    write_json("work/heads/heads.json", {"selected": [[0, 1]], "weights": "other"})
    with pytest.raises(DreamError, match="belongs to other weights"):
        rerank.build(heads_folder)


def test_the_report_reads_rerankers_like_references():
    from dream.report.results import agreement as report

    listed = config(rerankers=["qrhead"], references=["bm25"], objectives=[], tasks=["general"])
    assert [c.name for c in report.expected(listed)] == ["bm25-general", "qrhead-general"]
    assert report.expected(listed)[1].stage == "rerank"
    dumped = listed.model_dump(mode="json")
    assert "qrhead.depth" in report.relevant_settings("evaluate-qrhead-general", dumped)
    assert "qrhead.depth" not in report.relevant_settings("evaluate-bm25-general", dumped)
