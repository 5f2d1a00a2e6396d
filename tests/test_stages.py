"""Every thin stage in this process, on values: what it reads, what it leaves, what its run record and its lines say.

One toy project goes through the whole pipeline once; a test runs one stage again in a copy of what that run left.
"""

import importlib
import json
import pathlib
import shutil

import pandas as pd
import pytest
import torch
import yaml
from toy_project import model as make_model

from dream import candidates, manifest
from dream import config as configs
from dream.config import stages
from dream.data import needs, prepare
from dream.files import read_json, read_yaml, write_json

WORDS = [
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "kite",
    "lark",
    "mole",
    "newt",
    "owl",
    "pig",
    "quail",
    "ram",
    "seal",
    "toad",
]
TASK = "mine"
ORDER = [
    ("configure", "--size", "toy"), ("assets",), ("questions",), ("tasks", "--tasks", TASK), ("prepare",), ("candidates",),
    ("given", "--objective", "infonce"), ("train", "--objective", "infonce", "--seed", "0"),
    *(("evaluate", "--system", name, "--tasks", TASK) for name in ("bm25", "untrained")),
    ("evaluate", "--system", "infonce", "--seed", "0", "--tasks", TASK), ("adapt",), ("queries",), ("report",),
]  # fmt: skip
LEAVES = {
    "configure": ["reports/config"], "assets": ["reports/assets"], "questions": ["work/questions"], "tasks": ["work/tasks/mine"],
    "prepare": ["work/data", "reports/results/prepare.json"], "candidates": ["work/candidates", "reports/results/candidates.json"],
    "adapt": ["reports/adapt.json"], "queries": ["reports/queries.json"],
    "report": ["reports/tables", "reports/plots", "reports/verdict.json", "reports/verdict.md", "reports/adapt.md",
               "reports/metrics.json", "reports/manifest.json"],
}  # fmt: skip


