"""From own documents to training data: written queries, their filters, what is held out, and what is chosen on."""

import json
import sys

import pandas as pd
import pytest
import torch
from test_definition import judge
from test_documents import write

from dream import candidates, manifest
from dream import config as configs
from dream.config import stages
from dream.data import development, examples, own, prepare, questions, sources, tasks
from dream.errors import DreamError
from dream.files import read_json, write_json
from dream.instances import CandidateSet
from dream.judge import gain
from dream.names import RULE


def pages(folder, count=30, parts=4):
    """Markdown files of so many parts, no two alike."""
    for i in range(count):
        text = "".join(f"\n## Part {j}\n\n{' '.join(f'word{i}x{j}x{k}' for k in range(12))}\n" for j in range(parts))
        write(folder, **{f"page{i}__md": f"# Page {i}\n{text}"})
    return str(folder)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Gives a function for a config whose own set `mine` is 30 Markdown files, and whose writer asks for first words."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    asked = lambda record, settings: lambda texts, kind: [f"{kind} {text.split()[0]} {text.split()[1]}" for text in texts]  # noqa: E731
    monkeypatch.setattr(questions, "Writer", asked)
    path = pages(tmp_path / "docs")
    return lambda **more: configs.load(
        manifest.ROOT / "params.yaml",
        {"own": {"mine": path}, "data.sources": [], "tasks": ["heldout"], "data.development": 0.3, "candidates.count": 4,
         "questions.per_set": 2, **{key.replace("__", "."): value for key, value in more.items()}},
    )  # fmt: skip


def written(config):
    """What stage questions leaves, without a filter."""
    found = questions.generate(config, questions.targets(config))
    questions.PATH.parent.mkdir(parents=True, exist_ok=True)
    found.to_parquet(questions.PATH)
    return found


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"], False), (["corpus.jsonl", "queries.jsonl"], False),
        (["corpus.jsonl", "qrels/test.tsv"], False), (["corpus.jsonl"], True), (["in/corpus.jsonl"], True), (["a.md"], True), ([], True),
        (["a.md", ".git/queries.jsonl", "__MACOSX/queries.jsonl"], True),
    ],
)  # fmt: skip
def test_documents_are_what_has_neither_queries_nor_judgements(tmp_path, files, expected):
    import zipfile

    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as opened:
        for name in files:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_text("x")
            opened.writestr(name, "x")
    assert own.is_documents(str(tmp_path / "set")) is expected
    assert own.is_documents(str(tmp_path / "set.zip")) is expected
    assert not own.is_documents(str(tmp_path / "missing"))


def test_documents_are_trained_on_by_document_and_asked_about_by_documents_that_no_run_trains_on(project, tmp_path):
    """Held out: whole documents. Searched: all passages of the set."""
    config = project()
    asked = written(config)
    prepared = prepare.prepare(config, asked, tmp_path / "tasks")
    task = tasks.load("mine-heldout", config, tmp_path / "tasks")
    trained = set(prepared.passages["group"])
    held = {name.removeprefix("mine:").partition("#")[0] for name in task.qrels["doc_id"]}
    assert len(task.corpus) == 30 * 4 and held and trained and not held & trained and len(held | trained) == 30
    assert len(prepared.passages) == 4 * len(trained) and set(prepared.instances["group"]) <= trained
    assert not set(task.queries["text"]) & set(prepared.instances["query"])
    source, record = prepared.records
    assert source["instances"] == 2 * len(trained) and record["suite"] == "heldout" and record["relevant_in_training"] == 0
    sets, (summary,) = candidates.build(config, prepared.passages, prepared.instances)
    assert summary["strategy"] == "same_document" and len(sets) == len(prepared.instances)
    groups = dict(zip(prepared.passages["passage_id"], prepared.passages["group"], strict=True))
    assert all(len({groups[name] for name in names}) == 1 for names in sets["passage_ids"])


def test_documents_that_are_too_short_for_a_set_get_candidates_from_bm25(project, tmp_path):
    config = project(candidates__count=5)  # a document has four passages
    prepared = prepare.prepare(config, written(config), tmp_path / "tasks")
    assert candidates.build(config, prepared.passages, prepared.instances)[1][0]["strategy"] == "bm25"


