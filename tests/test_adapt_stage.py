"""Adapting to own documents: the rules of choice and verdict, and the stage on a toy project."""

import contextlib
import io
import pathlib
import re
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import toy_project as toy
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from dream import cli, export, manifest, systems
from dream import config as configs
from dream.adapt import scoring, text, verdict
from dream.adapt.verdict import FUSED, KEEP, LEXICAL, OPEN, UNTOUCHED, USE, Setting
from dream.config import stages
from dream.data import sources, tasks
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.evaluation import metrics
from dream.files import read_json, write_json
from dream.report.tables import render
from dream.systems.encoder import TRAINED

model = pytest.fixture(scope="module")(toy.model)
REPORT = configs.load(manifest.ROOT / "params.yaml", {"report.resamples": 500}).report
RNG = np.random.default_rng(0)
BASE, NOISE = RNG.random(80) / 2 + 0.2, RNG.normal(0, 0.01, (4, 3, 80))
FULL, HALF = Setting("dream", None, 1.0), Setting("dream", 48, 0.5)


def scored(full=0.0, half=0.0, bm25=-0.2, hybrid=-0.2, seeds=3):
    """Scores of 80 questions: a shift against the untouched encoder for each setting, with noise over queries and seeds."""
    lexical, fused = (BASE + shift + noise[0] for shift, noise in ((bm25, NOISE[2]), (hybrid, NOISE[3])))
    return {UNTOUCHED: [BASE], LEXICAL: [lexical], FUSED: [fused],
            HALF: [BASE + half + NOISE[0, :seeds]], FULL: [BASE + full + NOISE[1, :seeds]]}  # fmt: skip


def decided(scores, seeds=3, questions=80, least=50, test=0.0):
    choice = verdict.choose(scores, REPORT)
    final = verdict.compare({UNTOUCHED: [BASE], choice.best: [BASE + test]}, REPORT) if test else {}
    return choice, *verdict.decide(choice, seeds, questions, least, final)


@pytest.mark.parametrize(
    ("scores", "more", "word", "best", "said"),
    [
        ({"full": 0.05, "half": 0.02}, {}, USE, FULL, "dream after all pairs at strength 1 is best"),
        ({"full": 0.02, "half": 0.05}, {"test": 0.01}, USE, HALF, "On your own test queries, which took no part"),
        ({"full": 0.05}, {"test": -0.01}, KEEP, FULL, "it changes by −.010"),
        ({"full": -0.05, "half": 0.0}, {}, KEEP, UNTOUCHED, "of 2 trained ones the best, dream after 48 pairs at strength 0.5"),
        ({"full": 0.05, "hybrid": 0.1}, {}, KEEP, FUSED, "BM25 and your model fused (hybrid) is best"),
        ({"full": 0.05, "bm25": 0.2, "hybrid": 0.1}, {}, KEEP, LEXICAL, "BM25 alone is best"),
        ({"full": 0.05, "hybrid": 0.1}, {"test": -0.2}, KEEP, FUSED, "took no part in the choice, it changes by −.200"),
        ({"full": 0.05}, {"questions": 49}, OPEN, FULL, "49 held-out questions, and adapt.queries asks for 50"),
        ({"full": 0.05, "seeds": 2}, {"seeds": 2}, OPEN, FULL, "2 seeds, and 3 are needed"),
    ],
)  # fmt: skip
def test_every_outcome_is_reached(scores, more, word, best, said):
    choice, found, why = decided(scored(**scores), **more)
    assert (found, choice.best) == (word, best) and said in ". ".join(why), why


def test_the_untouched_encoder_wins_ties_and_what_is_not_shown_to_be_better():
    same = {UNTOUCHED: [BASE], FULL: [np.stack([BASE] * 3)]}
    assert verdict.choose(same, REPORT)[:2] == (UNTOUCHED, FULL)
    shifts = np.array([[0.3], [0.05], [-0.05]])  # a better mean, but the seeds disagree
    unsure = verdict.choose({UNTOUCHED: [BASE], FULL: [BASE + shifts]}, REPORT)
    assert unsure.changes[FULL].value == pytest.approx(0.1) and unsure.best == UNTOUCHED
    equal = np.stack([BASE + 0.1] * 3)
    smaller = [Setting("dream", pairs, strength) for strength in (0.5, 1.0) for pairs in (48, None)]
    alike = verdict.choose({one: [equal] for one in reversed(smaller)} | {UNTOUCHED: [BASE]}, REPORT)
    assert alike.best == alike.trained == smaller[0], "of equals the smaller strength and the earlier stop"


