"""Runs and scores for other tools: TREC evaluators and mteb read ours and find the same scores."""

import json
import math

import ir_measures
import mteb
import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from mteb.results import TaskResult
from report_fixture import make_cells, make_config
from test_evaluation_cells import make_task

from dream import cells, config, manifest, systems
from dream.config import stages
from dream.data.tasks import write
from dream.errors import DreamError
from dream.files import write_json
from dream.report.commands import exports
from dream.report.results import cells as reading

ODD = ["a b", "a%20b", "c  d", "é\u00a0f", "plain"]  # ids that white space would split, and one that looks encoded


class Fixed(systems.System):
    """Hits that are written down."""

    name, settings, flops, reads = "bm25", {"analyser": "none"}, 0.0, ("bm25",)

    def __init__(self, hits):
        self.hits = hits

    def search(self, task, depth):
        return {q: dict(sorted(found.items(), key=lambda hit: (-hit[1], hit[0]))[:depth]) for q, found in self.hits.items()}


def make_project(rng, documents=150, queries=12):
    """One cell of BM25 on an own task: odd ids, queries that are documents too, equal scores, one query without a hit."""
    corpus = [*ODD, *(f"d{i}" for i in range(documents))]
    asked = [*ODD, *(f"q{i}" for i in range(queries))]
    qrels = [(q, d, int(rng.integers(1, 4))) for q in asked for d in rng.choice(corpus, 20, replace=False) if q != d]
    task = make_task(
        "mine", [(d, "", f"text of {d}") for d in corpus], [(q, f"question {q}") for q in asked], qrels, drop_identical_ids=True
    )
    hits = {q: {d: 9.0 if d == q else float(rng.integers(0, 4)) for d in corpus} for q in asked[:-1]}  # its own is the best
    whole = config.load(overrides={
        "objectives": [], "references": ["bm25"], "tasks": ["mine"], "own": {"mine": "own"}, "data.sources": ["squad"],
    })  # fmt: skip
    write(task, "work/tasks/mine")
    table, records = cells.run(Fixed(hits), None, ["mine"], whole)
    cells.write("bm25-mine", table, records)
    settings = stages.files(whole)["evaluate-bm25-mine"]
    write_json(manifest.RUNS / "evaluate-bm25-mine.json", [{"settings": "evaluate-bm25-mine", "config": settings, "wall_s": 2.5}])
    return whole, table


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = manifest.ROOT
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "corpus.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return make_project(np.random.default_rng(0))


def test_trec_evaluators_find_our_score_of_every_query(project, tmp_path):
    whole, table = project
    exports.export(reading.load(whole), tmp_path / "out", ("trec",))
    place = tmp_path / "out" / "trec" / "mine"
    lines = lambda name: (place / name).read_text(encoding="utf-8").splitlines()  # noqa: E731
    judged, found = pytrec_eval.parse_qrel(lines("qrels.txt")), pytrec_eval.parse_run(lines("bm25.txt"))
    ours = {exports.encoded(row.query_id): row for row in table.itertuples()}
    theirs = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut_10", "recall_100"}).evaluate(found)
    assert set(judged) == set(ours) and set(ours) - set(theirs) == {"q11"} and ours["q11"].ndcg_at_10 == 0
    for query, values in theirs.items():
        assert values["ndcg_cut_10"] == pytest.approx(ours[query].ndcg_at_10, abs=1e-6)
        assert values["recall_100"] == pytest.approx(ours[query].recall_at_100, abs=1e-6)
    assert len({row.ndcg_at_10 for row in ours.values()}) > 5, "scores that differ"
    assert all(len(hits) == 100 and query not in hits for query, hits in found.items())
    measured = ir_measures.iter_calc(
        [ir_measures.nDCG @ 10],
        ir_measures.read_trec_qrels(str(place / "qrels.txt")),
        ir_measures.read_trec_run(str(place / "bm25.txt")),
    )
    assert {one.query_id: one.value for one in measured} == {
        q: pytest.approx(row.ndcg_at_10, abs=1e-6) for q, row in ours.items()
    }


def test_a_run_file_has_six_columns_ranks_and_falling_scores(project, tmp_path):
    whole, table = project
    exports.export(reading.load(whole), tmp_path / "out", ("trec",))
    rows = [line.split() for line in (tmp_path / "out/trec/mine/bm25.txt").read_text().splitlines()]
    first = [row for row in rows if row[0] == "plain"]
    hits = table.set_index("query_id").hits["plain"]
    assert {len(row) for row in rows} == {6} and {(row[1], row[5]) for row in rows} == {("Q0", "bm25")}
    assert [row[2] for row in first] == [exports.encoded(d) for d in hits]
    assert [int(row[3]) for row in first] == list(range(1, 101)) and [int(row[4]) for row in first] == list(range(100, 0, -1))


