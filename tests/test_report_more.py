"""plan, paper, runs, compare, explain and the page: what they count, what they find, what they escape."""

import csv
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from report_fixture import OVERRIDES, edit_json, make_cells, make_config, write_params

from dream import config as configs
from dream.errors import DreamError
from dream.planning import plan
from dream.report import page
from dream.report.commands import compare, experiments, explain, paper
from dream.report.results import cells, collected, runs
from dream.report.tables import measures, render

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="document.title = 1"> & "quoted" \x1b]0;pwn\x07 \u202e'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    config = make_config()
    return cells.load(config, make_cells(tmp_path_factory.mktemp("more"), config))


@pytest.fixture(scope="module")
def work(tmp_path_factory, results):
    """A work folder with texts (one of them hostile) and hits of the general tasks."""
    folder = tmp_path_factory.mktemp("work")
    for entry, task, count in (("general", "boolq", 40), ("general", "drop", 30), ("domain", "mbpp", 25)):
        place = folder / "tasks" / entry / task
        place.mkdir(parents=True)
        (place / "task.json").write_text("{}", encoding="utf-8")
        ids = [f"{task}-{i}" for i in range(count)]
        documents = [f"{task}-d{i}" for i in range(count)]
        pd.DataFrame({"id": ids, "text": [f"{HOSTILE} question {i}" for i in range(count)]}).to_parquet(place / "queries.parquet")
        pd.DataFrame({"id": documents, "title": "T", "text": [f"{HOSTILE} passage {i}" for i in range(count)]}).to_parquet(
            place / "corpus.parquet"
        )
        pd.DataFrame({"query_id": ids, "doc_id": documents, "relevance": 1}).to_parquet(place / "qrels.parquet")
    for cell in cells.expected(results.config):
        tasks = ("boolq", "drop") if cell.tasks == "general" else ("mbpp",)
        rows = [{"task": t, "query_id": f"{t}-{i}", "hits": [f"{t}-d{i}", f"{t}-d0"]} for t in tasks for i in range(25)]
        place = folder / "evaluate" / cell.name
        place.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(place / "queries.parquet")
    return folder


# ------------------------------------------------------------------------------------------------------------ plan


@pytest.mark.parametrize(
    ("reference", "parameters"),
    [
        ("packaged/smollm2-135m", 134_515_008),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen3-14B", 14_768_307_200),
    ],
)
def test_parameters_are_the_published_counts(reference, parameters):
    assert plan.model(reference).parameters == parameters


def test_parameters_equal_those_of_a_real_model():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 48, "vocab_size": 100, "tie_word_embeddings": False}  # fmt: skip
    for kind in ("Llama", "Qwen2", "Qwen3"):
        config = getattr(transformers, f"{kind}Config")(**shape, head_dim=8)
        real = getattr(transformers, f"{kind}ForCausalLM")(config)
        assert plan.Model.from_config(kind, config.to_dict()).parameters == sum(p.numel() for p in real.parameters())


def test_lora_equals_peft():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=100
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    wrapped = peft.get_peft_model(transformers.LlamaModel(config), peft.LoraConfig(r=4, target_modules=targets))
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert plan.Model.from_config("x", config.to_dict()).lora(4, targets) == trained


def test_more_of_everything_costs_more():
    def total(**overrides):
        found = plan.estimate(make_config(**overrides), 100)
        return sum(found["memory_gib"].values()), found["flops"]["train, with judge"]

    memory, flops = total()
    for key, value in (("candidates.count", 16), ("judge.passage_tokens", 128), ("model.size", "1b")):
        more_memory, more_flops = total(**{key: value})
        assert more_memory > memory and more_flops > flops
    assert total(**{"training.gradient_checkpointing": True})[0] < memory


@pytest.mark.parametrize(("objective", "family"), [("dream", "with judge"), ("infonce", "without judge")])
def test_memory_is_near_that_of_the_committed_runs(objective, family):
    """The peak that every training run of the packaged recipe recorded, against the plan of the same params."""
    found = plan.estimate(configs.load(ROOT / "params.yaml"), 100)
    records = sorted((ROOT / "reports" / "results" / "runs").glob(f"train-{objective}-*.json"))
    assert records
    for record in records:
        measured = json.loads(record.read_text())[0]["peak_gib"]
        assert plan.peaks(found["memory_gib"])[f"total {family}"] == pytest.approx(measured, rel=0.25), record.name