def test_of_many_settings_that_change_nothing_none_is_chosen_because_it_looks_better():
    """One of forty lies above zero by itself; its p alone would do, and by Holm over all of them it does not."""
    noise = np.random.default_rng(2).normal(0, 0.1, (40, 3, 80))
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    many = {Setting("dream", pairs + 1, 1.0): [BASE + noise[pairs]] for pairs in range(40)}
    lucky = Setting("dream", 1, 1.0)
    many[lucky] = [BASE + noise[0] + 0.02]
    alone = verdict.choose({UNTOUCHED: [BASE], lucky: many[lucky]}, REPORT)
    assert alone.best == lucky and alone.changes[lucky].low > 0 and 0.05 / 40 < alone.changes[lucky].p < 0.05
    assert verdict.choose({UNTOUCHED: [BASE], **many}, REPORT).best == UNTOUCHED


def test_a_change_is_the_mean_over_tasks_whatever_their_sizes():
    scores = {UNTOUCHED: [np.zeros(4), np.zeros(2)], FULL: [np.full((3, 4), 0.1), np.full((3, 2), 0.3)]}
    assert verdict.compare(scores, REPORT)[FULL].value == pytest.approx(0.2)


# ------------------------------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def project(model, tmp_path_factory):
    """What the stages before leave: documents and their questions, two objectives' adapters of three seeds, a labelled set."""
    folder = tmp_path_factory.mktemp("adapt")
    words = yaml.safe_load((model / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in words if word.isalpha()]
    (folder / "manuals").mkdir(parents=True)
    for i in range(24):
        (folder / "manuals" / f"{i}.txt").write_text(" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(12)))
    labelled = folder / "labelled"
    (labelled / "qrels").mkdir(parents=True)
    (labelled / "corpus.jsonl").write_text("".join(f'{{"_id": "d{i}", "text": "{words[i]} {words[i + 3]}"}}\n' for i in range(8)))
    (labelled / "queries.jsonl").write_text("".join(f'{{"_id": "q{i}", "text": "{words[i + 3]}"}}\n' for i in range(8)))
    (labelled / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(8)))
    toy.make(folder, model, **{
        "recipe": "adapt", "objectives": ["infonce"], "own": {"manuals": str(folder / "manuals"), "labelled": str(labelled)}, "training.steps": 20, "adapt.snapshots": [8],
        "adapt.strengths": [0.5, 1.0], "adapt.distractors": 10, "adapt.queries": 5, "adapt.control": "docstring-networkx",
        "data.task_queries": 6, "data.task_documents": 10, "data.development": 0.5, "report.resamples": 200,
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        config = configs.load()
        for name, seconds in (("questions", 7.0), ("heads", 3.0), ("signal", 1.5), ("prepare", 1.0)):
            run = {"settings": name, "config": stages.files(config)[name], "wall_s": seconds}
            write_json(manifest.RUNS / f"{name}.json", [run])
        passages = sources.get("manuals", config).passages(config)
        asked = [("manuals", row.passage_id, " ".join(row.text.split()[2:5]), "question") for row in passages.itertuples()]
        pathlib.Path("work/questions").mkdir(parents=True)
        pd.DataFrame(asked, columns=["source", "target_id", "query", "kind"]).to_parquet("work/questions/questions.parquet")
        for number, (name, seed) in enumerate((name, seed) for name in config.objectives for seed in config.seeds):
            adapters(config, name, seed, number)
    return folder


def adapters(config, name, seed, number):
    """An adapter at the end and one after 8 pairs, with random weights, and the run record of their training."""
    encoder = Encoder.load(export.encoder_rules(config), trainable=True, lora=config.training.lora, seed=seed, device="cpu")
    generator = torch.Generator().manual_seed(number)
    for place, size in (("snapshots/8/", 0.02), ("", 0.1)):
        for key, weight in encoder.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, size, generator=generator)
        encoder.save_adapter(TRAINED / f"{name}-{seed}" / f"{place}adapter")
    settings = stages.files(config)[f"train-{name}"]
    write_json(TRAINED / f"{name}-{seed}" / "made_with.json", {"settings": settings, "objective": name, "seed": seed})
    write_json(TRAINED / f"{name}-{seed}" / "state.json", {"tau": 0.05, "steps": 20, "pairs": 80})
    write_json(manifest.RUNS / f"train-{name}-{seed}.json", [{"settings": f"train-{name}", "config": settings, "wall_s": 2.0}])


@pytest.fixture(scope="module")
def ran(project):
    """The stage's run: its result, and what it printed."""
    from stages import adapt

    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()) as said:
        patched.chdir(project)
        patched.setattr(sys, "argv", ["adapt"])
        adapt.main()
        return read_json("reports/adapt.json"), said.getvalue()


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["adapt"])
    return project


