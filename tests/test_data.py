"""Sources and tasks: draws, mixing, decontamination, question writing, and what a user can get wrong."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dream import config as configs
from dream import manifest
from dream.candidates import build, round_trip
from dream.data import code, development, lists, needs, packaged, prepare, questions, sources, tasks
from dream.data.sources import wikipedia
from dream.data.tables import fingerprint, frames, normalise, quotas
from dream.data.tasks import mteb as mteb_tasks
from dream.data.tasks.packaged import drawn_down, tables
from dream.errors import DreamError
from dream.files import folder_hash, read_json


def write_set(folder, train=True):
    """An own set: 30 documents, 10 test queries, 12 training queries; the first training query is a test query."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": f"t{i}", "text": f"text number {i}"} for i in range(30)]
    asked = [{"_id": f"q{i}", "text": f"which number is {i}?"} for i in range(10)]
    asked += [{"_id": f"r{i}", "text": "Which number is 0" if i == 0 else f"find text {i}"} for i in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(r) + "\n" for r in asked))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(10)))
    if train:
        rows = "".join(f"r{i}\td{i}\t1\nr{i}\td{i + 1}\t2\n" for i in range(12))
        (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return str(folder)


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    path = write_set(tmp_path / "set")
    overrides = {"own": {"mine": path}, "data.sources": [], "tasks": ["mine"], "data.instances": 8, "data.development": 0.0}
    return configs.load(overrides=overrides)


def test_one_line_of_params_trains_and_evaluates_an_own_set(own, tmp_path):
    prepared = prepare.prepare(own, folder=tmp_path / "tasks")
    source, task = prepared.records
    assert list(source) == list(task) and source["queries"] is None and task["instances"] is None  # one table for DVC
    assert source["instances_available"] == 12 and source["dropped_evaluation_queries"] == 1 and source["instances"] == 8
    assert task["queries"] == 10 and task["documents"] == 30
    assert task["share_in_training"] == 1.0 and task["share_relevant_in_training"] == 1.0
    evaluated = {normalise(f"which number is {i}?") for i in range(10)}
    assert not evaluated & set(map(normalise, prepared.instances["query"]))
    row = prepared.instances.iloc[0]
    number = int(row["instance_id"].removeprefix("mine:r"))
    assert row["target_id"] == f"mine:d{number + 1}"  # the highest-graded document
    prepare.write(prepared, tmp_path / "data")
    assert len(pd.read_parquet(tmp_path / "data/instances.parquet")) == 8


@pytest.mark.parametrize("grouped", [True, False])
def test_the_development_task_and_training_share_no_question(tmp_path, monkeypatch, grouped):
    """Held out by group where there are groups, with their passages; by target where there are none."""
    path = write_set(tmp_path / "set")
    config = configs.load(
        overrides={"own": {"mine": path}, "data.sources": [], "tasks": ["development"], "data.development": 0.4}
    )
    if grouped:
        load = sources.load

        def with_groups(*arguments):
            return [table.assign(group=table.iloc[:, -1].str[-1] if "target_id" in table else table["passage_id"].str[-1])
                    for table in load(*arguments)]  # fmt: skip

        monkeypatch.setattr(sources, "load", with_groups)
    prepared = prepare.prepare(config, folder=tmp_path / "tasks")
    asked = set(tasks.load("development", config, tmp_path / "tasks").queries["text"])
    trained = set(prepared.instances["query"])
    assert asked and trained and not asked & trained
    assert {f"find text {i}" for i in range(1, 12)} <= asked | trained and "Which number is 0" not in asked  # it is a test query
    assert len(prepared.passages) < 30 if grouped else len(prepared.passages) == 30
    share = config.data.development
    assert not grouped or not development.held_out(prepared.passages["group"], share).any()


def test_held_out_shares_are_about_what_was_asked():
    names = pd.Series([f"article {i}" for i in range(5000)])
    assert development.held_out(names, 0.1).mean() == pytest.approx(0.1, abs=0.02)
    assert not development.held_out(names, 0.0).any()


def test_tasks_are_read_back_as_written(own, tmp_path):
    built = tasks.build("mine", own)
    tasks.write(built, tmp_path / "tasks/mine")
    read = tasks.load("mine", own, tmp_path / "tasks")
    assert read.revision == built.revision and read.judgements == built.judgements and read.suite == "own"
    pd.testing.assert_frame_equal(read.corpus, built.corpus)
    with pytest.raises(DreamError, match=r"task\.json is missing. Run `dvc repro`"):
        tasks.load("mine", own, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("judged", "line"),
    [
        ([("q", "d", 1), ("q", "d", 2)], "task t: document 'd' is judged twice for query 'q'. Keep one"),
        ([("q", "d", 1), ("q", "d", 1)], "task t: document 'd' is judged twice for query 'q'. Keep one"),
        ([("q", "d", 1.0), ("q", "e", 0.5)], "task t: grade 0.5 is no whole number"),
        ([("q", "d", 1.0), ("q", "e", float("nan"))], "task t: grade nan is no whole number"),
    ],
)
def test_no_task_holds_a_grade_that_a_score_would_change(judged, line):
    """A score keeps one grade of a pair, as a whole number."""
    corpus = pd.DataFrame([("d", "", "x"), ("e", "", "y")], columns=["id", "title", "text"])
    queries = pd.DataFrame([("q", "ask")], columns=["id", "text"])
    with pytest.raises(DreamError, match=line):
        tasks.base.make("t", "own", corpus, queries, pd.DataFrame(judged, columns=["query_id", "doc_id", "relevance"]))


def test_every_entry_has_its_own_tasks(tmp_path, monkeypatch):
    """A task in two lists stands in both; a list of mteb tasks is one small file; another list changes no byte."""
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    sets = {name: write_set(tmp_path / name) for name in ("one", "two")}
    lists = {"task_lists.a": ["one", "two"], "task_lists.b": ["two", "SciFact"], "task_lists.c": ["SciFact"]}
    config = configs.load(
        overrides={"own": sets, "data.sources": [], "data.instances": 8, "tasks": ["a", "b", "c", "one"], **lists}
    )
    loaded, root = tasks.build("two", config), tmp_path / "tasks"
    monkeypatch.setattr(mteb_tasks, "parts", lambda name: iter([dataclasses.replace(loaded, name=name)]))
    records = prepare.prepare(config, folder=root).records
    assert [r["name"] for r in records if r["kind"] == "task"] == ["one", "two", "SciFact"]
    members = {entry: sorted(p.name for p in (root / entry).iterdir()) for entry in config.tasks}
    assert members == {
        "a": ["entry.json", "one", "two"],
        "b": ["entry.json", "two"],
        "c": ["entry.json"],
        "one": ["entry.json", "one"],
    }
    assert read_json(root / "b/entry.json") == {"tasks": ["two", "SciFact"]}
    assert tasks.written(root).keys() == {"one", "two"} and tasks.written(root / "none") == {}
    before = {entry: folder_hash(root / entry) for entry in "ac"}
    more = config.model_copy(update={"task_lists": {**config.task_lists, "b": ["two", "one"]}})
    tasks.write_entry("b", more, root / "b")
    assert {entry: folder_hash(root / entry) for entry in "ac"} == before
    shutil.rmtree(root / "a")  # evaluating b needs b alone
    assert tasks.load("two", config.model_copy(update={"tasks": ["b"]}), root).revision == loaded.revision
    with pytest.raises(DreamError, match="task one is in no entry of tasks. List it under `tasks`"):
        tasks.load("one", config.model_copy(update={"tasks": ["b"]}), root)


def test_of_a_task_in_two_entries_readers_take_the_newest(tmp_path):
    for age, entry in enumerate(("new", "old", ".killed")):
        file = tmp_path / entry / "boolq/task.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        os.utime(file, (1000 - age, 1000 - age) if entry != ".killed" else None)
    assert tasks.written(tmp_path) == {"boolq": tmp_path / "new/boolq"}


def test_revision_follows_every_table():
    def task(text="x", query="q", grade=1):
        corpus = pd.DataFrame([("d", "", text)], columns=["id", "title", "text"])
        qrels = pd.DataFrame([("q", "d", grade)], columns=["query_id", "doc_id", "relevance"])
        return tasks.base.make("t", "own", corpus, pd.DataFrame([("q", query)], columns=["id", "text"]), qrels).revision

    assert task() == task() and len({task(), task("y"), task(query="r"), task(grade=2)}) == 4


def test_names_and_lists_resolve(own):
    default = configs.load()
    assert tasks.of(default) == ["boolq", "drop", "docstring-networkx", "humaneval", "mbpp"]
    assert tasks.resolve(["general", "boolq", "beir-paper"], own)[:4] == ["boolq", "drop", "mine", "ArguAna"]
    paper = configs.load(overrides={"model.size": "3b"})
    assert len(tasks.of(paper)) == 23 and list(tasks.resolve(["beir-paper", "rteb-paper"], paper)) == tasks.of(paper)
    assert len(tasks.resolve(["beir"], paper)) == 15


@pytest.mark.parametrize(
    ("own", "message"),
    [({"boolq": "x"}, "already the name"), ({"a/b": "x"}, "cannot be a name"), ({"SciFact": "x"}, "already the name")],
)
def test_own_names_that_cannot_be(own, message):
    with pytest.raises(DreamError, match=message):
        tasks.of(configs.load(overrides={"own": own}))


def test_unknown_source_has_a_suggestion():
    with pytest.raises(DreamError, match=r"data.sources: 'bolq' is unknown. Did you mean 'boolq'"):
        sources.get("bolq", configs.load())


@pytest.mark.slow  # imports mteb
def test_unknown_and_unfit_tasks():
    with pytest.raises(DreamError, match=r"tasks: 'bolq' is unknown. Did you mean 'boolq'"):
        tasks.check(["bolq"], configs.load())
    with pytest.raises(DreamError, match="STS12 is a task of type STS"):
        tasks.check(["STS12"], configs.load())


@pytest.mark.slow  # imports mteb
def test_listed_tasks_are_mtebs_own():
    import mteb

    listed = lists.LISTS
    assert set(listed["beir"]) == {task.metadata.name for task in mteb.get_benchmark("BEIR").tasks}
    public = [t for t in mteb.get_benchmark("RTEB(beta)").tasks if t.metadata.is_public is not False]
    assert set(listed["rteb"]) == {task.metadata.name for task in public}


def mteb_part(**tables):
    """The part that is read from a task as mteb gives it: two documents and two queries, or these tables."""
    fake = SimpleNamespace(
        metadata=SimpleNamespace(name="Fake", description="a", license=None, dataset={"path": "x/y", "revision": "r"}),
        dataset={"default": {"test": {
            "corpus": [{"id": "d1", "title": None, "text": "one"}, {"id": "d2", "text": "two"}],
            "queries": [{"id": "q1", "text": "first"}, {"id": "q2", "text": "second"}],
            "relevant_docs": {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 0}},
            **tables,
        }}},
        ignore_identical_ids=True,
    )  # fmt: skip
    return mteb_tasks.made("Fake", "test", *mteb_tasks.tables("Fake", fake, "default", "test"), **mteb_tasks.facts(fake))