def labelled(folder):
    """Twenty documents of two words and a number; twelve training queries, eight of evaluation, one of which is in training."""
    (folder / "qrels").mkdir(parents=True)
    write = lambda name, rows: (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))  # noqa: E731
    write(
        "corpus.jsonl",
        [{"_id": f"d{i}", "text": f"the {word} and the {WORDS[i - 1]} number {i}"} for i, word in enumerate(WORDS)],
    )
    asked = [f"{WORDS[i - 1]} {i}" for i in range(12)] + [f"where is a {WORDS[i]}" for i in range(1, 8)] + [f"{WORDS[-1]} 0"]
    write("queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(asked)])
    rows = {
        "train": [(f"q{i}", f"d{i}") for i in range(12)],
        "test": [(f"q{i}", f"d{i - 11}") for i in range(12, 19)] + [("q19", "d0")],
    }
    for split, pairs in rows.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t1" for q, d in pairs)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The project's folder after all stages; what each of them printed."""
    folder = tmp_path_factory.mktemp("stages")
    labelled(folder / "set")
    toy = str(make_model(tmp_path_factory))
    raw = yaml.safe_load((manifest.ROOT / "params.yaml").read_text())
    raw["models"] = {"toy": {"model": toy, "pooling": "last", "append_eos": True, "max_length": 64}}
    raw["sizes"], raw["model"] = {"toy": {"encoder": "toy", "judge": "toy", "recipe": "smoke"}}, {"size": "toy"}
    raw |= {"objectives": ["infonce"], "seeds": [0], "references": ["bm25", "untrained"], "tasks": [TASK], "own": {TASK: "set"}}
    raw["data"] |= {"sources": [], "development": 0.0}
    raw["questions"]["generator"] = raw["candidates"]["dense_model"] = "toy"
    raw["candidates"] |= {"source": "bm25", "count": 3}
    raw["heads"] |= {"probes": 2, "count": 2}
    raw["injection"] |= {"diagnostic": 2}
    raw["training"] |= {"threads": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DVC_ROOT", str(folder))
        patched.setenv("DREAM_CACHE", str(folder / "cache"))
        patched.chdir(folder)
        for name, *arguments in ORDER:
            run(name, arguments, patched)
    return folder


def run(name, arguments, patched):
    patched.setattr("sys.argv", [name, *arguments])
    importlib.import_module(f"stages.{name}").main()


@pytest.fixture
def stage(whole, tmp_path, monkeypatch, capsys):
    """``stage(name, *arguments)`` runs a stage again in a copy of the project and returns the lines it prints."""
    folder = tmp_path / "project"
    shutil.copytree(whole, folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("DREAM_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)

    def stage(name, *arguments):
        """The stage again; what it left before is gone, as DVC removes it."""
        for path in LEAVES.get(name, ()):
            shutil.rmtree(path) if pathlib.Path(path).is_dir() else pathlib.Path(path).unlink(missing_ok=True)
        capsys.readouterr()
        run(name, arguments, monkeypatch)
        return capsys.readouterr().out.splitlines()

    return stage


def record(name):
    """The run record of a stage: its stage, cell, inputs, outputs, notes; hashes are of what lies there now."""
    (found,) = read_json(manifest.RUNS / f"{name}.json")
    for path, value in {**found["inputs"], **found["outputs"]}.items():
        assert manifest.content_hash(path) == value
    assert found["config"] == read_json(stages.FOLDER / f"{name}.json")
    return found["stage"], found["cell"], [*found["inputs"]], [*found["outputs"]], found["notes"]


def other_settings(name, **more):
    """As if the stage had been run with other settings than params asks for."""
    (found,) = read_json(manifest.RUNS / f"{name}.json")
    write_json(manifest.RUNS / f"{name}.json", [found | {"config": found["config"] | more}])


def same(whole, *places):
    """Files or folders are byte for byte what the first run left."""
    for place in places:
        assert manifest.content_hash(place) == manifest.content_hash(whole / place), place


def test_configure_writes_a_file_for_every_stage(stage, whole):
    begins, said = stage("configure", "--size", "toy")
    assert begins == "[configure] stage 1 of 17"
    assert said == ("[configure] size toy, recipe smoke: encoder toy, judge toy; 1 objectives, 1 seeds, 1 entries of tasks")
    same(whole, stages.FOLDER)
    assert {path.stem for path in stages.FOLDER.iterdir()} == set(stages.files(configs.load()))


def test_configure_asks_for_the_file_of_accelerate_before_anything_runs(stage, whole):
    raw = read_yaml("params.yaml")
    raw["training"]["accelerate"] = "gpus.yaml"
    pathlib.Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^error: training.accelerate: gpus.yaml is missing. configs/accelerate holds some$"):
        stage("configure", "--size", "toy")
    assert not stages.FOLDER.exists(), "nothing half-written"
    pathlib.Path("gpus.yaml").touch()
    stage("configure", "--size", "toy")
    assert read_json(stages.FOLDER / "train-infonce.json")["training"]["accelerate"] == "gpus.yaml"


def test_assets_records_every_model_and_what_computes(stage, whole):
    _, *said = stage("assets")
    toy = stages.load("report").roles["encoder"].model
    assert said == [f"[assets] model {toy} ({role}), see its card" for role in ("encoder", "judge")]
    found = {path.stem: read_json(path) for path in pathlib.Path("reports/assets").iterdir()}
    assert found.keys() == {"encoder", "judge", "generator", "dense", "bm25", "untrained", "data"}
    assert found["encoder"] == found["judge"] and found["encoder"]["name"] == toy
    assert found["untrained"] == {"encoder": found["encoder"]}
    assert found["generator"] == found["dense"] == found["bm25"] == {}
    assert found["data"]["assets"] == [] and "pandas" in str(found["data"]["code"])
    assert record("assets") == ("assets", "", [], [], {"assets": [found["encoder"], found["judge"]]})


def test_assets_asks_for_everything_before_it_fetches_anything(stage, monkeypatch):
    fetched = []
    monkeypatch.setattr(needs, "models", fetched.append)
    shutil.rmtree("set")
    with pytest.raises(SystemExit, match="^error: .*set"):
        stage("assets")
    assert not fetched and not pathlib.Path("reports/assets").exists()


def test_questions_writes_an_empty_table_where_every_source_has_its_own(stage, whole):
    assert stage("questions")[1:] == ["[questions] every source has its own questions: nothing to write"]
    same(whole, "work/questions")
    table = pd.read_parquet("work/questions/questions.parquet")
    assert list(table) == ["source", "target_id", "query", "kind"] and not len(table)
    notes = {"sources": [], "questions": 0, "written": 0, "wordless": 0}
    assert record("questions") == ("questions", "", ["reports/assets/generator.json"], [], notes)


def test_tasks_writes_the_tasks_of_an_entry(stage, whole):
    assert stage("tasks", "--tasks", "mine")[1:] == ["[tasks-mine] mine"]
    same(whole, "work/tasks")
    assert len(pd.read_parquet("work/tasks/mine/mine/queries.parquet")) == 8
    assert record("tasks-mine") == ("tasks", "mine", ["work/questions"], [], {})
    other_settings("questions", own={})
    with pytest.raises(SystemExit, match="work/questions was made with"):
        stage("tasks", "--tasks", "mine")
    assert not pathlib.Path("work/tasks/mine").exists()


def test_prepare_leaves_no_evaluation_query_in_training(stage, whole):
    assert stage("prepare")[1:] == [
        "[prepare] source mine: 11 of 12 instances, 20 passages, 1 evaluation queries out",
        "[prepare] task mine: 8 queries, 20 documents, 100.0% of the relevant and 100.0% of all also stand in training",
    ]
    same(whole, "work/data", "reports/results/prepare.json")
    kept = pd.read_parquet("work/data/instances.parquet")
    assert len(kept) == 11 and "toad 0" not in set(kept["query"])
    files = {path.name for path in pathlib.Path("work/data").iterdir()}
    assert files == {"instances.parquet", "passages.parquet"}, "no name of a task: other tasks train nothing again"
    notes = {"passages": 20, "instances": 11}
    assert record("prepare") == ("prepare", "", ["work/questions"], ["reports/results/prepare.json"], notes)
    other_settings("questions", own={})
    with pytest.raises(SystemExit, match="work/questions was made with"):
        stage("prepare")
    assert not pathlib.Path("work/data").exists()


def test_prepare_names_the_part_of_a_task_and_both_shares(stage, monkeypatch):
    real = prepare.prepare

    def parts(config, questions, folder):
        assert (
            folder != pathlib.Path("work/tasks")
            and folder.is_dir()
            and list(questions) == ["source", "target_id", "query", "kind"]
        )
        found = real(config, questions, folder)
        found.records[1] |= {"part": "en", "share_relevant_in_training": 0.25, "share_in_training": 0.125}
        return found

    monkeypatch.setattr(prepare, "prepare", parts)
    assert stage("prepare")[2] == (
        "[prepare] task mine en: 8 queries, 20 documents, 25.0% of the relevant and 12.5% of all also stand in training"
    )


def test_candidates_leaves_sets_and_says_how_good_they_are(stage, whole):
    assert stage("candidates")[1:] == [
        "[candidates] mine: bm25, 11 sets of 3 from 20, positive among them 100.0%, 0 instances dropped, 11 places filled at random"
    ]
    same(whole, "work/candidates", "reports/results/candidates.json")
    assert len(pd.read_parquet("work/candidates/candidates.parquet")) == 11
    outputs = ["reports/results/candidates.json"]
    assert record("candidates") == ("candidates", "", ["work/data"], outputs, {"sets": 11})
    other_settings("prepare", own={})
    with pytest.raises(SystemExit, match="work/data was made with"):
        stage("candidates")
    assert not pathlib.Path("work/candidates").exists()


def test_candidates_says_what_was_dropped_and_only_what_there_is(stage, monkeypatch):
    real = candidates.build

    def build(*given):
        sets, (one,) = real(*given)
        rich = {"positive_found": 0.5, "dropped_in_small_groups": 2, "dropped_without_positive": 3, "copies_dropped": 4,
                "filled_at_random": 0, "wordless_queries": 6}  # fmt: skip
        return sets, [one | rich, one | {"positive_found": None, "filled_at_random": 0}]

    monkeypatch.setattr(candidates, "build", build)
    assert stage("candidates")[1:] == [
        "[candidates] mine: bm25, 11 sets of 3 from 20, positive among them 50.0%, 5 instances dropped, 4 copies dropped, "
        "6 queries without a word that BM25 knows",
        "[candidates] mine: bm25, 11 sets of 3 from 20, 0 instances dropped",
    ]


def test_evaluate_takes_the_threads_of_the_configuration(stage, whole, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    settings = read_json(stages.FOLDER / "evaluate-infonce-mine.json")
    settings["training"]["threads"] = 3
    write_json(stages.FOLDER / "evaluate-infonce-mine.json", settings)
    said = stage("evaluate", "--system", "infonce", "--seed", "0", "--tasks", "mine")
    assert asked[0] == 3 and said[-1].startswith("[evaluate-infonce-0-mine] mine: nDCG@10 0.") and "(8 queries)" in said[-1]
    same(whole, "work/evaluate/infonce-0-mine", "reports/results/evaluate/infonce-0-mine.csv")
    with pytest.raises(SystemExit, match="work/models/infonce-0/snapshots/7 is missing"):
        stage("evaluate", "--system", "infonce", "--seed", "0", "--pairs", "7", "--tasks", "mine")


def test_adapt_leaves_an_empty_outcome_where_the_recipe_is_another(stage, whole):
    assert stage("adapt")[1:] == ["[adapt] the recipe is not `adapt`: nothing to choose"]
    assert read_json("reports/adapt.json") == {}
    assert record("adapt") == ("adapt", "", [], ["reports/adapt.json"], {})


def test_queries_leaves_the_queries_that_changed(stage, whole):
    assert stage("queries") == ["[queries] stage 16 of 17", "[queries] 12 queries of 2 pairs of systems"]
    same(whole, "reports/queries.json")
    found = read_json("reports/queries.json")
    assert len(found) == 12 and {(one["before"], one["after"]) for one in found} == {
        ("untrained", "infonce"),
        ("infonce", "bm25"),
    }


def test_report_writes_tables_figures_and_the_verdict_and_ends_with_the_main_row(stage, whole):
    begins, wrote, *said = stage("report")
    assert begins == "[report] stage 17 of 17; size toy, recipe smoke"
    assert wrote.startswith("[report] reports/: tables/main, ") and wrote.endswith(
        ", metrics.json, manifest.json, verdict, adapt"
    )
    assert said[0] == "DREAM learns from the judge's next-token loss alone: not tested. `dvc repro` measures it."
    assert said[6] == "" and said[8] == "nDCG@10, mean over 1 task: bm25 1.000, untrained .188, infonce .285"
    assert said[-3:] == [f"  {line}" for line in (
        "dream-report page                       all of it in one HTML file",
        "dream-report compare infonce untrained  the queries that differ most",
        "dream-report sweep                      what else can be asked, and what was found",
    )]  # fmt: skip
    same(whole, *(place for place in LEAVES["report"] if place != "reports/plots"))
    assert len(list(pathlib.Path("reports/plots").iterdir())) == 10


@pytest.mark.parametrize("name", sorted({name for name, *_ in ORDER} - {"given", "train"}))
def test_every_stage_explains_itself(stage, name, monkeypatch, capsys):
    """``--help`` names the command and says what the stage makes of what, in the words of its file."""
    with pytest.raises(SystemExit) as ended:
        run(name, ["--help"], monkeypatch)
    usage, *shown = capsys.readouterr().out.split("\n\n")
    assert not ended.value.code and usage.startswith(f"usage: python -m stages.{name} [-h]")
    whole = importlib.import_module(f"stages.{name}").__doc__.splitlines()[0]
    assert " ".join(shown[0].split()) == whole and whole.startswith(f"Stage {name}: ")