def test_own_test_queries_are_for_the_final_row_and_nothing_is_chosen_on_them(project, tmp_path):
    """A question that was generated about a held-out document, and is a test query of an own set, is asked nowhere else."""
    config = project()
    asked = written(config)
    chosen = tasks.build("mine-heldout", config).queries["text"].iloc[0]
    labelled = tmp_path / "labelled"
    write(labelled, corpus__jsonl=json.dumps({"_id": "d", "text": "x"}))
    (labelled / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": chosen.upper() + "?"}))
    (labelled / "qrels").mkdir()
    (labelled / "qrels/test.tsv").write_text("q\td\t1\n")
    both = project(own={**config.own, "final": str(labelled)}, tasks=["heldout", "development", "general"],
                   **{"task_lists.general": ["final"]})  # fmt: skip
    assert tasks.resolve(["general"], both) == ["final"] and tasks.resolve(["heldout"], both) == ["mine-heldout"]
    for name in ("mine-heldout", "development"):
        found = set(tasks.build(name, both).queries["text"])
        assert found and chosen not in found and found < set(asked["query"]), name
        kept = stages.cut(both, "tasks-heldout" if name == "mine-heldout" else "tasks-development")
        assert set(tasks.build(name, kept).queries["text"]) == found, "the stage has what the guard needs"
    final = tasks.build("final", both).queries["text"]
    assert list(final) == [chosen.upper() + "?"] and not set(development.asked("mine", both)[1]["query"]) & {chosen}
    prepared = prepare.prepare(both, asked, tmp_path / "tasks")
    assert chosen not in set(prepared.instances["query"])


def test_a_set_without_a_held_out_question_is_one_line(project):
    config = project(data__development=0.0)
    written(config)
    with pytest.raises(
        DreamError, match=r"task mine-heldout: no question was written about a held-out document of mine\. Raise data\.dev"
    ):
        tasks.build("mine-heldout", config)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"own": {}, "data.sources": ["squad"]}, "tasks: heldout is empty: no own set is documents"),
        ({"data.passage_overlap": 51}, "passage_overlap is 51, more than half of passage_words"),
        ({"questions.kinds": ["question", "question"]}, "questions.kinds.*twice"),
        ({"questions.kinds": []}, "questions.kinds"),
        ({"questions.claim_prompt": "Write a claim."}, "questions.claim_prompt"),
        ({"task_lists.heldout": ["boolq"]}, "task_lists: 'heldout' is already the name of the list of held-out documents"),
        ({"task_lists.mine-heldout": ["boolq"]}, "the held-out part of 'mine' would have the name of a task list"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(project, overrides, line):
    with pytest.raises(DreamError, match=line):
        project(**overrides)
    assert RULE.fullmatch("mine-heldout")


def test_documents_have_no_queries_to_be_evaluated_on_by_their_name(project):
    with pytest.raises(DreamError, match="tasks: mine has no queries. Evaluate its held-out part: mine-heldout"):
        tasks.check(["mine"], project())


# ----------------------------------------------------------------------------------------------------- what is written


def test_every_kind_is_written_for_every_passage_and_kept_apart(project, tmp_path):
    config = project(questions__kinds=["claim", "question"], questions__limit=7)
    asked = questions.targets(config)
    found = questions.generate(config, asked)
    assert len(asked) == 7 and len(found) == 14 and list(found["kind"][:2]) == ["claim", "question"]
    assert all(row.query.startswith(row.kind) for row in found.itertuples())
    questions.Writer = None  # another call asks nobody, whatever the order of the kinds
    again = questions.generate(project(questions__kinds=["question", "claim"], questions__limit=7), asked)
    assert set(map(tuple, again.to_numpy())) == set(map(tuple, found.to_numpy()))


def test_a_prompt_of_one_kind_asks_the_others_nothing_anew(project, monkeypatch):
    config = project(questions__kinds=["question", "keywords"], questions__limit=3)
    questions.generate(config, questions.targets(config))
    asked = []
    monkeypatch.setattr(questions, "Writer", lambda *_: lambda texts, kind: asked.extend([kind] * len(texts)) or texts)
    changed = project(
        questions__kinds=["question", "keywords"], questions__limit=3, questions__keywords_prompt="Words of {passage}"
    )
    questions.generate(changed, questions.targets(changed))
    assert asked == ["keywords"] * 3
    changed = project(questions__limit=3, questions__examples=["what is wax?"])  # examples steer every kind
    questions.generate(changed, questions.targets(changed))
    assert asked == ["keywords"] * 3 + ["question"] * 3


def test_examples_are_read_from_a_list_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write(
        tmp_path, a__txt="what is wax?\n\nwho makes it?\n", b__jsonl='{"query": "who?", "passage": "ants"}\n"wax"\n', c__txt="\n"
    )
    assert examples.read("a.txt") == [{"query": "what is wax?"}, {"query": "who makes it?"}] and examples.read([]) == []
    assert (
        examples.read("b.jsonl")
        == [{"query": "who?", "passage": "ants"}, {"query": "wax"}]
        == examples.read([{"query": "who?", "passage": "ants"}, "wax"])
    )
    for given, line in {"c.txt": "is empty", "no.txt": "is missing"}.items():
        with pytest.raises(DreamError, match=line):
            examples.read(given)
    for given in ([{"passage": "x"}], [{"query": "x", "text": "y"}], [""]):
        with pytest.raises(DreamError, match=r"questions\.examples: "):
            examples.read(given)


def test_examples_stand_in_the_settings_of_the_stage_so_that_a_changed_file_is_seen(project, tmp_path):
    write(tmp_path, asked__txt="what is wax?\n")
    config = project(questions__examples="asked.txt")
    held = stages.files(config)["questions"]["questions"]["examples"]
    assert held == [{"query": "what is wax?"}] and stages.read(stages.files(config)["questions"]).questions.examples == held
    write(tmp_path, asked__txt="what is honey?\n")
    assert stages.files(config)["questions"]["questions"]["examples"] == [{"query": "what is honey?"}]


# ------------------------------------------------------------------------------------------------------- what is dropped


def test_the_gain_of_a_question_is_the_fall_of_the_judges_loss():
    """Against plain passes over the whole prompt, without shared keys and values."""
    fast, target, queries = judge(), "bees see", ["bees?", "other words", ""]
    found = gain.gains(fast, queries, [target] * 3)
    prefix = fast.prompt.documents(CandidateSet("", "", (), (), ())).ids

    def loss(query):
        suffix = fast.prompt.suffix(query, target)
        ids = torch.tensor([[*prefix, *suffix.ids]])
        with torch.no_grad():
            hidden = fast.model.base_model(input_ids=ids, use_cache=False, attention_mask=causal(ids.shape[1])).last_hidden_state
        log_p = fast.model.get_output_embeddings()(hidden)[0].log_softmax(-1)
        first, last = (len(prefix) + at for at in suffix.target)
        return -log_p[first - 1 : last - 1].gather(1, ids[0, first:last, None]).mean().item()

    assert found == pytest.approx([loss("N/A") - loss(query) for query in queries], abs=1e-6)
    assert found[2] == 0 and abs(found[0]) > 1e-3, "a question without a word is the empty one"


def causal(length):
    return torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)[None, None]