def test_own_test_queries_are_scored_with_the_best_setting_of_every_objective():
    """The choice or what does best stands first; of each other objective the one with the best held-out mean."""
    early, late, other = Setting("infonce", 48, 1.0), Setting("infonce", None, 1.0), Setting("adist", None, 0.5)
    gains = {HALF: 0.02, FULL: 0.05, early: 0.03, late: -0.01, other: -0.02}
    scored = {UNTOUCHED: [BASE], **{one: [BASE + gain + NOISE[0]] for one, gain in gains.items()}}
    assert verdict.choose(scored, REPORT).each == [FULL, early, other]
    assert verdict.choose(scored | {FULL: [BASE - 0.2 + NOISE[0]], HALF: [BASE - 0.1 + NOISE[0]]}, REPORT).each == [
        early,
        other,
        HALF,
    ]


def test_the_stage_scores_every_setting_and_decides(here, ran):
    found, said = ran
    assert f"[adapt] {found['verdict']}: " in said
    tried = [(row["system"], row["pairs"], row["strength"]) for row in found["held_out"]]
    assert tried[:3] == [("untrained", None, None), ("bm25", None, None), ("hybrid", None, None)]
    assert set(tried[3:]) == {(n, p, s) for n in ("infonce",) for p in (8, None) for s in (0.5, 1.0)}
    rows = {tuple(row[key] for key in Setting._fields): row for row in found["held_out"]}
    assert all(len(row["seeds"]) == 3 and 0.2 < row["cosine"] < 1 for key, row in rows.items() if key[2])
    assert rows["infonce", 8, 0.5]["cosine"] > rows["infonce", 8, 1.0]["cosine"] > rows["infonce", None, 1.0]["cosine"]
    untouched = rows["untrained", None, None]["ndcg_at_10"]
    for row in found["held_out"][1:]:
        assert row["difference"] == pytest.approx(row["ndcg_at_10"] - untouched, abs=2e-6) and row["low"] <= row["high"]
    assert found["test"]["tasks"] == {"labelled": 8} and len(found["test"]["rows"]) == 4
    assert [row["system"] for row in found["control"]["rows"]] == ["untrained", found["trained"]["system"]]
    assert {**found["cost"], "adapt": 0} == {"questions": 7.0, "judge": 4.5, "training of infonce": 6.0, "adapt": 0}
    for one, sign in (*((one, 1) for one in found["better"]), *((one, -1) for one in found["worse"])):
        assert sign * (one["after"] - one["before"]) > 0 and one["query"] in one["passage"]
    assert read_json("reports/results/runs/adapt.json")[0]["inputs"].keys() > {"work/questions", "work/models/infonce-0"}


