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
from playwright import sync_api
from report_fixture import OVERRIDES, edit_json, make_cells, make_config, write_params

from dream import config as configs
from dream.errors import DreamError
from dream.planning import plan
from dream.report import page
from dream.report.commands import compare, experiments, explain, paper, queries
from dream.report.results import cells, collected, runs
from dream.report.tables import measures, render

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="document.title = 1"> & "quoted" \x1b]0;pwn\x07 \u202e'
PATIENCE = 600_000  # milliseconds: beside other work a browser may be slow
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


def test_in_a_clone_the_queries_that_were_kept_have_their_texts(results, work, tmp_path):
    queries.write(queries.find(results, work), tmp_path / "queries.json")
    kept = queries.texts(results, tmp_path / "queries.json")
    sides = [compare.Side(name, name, results) for name in queries.pairs(results)[0]]
    here, clone = (compare.changes(*sides, 6, folder, kept)[0] for folder in (work, tmp_path / "none"))
    assert [c.query_id for c in here] == [c.query_id for c in clone] and all(c.text for c in clone)
    assert [c.text for c in here if c.text] == [c.text for c in clone if c.query_id in {h.query_id for h in here if h.text}]
    tasks = ", ".join(sorted({f"passages of {c.task}" for c in clone}))
    assert compare.changes(*sides, 6, tmp_path / "none", kept)[1].startswith(f"Not at hand, so not shown: {tasks} (")
    assert {c.text for c in compare.changes(*sides, 6, tmp_path / "none")[0]} == {""}
    assert queries.texts(results, tmp_path / "none.json") == {}


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
    queries.write(queries.find(results, work), work / "queries.json")
    return page.html(results, work / "queries.json")


def test_the_page_escapes_what_data_says_and_asks_for_nothing(text):
    assert text.count("<script") == 1 and "<img" not in text and "&lt;script&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text) and "@import" not in text and not re.findall(r"url\((?!#)", text)
    assert not set("\x1b\x07\u202e") & set(text)


def test_every_link_of_the_page_has_its_target_and_no_id_stands_twice(text, results):
    anchors, ids = set(re.findall(r'href="#([^"]+)"', text)), re.findall(r'\bid="([^"]+)"', text)
    assert anchors and anchors | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids) and len(ids) == len(set(ids))
    assert {f"cell-{cell.name}" for cell in cells.expected(results.config)} <= set(ids)


def test_figures_follow_the_colours_of_the_page(text):
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(figures) > 4 and all("var(--ink)" in figure and "#000000" not in figure for figure in figures)


# --------------------------------------------------------------------------------------------------------- queries


def test_changed_queries_are_those_of_every_task_and_outcome(results, work):
    found = queries.find(results, work)
    assert all(list(one) == queries.KEYS for one in found) and {one["task"] for one in found} == {"boolq", "drop", "mbpp"}
    assert {(one["before"], one["after"]) for one in found} == {("untrained", "dream"), ("dream", "infonce")}
    gains = [one["after_score"] - one["before_score"] for one in found]
    assert min(gains) < 0 < max(gains) and 0 not in gains
    for task in ("boolq", "drop", "mbpp"):  # each task's largest change is there
        largest = (results.scores("dream", task) - results.scores("untrained", task)).abs().max()
        own = [abs(one["after_score"] - one["before_score"]) for one in found if one["task"] == task and one["after"] == "dream"]
        assert max(own) == pytest.approx(largest, abs=2e-6)
    one = found[0]
    number = one["query_id"].rpartition("-")[2]
    assert one["query"].endswith(f"question {number}") and one["passage"].endswith(f"passage {number}") and one["passages"] == 1
    assert len(one["after_ranks"]) == 3 and len(one["before_ranks"]) == 1


def test_at_most_so_many_queries_of_a_pair_and_of_a_text(results, work, monkeypatch):
    monkeypatch.setattr(queries, "COUNT", 12)
    monkeypatch.setattr(queries, "PASSAGE", 20)
    found = queries.find(results, work)
    groups = [(one["before"], one["task"], one["after_score"] > one["before_score"]) for one in found]
    assert len(found) == 24 and len(set(groups)) == 12 and max(map(groups.count, groups)) <= 3  # in turn
    assert {len(one["passage"]) for one in found} == {20}


def test_texts_of_another_revision_are_refused(results, work, monkeypatch):
    texts = compare.task_texts
    monkeypatch.setattr(compare, "task_texts", lambda task, work: texts(task, work) | {"revision": "another"})
    with pytest.raises(DreamError, match=r"holds \w+ as another, evaluated was \w+-revision\. Run `dvc repro`"):
        queries.find(results, work)


def test_queries_of_other_results_are_not_shown(results, work, tmp_path):
    found = queries.find(results, work)
    queries.write(found, tmp_path / "queries.json")
    assert queries.read(results, tmp_path / "queries.json") == (found, "")
    assert set("\x1b\x07\u202e") & set((tmp_path / "queries.json").read_text(encoding="utf-8")) == set()
    found[3]["after_score"] += 0.01
    queries.write(found, tmp_path / "queries.json")
    assert queries.read(results, tmp_path / "queries.json")[1].endswith(
        "holds queries of other results: `dvc repro queries` makes it anew."
    )
    assert queries.read(results, tmp_path / "none.json")[1].endswith("`dvc repro queries` writes it.")
    (tmp_path / "queries.json").write_text('[{"before": 1}]', encoding="utf-8")
    with pytest.raises(DreamError, match="has another schema"):
        queries.read(results, tmp_path / "queries.json")


def test_the_committed_queries_are_those_of_the_committed_results():
    found, remark = queries.read(
        cells.load(configs.load(ROOT / "params.yaml"), ROOT / "reports" / "results"), ROOT / "reports" / "queries.json"
    )
    assert remark == "" and len(found) == 2 * queries.COUNT and all(one["query"] and one["passage"] for one in found)


# --------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser():
    """The system's own Chromium."""
    assert BROWSER is not None, "no browser: apt-get install chromium"
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE)
        yield running
        running.close()