def test_an_mteb_part_keeps_positive_judgements_only():
    part = mteb_part()
    assert part.judgements == {"q1": {"d1": 2}} and list(part.queries["id"]) == ["q1"] and part.drop_identical_ids
    assert part.suite == "mteb" and part.part == "test" and part.notes == ["mteb data set x/y @ r"]
    assert mteb_part(relevant_docs={"q1": {"d1": 1.0}}).judgements == {"q1": {"d1": 1}}
    repeated = [{"id": d, "text": "one"} for d in ("d1", "d2")]
    assert (
        mteb_part(corpus=repeated, relevant_docs={"q1": {"d1": 1}})
        .notes[1]
        .startswith("1 documents repeat the text of a relevant one")
    )


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"relevant_docs": {"q1": {"d1": 0.5}}}, "task Fake, query 'q1': score '0.5' is not a whole number"),
        ({"relevant_docs": {"q1": {"d1": 10**9}}}, "task Fake, query 'q1': score '1000000000' is outside"),
        ({"corpus": [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]}, "task Fake, documents: id '1' appears twice"),
        ({"queries": [{"id": "q1", "text": "a"}] * 2}, "task Fake, queries: id 'q1' appears twice"),
        ({"corpus": [{"id": "d\0", "text": "a"}]}, r"task Fake, documents: id 'd\x00' holds"),
    ],
)
def test_mteb_tasks_pass_the_checks_of_own_sets(tables, message):
    with pytest.raises(DreamError) as caught:
        mteb_part(**tables)
    assert str(caught.value).startswith(message)