@pytest.mark.parametrize(("objective", "measured"), [("with judge", 1.81), ("without judge", 1.03)])
def test_memory_is_near_what_was_measured_with_other_lengths(objective, measured):
    """Peaks of real training processes: 6 of 30 layers, K = 4, 48 tokens, four sets at once, all in float32."""
    smoke = {"candidates.count": 4, "heads.count": 8, "training.batch": 4, "training.micro_batch": 4}
    lengths = {"encoder.max_length": 48, "judge.passage_tokens": 48, "judge.target_tokens": 48}
    records = {name: OVERRIDES[name] | {"dtype": "float32"} for name in ("models.toy-encoder", "models.toy-judge")}
    found = plan.estimate(make_config(**smoke, **lengths, **records), 100)
    assert plan.peaks(found["memory_gib"])[f"total {objective}"] == pytest.approx(measured, rel=0.25)


def test_every_size_of_params_can_be_planned():
    for size in make_config().sizes:
        found = plan.estimate(make_config(**{"model.size": size}), 100)
        assert plan.tables(found, 80.0, "a device")[2].notes[0].startswith("Verdict: ")


def test_a_configuration_that_is_not_at_hand_is_named():
    with pytest.raises(DreamError, match="configuration of owner/unknown is not at hand"):
        plan.model("owner/unknown")


# ----------------------------------------------------------------------------------------------------------- paper