@pytest.fixture
def opened(browser, text, tmp_path):
    """Opens the page at a width; no error may have been said when it is closed."""
    path, errors, contexts = tmp_path / "page.html", [], []
    path.write_text(text, encoding="utf-8")

    def at(width, **more):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **more))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        tab.goto(path.as_uri())
        return tab

    yield at
    for context in contexts:
        context.close()
    assert errors == []


def column(tab, table, name, value="parseFloat(cell.textContent.replace('−', '-'))"):
    """Clicks the head of a column twice; its values after each click."""
    head = tab.locator(f"#table-{table} th", has_text=re.compile(f"^{name}$"))
    index, found = head.evaluate("head => head.cellIndex"), []
    for _ in range(2):
        head.click()
        rows = tab.locator(f"#table-{table} tbody tr")
        found.append(
            rows.evaluate_all(f"(rows, index) => rows.map(row => {{ const cell = row.cells[index]; return {value}; }})", index)
        )
    return found


NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None and not os.environ.get("CI"), reason="no browser: apt-get install chromium")


@NEEDS_BROWSER
def test_a_click_sorts_numbers_as_numbers_and_hostile_text_stays_text(opened):
    tab = opened(1280)
    for up, down in (
        column(tab, "significance", "Difference"),
        column(tab, "cost", "Wall time", "parseFloat(cell.dataset.sort)"),
    ):
        assert len(set(up)) > 3 and up == sorted(up) and down == sorted(down, reverse=True)
    assert tab.title().startswith("DREAM benchmark")