def test_draws_keep_relevant_documents_and_say_so():
    pairs = [packaged.Pair(f"query {i}", "", "", f"text {i}") for i in range(50)]
    whole = tables("t", pairs, [("", f"more {i}") for i in range(100)])
    corpus, queries, qrels, notes = drawn_down("t", *whole, 10, 30, seed=0)
    assert len(queries) == 10 and len(corpus) == 30 and set(qrels["doc_id"]) <= set(corpus["id"])
    assert notes == ["drawn: 10 of 50 queries, 30 of 150 documents"]
    again = drawn_down("t", *whole, 10, 30, seed=0)
    assert list(again[0]["id"]) == list(corpus["id"])
    assert list(drawn_down("t", *whole, 10, 30, seed=1)[1]["id"]) != list(queries["id"])
    assert len(drawn_down("t", *whole, 10, 5, seed=0)[0]) == 10  # relevant documents always stay
    assert drawn_down("t", *whole, None, None, seed=0)[3] == []


def test_equal_queries_are_one_with_several_relevant_documents():
    corpus, queries, qrels = tables("t", [packaged.Pair("q", "", "", "a"), packaged.Pair("q", "", "", "b")])
    assert len(queries) == 1 and len(corpus) == len(qrels) == 2


def test_quotas_fill_up_from_the_rich():
    assert quotas([1000, 1000, 1000], 300) == [100, 100, 100] and sum(quotas([5, 500, 100], 301)) == 301