def test_the_choice_sees_held_out_questions_only(here, ran, monkeypatch):
    """Other scores on the own test queries and on the control task, and neither choice nor examples change."""
    config = stages.load("adapt")
    real, first = scoring.measured, ran[0]

    def swapped(system, on, config):
        values = real(system, on, config)
        return values if on[0].suite == "heldout" else [1 - value for value in values]

    monkeypatch.setattr(scoring, "measured", swapped)
    second = scoring.run(config)
    for key in ("best", "trained", "held_out", "better", "worse"):
        assert first[key] == second[key], key
    assert first["test"] != second["test"] and first["control"] != second["control"]


def test_a_choice_that_trains_nothing_carries_what_favours_it(tmp_path):
    whole, filtered = adapting(tmp_path), adapting(tmp_path, **{"questions.round_trip": 7})
    trained = Setting("infonce", None, 1.0)
    assert scoring.remarks(whole, UNTOUCHED) == scoring.remarks(filtered, trained) == []
    (bare,), (tripped,) = scoring.remarks(whole, LEXICAL), scoring.remarks(filtered, FUSED)
    assert "which favours BM25. Queries of people decide" in bare and "round_trip" not in bare
    assert "only if BM25 finds their passage again (questions.round_trip: 7). Queries of people decide" in tripped


def test_no_training_question_is_asked_and_a_large_set_is_cut_to_its_hard_passages(here):
    from dream.adapt import held_out

    config = stages.load("adapt")
    (task,), notes = held_out.load(config)
    relevant, kept = set(task.qrels["doc_id"]), set(task.corpus["id"])
    assert relevant <= kept and len(kept) == len(relevant) + 10 == 20  # adapt.distractors beside the relevant ones
    assert notes == [f"manuals: {len(task.queries)} questions, among 20 of 24 passages"]
    whole = tasks.build("manuals-heldout", config)
    place = dict.fromkeys(whole.corpus["id"], 24)  # of a passage in any ranking, its best
    for run in (systems.load(name, config).search(whole, 24) for name in ("untrained", "bm25")):
        for query in set(task.queries["id"]):
            for rank, doc in enumerate(metrics.rank(run[query])):
                place[doc] = min(place[doc], rank)
    dropped = set(whole.corpus["id"]) - kept
    assert max(place[doc] for doc in kept - relevant) <= min(place[doc] for doc in dropped)
    instances = pd.read_parquet(held_out.INSTANCES)
    before = instances.copy()
    try:
        instances.loc[0, "query"] = task.queries["text"][0].upper()
        instances.to_parquet(held_out.INSTANCES)
        (fewer,), notes = held_out.load(config)
    finally:
        before.to_parquet(held_out.INSTANCES)
    assert set(task.queries["id"]) - set(fewer.queries["id"]) == {task.queries["id"][0]}
    assert "manuals: 1 held-out questions are asked in training too and left out" in notes


@pytest.mark.parametrize(("stage", "left"), [("questions", "work/questions"), ("prepare", "work/data")])
def test_what_was_made_with_other_settings_is_refused(here, ran, monkeypatch, stage, left):
    from stages import adapt

    path, threads = manifest.RUNS / f"{stage}.json", []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(scoring, "run", lambda config: {"verdict": KEEP, "why": ["nothing", "at all"]})
    before, outcome = path.read_bytes(), pathlib.Path("reports/adapt.json").read_bytes()
    try:
        adapt.main()
        assert threads == [1] and read_json("reports/adapt.json") == {"verdict": KEEP, "why": ["nothing", "at all"]}
        pathlib.Path("reports/adapt.json").write_bytes(outcome)
        (made,) = read_json(path)
        write_json(path, [made | {"config": made["config"] | {"other": 1}}])
        with pytest.raises(SystemExit, match=f"{left} was made with other = 1, params says None"):
            adapt.main()
        assert pathlib.Path("reports/adapt.json").read_bytes() == outcome
    finally:
        path.write_bytes(before)
        pathlib.Path("reports/adapt.json").write_bytes(outcome)