def test_encoded_ids_have_one_column_and_stay_different():
    odd = [*ODD, "a  b", "a\nb", "a%b", "a%25b", "\u2028", "x\x1fy"]
    assert len({exports.encoded(name) for name in odd}) == len(odd)
    assert all(len(exports.encoded(name).split()) == 1 for name in odd)


def test_hits_that_are_not_those_of_the_scores_are_refused(project, tmp_path):
    whole, table = project
    path = cells.WORK / "bm25-mine" / "queries.parquet"
    table.assign(hits=[hits[:10] for hits in table["hits"]]).to_parquet(path)  # as cells were kept before
    with pytest.raises(
        DreamError, match="hits of bm25-mine do not give its scores on mine. Run `dvc repro -f reference@bm25-mine`"
    ):
        exports.export(reading.load(whole), tmp_path / "out")
    path.unlink()
    with pytest.raises(
        DreamError, match=r"queries.parquet is missing: .* only the scores are here. Run `dvc repro reference@bm25-mine`"
    ):
        exports.export(reading.load(whole), tmp_path / "out")
    assert not (tmp_path / "out" / "trec").exists()
    (tmp_path / "out" / "mteb").mkdir(parents=True)
    (tmp_path / "out" / "mteb" / "mine.txt").touch()
    with pytest.raises(DreamError, match="is not empty"):
        exports.export(reading.load(whole), tmp_path / "out", ("mteb",))


def test_mteb_reads_our_scores_without_the_folder_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = make_config()
    results = reading.load(whole, make_cells(tmp_path, whole))
    exports.export(results, tmp_path / "out", ("mteb",))
    loaded = mteb.ResultCache(tmp_path / "out" / "mteb").load_results(include_remote=False)
    scores = {
        (model.model_name, task.task_name): task.main_score for model in loaded.model_results for task in model.task_results
    }
    expected = {
        (f"dream-bench/{row.system}" + ("" if pd.isna(row.seed) else f"-{row.seed}"), row.task): row.ndcg_at_10
        for row in results.records.itertuples()
    }
    assert scores == expected and len(scores) == (2 + 2 * 3) * 3
    files = sorted((tmp_path / "out" / "mteb").rglob("boolq.json"))
    read = TaskResult.from_disk(next(file for file in files if "dream-0" in str(file)), load_historic_data=False)
    (entry,) = read.scores["test"]
    record = results.record("dream", "boolq")
    assert {name: entry[name] for name in cells.SCORES} == {name: record[name] for name in cells.SCORES}
    assert (read.dataset_revision, read.evaluation_time, entry["languages"]) == ("boolq-revision", 33.0, ["eng-Latn"])


def test_one_run_of_a_model_has_one_revision_and_another_has_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = make_config()
    exports.export(reading.load(whole, make_cells(tmp_path, whole)), tmp_path / "out", ("mteb",))
    metas = [json.loads(path.read_text()) for path in (tmp_path / "out" / "mteb").rglob("model_meta.json")]
    revisions = {meta["name"]: meta["revision"] for meta in metas}
    assert len(metas) == len(revisions) == 8 and len(set(revisions.values())) == 8


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        ("SciFact", {"test": 0.25}, {("test", "default"): 0.25}),
        ("CUREv1", {"en/all": 0.5}, {("all", "en"): 0.5}),
        ("CQADupstackRetrieval", {"CQADupstackAndroidRetrieval/test": 0.2, "CQADupstackEnglishRetrieval/test": 0.4},
         {("test", "default"): 0.3}),
    ],
)  # fmt: skip
def test_a_task_of_mteb_keeps_its_splits_and_subsets(task, labels, expected):
    queries = pd.DataFrame(
        [("bm25", task, f"{label}:{i}", value, 1.0, value) for label, value in labels.items() for i in range(2)],
        columns=["system", "task", "query_id", *cells.SCORES],
    ).assign(seed=None)  # fmt: skip
    mean = sum(labels.values()) / len(labels)
    record = {
        "system": "bm25",
        "task": task,
        "seed": None,
        "cell": "bm25-x",
        "ndcg_at_10": mean,
        "recall_at_100": 1.0,
        "mrr_at_10": mean,
    }
    results = reading.Results(make_config(), queries, pd.DataFrame(), {"evaluate-bm25-x": {"wall_s": 1.0}})
    found = exports.task_result(results, record)
    flat = {(split, entry["hf_subset"]): entry["main_score"] for split, entries in found.scores.items() for entry in entries}
    assert flat == {key: pytest.approx(value) for key, value in expected.items()}
    assert math.isclose(found.main_score, mean) and found.dataset_revision == mteb.get_task(task).metadata.revision