def test_ids_depend_on_text_alone():
    one, _ = frames("s", [("q", "g", "t", "a"), ("r", "g", "t", "b")])
    two, asked = frames("s", [("r", "g", "t", "b"), ("q", "g", "t", "a"), ("q", "g", "t", "a")])
    assert set(one["passage_id"]) == set(two["passage_id"]) and len(asked) == 2


def test_fingerprints_ignore_case_spacing_and_punctuation():
    assert fingerprint("Who wrote  “Emma”?") == fingerprint("who wrote emma") != fingerprint("who wrote anna")


MODULE = '''
class A:
    @property
    def mean(self):
        """Return the mean of the values. And more."""
        total = sum(self)
        count = len(self)
        return total / count

    def short(self):
        """Return the mean of the values."""
        return 1

def deprecated(x):
    """Deprecated since the first version."""
    x += 1
    x += 2
    return x
'''


def test_functions_lose_their_docstring_and_keep_their_code():
    found = list(code.functions(MODULE))
    assert len(found) == 1 and found[0][0] == "Return the mean of the values."
    assert found[0][1].startswith("def mean(self):\n    total") and '"""' not in found[0][1]
    assert list(code.functions("def broken(")) == []


def test_held_out_packages_are_not_trained_on():
    assert not set(code.TRAINING) & set(code.HELD_OUT)


def test_wikipedia_articles_are_cut_into_16_chunks():
    rows = [{"title": title, "text": " ".join([title] * 100)} for title in "abcdefghij" for _ in range(17 if title != "c" else 5)]
    found = list(wikipedia.chunked(wikipedia.articles(rows), 100, seed=0))
    assert 0 < len(found) < 10 and all(len(chunks) == 16 and title != "c" for title, chunks in found)
    assert all(len(chunk.split()) == 100 for _, chunks in found for chunk in chunks)


