"""A teacher's numbers equal a slow reading of their definition; they are computed once, whoever stops them or asks again."""

import dataclasses
import importlib.metadata
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import reference
import torch
import toy_project as toy
from test_controls import run  # noqa: F401
from test_encoder import make_model
from test_training import make_config, make_sets

from dream import models, objectives, teachers
from dream.candidates.bm25 import BM25Index
from dream.config import stages
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.files import Journal, read_json
from dream.instances import CandidateSet, Question, load_sets
from dream.judge import Judge, flops
from dream.judge.prompt import EMPTY_QUERY
from stages import given as given_stage
from stages import teacher as teacher_stage
from stages import train as train_stage

EXACT = {"rtol": 1e-9, "atol": 1e-9}
NAMES = {
    "replug": "likelihood",
    "emdr2": "likelihood",
    "adist": "attention",
    "loop": "leave_one_out",
    "art": "question_likelihood",
    "fused": "bm25+attention",
}
ROOMS = {
    "likelihood": ["judge"], "leave_one_out": ["judge"], "attention": ["judge"], "question_likelihood": ["judge"],
    "bm25": ["candidates"], "encoder": ["encoder", "models"], "models.toy": ["encoder", "models"],
}  # fmt: skip
model = pytest.fixture(scope="module")(toy.model)


def asked(teacher, judge):
    """The teacher with a judge at hand."""
    teacher.__dict__["judge"] = judge
    return teacher


@pytest.mark.parametrize("drop", [False, True])
def test_attention_is_the_mean_of_the_heads_masses_less_the_empty_questions(model, drop, monkeypatch):
    judge, slow = reference.both()
    candidates, config = reference.candidate_set(questions=2), make_config(model, **{"heads.drop_low_tokens": drop})
    heads = ((1, 0), (1, 3), (2, 2))
    reached = []
    for layer in judge.model.model.layers:
        layer.register_forward_pre_hook(lambda module, _: reached.append(module.self_attn.layer_idx))
    found, _ = asked(teachers.Attention(config, heads), judge).ask(candidates)
    assert max(reached) == 3 and reached.count(3) <= 2, "layers above the highest head compute keys at most"
    if drop:
        assert not torch.equal(found, asked(teachers.Attention(make_config(model), heads), judge).ask(candidates)[0])
        return
    for i, question in enumerate(candidates.questions):
        masses = []
        for text in (question.text, EMPTY_QUERY):
            documents, suffix = judge.prompt.documents(candidates), judge.prompt.suffix(text)
            rows = [len(documents.ids) + place for place in suffix.query]
            masses.append(reference.head_masses(slow, (*documents.ids, *suffix.ids), rows, documents.spans))
        expected = sum(masses[0][layer, head] - masses[1][layer, head] for layer, head in heads) / len(heads)
        torch.testing.assert_close(found[i], expected, **EXACT)


@pytest.mark.parametrize("text", ["ab cd ef", "  ", "ab " * 40])
def test_question_likelihood_is_that_of_the_question_behind_each_passage_alone(model, text):
    """A pass of the plain model over the whole text: header, passage, request, question."""
    judge, slow = reference.both()
    candidates = dataclasses.replace(
        reference.candidate_set(questions=2), questions=(Question("q0", text, 0), Question("q1", "gh", 1))
    )
    found, _ = asked(teachers.QuestionLikelihood(make_config(model)), judge).ask(candidates)
    prompt = judge.prompt
    assert found.shape == (2, len(candidates.passages))
    for row, query in zip(found, (text, "gh"), strict=True):
        words = prompt.tokens(" " + (query.strip() or "N/A"))[: prompt.limits.query]
        for value, passage in zip(row, candidates.passages, strict=True):
            head = (*prompt._bos, *prompt.tokens("PASSAGES:\n\n"), *prompt.tokens(passage)[: prompt.limits.passage],
                    *prompt.tokens("\n\nPlease write a question based on this passage.\n\nQuestion:"))  # fmt: skip
            logits = slow(torch.tensor([[*head, *words]])).logits[0, len(head) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(words)), list(words)].mean()
            torch.testing.assert_close(value, expected, **EXACT)
    assert len(prompt.tokens(" " + "ab " * 40)) > prompt.limits.query, "one is cut"