@NEEDS_BROWSER
def test_a_score_opens_its_provenance_below_its_row_and_closes_it(opened):
    tab = opened(1280)
    row, beside = tab.locator("#table-main tbody tr").first, tab.locator("tr.beside")
    scores = row.locator("td a")
    scores.first.click()
    assert row.evaluate("row => row.nextElementSibling.className") == "beside"
    assert beside.locator("summary").first.inner_text().startswith("bm25-general: boolq ") and beside.locator("pre").is_visible()
    scores.last.click()  # of a trained system: a cell for each seed
    assert beside.count() == 1 and "infonce-2-general" in beside.inner_text() and "bm25" not in beside.inner_text()
    scores.last.click()
    assert beside.count() == 0
    for close in (lambda: tab.keyboard.press("Escape"), lambda: beside.get_by_role("button", name="Close").click()):
        scores.first.click()
        assert beside.count() == 1
        close()
        assert beside.count() == 0


@NEEDS_BROWSER
def test_filters_leave_the_queries_of_a_task_and_an_outcome(opened, results, work):
    tab = opened(1280)
    found = [
        one for one in queries.find(results, work) if (one["before"], one["after"], one["task"]) == ("dream", "infonce", "drop")
    ]
    worse = [one for one in found if one["after_score"] < one["before_score"]]
    tab.select_option("select[name=pair]", "dream infonce")
    tab.select_option("select[name=task]", "drop")
    shown = tab.locator("details.change:visible")
    assert 0 < len(worse) < len(found) == shown.count()
    tab.select_option("select[name=outcome]", "worse")
    assert shown.count() == len(worse) and tab.locator(".filters output").inner_text() in (f"{len(worse)} queries", "1 query")
    shown.first.locator("summary").click()
    assert worse[0]["query_id"] in shown.first.inner_text() and "<script>" in shown.first.locator(".text").inner_text()


@NEEDS_BROWSER
def test_what_is_folded_opens_by_a_click_and_by_a_link(opened):
    tab = opened(1280)
    assert tab.locator("details[open]").count() == 0
    notes = tab.locator("details.notes").first
    assert not notes.locator("li").first.is_visible()
    notes.locator("summary").click()
    assert notes.locator("li").first.is_visible()
    tab.evaluate("location.hash = '#cell-bm25-general'")
    tab.locator("#cell-bm25-general[open]").wait_for()
    tab.locator("nav a[aria-current][href='#provenance']").wait_for()
    assert tab.locator("nav").bounding_box()["y"] == 0  # in sight, wherever one is


@NEEDS_BROWSER
def test_the_dark_is_dark_in_figures_too(opened):
    paint = """() => ["body", "figure svg", "td.key", "pre"].map(name => {
      const style = getComputedStyle(document.querySelector(name)), ground = name.includes("svg") ? style.fill : style.backgroundColor;
      return Math.max(...ground.match(/\\d+/g).slice(0, 3).map(Number)); })"""
    light, dark = (opened(1280, color_scheme=scheme).evaluate(paint) for scheme in ("light", "dark"))
    (page_, ink, *grounds), (dark_page, dark_ink, *dark_grounds) = light, dark
    assert min(page_, *grounds) > 230 and ink < 60 and max(dark_page, *dark_grounds) < 60 and dark_ink > 200


@NEEDS_BROWSER
def test_a_phone_sees_the_figures_whole_the_reference_system_and_the_contents(opened):
    tab = opened(400)
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    boxes = [figure.bounding_box() for figure in tab.locator(".figures svg").all()]
    assert boxes and all(box["x"] >= 0 and box["width"] > 340 and box["x"] + box["width"] <= 400 for box in boxes)
    head = tab.locator("#table-main th", has_text=re.compile("^dream$")).bounding_box()
    key = tab.locator("#table-main th.key").bounding_box()
    assert key["x"] >= 0 and key["x"] + key["width"] <= head["x"] + 1 and head["x"] + head["width"] <= 400
    tab.locator("#table-main").scroll_into_view_if_needed()
    bar = tab.locator("nav").bounding_box()
    assert bar["y"] == 0 and bar["height"] < 60 and tab.locator("nav > ul > li").count() == 6
    tab.emulate_media(media="print")
    assert (
        not tab.locator("nav").is_visible()
        and tab.locator("#table-main").is_visible()
        and not tab.locator("#provenance").is_visible()
    )