def test_the_gap_filter_keeps_what_gains_more_than_it_asks_for(project, monkeypatch):
    table = pd.DataFrame({"source": "mine", "target_id": list("abc"), "query": ["x", "y", "z"], "kind": "question"})
    passages = pd.DataFrame({"passage_id": list("abcd"), "title": ["t", "", "", ""], "text": list("klmn")})
    seen = []
    monkeypatch.setattr(
        gain, "gains", lambda judge, asked, targets: seen.append(targets) or pd.Series([0.1, 0.0, -0.1]).to_numpy()
    )
    left = {least: "".join(gain.keep(table, passages, project(questions__gap_filter=least), judge="a judge")["target_id"])
            for least in (None, -1.0, 0.0, 0.05, 0.1)}  # fmt: skip
    assert left == {None: "abc", -1.0: "abc", 0.0: "a", 0.05: "a", 0.1: ""} and seen[0] == ["t k", "l", "m"]
    monkeypatch.setattr(gain, "gains", lambda judge, *_: pd.Series([0.0, float(judge == "mine"), 1.0]).to_numpy())
    monkeypatch.setattr(gain.Judge, "build", lambda config: config.own.keys() == {"mine"} and "mine")
    kept = gain.keep(table, passages, project(questions__gap_filter=0.5))
    assert kept.equals(table[1:].reset_index(drop=True)), "the configuration's judge; rows are numbered anew"


def test_what_a_filter_drops_is_said_with_its_share_and_three_of_it():
    table = pd.DataFrame(
        {"source": "s", "target_id": list("abcde"), "query": ["q\x1b1", "q2", "q3", "q4", "q5"], "kind": "question"}
    )
    line = questions.dropped("too plain", table, table.iloc[4:].reset_index(drop=True))
    assert line == r"too plain: 4 of 5 dropped (80%), such as: q\x1b1; q2; q3"
    assert questions.dropped("too plain", table, table) == "too plain: 0 of 5 dropped (0%)"