def test_bm25_is_its_score_within_the_set_and_costs_no_operation(model):
    questions = (Question("q0", "ab cd", 0), Question("q1", "gh", 2), Question("q2", "zz", 0))
    candidates = CandidateSet("s", "test", tuple("0123"), ("ab cd ef", "cd cd", "gh", "ab gh gh"), questions)
    config = make_config(model)
    scores, took = teachers.find("bm25")(config).ask(candidates)
    places, found = BM25Index(candidates.passages, config.bm25).search(["ab cd"], 4)
    expected = dict(zip(map(int, places[0]), map(float, found[0]), strict=True))
    assert scores[0].tolist() == [expected.get(place, 0.0) for place in range(4)]
    assert (scores > 0).tolist() == [[True, True, False, True], [False, False, True, True], [False] * 4] and took == 0
    assert scores[0, 0] > scores[0, 1] and scores[1, 3] > scores[1, 2] and scores.shape == (3, 4)


def test_the_untouched_encoder_teaches_what_an_entry_of_models_would(model):
    config, (candidates,) = make_config(model), make_sets(1, questions=2)
    part = config.model_copy(update={"roles": {"toy": config.roles["encoder"], "judge": None}})
    one, other = teachers.find("encoder")(config), teachers.find("models.toy")(part)
    assert torch.equal(one.ask(candidates)[0], other.ask(candidates)[0]) and one.identity() == other.identity()
    assert teachers.find("encoder").reads("encoder") == ("roles.encoder",)


def test_several_are_the_sum_of_their_standardised_answers_each_asked_and_kept_by_itself(model, tmp_path):
    sets, config = make_sets(3, questions=2), make_config(model)
    both = [Counting(config), Counting(config, name="b", tokens=(2, 5))]
    found = teachers.table(both, sets, tmp_path)
    one, other = (teachers.answers(Counting(config, **more), sets, tmp_path) for more in ({}, {"name": "b", "tokens": (2, 5)}))
    assert (one.asked, other.asked) == (0, 0) and len(list(tmp_path.iterdir())) == 2

    def z(row):
        return (np.array(row) - np.mean(row)) / np.std(row)

    for row, a, b in zip(found.rows, one.rows, other.rows, strict=True):
        np.testing.assert_allclose(row["scores"], z(a["scores"]) + z(b["scores"]), rtol=1e-12)
        assert row["instance_id"] == a["instance_id"] and row["tokens"] == max(a["tokens"], b["tokens"])
    assert found.flops == one.flops + other.flops > 0 and found.asked == 6 and found.earlier == 0
    again = teachers.table(both, sets, tmp_path)
    assert again.rows == found.rows and again.asked == 0 and again.earlier == pytest.approx(one.earlier + other.earlier)
    assert teachers.table(both[:1], sets, tmp_path).rows == one.rows, "one alone is as it is"
    assert torch.equal(teachers.standardised(torch.ones(2, 3)), torch.zeros(2, 3))


def test_what_several_read_and_need_is_what_each_does(model):
    assert teachers.several("bm25+attention") == ["bm25", "attention"] and teachers.several("bm25") == ["bm25"]
    attention = teachers.find("attention").reads("attention")
    assert teachers.reads("bm25+attention+question_likelihood") == ("bm25", *attention)
    assert teachers.reads("models.toy+encoder") == ("roles.toy", "roles.encoder")
    needs = {name: teachers.needs_heads(name) for name in ("bm25+attention", "bm25+question_likelihood", "attention", "encoder")}
    assert needs == {"bm25+attention": True, "bm25+question_likelihood": False, "attention": True, "encoder": False}
    readings, config = object(), make_config(model)
    built = teachers.build("bm25+attention", config, [(1, 2)], readings)
    assert [type(one) for one in built] == [teachers.Lexical, teachers.Attention]
    assert all((one.config, one.heads, one.readings) == (config, [(1, 2)], readings) for one in built)