def test_paper_data_from_stream_to_instances(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path))
    rows = ({"title": f"t{i}", "text": " ".join(f"w{i}x{j}" for j in range(1700))} for i in range(60))
    monkeypatch.setattr(wikipedia.hub, "dataset_commit", lambda name: "c0ffee")
    monkeypatch.setattr(wikipedia, "_stream", lambda commit: rows if commit == "c0ffee" else [])
    config = configs.load(overrides={"data.sources": ["wikipedia"], "data.instances": 6, "data.development": 0.0})
    chosen = questions.targets(config)
    assert len(chosen) == 6 and chosen["group"].is_unique
    with pytest.raises(DreamError, match=r"source wikipedia has no questions. Run the stage `questions`"):
        sources.load("wikipedia", config)
    written = pd.DataFrame({"source": "wikipedia", "target_id": chosen["passage_id"], "query": "what?"})
    passages, instances = sources.load("wikipedia", config, written)
    assert len(passages) == 6 * 16 and list(instances["target_id"]) == list(chosen["passage_id"])
    assert instances.attrs["notes"] == ["articles of Tevatron/wikipedia-nq-corpus at commit c0ffee"]


def test_question_writing_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    class Writer:
        def __init__(self, record, settings): ...

        def __call__(self, texts, kind):
            asked.extend(texts)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return [f"what is {text}?" if text != "xxx" else "" for text in texts]

    monkeypatch.setattr(questions, "Writer", Writer)
    config = configs.load(overrides={"questions.batch": 2})
    rows = pd.DataFrame({"passage_id": list("abcde"), "source": "s", "text": ["x" * n for n in range(1, 6)]})
    with pytest.raises(KeyboardInterrupt):
        questions.generate(config, rows, tmp_path / "journal.jsonl")
    with open(tmp_path / "journal.jsonl", "a", encoding="utf-8") as stream:
        stream.write('["c", "what')  # cut by the interruption
    written = questions.generate(config, rows, tmp_path / "journal.jsonl")
    assert asked == ["x", "xx", "xxx", "xxxx", "xxx", "xxxx", "xxxxx"]
    assert list(written["target_id"]) == ["a", "b", "d", "e"]  # an answer without a word is left out


@pytest.mark.parametrize(
    ("answer", "question"),
    [("Who?\nIt", "Who?"), ("Q: 'Where is it?' yes", "Where is it?"), ("\n\n", ""), ("Name the town", "Name the town")],
)
def test_answers_are_cut_to_the_question(answer, question):
    assert questions.clean(answer) == question


@pytest.mark.slow
def test_packaged_judge_writes_questions(tmp_path):
    config = configs.load(overrides={"data.sources": ["squad-generated"], "questions.batch": 2, "questions.max_new_tokens": 16})
    rows = questions.targets(config).head(2)
    written = questions.generate(config, rows, tmp_path / "journal.jsonl")
    assert len(written) == 2 and written["query"].str.len().min() > 5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "instances", "passages"), [("boolq", 9427, 7929), ("squad", 1000, 803), ("qasper", 292, 11478)])