def test_where_the_recipe_is_another_nothing_is_chosen(here, tmp_path, monkeypatch, capsys):
    from stages import adapt

    monkeypatch.chdir(tmp_path)
    write_json("reports/config/adapt.json", {})
    adapt.main()
    assert read_json("reports/adapt.json") == {} and "nothing to choose" in capsys.readouterr().out
    text.write()
    assert pathlib.Path("reports/adapt.md").read_text(encoding="utf-8") == text.NOTHING
    with pytest.raises(DreamError, match="nothing is adapted here. Run `dvc exp run -S recipe=adapt"):
        text.load()
    assert stages.files(configs.load(manifest.ROOT / "params.yaml"))["adapt"] == {}


def test_without_a_held_out_question_there_is_not_enough_evidence(here, monkeypatch):
    config = stages.load("adapt")
    monkeypatch.setattr(scoring.held_out, "load", lambda config: ([], ["manuals: no question"]))
    found = scoring.run(config)
    assert found["verdict"] == OPEN and found["why"] == ["0 held-out questions, and adapt.queries asks for 5"]
    assert "\n".join(text.lines(found)).startswith("Not enough evidence. 0 held-out questions")


@pytest.mark.parametrize(("word", "best", "step"), [
    (USE, FULL, "`dream-report export --system dream --seed 1 --strength 1 --format sentence-transformers --out exports/adapted`"),
    (USE, HALF, "--seed 1 --pairs 48 --strength 0.5 --format"),
    (KEEP, UNTOUCHED, "Keep your model. Other objectives"), (KEEP, FUSED, "fuse its ranking with BM25's"),
    (KEEP, LEXICAL, "Take BM25"), (OPEN, FULL, "Keep your model until there is more"),
])  # fmt: skip
def test_every_outcome_says_what_to_do_next(word, best, step):
    trained = (best if best.trained else FULL)._asdict() | {"seed": 1}
    rows = [{**UNTOUCHED._asdict(), "difference": None}, {**best._asdict(), "difference": 0.1}]
    found = {"verdict": word, "best": best._asdict(), "trained": trained, "test": {"rows": rows}}
    assert step in text.following(found)[0]


def test_of_what_trains_nothing_the_best_on_peoples_queries_is_advised():
    """BM25 is best on the generated questions, both fused on people's."""
    rows = [
        {**one._asdict(), "difference": change}
        for one, change in ((UNTOUCHED, None), (LEXICAL, 0.05), (FUSED, 0.08), (FULL, 0.2))
    ]
    found = {"verdict": KEEP, "best": LEXICAL._asdict(), "trained": FULL._asdict(), "test": {"rows": rows}}
    assert "fuse its ranking with BM25's" in text.following(found)[0]


@pytest.mark.parametrize("best", [FUSED, LEXICAL])
@pytest.mark.parametrize(("rows", "step"), [
    ([], "Keep your model. Ask people's queries"),
    ([{**UNTOUCHED._asdict(), "difference": None}, {**FUSED._asdict(), "difference": -0.2}, {**LEXICAL._asdict(), "difference": -0.3}],
     "Keep your model as it is: on your own test queries BM25"),
])  # fmt: skip
def test_what_trains_nothing_takes_no_place_that_peoples_queries_do_not_give_it(best, rows, step):
    """Generated questions that BM25 cannot answer are dropped, so that they favour it."""
    found = {"verdict": KEEP, "best": best._asdict(), "trained": FULL._asdict(), "test": {"rows": rows}}
    assert step in text.following(found)[0]


def test_the_command_prints_the_verdict_first_then_before_and_after(here, ran, tmp_path, monkeypatch):
    found, said = ran[0], CliRunner().invoke(cli.app, ["adapt"]).stdout
    assert said.startswith(f"{found['verdict'].capitalize()}. ") and said.rstrip().splitlines()[-1].startswith("- ")
    for line in ("Held-out questions", "Own test queries: labelled (8 queries)", "Control: docstring-networkx", "Next:"):
        assert line in said, line
    rows = CliRunner().invoke(cli.app, ["adapt", "--format", "csv"]).stdout
    assert "system" in rows.splitlines()[0].split(",") and "infonce" in rows and "Next:" not in rows
    text.write()
    shown = pathlib.Path("reports/adapt.md").read_text(encoding="utf-8")
    assert shown.startswith(f"**{found['verdict'].capitalize()}.**") and "| untrained" in shown
    monkeypatch.chdir(tmp_path)
    missing = CliRunner().invoke(cli.app, ["adapt"])
    assert isinstance(missing.exception, DreamError) and "nothing is adapted here" in str(missing.exception)