@pytest.mark.parametrize("name", ["likelihood", "leave_one_out", "attention"])
def test_a_teachers_operations_equal_what_the_counter_of_torch_counts_in_products_with_weights(model, name):
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = reference.both(layers=3)
    candidates, config = reference.candidate_set(lengths=(6, 6, 6)), make_config(model)
    teacher = asked(teachers.find(name)(config, [(0, 1), (2, 3)]), judge)
    with FlopCounterMode(display=False) as counter:
        _, took = teacher.ask(candidates)
    shapes, documents = judge.model.config, judge.prompt.documents(candidates)
    rows, k, whole = flops.asked(judge.prompt.suffixes(candidates))[0], 3, len(documents.ids)
    read = [len(one.ids) for one in documents.alone()] if name == "likelihood" else [whole]
    times = {"likelihood": k, "leave_one_out": k, "attention": 1}[name]
    if name == "attention":
        rows = [len(judge.prompt.suffix(text).ids) for text in (*(q.text for q in candidates.questions), "")]
    seen = sum(map(flops.pairs, read)) + sum(times * flops.pairs(n, read[0]) for n in rows)
    last = [p.numel() for n, p in judge.model.model.layers[-1].named_parameters() if "o_proj" in n or "mlp" in n]
    unused = 2 * sum(last) * sum(read)  # reading stops at the last layer's keys and values; the count does not
    dense = reference.counted(counter, ".mm", ".addmm")
    assert took == dense + unused + 3 * flops.attention_flops(shapes, seen)


def test_similarity_is_the_cosine_of_an_entry_of_models_as_evaluation_encodes_it(model):
    config = make_config(model)
    record = config.roles["encoder"].model_copy(update={"query_prompt": "river ", "document_prompt": "red ", "max_length": 3})
    part = config.model_copy(update={"roles": {"toy": record}})
    encoder, (candidates,) = Encoder.load(models.rules(record, "models.toy"), device="cpu"), make_sets(1, questions=2)
    scores, took = teachers.find("models.toy")(part).ask(candidates)
    queries = encoder.encode([q.text for q in candidates.questions], "river ", 3)
    passages = encoder.encode(candidates.passages, "red ", 3)
    torch.testing.assert_close(scores, torch.from_numpy(queries @ passages.T))
    assert scores.shape == (2, 4) and took == encoder.tokens * encoder.flops_per_token > 0
    teacher = teachers.find("models.toy")(part)
    assert not np.allclose(passages, encoder.encode(candidates.passages, "red ", 64)), "its own length is what cuts"
    longer = config.model_copy(update={"roles": {"toy": record.model_copy(update={"max_length": 4})}})
    assert teacher.identity() != teachers.find("models.toy")(longer).identity() is not None, "another journal"
    assert teacher.ask(candidates)[1] == teacher.ask(candidates)[1] == took, "asked again, it takes the same"
    assert teachers.find("models.toy").reads("models.toy") == ("roles.toy",)


# --------------------------------------------------------------------------------------------------------------- journal


@pytest.mark.parametrize("column", ["instance_id", "scores", "tokens"])
def test_answers_without_a_column_are_one_line(tmp_path, column):
    table = pd.DataFrame({"instance_id": ["a"], "scores": [[0.1]], "tokens": [3]})
    table.drop(columns=column).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DreamError, match=rf"t.parquet has no column {column}. Run `dvc repro -f teacher`"):
        objectives.load_teacher(tmp_path / "t.parquet")
    table.to_parquet(tmp_path / "t.parquet")
    assert objectives.load_teacher(tmp_path / "t.parquet")[1] == {"a": 3}


class Counting(teachers.Teacher):
    """Asked, it notes the set; what it says is made of the set's text."""

    def __init__(self, config, fail=99, name="a", tokens=()):
        super().__init__(config)
        self.sets, self.fail, self.name, self.read = [], fail, name, list(tokens)

    def identity(self):
        return self.name

    def ask(self, candidates):
        if len(self.sets) == self.fail:
            raise KeyboardInterrupt
        self.sets.append(candidates.id)
        power = ord(self.name) - ord("a") + 1
        values = [[len(p) ** power / (3 + len(q.text)) for p in candidates.passages] for q in candidates.questions]
        return torch.tensor(values), 7.0

    def tokens(self, candidates):
        return self.read