def run_stage(config, monkeypatch):
    from stages import questions as stage

    monkeypatch.setattr(sys, "argv", ["questions"])
    for name, values in stages.files(config).items():
        write_json(stages.FOLDER / f"{name}.json", values)
    for role in ("generator", "judge"):
        write_json(f"reports/assets/{role}.json", {})
    stage.main()


def test_the_stage_filters_prints_and_records(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gain.Judge, "build", lambda config: judge())
    config = project(questions__round_trip=1, questions__gap_filter=-100.0, questions__limit=10, training__threads=1)
    write(tmp_path / "docs", **{"copy__md": (tmp_path / "docs" / "page0.md").read_text(encoding="utf-8")})
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    plain = questions.Writer
    monkeypatch.setattr(questions, "Writer", lambda *_: lambda texts, kind: ["nothing known"] * 4 + plain(*_)(texts[4:], kind))
    run_stage(config, monkeypatch)
    said = capsys.readouterr().out
    assert "passage not among BM25's 1 best: 4 of 10 dropped (40%), such as: nothing known; nothing known; nothing known" in said
    assert "judge's gain not above -100.0 nats a token: 0 of 6 dropped" in said and "10 written for mine, 6 kept" in said
    assert "[questions] mine: 1 copies of documents dropped, such as: " in said and said.count("4 of 10 dropped") == 1
    (made,) = read_json("reports/results/runs/questions.json")
    assert made["notes"] == {"sources": ["mine"], "written": 10, "after_round_trip": 6, "questions": 6, "wordless": 4}
    assert list(made["inputs"]) == ["reports/assets/generator.json", "reports/assets/judge.json"] and threads == [1]
    table = pd.read_parquet(questions.PATH)
    assert list(table.index) == list(range(6)) and list(table) == questions.COLUMNS


def test_without_filters_every_question_is_kept(project, monkeypatch, capsys):
    run_stage(project(questions__limit=3), monkeypatch)
    assert capsys.readouterr().out.endswith("[questions] 3 written for mine, 3 kept\n")
    (made,) = read_json("reports/results/runs/questions.json")
    assert made["notes"] == {"sources": ["mine"], "written": 3, "after_round_trip": 3, "questions": 3, "wordless": 0}
    assert list(made["inputs"]) == ["reports/assets/generator.json"]


def test_filters_that_leave_nothing_are_one_line_and_write_nothing(project, monkeypatch):
    monkeypatch.setattr(gain.Judge, "build", lambda config: judge())
    with pytest.raises(SystemExit) as caught:
        run_stage(project(questions__gap_filter=100.0, questions__limit=3), monkeypatch)
    assert "source mine: the filters leave none of its 3 questions. Raise questions.round_trip" in str(caught.value)
    assert not questions.PATH.exists()


def test_what_is_too_small_for_a_verdict_is_said_in_one_line_before_a_question_is_written(project, monkeypatch):
    """30 pages of 4 passages: every number that is short is named at once, and one more question is enough for each."""
    whole = project(recipe="adapt", questions__per_set=2)
    targets = questions.targets(stages.cut(whole, "questions"))
    held = int(development.held_out(targets["group"], 0.3).sum())
    trained = len(targets) - held
    assert (len(targets), held) == (60, 18)

    def counted(**more):
        cut = stages.cut(project(recipe="adapt", questions__per_set=2, training__micro_batch=1, **more), "questions")
        development.enough(cut, len(sources.get("mine", cut).passages(cut)), targets)

    def line(**more):
        with pytest.raises(DreamError) as caught:
            counted(**more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    counted(adapt__queries=held, training__batch=trained - 16, candidates__count=120)
    assert line(adapt__queries=held + 1).startswith(
        "60 passages to ask about are too few for a verdict: 18 held-out questions at most, and adapt.queries is 19. "
    )
    assert f": {trained} to train on, and heads.probes, injection.diagnostic and training.batch take {trained + 1}. " in line(
        adapt__queries=held, training__batch=trained - 15
    )
    assert ": 120 passages to search, and candidates.count is 121. " in line(adapt__queries=held, candidates__count=121)
    assert line(adapt__queries=19, training__batch=44, candidates__count=121).count(", and ") == 3
    counted(adapt__queries=2 * held, questions__kinds=["question", "claim"])
    with pytest.raises(SystemExit, match="too few for a verdict: 18 held-out questions at most, and adapt.queries is 50"):
        run_stage(whole, monkeypatch)
    assert not questions.PATH.exists()
    packaged = stages.cut(project(), "questions")
    assert development.enough(packaged, len(sources.get("mine", packaged).passages(packaged)), targets.head(0)) is None