def test_kept_outcomes_stand_in_one_table_on_test_queries(ran, tmp_path):
    found, files = ran[0], [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        write_json(file, found | {"verdict": file.stem})
    said = CliRunner().invoke(cli.app, ["adapt", *map(str, files), "--format", "md"]).stdout
    rows = [[field.strip() for field in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")][2:]
    tested = [row["system"] for row in found["test"]["rows"]]
    assert tested == ["untrained", "bm25", "hybrid", "infonce"]
    assert [row[0] for row in rows] == ["a"] * 4 + ["b"] * 4
    assert [row[1].split()[0] for row in rows] == tested * 2
    for row, own in zip(rows, found["test"]["rows"] * 2, strict=True):
        assert row[2].strip("*") == render.number(own["ndcg_at_10"])
    assert f"a: a. {found['why'][0]}" in said and "b: b. " in said
    one = CliRunner().invoke(cli.app, ["adapt", str(files[0])]).stdout
    assert one.startswith("A. ") and "Own test queries" in one
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "list.json").write_text('[{"verdict": 1}]')
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "params.yaml").write_text("seeds: [0]")
    for name in ("c.json", "missing.json", "params.yaml", "list.json", "number.json"):
        wrong = CliRunner().invoke(cli.app, ["adapt", str(tmp_path / name)])
        said = "is missing" if name == "missing.json" else "is no outcome of an adaptation"
        assert str(wrong.exception).startswith(f"{tmp_path / name} {said}")


def test_outcomes_of_one_name_are_told_apart(ran, tmp_path):
    files = [tmp_path / name / "adapt.json" for name in ("one", "two")]
    for file in files:
        write_json(file, ran[0])
    said = CliRunner().invoke(cli.app, ["adapt", *map(str, files), "--format", "csv"]).stdout
    assert [said.count(str(file)) for file in files] == [4, 4], "none takes the other's place"


def test_the_best_of_every_objective_stand_by_their_best_whatever_their_worst():
    """What is shown comes first, the others by their best; an objective's worst setting moves nothing."""
    worst, good = Setting("dream", 48, 1.0), Setting("infonce", None, 1.0)
    scored = {UNTOUCHED: [BASE], worst: [BASE - 0.2 + NOISE[0]], FULL: [BASE + 0.05 + NOISE[0]], good: [BASE + 0.02 + NOISE[0]]}
    choice = verdict.choose(scored, REPORT)
    assert choice.each == [FULL, good]
    rows = scoring.rows({setting: scoring.Scored(values) for setting, values in scored.items()}, choice.changes)
    shown = text._best({"held_out": rows, "trained": FULL._asdict()})
    assert [text._setting(row) for row in shown] == [UNTOUCHED, FULL, good]


def test_the_table_in_the_docs_is_that_of_the_kept_outcomes():
    kept = {path.stem: text.load(path) for path in sorted((manifest.ROOT / "reports" / "adapted").glob("*.json"))}
    table = render.markdown(text.beside(kept)).split("\n", 2)[2]  # without its title
    assert len(kept) > 1 and table in (manifest.ROOT / "docs" / "adapt.md").read_text(encoding="utf-8")


def test_an_exported_model_at_a_strength_is_the_encoder_at_that_strength(here):
    from sentence_transformers import SentenceTransformer

    config = configs.load()
    texts = [path.read_text() for path in sorted(pathlib.Path("manuals").iterdir())[:4]]
    for pairs, adapter in ((None, "adapter"), (8, "snapshots/8/adapter")):
        out = here / "exported" / str(pairs)
        folders = export.export(config, "infonce", 1, out, strength=0.5, pairs=pairs)
        ours = Encoder.load(export.encoder_rules(config), adapter=TRAINED / "infonce-1" / adapter, strength=0.5).encode(texts)
        whole = Encoder.load(export.encoder_rules(config), adapter=TRAINED / "infonce-1" / adapter).encode(texts)
        merged = SentenceTransformer(str(folders["sentence-transformers"]), device="cpu").encode(texts)
        assert np.abs(ours - merged).max() < 1e-5 < 1e-4 < np.abs(ours - whole).max()
        before, after = (load_file(f / "adapter_model.safetensors") for f in (TRAINED / "infonce-1" / adapter, folders["peft"]))
        for name, weight in before.items():
            torch.testing.assert_close(after[name], weight * (0.5 if "lora_B" in name else 1))
        assert "strength 0.5" in (folders["peft"] / "README.md").read_text()
    with pytest.raises(DreamError, match="work/models/infonce-1/snapshots/9 is missing"):
        export.export(config, "infonce", 1, here / "none", pairs=9)


# ------------------------------------------------------------------------------------------------------------ the recipe


def adapting(tmp_path, **more):
    (tmp_path / "a.txt").write_text("Bees make honey.")
    return configs.load(manifest.ROOT / "params.yaml", {"recipe": "adapt", "own": {"manuals": str(tmp_path)}, **more})


def test_the_recipe_needs_no_more_than_documents(tmp_path):
    config = adapting(tmp_path, **{"model.size": "minilm"})
    files = stages.files(config)
    assert config.data.sources == [] and sources.of(config) == ["manuals"]
    assert files["train-dream"]["training"]["snapshots"] == files["adapt"]["training"]["snapshots"] == [144]
    assert files["report"]["training"]["snapshots"] == [], "no cell of the matrix waits for them"
    assert files["questions"]["questions"]["round_trip"] == 0 and files["questions"]["questions"]["gap_filter"] == 0.0
    assert 5e-5 <= config.training.learning_rate <= 1e-4 and config.candidates.source == "hybrid"
    assert config.training.steps * config.training.batch == 288 and config.judge.passage_tokens == 128
    fused = adapting(tmp_path, **{"model.size": "minilm", "objectives": ["fused"]}).knobs["fused"]
    assert fused.teachers == ["encoder", "bm25", "question_likelihood"]
    packaged = stages.files(configs.load(manifest.ROOT / "params.yaml"))
    assert packaged["train-dream"]["training"]["snapshots"] == []


@pytest.mark.parametrize(("more", "line"), [
    ({"own": {}}, "recipe adapt needs documents of your own, and `own` names none"),
    ({"adapt.control": "bolq"}, "adapt.control: 'bolq' is no packaged task. Did you mean 'boolq'?"),
    ({"adapt.control": "development"}, "adapt.control: 'development' is no packaged task"),
    ({"objectives": []}, "recipe adapt trains an objective, and objectives is empty"),
    ({"adapt.snapshots": [288]}, "adapt.snapshots: 288 is not less than the 288 pairs of a run. Raise training.steps, or leave them out: -S adapt.snapshots=[]"),
    ({"adapt.strengths": [0.0]}, "adapt.strengths.0: Input should be greater than 0"),
    ({"adapt.strengths": [0.5, 0.5]}, "adapt.strengths: 0.5 stands there twice"),
])  # fmt: skip
def test_what_the_recipe_cannot_work_with_is_said_in_one_line(tmp_path, more, line):
    with pytest.raises(DreamError) as caught:
        adapting(tmp_path, **more)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_the_example_runs(tmp_path, model, monkeypatch):
    """On tiny models: questions are written, it trains on two thirds, and answers with one of two words."""
    monkeypatch.chdir(tmp_path)
    for i, words in enumerate(
        ("bees make honey", "a town in the north", "the river runs", "honey and bees", "x y z", "a river town")
    ):
        (tmp_path / f"{i}.txt").write_text(words)
    example = runpy.run_path(str(manifest.ROOT / "examples" / "adapt.py"))
    said = example["adapt"](tmp_path, model, model, str(tmp_path / "out"), steps=2)
    assert re.fullmatch(r"(use it|keep your model): MRR [+-]\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", said)
    assert len((manifest.ROOT / "examples" / "adapt.py").read_text(encoding="utf-8").splitlines()) <= 40