def test_a_stopped_teacher_goes_on_where_it_stopped_and_says_the_same(model, tmp_path):
    config, sets = make_config(model), make_sets(4, questions=2)
    whole = teachers.answers(Counting(config), sets, tmp_path / "whole")
    stopped, again, after = Counting(config, fail=2), Counting(config), Counting(config)
    with pytest.raises(KeyboardInterrupt):
        teachers.answers(stopped, sets, tmp_path / "cut")
    (journal,) = (tmp_path / "cut").iterdir()
    with open(journal, "a", encoding="utf-8") as stream:
        stream.write('["half", {"sco')
    rows, operations, earlier, new = teachers.answers(again, sets, tmp_path / "cut")
    assert (stopped.sets, again.sets, new) == (["s0", "s1"], ["s2", "s3"], 2)
    assert (rows, operations) == whole[:2] and operations == 28 and whole.earlier == 0 <= earlier
    (complete,) = (tmp_path / "whole").iterdir()
    said = [{key: {**answer, "seconds": 0} for key, answer in Journal(path).done.items()} for path in (journal, complete)]
    assert said[0] == said[1] and len(said[0]) == 4 and journal.name == complete.name
    turned = teachers.answers(after, sets[1:] + sets[:1], tmp_path / "cut")
    assert turned.rows == rows[2:] + rows[:2] and not after.sets and turned.flops == operations


def test_a_table_costs_what_its_answers_took_whoever_asked_first(model, tmp_path, monkeypatch):
    """Seconds of answers at hand are those of when they were asked for; an answer of which nobody knows is asked for again."""
    sets, now = make_sets(3), (step * 4.0006 for step in range(99))  # rounded to milliseconds
    monkeypatch.setattr(teachers.time, "perf_counter", lambda: next(now))
    config, ask = make_config(model), lambda n: teachers.answers(Counting(config), sets[:n], tmp_path)
    assert [(round(one.earlier, 6), one.asked) for one in map(ask, (2, 3, 3))] == [(0, 2), (8.002, 1), (12.003, 0)]
    (journal,) = tmp_path.iterdir()
    journal.write_text(journal.read_text().replace(', "seconds": 4.001', "", 1))
    found = ask(3)
    assert (round(found.earlier, 6), found.asked, found.flops) == (8.002, 1, 21)


def test_another_set_or_anything_that_can_change_an_answer_is_asked_anew(model, tmp_path, monkeypatch):
    config, (s,) = make_config(model), make_sets(1)
    teachers.answers(Counting(config), [s], tmp_path)

    def asks(candidates=s, **more):
        teacher = Counting(config, **more)
        teachers.answers(teacher, [candidates], tmp_path)
        return bool(teacher.sets)

    question = s.questions[0]
    assert not asks(dataclasses.replace(s, id="other", passage_ids=tuple("abcd"))), "ids change no answer"
    assert asks(dataclasses.replace(s, passages=(*s.passages[:3], "new")))
    assert asks(dataclasses.replace(s, passages=s.passages[::-1]))
    assert asks(dataclasses.replace(s, questions=(dataclasses.replace(question, text="new"),)))
    assert asks(dataclasses.replace(s, questions=(dataclasses.replace(question, gold=question.gold + 1),)))
    assert asks(name="b")


@pytest.mark.parametrize("name", ROOMS)
def test_code_versions_device_and_threads_are_in_a_journals_name(model, name, tmp_path, monkeypatch):
    def key(**more):
        config = make_config(model, **more)
        part = config.model_copy(update={"roles": {"toy": config.roles["encoder"]}}) if name.startswith("models.") else config
        return teachers.find(name)(part, [(1, 0)]).key()

    monkeypatch.setattr(teachers, "ROOT", tmp_path)
    for room in ("candidates", "encoder", "judge", "models"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "code.py").write_text("a = 1", encoding="utf-8")
    first, changed = key(), []
    for room in sorted(tmp_path.iterdir()):
        (room / "notes.txt").write_text("no code", encoding="utf-8")
        assert key() == first
        (room / "code.py").write_text("a = 2", encoding="utf-8")
        changed += [room.name] * (key() != first)
        (room / "code.py").write_text("a = 1", encoding="utf-8")
    assert changed == ROOMS[name]
    version = importlib.metadata.version
    for library in ("torch", "transformers", "tokenizers"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda name, library=library: "0" if name == library else version(name))
            assert key() != first
    assert key(**{"training.threads": 2}) != first == key()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert key() != first and teachers.find(name)(make_config(model)).device == "cuda"


def test_the_journal_is_beside_the_checkpoints_unless_a_folder_is_given(model, tmp_path, monkeypatch):
    teacher = Counting(make_config(model))
    monkeypatch.chdir(tmp_path)
    for root in (None, tmp_path / "root"):
        monkeypatch.setenv("DVC_ROOT", str(root)) if root else monkeypatch.delenv("DVC_ROOT", raising=False)
        teachers.answers(teacher, make_sets(1))
        assert len(list(((root or tmp_path) / ".dream" / "teachers").iterdir())) == 1