def test_reference_numbers_are_complete():
    with open(ROOT / "dream" / "report" / "reference" / "paper_ndcg10.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len({(r["task"], r["size"], r["method"]) for r in rows}) == len(rows) == 299
    assert all(0 < float(r["ndcg_at_10"]) < 1 for r in rows)


def test_a_row_that_was_run_is_compared(results):
    records, queries = results.records.copy(), results.queries.copy()
    for frame in (records, queries):
        frame["task"] = frame["task"].replace({"boolq": "SciFact"})
    renamed = replace(results, records=records, queries=queries, cache={})
    row = next(r for r in paper.rows(renamed) if (r["task"], r["method"]) == ("SciFact", "bm25"))
    ours = measures.measured(renamed, "bm25", ["SciFact"])
    assert row["state"] == "run" and row["difference"] == pytest.approx(ours.value - 0.6644)
    assert row["inside"] == (ours.low <= 0.6644 <= ours.high)
    assert next(r for r in paper.rows(renamed) if (r["task"], r["method"], r["size"]) == ("SciFact", "dream", "1b"))[
        "state"
    ].startswith("not run")


def test_the_papers_ablations_stand_beside_our_sweeps(tmp_path):
    assert set(paper.ablations(tmp_path).data["here"].isna()) == {True}
    (tmp_path / "judge").mkdir()
    rows = [("frozen", "dream", 0.3), ("LoRA", "dream", 0.25), ("LoRA", "infonce", 0.9)]
    full = [
        dict.fromkeys(collected.COLUMNS, 0.5) | dict(zip(("point", "system", "ndcg_at_10"), row, strict=True)) for row in rows
    ]
    pd.DataFrame(full).to_csv(tmp_path / "judge" / "judge.csv", index=False)
    found = paper.ablations(tmp_path).data
    assert set(found[found.ablation == "judge_lora"].here) == {0.25} and found[found.ablation == "heads"].here.isna().all()


# ------------------------------------------------------------------------------------------------------------ runs


def _git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with two commits of results and one experiment ref."""
    monkeypatch.chdir(tmp_path)
    _git(tmp_path, "init", "-q")
    for number, k1 in ((1, 0.9), (2, 1.2)):
        config = make_config(**{"bm25.k1": k1})
        write_params(tmp_path, config)
        make_cells(tmp_path, config)
        _git(tmp_path, "add", "-A")
        _git(tmp_path, "commit", "-qm", f"results {number}")
    _git(tmp_path, "update-ref", f"refs/exps/ab/{'c' * 38}/my-exp", "HEAD~1")
    return tmp_path


def test_runs_collects_the_workspace_commits_and_experiments(repository):
    table = experiments.collect(commits=2)
    assert table.data["experiment"].iloc[0] == "workspace"
    assert "my-exp" in set(table.data["experiment"])
    assert dict(zip(table.data["experiment"], table.data["bm25.k1"], strict=True))["my-exp"] == 0.9
    assert len(table.data) == 4 * 4


def test_a_commit_from_before_a_knob_is_still_read(repository):
    """What its stages read lacks the knob, which is there today."""
    files = [*(repository / "reports" / "results" / "runs").glob("*.json"), *(repository / "reports" / "config").glob("*.json")]
    for path in files:
        edit_json(path, lambda value: (value[0]["config"] if isinstance(value, list) else value).get("bm25", {}).pop("b", None))
    _git(repository, "commit", "-qam", "before the knob")
    make_cells(repository, make_config(**{"bm25.k1": 1.2}))
    table = experiments.collect(commits=1)
    shown = {row[0].text: row[table.head.index("bm25.b")].text for row in table.rows}
    assert shown.pop("workspace") == "0.4" and set(shown) == {table.rows[4][0].text, "my-exp"}
    assert shown[table.rows[4][0].text] == "–" and not [note for note in table.notes if note.startswith("Not shown")]


def test_a_commit_with_a_knob_and_an_objective_that_are_gone_is_still_read(repository):
    for path in (repository / "reports" / "config").glob("*.json"):
        edit_json(path, lambda value: value.get("knobs", {}).update(gone={"x": 1}))
        edit_json(path, lambda value: value.get("knobs", {}).get("infonce", {}).update(in_batch_negatives=False))
    _git(repository, "commit", "-qam", "as it was once")
    found = runs.open_revision(runs.resolve("HEAD")).config.knobs
    assert {"dream", "infonce"} <= set(found) and "gone" not in found and not hasattr(found["infonce"], "in_batch_negatives")


def test_compare_says_which_settings_differ(repository):
    load = lambda: cells.load(make_config(**{"bm25.k1": 1.2}), repository / "reports" / "results")  # noqa: E731
    assert compare.table(*compare.sides("bm25", "my-exp:bm25", load)).notes[-1] == "Settings that differ: bm25.k1 1.2 / 0.9."
    assert not [note for note in compare.table(*compare.sides("bm25", "dream", load)).notes if "differ:" in note]


def test_compare_reads_an_experiment_from_git(repository):
    load = lambda: cells.load(make_config(**{"bm25.k1": 1.2}), repository / "reports" / "results")  # noqa: E731
    ours, theirs = compare.sides("bm25", "my-exp:bm25", load)
    assert theirs.results.config.bm25.k1 == 0.9 and not theirs.in_workspace
    assert compare.table(ours, theirs).data["difference"].abs().max() == 0


def test_an_unknown_revision_is_answered_with_the_known_ones(repository):
    with pytest.raises(DreamError, match=r"'nope' is no experiment and no commit\. Known: workspace, .*my-exp"):
        runs.resolve("nope")


# --------------------------------------------------------------------------------------------------------- compare


def test_changed_queries_come_with_their_texts_and_hits(results, work):
    sides = compare.Side("dream", "dream", results), compare.Side("untrained", "untrained", results)
    found, remark = compare.changes(*sides, 6, work)
    assert 0 < len(found) <= 6
    gains = [c.ours - c.theirs for c in found]
    assert max(gains) == max((results.scores("dream", t) - results.scores("untrained", t)).max() for _, t in results.tasks)
    shown = [c for c in found if c.hits]
    assert shown and any(hit["relevant"] for c in shown for hit in c.hits["dream"])
    assert "question" in shown[0].text and isinstance(remark, str)
    text = render.joined(compare.lines(found, *sides, remark, 100))
    assert "✓" in text and max(map(len, text.splitlines())) <= 100


def test_control_characters_do_not_reach_the_terminal():
    assert compare.clip("a\x1b[31mred\x07", 50) == r"a\x1b[31mred\x07"


# ------------------------------------------------------------------------------------------------ explain and page


def test_the_explanation_of_a_query_is_escaped():
    found = explain.Explanation(
        query_id=HOSTILE, query=HOSTILE, system="dream-0",
        candidates=[{"id": "d", "text": HOSTILE, "gold": True, "similarity": 0.5, "p": 1.0}],
        tau=0.05, gate=0.5, heads=[(1, 2)], prompt=HOSTILE,
        tokens=[{"token": HOSTILE, "plain": 1.0, "injected": 0.5, "gold": 0.4}], losses={"plain": 1.0},
    )  # fmt: skip
    text = explain.page(found)
    assert "<script" not in text and "<img" not in text and not set("\x1b\x07\u202e") & set(text)
    assert "-0.50" in render.joined(explain.lines(found, 100))


def test_only_a_trained_system_can_be_explained(results, work):
    with pytest.raises(DreamError, match=r"'bm25' is no trained system of this report\. Choose one of dream, infonce"):
        explain.explain("boolq-3", results.config, "bm25", 0, work)


def test_an_evaluation_query_is_asked_about_what_the_retriever_confused(results, work):
    found = explain.find("boolq-3", results.config, "dream", work)
    assert found.passage_ids == ("boolq-d3", "boolq-d0") and found.questions[0].gold == 0


@pytest.fixture(scope="module")
def text(results, work):
    """The page of the synthetic results with hostile texts."""
    return page.html(results, work)


def test_the_page_escapes_what_data_says_and_asks_for_nothing(text):
    assert text.count("<script") == 1 and "<img src=x" not in text and "&lt;script&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text) and "@import" not in text and "url(" not in text
    assert not set("\x1b\x07\u202e") & set(text)


def test_every_link_of_the_page_has_its_target(text, results):
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    assert anchors and anchors <= set(re.findall(r'id="([^"]+)"', text))
    assert {f"cell-{cell.name}" for cell in cells.expected(results.config)} <= set(re.findall(r'id="([^"]+)"', text))


CATCH = """<head><script>const errors = [], note = what => errors.push(String(what));
addEventListener("error", e => note(e.message || e.target.outerHTML), true);
addEventListener("unhandledrejection", e => note(e.reason));
console.error = note;</script>"""
PROBE = """<script>
function sorted(table, name, value) {
  const head = [...document.querySelectorAll(`#table-${table} th`)].find(h => h.textContent === name);
  const column = () => [...document.querySelectorAll(`#table-${table} tbody tr`)].map(r => value(r.cells[head.cellIndex]));
  head.click(); const up = column();
  head.click(); return { up, down: column() };
}
addEventListener("load", () => {
  const difference = sorted("significance", "Difference", c => parseFloat(c.textContent.replace("−", "-")));
  const seconds = sorted("cost", "Wall time", c => parseFloat(c.dataset.sort));
  document.querySelector("#table-main tbody td a").click();
  setTimeout(() => {
    const out = document.createElement("pre"); out.id = "probe";
    out.textContent = JSON.stringify({ errors, difference, seconds, title: document.title, images: document.images.length,
      broken: [...document.images].filter(i => !i.naturalWidth).length,
      opened: [...document.querySelectorAll("details[open]")].map(d => d.id),
      wide: document.documentElement.scrollWidth > innerWidth });
    document.body.append(out);
  }, 200);
});
</script></body>"""


@pytest.mark.skipif(BROWSER is None and not os.environ.get("CI"), reason="no browser: apt-get install chromium")
def test_the_page_works_in_a_browser(text, tmp_path):
    """No error, images load, a click sorts numbers as numbers and leads to a cell, hostile text stays text."""
    assert BROWSER is not None, "no browser: apt-get install chromium"
    path = tmp_path / "page.html"
    path.write_text(text.replace("<head>", CATCH, 1).replace("</body>", PROBE))
    for width in (1280, 400):
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},900",
        ]
        done = subprocess.run(
            [BROWSER, *flags, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
        found = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S).group(1).replace("&lt;", "<"))
        assert found["errors"] == [] and found["broken"] == 0 and found["images"] > 4 and not found["wide"]
        for column in (found["difference"], found["seconds"]):
            assert len(set(column["up"])) > 3
            assert column["up"] == sorted(column["up"]) and column["down"] == sorted(column["down"], reverse=True)
        assert found["opened"] == ["cell-bm25-general"]
        assert found["title"].startswith("DREAM benchmark")
