"""Systems and cells: from a task to the files of a cell; the same bytes twice; bad input; mteb gives the same score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_encoder import LORA, TEXTS, make_model

from dream import cells, manifest, models, names, systems
from dream.config import load, stages
from dream.data.tasks import base, write
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.evaluation import geometry
from dream.files import value_hash, write_json
from dream.systems.encoder import TRAINED


def make_task(name="tiny", corpus=None, queries=None, qrels=None, **more):
    corpus = corpus or [(f"d{i}", "the" if i % 2 else "", text) for i, text in enumerate(TEXTS[:30])]
    queries = queries or [(f"q{i}", " ".join(TEXTS[i].split()[:4])) for i in range(12)]
    qrels = qrels or [(f"q{i}", f"d{i}", 1) for i in range(12)] + [(f"q{i}", f"d{i + 12}", 2) for i in range(6)]
    return base.make(
        name,
        "own",
        pd.DataFrame(corpus, columns=["id", "title", "text"]),
        pd.DataFrame(queries, columns=["id", "text"]),
        pd.DataFrame(qrels, columns=["query_id", "doc_id", "relevance"]),
        **more,
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def project(tmp_path, monkeypatch, llama):
    """A project folder with one task ``tiny`` and a tiny random Llama as encoder; gives a function for its config.

    The files of ``reports/config`` are those of the config that was asked for last.
    """
    import shutil

    shutil.copy(Path(__file__).parent.parent / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    write(make_task(), "work/tasks/tiny")
    (tmp_path / "own/qrels").mkdir(parents=True)  # where the task came from; nothing reads it again
    (tmp_path / "own/corpus.jsonl").touch()

    def config(**overrides):
        found = load(
            overrides={
                "models.mine": {"model": str(llama), "pooling": "last", "append_eos": True, "max_length": 96},
                "sizes.tiny": {"encoder": "mine", "judge": "smollm2", "recipe": "packaged"},
                "model.size": "tiny",
                "own": {"tiny": "own"},
                "tasks": ["tiny"],
                **{key.replace("__", "."): value for key, value in overrides.items()},
            }
        )
        for name, values in stages.files(found).items():
            write_json(stages.FOLDER / f"{name}.json", values)
        write_json(manifest.RUNS / "tasks-tiny.json", [{"settings": "tasks-tiny", "config": stages.files(found)["tasks-tiny"]}])
        return found

    return config


def part(name):
    """What the stage that evaluates a system on the task reads."""
    return stages.load(f"evaluate-{name}-tiny")


def load_system(name, seed=None):
    return systems.load(name, part(name), seed)


def evaluate(name, seed=None):
    cells.make(part(name), name, seed, "tiny")
    cell = names.cell(name, seed, "tiny")
    table = pd.read_parquet(cells.WORK / cell / "queries.parquet")
    return table, json.loads((cells.CELLS / f"{cell}.json").read_text(encoding="utf-8"))


def test_a_cell_is_small_complete_and_the_same_twice(project):
    project()
    table, (record,) = evaluate("untrained")
    csv, js = cells.CELLS / "untrained-tiny.csv", cells.CELLS / "untrained-tiny.json"
    first = csv.read_bytes(), js.read_bytes(), (cells.WORK / "untrained-tiny/queries.parquet").read_bytes()
    assert csv.read_text().splitlines()[0] == "suite,task,system,seed,query_id,ndcg_at_10,recall_at_100,mrr_at_10"
    assert csv.read_text().splitlines()[1].startswith("own,tiny,untrained,,q0,")
    assert len(table) == 12 and list(table["query_id"]) == sorted(table["query_id"])
    assert all(len(hits) == 30 == len(scores) for hits, scores in zip(table["hits"], table["scores"], strict=True))
    assert record["queries"] == 12 and record["documents"] == 30 and record["seed"] is None
    assert record["ndcg_at_10"] == pytest.approx(table["ndcg_at_10"].mean(), abs=1e-6)
    assert record["settings"]["pooling"] == "last" and record["settings"]["max_length"] == 96
    assert len(record["settings"]["checkpoint"]) == 64 and 0 <= record["alignment"] <= 4 and record["uniformity"] <= 0
    assert "time" not in js.read_text() and "date" not in js.read_text()
    evaluate("untrained")
    assert first == (csv.read_bytes(), js.read_bytes(), (cells.WORK / "untrained-tiny/queries.parquet").read_bytes())
    manifest.check("evaluate-untrained-tiny", cells.WORK / "untrained-tiny")
    project(models__mine__max_length=99)
    with pytest.raises(DreamError, match=r"roles\.encoder\.max_length = 96, params says 99"):
        manifest.check("evaluate-untrained-tiny", cells.WORK / "untrained-tiny")


def test_a_cell_costs_the_same_whoever_encoded_its_documents(project, monkeypatch):
    """2 × weights × tokens of all queries and documents: cold, warm, and an older cache that did not say."""
    config = project()
    system, encoded, task = load_system("untrained"), [], next(cells.tasks.parts("tiny", config))
    texts = [*systems.documents(task), *task.queries["text"]]
    assert len(set(texts[:30])) == 30, "equal texts of a chunk are encoded once; here there are none"
    tokens = sum(map(len, system.encoder.tokenize(texts, 96)))
    weights = sum(p.numel() for n, p in system.encoder.backbone.named_parameters() if "embed_tokens" not in n)
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, texts, *a, **k: encoded.append(len(texts)) or encode(self, texts, *a, **k)
    )
    for wanted in ([30, 12], [12], [12]):
        encoded.clear()
        system = load_system("untrained")
        cells.run(system, None, ["tiny"], part("untrained"))
        assert system.flops == 2 * weights * tokens and encoded == wanted
        (about,) = Path("cache/embeddings").glob("*.json")
        stored = json.loads(about.read_text())
        assert stored.pop("tokens") == tokens - sum(map(len, system.encoder.tokenize(texts[30:], 96)))
        about.write_text(json.dumps(stored))


def test_a_trained_system_is_its_adapter_and_never_a_stale_score(project, llama):
    config = project()
    folder = TRAINED / "dream-1"
    encoder = Encoder.from_pretrained(llama)
    encoder.add_lora(LORA, 0)
    made = [{"settings": "train-dream", "config": stages.files(config)["train-dream"]}]
    write_json(manifest.RUNS / "train-dream-1.json", made)
    for scale in (0.05, 0.5):
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(scale)
        encoder.save_adapter(folder / "adapter")
        table, (record,) = evaluate("dream", seed=1)
        if scale == 0.05:
            before = table, record
    assert record["seed"] == 1 and set(table["seed"]) == {1}
    assert record["settings"]["adapter"] == str(folder / "adapter")
    assert record["settings"]["checkpoint"] != before[1]["settings"]["checkpoint"]
    assert not table["scores"].equals(before[0]["scores"]), "the changed adapter gives other scores"
    assert evaluate("untrained")[1][0]["settings"]["checkpoint"] != record["settings"]["checkpoint"]
    project(training__steps=5)
    with pytest.raises(DreamError, match=rf"made with training.steps = {config.training.steps}, params says 5"):
        evaluate("dream", seed=1)
    with pytest.raises(DreamError, match="which seed"):
        load_system("dream")


def test_unknown_systems_are_named(project):
    project()
    with pytest.raises(DreamError, match=r"system 'bm52' is unknown. Did you mean 'bm25'"):
        systems.load("bm52", part("bm25"))


def test_bm25_finds_words_and_reports_its_analyser(project):
    project()
    _, (record,) = evaluate("bm25")
    assert record["ndcg_at_10"] > 0.5 and "alignment" not in record
    assert record["settings"]["k1"] == 0.9 and "stemmer english" in record["settings"]["analyser"]
    project(bm25__k1=0.0)
    other = evaluate("bm25")[1][0]
    assert other["settings"]["k1"] == 0.0


def test_a_published_sentence_transformers_folder_gives_what_the_library_gives(project, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    make_model(tmp_path / "bert", "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
    model.save(str(tmp_path / "published"))
    entry = {"model": str(tmp_path / "published"), "max_length": 24, "query_prompt": "the "}
    config = project(models__theirs=entry, references=["theirs"])
    system = load_system("theirs")
    assert system.encoder.pooling == "mean" and system.settings["query_prompt"] == "the "
    model.max_seq_length = 24
    np.testing.assert_allclose(system.encoder.encode(TEXTS, max_length=24), model.encode(TEXTS), atol=1e-5)
    table, _ = evaluate("theirs")
    assert set(table["system"]) == {"theirs"}
    for key, message in (("cls_token", "cls"), ("lasttoken", "last")):
        pooled = tmp_path / "published/1_Pooling/config.json"
        pooled.write_text(json.dumps({"pooling_mode_mean_tokens": False, f"pooling_mode_{key}": True}))
        assert models.rules(config.roles["theirs"], "models.theirs").pooling == message
    pooled.write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(DreamError, match="pools in a way that is not supported"):
        load_system("theirs")
    (tmp_path / "published/modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2"}]))
    with pytest.raises(DreamError, match="not supported: Dense"):
        load_system("theirs")


def test_records_of_published_models_are_complete_and_one_line_each_offline(monkeypatch):
    """Issue: released DREAM, Revela, BGE, E5-mistral, Qwen3-Embedding; no hub, no traceback, the model is named."""
    import huggingface_hub

    from dream.assets import hub
    from dream.data import needs

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "cached", lambda reference: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    entries = load().models
    families = {"dream-0.5b", "dream-1b", "dream-3b", "revela-0.5b", "revela-1b", "bge-large", "e5-mistral", "qwen3-0.6b"}
    assert families <= entries.keys()
    for name, entry in entries.items():
        if entry.model.startswith("packaged/"):
            continue
        if name in families:
            assert entry.pooling and {"max_length", "dtype"} <= entry.model_fields_set | {"dtype"} and entry.max_length, name
        config = load(overrides={"references": [name]})
        assert (needs.roles(config)[name].model, needs.roles(config)[name].adapter) == (entry.model, entry.adapter)
        with pytest.raises(DreamError) as caught:
            needs.check_available(config)
        line = str(caught.value)
        assert "\n" not in line and entry.model in line and "hf download" in line, line
        if entry.adapter:
            monkeypatch.setattr(hub, "cached", lambda r, base=entry.model: Path() if r == base else None)
            with pytest.raises(DreamError, match=f"model {entry.adapter} is not in the local"):
                needs.check_available(config)
            monkeypatch.setattr(hub, "cached", lambda reference: None)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"corpus": [("d1", "", " "), ("d2", "", "")], "qrels": [("q1", "d1", 1)]},
            "no document has a title or a text",
        ),
        ({"corpus": [("d1", "", "a"), ("d1", "", "b")]}, "documents: id 'd1' appears twice"),
        ({"queries": [("q1", "a"), ("q1", "b")]}, "queries: id 'q1' appears twice"),
        ({"qrels": [("q1", "d9", 1)]}, "judgements name 'd9'"),
        ({"qrels": [("q9", "d1", 1)]}, "judgements name 'q9'"),
        ({"qrels": [("q1", "d1", 0)]}, "no query has a relevant document"),
    ],
)
def test_a_task_that_cannot_be_scored_is_one_line(project, parts, message):
    config = project()
    rows = {
        "corpus": [("d1", "", "cat"), ("d2", "", "dog")],
        "queries": [("q1", "cat")],
        "qrels": [("q1", "d1", 1)],
        **parts,
    }
    with pytest.raises(DreamError, match=message):
        cells.score(load_system("bm25"), make_task(**rows), config)


def test_empty_tables_are_refused():
    task = make_task()
    for table, kind in (("corpus", "documents"), ("queries", "queries")):
        empty = base.Task(**{**vars(task), table: getattr(task, table).head(0)})
        with pytest.raises(DreamError, match=f"task tiny has no {kind}"):
            cells.check(empty)
        twice = base.Task(**{**vars(task), table: pd.concat([getattr(task, table).head(2)] * 2)})
        with pytest.raises(DreamError, match=f"id '{kind[0]}0' appears twice among its {kind}"):
            cells.check(twice)


@pytest.mark.parametrize("name", ["bm25", "untrained"])
def test_odd_but_legal_texts_ids_and_judgements(project, name):
    """Some empty texts, ids with slashes, quotes and umlauts, grades below zero, a query without a relevant one."""
    project()
    task = make_task(
        corpus=[("a/b", "", "cat"), ('ü,"1', "", ""), ("c", "", "dog dog")],
        queries=[("q/1", "cat"), ("q2", ""), ("q3", "dog"), ("cat", "unknown words only")],
        qrels=[("q/1", "a/b", 2), ("q2", 'ü,"1', 1), ("q3", "c", 0), ("q3", "a/b", -1), ("cat", "c", 1)],
    )
    table, record = cells.score(load_system(name), task, part(name))
    assert list(table["query_id"]) == ["cat", "q/1", "q2"] and record["queries_left_out"] == 1
    assert np.isfinite(table["ndcg_at_10"]).all() and table.set_index("query_id").loc["q/1", "mrr_at_10"] > 0


def test_the_tasks_own_rule_on_identical_ids_wins(project):
    corpus = [("x1", "", "cat dog"), ("x2", "", "cat cat dog dog"), ("x3", "", "river")]
    rows = {"corpus": corpus, "queries": [("x1", "cat dog")], "qrels": [("x1", "x2", 1)]}
    scores = {}
    for own, knob in ((None, False), (None, True), (True, False), (False, True)):
        config = project(evaluate__drop_identical_ids=knob)
        task = make_task(**rows, drop_identical_ids=own)
        table, record = cells.score(load_system("untrained"), task, config)
        scores[own, knob] = record["settings"]["identical_ids"], "x1" in table["hits"][0], table["mrr_at_10"][0]
    assert scores[None, False] == scores[False, True] and scores[None, False][:2] == ("kept", True)
    assert scores[None, True] == scores[True, False] == ("dropped", False, scores[None, True][2])


def test_a_task_of_several_parts_is_the_mean_over_its_parts(project, monkeypatch):
    project()
    parts = [
        make_task(part="a", qrels=[("q0", "d0", 1)]),
        make_task(part="b", qrels=[(f"q{i}", "d29", 1) for i in range(9)]),
    ]
    monkeypatch.setattr(cells.tasks, "parts", lambda name, config: iter(parts))
    table, (record,) = evaluate("bm25")
    assert record["ndcg_at_10"] == pytest.approx(np.mean(list(record["parts"].values())), abs=1e-6)
    assert abs(record["ndcg_at_10"] - table["ndcg_at_10"].mean()) > 1e-3 and record["queries"] == 10
    assert set(table["query_id"].str[:2]) == {"a:", "b:"}


def test_nan_weights_end_with_the_documents_id(project, llama):
    config = project()
    system = load_system("untrained")
    with torch.no_grad():
        system.encoder.backbone.norm.weight[0] = float("nan")
    with pytest.raises(DreamError, match="the embedding of text d0 by"):
        cells.score(system, make_task(), config)


@pytest.mark.slow
def test_several_processes_fill_the_cache_for_one(project):
    config = project()
    cells.encode_in_parallel("untrained", None, ["tiny"], part("untrained"), workers=2)
    system, alone, task = *(load_system("untrained") for _ in range(2)), next(cells.tasks.parts("tiny", config))
    alone.encoder.encode(systems.documents(task), max_length=96)
    system.encoder.encode = None
    system.corpus(task)
    assert system.flops == alone.flops > 0, "what the other processes encoded counts"


def test_alignment_and_uniformity_by_hand():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((x[i] - x[j]) ** 2).sum()) for i in range(40) for j in range(40) if i != j]
    assert geometry.uniformity(x) == pytest.approx(math.log(np.mean(pairs)))
    assert geometry.alignment(x, x) == 0
    found = geometry.measure(x[:20], x[20:])
    shown = np.array(found["projection"]["queries"])
    assert shown.shape == (20, 2) and found["geometry_pairs"] == 20
    assert geometry.measure(x[:20], x[20:]) == found


def test_geometry_pairs_are_bounded_and_seeded():
    task = make_task()
    left, right = geometry.pairs(task.queries, task.corpus, task.qrels)
    assert len(left) == 12 and task.corpus["id"][right[0]] == "d12", "the best grade is the positive"
    assert all(len(side) == 5 for side in geometry.pairs(task.queries, task.corpus, task.qrels, limit=5))


def test_mteb_gives_the_same_score_through_the_wrapper(project, llama, tmp_path):
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.mocks.mock_tasks.retrieval import general_args

    from dream.evaluation.wrapper import MtebEncoder

    ours = make_task()

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(type="Retrieval", name="LocalTiny", main_score="ndcg_at_10", **general_args)

        def load_data(self, *args, **kwargs):
            self.dataset = {
                "default": {
                    "test": RetrievalSplitData(
                        corpus=Dataset.from_pandas(ours.corpus), queries=Dataset.from_pandas(ours.queries),
                        relevant_docs=ours.judgements, top_ranked=None,
                    )
                }
            }  # fmt: skip
            self.data_loaded = True

    config = project()
    encoder = Encoder.load(models.rules(config.roles["encoder"], "models.mine"))
    plain, prompted = Encoder.from_pretrained(llama), Encoder.from_pretrained(llama, query_prompt="the ")
    model = MtebEncoder(encoder, max_length=96)
    assert model.mteb_model_meta.revision == value_hash([encoder.fingerprint(), "", "", 96])
    rules = [(plain, 96), (plain, 95), (prompted, 96)]
    assert len({MtebEncoder(one, max_length=length).mteb_model_meta.revision for one, length in [*rules, *rules]}) == 3
    result = mteb.evaluate(model, Local(), cache=None)
    theirs = result.task_results[0].scores["test"][0]
    _, record = cells.score(load_system("untrained"), ours, config)
    assert theirs["ndcg_at_10"] == pytest.approx(record["ndcg_at_10"], abs=1e-5) and record["ndcg_at_10"] > 0.05
    # mteb's MRR reads the hits in its own order, ours by (−score, id): the same here, where no scores are equal
    assert theirs["mrr_at_10"] == pytest.approx(record["mrr_at_10"], abs=1e-5)


def test_the_stage_reads_its_own_file_and_writes_its_run(project, capsys):
    from stages import evaluate as stage

    project()
    with pytest.raises(SystemExit, match=r"reports/config/evaluate-bm52-tiny\.json is missing"):
        stage.main(["--system", "bm52", "--tasks", "tiny"])
    stage.main(["--system", "bm25", "--tasks", "tiny"])
    assert "nDCG@10" in capsys.readouterr().out
    (run,) = json.loads((manifest.RUNS / "evaluate-bm25-tiny.json").read_text())
    assert run["stage"] == "evaluate" and run["cell"] == "bm25-tiny" and set(run["inputs"]) == {"work/tasks/tiny"}
    assert run["config"] == json.loads((stages.FOLDER / "evaluate-bm25-tiny.json").read_text())