def test_the_judge_of_a_teacher_keeps_what_it_reads_where_the_stage_says_so(model, monkeypatch):
    built, config = [], make_config(model)
    monkeypatch.setattr(Judge, "build", lambda config, store=None: built.append((config, store)))
    readings = SimpleNamespace(judge=SimpleNamespace(cache_gib=0.5), sets_read=7)
    for given in (None, readings):
        teachers.find("likelihood")(config, readings=given).judge  # noqa: B018
    (first, none), (second, store) = built
    assert first is second is config and none is None and (store.budget, store.sets) == (2**29, 7)


def test_a_teacher_says_what_it_reads_what_it_is_and_what_it_answers(model):
    bare, (candidates,) = teachers.Teacher(make_config(model)), make_sets(1)
    for asks in (lambda: bare.reads("models.toy"), bare.identity, lambda: bare.ask(candidates)):
        with pytest.raises(NotImplementedError):
            asks()
    for name in ("attention", "question_likelihood", "bm25", "encoder"):
        assert bare.tokens(candidates) == teachers.find(name)(make_config(model)).tokens(candidates) == [], "it reads no target"


def keys(folder, config, heads=((1, 0),)):
    """Key of every teacher that a configuration gives."""
    found = {}
    for name in NAMES:
        part = stages.cut(config, f"teacher-{name}")
        found[name] = tuple(teacher.key() for teacher in teachers.build(NAMES[name], part, heads))
    return found


def test_a_journal_is_named_after_judge_limits_and_heads_and_after_no_step(model, tmp_path):
    base = {"objectives": list(NAMES)}
    config = make_config(model, **base)
    before = keys(model, config)
    assert before["replug"] == before["emdr2"] and len(set(before.values())) == 5
    assert keys(model, make_config(model, **base, **{"training.steps": 2, "training.batch": 2, "heads.count": 3})) == before
    assert set(keys(model, make_config(model, **base, **{"judge.target_tokens": 5})).values()).isdisjoint(before.values())
    assert set(keys(model, make_config(model, **base, **{"models.toy.dtype": "bfloat16"})).values()).isdisjoint(before.values())
    other = make_model(tmp_path, seed=3)
    assert set(keys(model, make_config(other, **base)).values()).isdisjoint(before.values())
    for changed in (
        keys(model, config, heads=((2, 2),)),
        keys(model, make_config(model, **base, **{"heads.drop_low_tokens": True})),
    ):
        assert {name for name in NAMES if changed[name] != before[name]} == {"adist", "fused"}
    changed = keys(model, make_config(model, **base, **{"bm25.k1": 2.0}))
    assert {name for name in NAMES if changed[name] != before[name]} == {"fused"}


# ---------------------------------------------------------------------------------------------------------------- stage


@pytest.fixture
def project(model, tmp_path):
    def make(**more):
        return toy.make(tmp_path / "toy", model, **{"objectives": list(NAMES), "training.steps": 1, "training.block": 4, **more})

    return make


def made(folder, name):
    return pd.read_parquet(folder / f"work/teacher/{name}/teacher.parquet"), read_json(
        folder / f"reports/results/runs/teacher-{name}.json"
    )[0]


def test_objectives_with_one_teacher_and_runs_of_more_steps_ask_nothing_twice(project, run):  # noqa: F811
    folder = project()
    run(teacher_stage, folder, "replug")
    (journal,) = (folder / ".dream/teachers").iterdir()
    said = [[key, answer | {"seconds": 100}] for key, answer in Journal(journal).done.items()]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in said))
    run(teacher_stage, folder, "emdr2")
    (first, paid), (second, shared) = made(folder, "replug"), made(folder, "emdr2")
    assert (
        first.equals(second)
        and (folder / "work/teacher/replug/teacher.parquet").read_bytes()
        == (folder / "work/teacher/emdr2/teacher.parquet").read_bytes()
    )
    assert shared["wall_s"] > 400 > paid["wall_s"], "what its answers took when they were asked for"
    assert paid["flops"] == shared["flops"] > 0 and (paid["notes"]["asked_now"], shared["notes"]["asked_now"]) == (4, 0)
    longer = project(**{"training.steps": 2})
    run(teacher_stage, longer, "replug")
    table, record = made(longer, "replug")
    assert record["notes"] == {"teacher": "likelihood", "questions": 16, "sets": 8, "asked_now": 4}
    assert table[:8].equals(first) and record["flops"] > paid["flops"]