def test_packaged_sources_hold_what_is_documented(name, instances, passages):
    found, asked = sources.load(name, configs.load())
    assert (len(asked), len(found)) == (instances, passages)
    assert found["passage_id"].is_unique and set(asked["target_id"]) <= set(found["passage_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "queries", "documents"),
    [("boolq", 1714, 10148), ("drop", 926, 405), ("humaneval", 164, 164), ("mbpp", 499, 500), ("sciq", 887, 887)],
)
def test_packaged_tasks_hold_what_is_documented(name, queries, documents):
    config = configs.load(overrides={"data.task_queries": None, "data.task_documents": None})
    task = tasks.build(name, config)
    assert (len(task.queries), len(task.corpus)) == (queries, documents)
    assert not (task.corpus["text"].str.strip() == "").any() and not (task.queries["text"].str.strip() == "").any()
    assert set(task.qrels["doc_id"]) <= set(task.corpus["id"]) and set(task.qrels["query_id"]) == set(task.queries["id"])


@pytest.mark.slow
def test_boolq_asks_only_about_titles_that_are_not_trained_on():
    config = configs.load(overrides={"data.task_queries": None, "data.task_documents": None})
    task, (passages, _) = tasks.build("boolq", config), sources.load("boolq", config)
    relevant = task.corpus[task.corpus["id"].isin(task.qrels["doc_id"])]
    assert not set(relevant["title"].str.casefold()) & set(passages["title"].str.casefold())


@pytest.mark.slow
def test_squad_is_split_by_article_when_it_serves_both():
    config = configs.load(overrides={"tasks": ["squad"], "data.task_queries": None})
    task, (passages, _) = tasks.build("squad", config), sources.load("squad", config)
    assert not set(task.corpus["title"]) & set(passages["title"]) and len(task.queries) + len(passages) > 500


@pytest.mark.slow
def test_packaged_code_tasks_do_not_pass_for_mtebs():
    """Counts differ from the descriptive statistics that mteb ships, so the tasks carry their own names."""
    from pathlib import Path

    import mteb

    for ours, theirs in (("humaneval", "HumanEvalRetrieval"), ("mbpp", "MBPPRetrieval")):
        shipped = next(Path(mteb.__file__).parent.rglob(f"descriptive_stats/**/{theirs}.json"))
        facts = json.loads(shipped.read_text())["test"]
        pairs = getattr(packaged, ours)()
        assert len(pairs) != facts["num_documents"]
        assert np.sum([len(pair.text) for pair in pairs]) != facts["documents_text_statistics"]["total_text_length"]


def test_a_list_may_name_lists(own):
    config = own.model_copy(
        update={"task_lists": {"general": ["boolq"], "domain": ["mbpp", "boolq"], "all": ["general", "domain"]}}
    )
    assert tasks.resolve(["all"], config) == ["boolq", "mine", "mbpp"]


def only(config, *paths):
    """A config that has these settings and no others."""
    found = {}
    for path in dict.fromkeys(paths):
        section, _, knob = path.partition(".")
        if knob:
            part = getattr(config, section)
            found.setdefault(section, SimpleNamespace())
            setattr(found[section], knob, part[knob] if isinstance(part, dict) else getattr(part, knob))
        else:
            found[path] = getattr(config, path)
    return SimpleNamespace(**found)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Ten pairs of every packaged kind and of every package, articles enough; gives a function for a config."""
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pairs = [packaged.Pair(f"what is number {i}?", f"group {i // 2}", f"title {i}", f"text {i}") for i in range(40)]
    for name in ("squad", "drop", "sciq", "humaneval", "mbpp"):
        monkeypatch.setattr(packaged, name, lambda: pairs)
    monkeypatch.setattr(
        packaged, "boolq", lambda half: pairs if half == "train" else [p._replace(title=f"other {p.title}") for p in pairs]
    )
    monkeypatch.setattr(packaged, "qasper", lambda: (pairs, []))
    monkeypatch.setattr(code, "pairs", lambda package: [p._replace(query=f"{package} {p.query}", group="module") for p in pairs])
    rows = [{"title": f"t{i}", "text": " ".join(f"w{i}x{j}" for j in range(1700))} for i in range(100)]
    monkeypatch.setattr(wikipedia, "_stream", lambda commit: rows)
    monkeypatch.setattr(wikipedia.hub, "dataset_commit", lambda name: "c0ffee")
    monkeypatch.setattr(wikipedia.hub, "check_dataset", lambda *a, **k: None)
    return lambda **more: configs.load(
        manifest.ROOT / "params.yaml", {"data.instances": 12, **{key.replace("__", "."): value for key, value in more.items()}}
    )


ASKED = (
    "roles",
    "bm25",
    "data.seed",
    *(
        f"questions.{knob}"
        for knob in (
            "kinds",
            "prompt",
            "examples",
            "per_set",
            "limit",
            "max_new_tokens",
            "batch",
            "round_trip",
            "endpoint",
            "endpoint_model",
        )
    ),
)


@pytest.mark.parametrize("name", [*sources.SOURCES, "mine"])
def test_a_source_reads_what_it_says_and_nothing_else(small, tmp_path, monkeypatch, name):
    """Stages questions and prepare, with the settings that a source declares: another one would be an AttributeError."""
    own = {"mine": write_set(tmp_path / "set")} if name == "mine" else {}
    config = small(data__sources=[] if own else [name], own=own, tasks=["mine"] if own else ["squad"], questions__round_trip=5)
    wanted = sources.reads(config)
    given = only(config, *wanted)
    assert sources.of(given) == [name] and sources.reads(given) == wanted
    sources.get(name, given).check(given)
    monkeypatch.setattr(
        questions, "Writer", lambda record, settings: lambda texts, kind: [f"what is {text[:9]}?" for text in texts]
    )
    written = None
    if questions.needed(given):
        asked = only(config, *wanted, *ASKED)
        written = questions.generate(asked, questions.targets(asked))
        written = round_trip.keep(written, sources.get(name, asked).passages(asked), asked)
        assert len(written)
    tables = sources.load(name, given, written)
    assert all(map(len, tables))
    everything = sources.load(name, config, written)
    assert all(left.equals(right) for left, right in zip(tables, everything, strict=True))


@pytest.mark.parametrize("name", [*tasks.PACKAGED, "mine"])
@pytest.mark.parametrize("source", ["squad", "wikipedia", "boolq"])
def test_a_task_reads_what_it_says_and_nothing_else(small, tmp_path, name, source):
    config = small(own={"mine": write_set(tmp_path / "set")}, data__sources=[source], tasks=[name], data__development=0.5)
    if source == "wikipedia":
        asked = questions.targets(config)
        questions.PATH.parent.mkdir(parents=True)
        pd.DataFrame({"source": source, "target_id": asked["passage_id"], "query": asked["title"]}).to_parquet(questions.PATH)
    wanted = tasks.reads([name], config)
    built = tasks.build(name, only(config, *wanted))
    assert built.revision == tasks.build(name, config).revision
    assert ("data.instances" in wanted) == (name == "development" and source == "wikipedia")
    assert ("tasks" in wanted) == (name == "development" and source == "squad")
    names = only(config, "tasks", "task_lists", "own")
    tasks.write_entry(name, only(config, "task_lists", *wanted), tmp_path / "tasks" / name)
    assert tasks.load(name, names, tmp_path / "tasks").revision == built.revision


def test_preparing_and_building_candidates_read_their_own_settings_alone(small, tmp_path):
    config = small(
        own={"mine": write_set(tmp_path / "set")}, tasks=["mine", "squad"], data__sources=["squad", "boolq"], candidates__count=2
    )
    given = only(config, "data", "own", "tasks", "task_lists")
    prepared = prepare.prepare(given, folder=tmp_path / "tasks")
    assert len(prepared.instances) == 12
    for source in ("auto", "bm25", "same_document"):
        config = small(own=config.own, candidates__count=2, candidates__source=source)
        asked = prepared.instances[prepared.instances["source"] == "squad"] if source == "same_document" else prepared.instances
        sets, _ = build(only(config, "candidates", "bm25", "own"), prepared.passages, asked)
        assert len(sets) and sets.equals(build(config, prepared.passages, asked)[0])


def test_what_the_stage_assets_asks_for_is_no_more_than_it_needs(small):
    config = small(candidates__source="dense", data__sources=["squad-generated"], references=["minilm"])
    given = only(config, *sources.reads(config), "candidates.source", "roles", "tasks", "task_lists")
    assert needs.roles(given).keys() == {"encoder", "judge", "generator", "dense", "minilm"}
    needs.check_available(given)
