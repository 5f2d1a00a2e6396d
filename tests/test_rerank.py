"""``qrhead``: the order is that of the definition, the rest keeps BM25's; the stage writes a cell like any other."""

import json

import pandas as pd
import pytest
import reference
import torch
from test_evaluation_cells import llama, load_system, project  # noqa: F401

from dream import cells, manifest
from dream import config as configs
from dream.config import stages
from dream.data.tasks import base
from dream.errors import DreamError
from dream.evaluation import metrics
from dream.files import write_json
from dream.instances import CandidateSet
from dream.judge import Judge, Limits
from dream.judge.flops import pairs
from dream.judge.prompt import EMPTY_QUERY
from dream.systems import qrhead

HEADS = [(1, 0), (3, 2)]


def both():
    """A judge whose full prompts fit its 512 positions, and its model for the reference."""
    return reference.both(limits=Limits(20, 20, 20))


class First:
    """A first stage whose hits are written down."""

    name, settings, flops = "first", {"order": "given"}, 0.0

    def __init__(self, hits):
        self.hits = hits

    def search(self, task, depth):
        return {q: dict(list(hits.items())[:depth]) for q, hits in self.hits.items()}


def reranker(judge, first, depth=4, per_prompt=4, selected=HEADS, drop_low_tokens=False):
    knobs = qrhead.QRHeadKnobs(depth=depth, per_prompt=per_prompt)
    return qrhead.QRHead(judge, selected, knobs, drop_low_tokens, first)


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
    system = reranker(judge, First(HITS), depth, per_prompt)
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
    system, task = reranker(judge, First({"q": HITS["q"]}), selected=selected), letters_task()
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
        reranker(judge, First({}), 40, 40)


def test_broken_weights_end_in_one_line():
    judge, _ = both()
    with torch.no_grad():
        judge.model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(DreamError, match="documents of query 'longer x' is not finite"):
        reranker(judge, First(HITS)).search(letters_task(), 10)


def test_the_filter_knob_reaches_the_scores(monkeypatch):
    judge, _ = both()
    seen = []
    original = qrhead.heads.rerank
    monkeypatch.setattr(qrhead.heads, "rerank", lambda *a: seen.append(a[3]) or original(*a))
    for on in (False, True):
        reranker(judge, First(HITS), drop_low_tokens=on).search(letters_task(), 10)
    assert set(seen[:2]) == {False} and set(seen[2:]) == {True}


def test_rerankers_stand_in_their_own_list():
    with pytest.raises(DreamError, match="references: 'qrhead' belongs to `rerankers`"):
        configs.load(overrides={"references": ["bm25", "qrhead"]})
    with pytest.raises(DreamError, match="rerankers"):
        configs.load(overrides={"rerankers": ["bm25"]})


@pytest.mark.parametrize(("recipe", "depth"), [("packaged", 8), ("smoke", 4), ("paper", 40)])
def test_its_knobs_stand_in_its_own_file_and_params_may_override_them(recipe, depth):
    wanted = {"rerankers": ["qrhead"], "recipe": recipe}
    found = configs.load(overrides=wanted).knobs["qrhead"]
    assert (found.depth, found.per_prompt) == (depth, depth)
    other = configs.load(overrides={**wanted, "qrhead": {"per_prompt": 2}, "heads.drop_low_tokens": True})
    cut = stages.cut(other, "evaluate-qrhead-general")
    assert (cut.knobs["qrhead"].depth, cut.knobs["qrhead"].per_prompt) == (depth, 2) and cut.heads.drop_low_tokens
    assert not hasattr(cut.heads, "count"), "the heads themselves come from the stage before"
    with pytest.raises(DreamError, match=r"qrhead\.per_prompt"):
        configs.load(overrides={**wanted, "qrhead": {"per_prompt": 1}})


@pytest.fixture
def heads_folder(project, llama):  # noqa: F811
    """The project of the evaluation tests with a judge and heads."""
    judge = {"judge__passage_tokens": 8, "judge__query_tokens": 8}  # the tiny judge has 128 positions
    tiny = {"encoder": "mine", "judge": "mine", "recipe": "packaged"}
    found = project(sizes__tiny=tiny, rerankers=["qrhead"], **judge)
    write_json("work/heads/heads.json", {"selected": [[0, 1], [1, 0]], "weights": Judge.build(found).weights})
    write_json(manifest.RUNS / "heads.json", [{"settings": "heads", "config": stages.files(found)["heads"]}])
    return lambda **more: project(sizes__tiny=tiny, rerankers=["qrhead"], **judge, **more)


def test_the_stage_writes_a_cell_like_any_other(heads_folder, capsys):
    from stages import evaluate as stage

    stage.main(["--system", "qrhead", "--tasks", "tiny"])
    assert "[evaluate-qrhead-tiny] tiny: nDCG@10" in capsys.readouterr().out
    (record,) = json.loads((cells.CELLS / "qrhead-tiny.json").read_text())
    assert record["system"] == "qrhead" and record["queries"] == 12 and record["seed"] is None
    assert record["settings"]["reranked"] == "the best 8 of bm25; the others keep its order below them"
    assert record["settings"]["heads"] == [[0, 1], [1, 0]] and record["settings"]["first_stage"]["k1"] == 0.9
    (run,) = json.loads((manifest.RUNS / "evaluate-qrhead-tiny.json").read_text())
    assert run["flops"] > 0 and set(run["inputs"]) == {"work/heads", "work/tasks/tiny"}
    first = (cells.CELLS / "qrhead-tiny.csv").read_bytes()
    stage.main(["--system", "qrhead", "--tasks", "tiny"])
    assert first == (cells.CELLS / "qrhead-tiny.csv").read_bytes()
    manifest.check("evaluate-qrhead-tiny", cells.WORK / "qrhead-tiny")


def test_heads_of_another_judge_or_of_other_settings_are_refused(heads_folder):
    assert load_system("qrhead").name == "qrhead"
    write_json("work/heads/heads.json", {"selected": [[0, 1]], "weights": "other"})
    with pytest.raises(DreamError, match="belongs to other weights"):
        load_system("qrhead")
    heads_folder(heads__count=3)
    with pytest.raises(DreamError, match=r"work/heads was made with heads\.count = 16, params says 3"):
        load_system("qrhead")


def test_the_report_reads_rerankers_like_references():
    from dream.report.results import cells as report

    listed = configs.load(overrides={"rerankers": ["qrhead"], "references": ["bm25"], "objectives": [], "tasks": ["general"]})
    assert [c.name for c in report.expected(listed)] == ["bm25-general", "qrhead-general"]
    assert report.expected(listed)[1].stage == "rerank"