def test_other_heads_ask_the_attention_anew_and_the_likelihoods_not(project, run):  # noqa: F811
    folder = project()
    for name in ("adist", "loop", "replug"):
        run(teacher_stage, folder, name)
    assert len(list((folder / ".dream/readings").glob("*.safetensors"))) == 4, "what the judge read is kept for others"
    before = {name: made(folder, name) for name in ("adist", "replug")}
    assert set(before["adist"][1]["inputs"]) == {"work/data", "work/candidates", "work/heads"}
    assert set(before["replug"][1]["inputs"]) == {"work/data", "work/candidates"}, "it reads no heads"
    assert before["adist"][0].tokens.tolist() == [0] * 8
    (folder / "work/heads/heads.json").write_text(json.dumps({"selected": [[0, 1]]}))
    for name in before:
        run(teacher_stage, folder, name)
    after = {name: made(folder, name) for name in before}
    assert {name: record["notes"]["asked_now"] for name, (_, record) in after.items()} == {"adist": 4, "replug": 0}
    assert not after["adist"][0].equals(before["adist"][0]) and after["replug"][0].equals(before["replug"][0])


def test_a_killed_stage_leaves_the_same_bytes_when_it_is_run_again(project, run):  # noqa: F811
    folder, target = project(), "work/teacher/replug/teacher.parquet"
    process = toy.start(folder, target=_killed_in_the_third_set)
    assert toy.end(process) == -signal.SIGKILL and not (folder / target).exists()
    (journal,) = (folder / ".dream/teachers").iterdir()
    assert len(journal.read_text().splitlines()) == 2
    run(teacher_stage, folder, "replug")
    _, record = made(folder, "replug")
    assert record["notes"]["asked_now"] == 2
    resumed = (folder / target).read_bytes()
    journal.unlink()
    run(teacher_stage, folder, "replug")
    assert (folder / target).read_bytes() == resumed
    assert made(folder, "replug")[1]["flops"] == record["flops"]


def _killed_in_the_third_set():
    import sys

    real, calls = Judge.passage_log_likelihood, []

    def deadly(judge, candidates):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(judge, candidates)

    Judge.passage_log_likelihood = deadly
    sys.argv = ["teacher", "--objective", "replug"]
    teacher_stage.main()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda f: (f / "work/teacher/loop/teacher.parquet").unlink(), "work/teacher/loop/teacher.parquet is missing. Run `dvc repro`"),
        (lambda f: _edit(f, "roles", {"judge": {"model": "another"}}), "was made with roles.judge"),
        (lambda f: _edit(f, "judge", {"target_tokens": 9}), "was made with judge"),
    ],
)  # fmt: skip
def test_a_table_that_is_missing_or_of_other_settings_is_one_line(project, run, spoil, line):  # noqa: F811
    folder = project()
    run(teacher_stage, folder, "loop")
    spoil(folder)
    with pytest.raises(SystemExit, match=line):
        run(given_stage, folder, "loop")


def _edit(folder, key, value):
    path = folder / "reports/results/runs/teacher-loop.json"
    record = json.loads(path.read_text())
    record[0]["config"][key] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda t: t.drop(columns="tokens"), "teacher.parquet has no column tokens"),
        (lambda t: t[1:], "the teacher has no scores for question"),
        (lambda t: t.assign(scores=[row[:3] for row in t.scores]), "the teacher has no scores for question"),
        (
            lambda t: t.assign(scores=[row * float("nan") for row in t.scores]),
            "is not finite. Set the dtype of the teacher's model",
        ),
    ],
)
def test_a_wrong_table_is_one_line_in_training(project, run, spoil, line):  # noqa: F811
    folder = project()
    run(teacher_stage, folder, "loop")
    run(given_stage, folder, "loop")
    path = folder / "work/given/loop/teacher.parquet"
    spoil(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(SystemExit, match=line):
        run(train_stage, folder, "loop")
    assert not (folder / "work/models/loop-0").exists()


def test_the_sets_that_are_asked_for_are_those_that_are_trained_on(project, run):  # noqa: F811
    folder = project()
    run(teacher_stage, folder, "adist")
    assert made(folder, "adist")[0].instance_id.tolist() == [q.id for s in load_sets()[:4] for q in s.questions]
