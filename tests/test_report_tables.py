"""The report's tables: golden files, numbers recomputed from the CSV cells, determinism, and one-line answers to bad
input."""

import csv
import dataclasses
import filecmp
import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_fixture import edit_cell, edit_json, make_cells, make_config

from dream import config as configs
from dream.errors import DreamError
from dream.report import build, plots
from dream.report.commands import compare
from dream.report.results import agreement, cells
from dream.report.tables import measures, notes, registry, render

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def config():
    return make_config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, config):
    return make_cells(tmp_path_factory.mktemp("report"), config)


@pytest.fixture(scope="module")
def results(config, folder):
    return cells.load(config, folder)


@pytest.mark.parametrize("name", ["main", "significance", "seeds", "scalars", "cost", "heads", "diagnostic"])
def test_tables_equal_their_golden_files(results, name):
    """``DREAM_GOLDEN=write pytest tests/test_report_tables.py`` rewrites them; read the difference before you keep
    it."""
    (table,) = registry.build(results, [name])
    for ending, text in (("csv", render.csv(table)), ("md", render.markdown(table))):
        path = GOLDEN / f"{name}.{ending}"
        if os.environ.get("DREAM_GOLDEN") == "write":
            path.write_text(text)
        assert text == path.read_text()


def test_main_csv_has_the_columns_and_rows_that_other_tools_rely_on(results, config):
    (table,) = registry.build(results, ["main"])
    rows = list(csv.DictReader(render.csv(table).splitlines()))
    assert list(rows[0]) == (
        [
            "suite",
            "task",
            "system",
            "size",
            "recipe",
            "ndcg_at_10",
            "ci_low",
            "ci_high",
            "seeds",
            "seed_low",
            "seed_high",
            "queries",
            "documents",
            "pairs_trained",
        ]
    )
    systems = {*config.references, *config.objectives}
    assert {(r["task"], r["system"]) for r in rows if r["suite"] == "open"} == {
        (task, system) for task in ("boolq", "drop", "mean") for system in systems
    }
    assert all(float(r["ci_low"]) <= float(r["ndcg_at_10"]) <= float(r["ci_high"]) for r in rows)
    assert {r["pairs_trained"] for r in rows if r["system"] == "dream"} == {"384"}
    assert {r["pairs_trained"] for r in rows if r["system"] == "bm25"} == {"0"}


def test_numbers_are_those_of_the_cells(results, folder):
    """Recomputed without the report's code: plain csv, mean over seeds per query, over queries, over tasks."""
    (table,) = registry.build(results, ["main"])
    for system, seeds in (("bm25", [""]), ("dream", ["-0", "-1", "-2"])):
        per_task = {}
        for task, suite_file in (("boolq", "general"), ("drop", "general"), ("mbpp", "domain")):
            per_query = {}
            for seed in seeds:
                with open(folder / "evaluate" / f"{system}{seed}-{suite_file}.csv", encoding="utf-8") as stream:
                    for row in csv.DictReader(stream):
                        if row["task"] == task:
                            per_query.setdefault(row["query_id"], []).append(float(row["ndcg_at_10"]))
            per_task[task] = sum(sum(v) / len(v) for v in per_query.values()) / len(per_query)
        shown = {(r.suite, r.task): r.ndcg_at_10 for r in table.data.itertuples() if r.system == system}
        for suite, task in (("open", "boolq"), ("open", "drop"), ("code", "mbpp")):
            assert shown[suite, task] == pytest.approx(per_task[task])
        assert shown["open", "mean"] == pytest.approx((per_task["boolq"] + per_task["drop"]) / 2)
        assert registry.summary(results)["ndcg_at_10"][system] == pytest.approx(sum(per_task.values()) / 3, abs=1e-6)


def test_significance_rows_pair_the_same_queries(results):
    row = next(r for r in measures.significance_rows(results) if (r["task"], r["system"]) == ("boolq", "untrained"))
    wide = results.queries.query("task == 'boolq'").pivot_table(index="query_id", columns="system", values="ndcg_at_10")
    assert row["difference"] == pytest.approx((wide["untrained"] - wide["dream"]).mean())
    assert row["p"] <= row["p_holm"] <= 1
    assert row["difference"] < 0 and row["p_holm"] < 0.05


def test_best_is_bold_and_a_significant_loss_is_marked(results):
    table = registry.main(results)
    for row in table.rows:
        values = [float(cell.text.split()[0]) for cell in row[2:-2]]
        assert [cell.bold for cell in row[2:-2]] == [value == max(values) for value in values]
    assert all("↓" in row[table.head.index("untrained")].text for row in table.rows)
    assert not any("↓" in row[table.head.index("dream")].text for row in table.rows)


def test_the_gain_per_hour_counts_training_time(results):
    table = registry.cost(results)
    row = next(r for r in table.rows if (r[0].text, r[1].text) == ("dream", "train"))
    scores = registry.summary(results)["ndcg_at_10"]
    assert float(row[-1].text) == pytest.approx((scores["dream"] - scores["untrained"]) / (260 / 3600), abs=0.006)


def test_a_system_pays_for_its_teacher(results):
    asked = results.runs["train-infonce-0"] | {"wall_s": 70.0, "flops": 3e12}
    paying = dataclasses.replace(results, runs=results.runs | {"teacher-infonce": asked})
    rows = {(r["system"], r["stage"]): r["flops"] for r in registry.cost_rows(paying)}
    assert rows["infonce", "teacher"] == 3e12 and ("dream", "teacher") not in rows
    table = registry.cost(paying)
    (row,) = [row for row in table.rows if row[1].text == "teacher"]
    assert (row[0].text, row[2].text, row[2].source) == ("infonce", "1 min 10 s", "run-teacher-infonce")
    assert [n.startswith("Teacher: ") for n in table.notes].count(True) == 1
    assert not [n for n in registry.cost(results).notes if n.startswith("Teacher: ")]


def test_two_builds_of_the_tables_are_the_same_bytes(config, folder):
    first, second = (registry.build(cells.load(config, folder)) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        for _, write in render.FORMATS.values():
            assert write(ours) == write(theirs)


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(config, folder, tmp_path):
    for name in ("a", "b"):
        build.write_all(cells.load(config, folder), tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 20
    _, different, missing = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", [str(f) for f in files], shallow=False)
    assert (different, missing) == ([], [])


def _slower(factor, value):
    value[0].update(wall_s=value[0]["wall_s"] * factor, peak_gib=value[0]["peak_gib"] * factor)


@pytest.mark.slow
def test_times_stand_only_in_the_cost_table_and_the_manifest(config, tmp_path):
    """Another run of the same configuration: other times, the same everything else."""
    for name, factor in (("a", 1), ("b", 3)):
        folder = make_cells(tmp_path / name, config)
        for path in (folder / "runs").glob("*.json"):
            edit_json(path, partial(_slower, factor))
        build.write_all(cells.load(config, folder), tmp_path / f"{name}-out")
    files = [p.relative_to(tmp_path / "a-out") for p in (tmp_path / "a-out").rglob("*") if p.is_file()]
    _, different, _ = filecmp.cmpfiles(tmp_path / "a-out", tmp_path / "b-out", [str(f) for f in files], shallow=False)
    assert sorted(different) == ["manifest.json", "tables/cost.csv", "tables/cost.md"]


def test_the_order_of_rows_in_a_cell_does_not_matter(config, folder, tmp_path):
    shuffled = make_cells(tmp_path, config)
    for path in (shuffled / "evaluate").glob("*.csv"):
        pd.read_csv(path).sample(frac=1, random_state=1).to_csv(path, index=False)
    first, second = (registry.main(cells.load(config, f)) for f in (folder, shuffled))
    pd.testing.assert_frame_equal(
        first.data.sort_values(["task", "system"], ignore_index=True),
        second.data.sort_values(["task", "system"], ignore_index=True),
    )


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    config = make_config(seeds=[0, 1])
    return cells.load(config, make_cells(tmp_path_factory.mktemp("two"), config))


def test_nothing_is_marked_or_tested_with_two_seeds(two_seeds):
    table, difference = registry.main(two_seeds), registry.significance(two_seeds)
    assert not [c for row in table.rows for c in row if set(c.text) & set("↑↓")]
    assert difference.data[["p", "p_holm"]].isna().all(axis=None)
    assert not [c for row in difference.rows for c in row if c.bold] and {row[5].text for row in difference.rows} == {"–"}
    for shown in (table, difference):
        (note,) = [n for n in shown.notes if "not tested" in n]
        assert note == "dream, infonce: two seeds: not tested (a test needs three); their intervals are over queries only."
        assert not [n for n in shown.notes if "seeds of trained systems" in n]


def test_references_are_tested_as_before_beside_systems_with_two_seeds(two_seeds, results):
    """Between systems without seeds the test is over queries, whatever else the table holds."""
    rows = {r["system"]: r for r in measures.significance_rows(two_seeds.against("bm25")) if r["task"] == "boolq"}
    assert rows["dream"]["p"] is None and rows["untrained"]["p"] < 0.05
    three = next(
        r for r in measures.significance_rows(results.against("bm25")) if (r["task"], r["system"]) == ("boolq", "untrained")
    )
    assert three == rows["untrained"]


def test_three_seeds_widen_the_interval_and_weaken_the_test(results, two_seeds):
    """The fixture's seeds differ in every query: their spread is part of the answer."""
    from dream.report import stats

    tasks = ["boolq"]
    ours = results.values("dream", tasks)
    queries = stats.interval([ours[0].mean(axis=0)], 500)
    found = measures.measured(results, "dream", tasks)
    assert ours[0].shape == (3, 40) and found.high - found.low > 1.2 * (queries.high - queries.low)
    over_queries = stats.paired([ours[0].mean(axis=0)], results.values("bm25", tasks), 500)
    assert measures.compared(results, "dream", "bm25", tasks).p > over_queries.p


def test_the_lowest_and_highest_seed_stand_in_every_table_that_compares(results, folder):
    means = {}
    for seed in (0, 1, 2):
        cell = pd.read_csv(folder / "evaluate" / f"dream-{seed}-general.csv")
        means[seed] = cell[cell.task == "boolq"].ndcg_at_10.mean()
    ends = [pytest.approx(min(means.values())), pytest.approx(max(means.values()))]
    row = next(r for r in measures.main_rows(results) if (r["task"], r["system"]) == ("boolq", "dream"))
    assert [row["seed_low"], row["seed_high"]] == ends
    row = next(r for r in measures.significance_rows(results) if (r["task"], r["system"]) == ("boolq", "bm25"))
    assert [row["reference_seed_low"], row["reference_seed_high"]] == ends and row["seed_low"] is None
    sides = [compare.Side(name, name, results) for name in ("dream", "infonce")]
    row = compare.table(*sides).data.iloc[0]
    assert [row.seed_low, row.seed_high] == ends and row.theirs_seed_low < row.theirs_seed_high


def test_a_difference_inside_the_seeds_spread_is_called_that(results):
    rows = measures.significance_rows(results)
    inside = [(r["system"], r["task"]) for r in rows if r["within"]]
    for row in rows:
        ours = (
            [row["seed_low"], row["seed_high"]]
            if row["seed_low"]
            else [measures.measured(results, row["system"], row["tasks"])[0]] * 2
        )
        meet = ours[0] <= row["reference_seed_high"] and row["reference_seed_low"] <= ours[1]
        assert row["within"] == meet
    assert ("untrained", "boolq") not in inside and len(inside) > 0
    (note,) = [n for n in registry.main(results).notes if n.startswith("Inside the seeds' spread")]
    assert all(system in note and (task == "mean" or task in note) for system, task in inside)


def test_two_seeds_are_not_tested_in_a_comparison(two_seeds):
    table = compare.table(*(compare.Side(name, name, two_seeds) for name in ("dream", "infonce")))
    assert table.data[["p", "p_holm"]].isna().all(axis=None)
    assert "dream, infonce: two seeds: not tested (a test needs three); their intervals are over queries only." in table.notes


def test_a_task_of_several_parts_is_the_mean_over_its_parts(config, tmp_path):
    """mteb's CQADupstackRetrieval: parts of different sizes weigh the same, as its record says."""
    folder = make_cells(tmp_path, config)

    def parts(records, path):
        rows = pd.read_csv(path).query("task == 'boolq'")
        names = rows.query_id.str.partition(":")[0]
        means = {name: round(float(value), 6) for name, value in rows.groupby(names).ndcg_at_10.mean().items()}
        scores = {name: float(rows.groupby(names)[name].mean().mean()) for name in cells.SCORES}
        records[0].update(parts=means, **scores)

    for path in (folder / "evaluate").glob("*-general.csv"):
        table = pd.read_csv(path)
        table["query_id"] = [f"{'a' if n < 5 else 'ab'}:{q}" for n, q in enumerate(table.query_id)]
        table.to_csv(path, index=False)
        edit_json(path.with_suffix(".json"), partial(parts, path=path))
    results = cells.load(config, folder)
    for system, seed in (("bm25", None), ("dream", 0)):
        record = results.records[(results.records.system == system) & (results.records.task == "boolq")].iloc[0]
        ours = results.seed_means(system, ["boolq"])[0] if seed == 0 else measures.measured(results, system, ["boolq"]).value
        assert (
            ours == pytest.approx(record.ndcg_at_10, abs=2e-6) != pytest.approx(results.scores(system, "boolq").mean(), abs=1e-4)
        )
    one, other, both = (measures.measured(results, "bm25", tasks).value for tasks in (["boolq"], ["drop"], ["boolq", "drop"]))
    assert both == pytest.approx((one + other) / 2)


def test_learned_scalars_say_how_much_of_their_reach_they_used(results, config, tmp_path):
    (row,) = registry.scalars(results).data.to_dict("records")
    assert row == {
        "system": "dream", "scalar": "tau", "seeds": 3, "start": pytest.approx(np.exp(-3)), "end_low": pytest.approx(np.exp(-3.4)),
        "end_high": pytest.approx(np.exp(-3.2)), "used_low": 0.5, "used_high": 1.0,
    }  # fmt: skip
    assert [cell.text for cell in registry.scalars(results).rows[0]] == [
        "dream",
        "tau",
        "3",
        ".0498",
        ".0334 to .0408",
        "50% to 100%",
    ]
    old = make_cells(tmp_path, config)
    for path in (old / "runs").glob("train-*.json"):
        edit_json(path, lambda record: record[0]["notes"].pop("scalars", None))
    assert registry.scalars(cells.load(config, old)) is None


def test_one_seed_has_no_deviation(tmp_path):
    config = make_config(seeds=[0])
    (table,) = registry.build(cells.load(config, make_cells(tmp_path, config)), ["seeds"])
    assert table.data["sd"].isna().all()
    assert {row[5].text for row in table.rows} == {"–"}
    assert render.as_json(table)["rows"][0]["sd"] is None


def test_settings_of_one_objective_alone_are_named(tmp_path):
    config = make_config(**{"dream.learning_rate": 2e-3, "infonce.temperature": 0.02})
    text = " ".join(notes.footnotes(cells.load(config, make_cells(tmp_path, config))))
    assert "learning rate 0.002 (dream), 0.0005 (infonce), 64 tokens" in text
    assert "initial tau 0.05 (dream), 0.02 (infonce) (learned" in text
    assert (
        "dream: judge frozen, r 32, alpha 64; infonce: negatives candidates, margin none, teacher minilm, confidence 0." in text
    )


def test_the_systems_can_be_tested_against_another_one(results):
    other = results.against("bm25")
    rows = measures.significance_rows(other)
    assert {row["reference"] for row in rows} == {"bm25"} and results.reference == "dream"
    ours = next(r for r in measures.significance_rows(results) if (r["system"], r["task"]) == ("bm25", "drop"))
    theirs = next(r for r in rows if (r["system"], r["task"]) == ("dream", "drop"))
    assert theirs["difference"] == pytest.approx(-ours["difference"])


def test_references_alone_make_a_report(tmp_path):
    config = make_config(objectives=[])
    built = build.write_all(cells.load(config, make_cells(tmp_path, config)), tmp_path / "out")
    assert "tables/main" in built and "tables/seeds" not in built


def test_left_over_cells_are_not_picked_up(config, tmp_path):
    make_cells(tmp_path, config)
    fewer = make_config(objectives=["dream"], tasks=["domain"])
    results = cells.load(fewer, make_cells(tmp_path, fewer))
    assert set(results.queries.system) == {"bm25", "untrained", "dream"}
    assert [task for _, task in results.tasks] == ["mbpp"]


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_missing_cell_is_named_with_its_command(config, tmp_path):
    folder = make_cells(tmp_path, config)
    (folder / "evaluate" / "dream-1-domain.csv").unlink()
    with pytest.raises(DreamError, match=r"dream-1-domain\.csv is missing\. Run `dvc repro evaluate@dream-1-domain`"):
        cells.load(config, folder)


@pytest.mark.parametrize(
    ("name", "knob", "was", "now"),
    [
        ("train-dream-1", "training.steps", 7, 48),
        ("evaluate-bm25-general", "bm25.k1", 1.2, 0.9),
        ("train-infonce-0", "roles.encoder.layers", 4, 6),
        ("evaluate-dream-1-domain", "roles.encoder.pooling", "mean", "last"),
        ("heads", "roles.judge.dtype", "float32", "bfloat16"),
        ("train-infonce-1", "knobs.infonce.negatives", "batch", "candidates"),
    ],
)
def test_a_stage_that_read_other_settings_is_refused(config, tmp_path, name, knob, was, now):
    folder = make_cells(tmp_path, config)

    def change(record):
        *sections, key = knob.split(".")
        place = record[0]["config"]
        for section in sections:
            place = place[section]
        assert place[key] == now
        place[key] = was

    edit_json(folder / "runs" / f"{name}.json", change)
    with pytest.raises(
        DreamError, match=re.escape(f"{name}.json was made with {knob} = {was!r}, params says {now!r}. Run `dvc repro`")
    ):
        cells.load(config, folder)


def test_a_setting_that_is_gone_is_refused(config, tmp_path):
    folder = make_cells(tmp_path, config)
    edit_json(folder / "runs" / "heads.json", lambda record: record[0]["config"]["judge"].update(dtype="float32"))
    with pytest.raises(DreamError, match=r"heads\.json was made with judge\.dtype = 'float32', params says no such setting"):
        cells.load(config, folder)


@pytest.mark.parametrize("knob", ["heads.count", "candidates.count", "data.seed"])
def test_a_stage_that_was_not_run_again_is_refused(folder, knob):
    """The report says these in words: what params says must be what the stage ran with."""
    with pytest.raises(DreamError, match=rf"\.json was made with {knob} = \d+, params says 7"):
        cells.load(make_config(**{knob: 7}), folder)


def _before(knob):
    """Take a knob out of a run record, as one written before the knob existed."""
    section, key = knob.split(".")
    return lambda record: record[0]["config"].get(section, {}).pop(key, None)


@pytest.mark.parametrize("pattern", ["*.json", "train-dream-1.json"])
def test_a_knob_that_came_after_a_run_is_named_in_a_footnote(config, tmp_path, pattern):
    folder = make_cells(tmp_path, config)
    for path in (folder / "runs").glob(pattern):
        edit_json(path, _before("injection.rows"))
    results = cells.load(config, folder)
    assert agreement.later(results.wanted, results.runs) == {"injection.rows": "all"}
    assert notes.footnotes(results)[-1] == "Made before params had injection.rows (all)."


def test_knobs_that_change_no_number_are_no_mismatch(folder):
    harmless = {"training.checkpoint_every": 3, "injection.force": True, "report.resamples": 100}
    cells.load(make_config(**harmless), folder)


def test_different_inputs_are_refused(config, tmp_path):
    folder = make_cells(tmp_path, config)
    path = folder / "runs" / "evaluate-dream-0-general.json"
    edit_json(path, lambda value: value[0]["inputs"].update({"work/tasks": "b" * 64}))
    with pytest.raises(DreamError, match="different work/tasks"):
        cells.load(config, folder)


def test_different_queries_are_refused(config, tmp_path):
    folder = make_cells(tmp_path, config)
    path = folder / "evaluate" / "bm25-general.csv"
    edit_cell(path, lambda table: table.iloc[1:])
    with pytest.raises(DreamError, match="boolq: bm25 and untrained were scored on different queries"):
        cells.load(config, folder)


def test_seeds_with_different_queries_are_refused(config, tmp_path):
    folder = make_cells(tmp_path, config)
    edit_cell(folder / "evaluate" / "dream-1-general.csv", lambda table: table.iloc[1:])
    with pytest.raises(DreamError, match="boolq: the seeds of dream were scored on different queries"):
        cells.load(config, folder)


def test_different_revisions_of_a_task_are_refused(config, tmp_path):
    folder = make_cells(tmp_path, config)
    edit_json(folder / "evaluate" / "dream-1-general.json", lambda records: records[1].update(revision="another"))
    with pytest.raises(DreamError, match="cells bm25-general and dream-1-general were scored on different revisions of drop"):
        cells.load(config, folder)


def test_a_task_that_stands_in_two_lists_has_one_score(tmp_path):
    config = make_config(task_lists={key: ["boolq", "drop"] for key in ("general", "domain")})
    folder = make_cells(tmp_path, config)
    for path in (folder / "evaluate").glob("*-general.*"):
        path.with_name(path.name.replace("general", "domain")).write_bytes(path.read_bytes())
    assert len(cells.load(config, folder).scores("bm25", "boolq")) == 40
    edit_cell(folder / "evaluate" / "bm25-domain.csv", lambda table: table.assign(mrr_at_10=0.5))
    with pytest.raises(DreamError, match="two cells of bm25 have different scores on boolq"):
        cells.load(config, folder)


ODD = ["NA", "null", "nan", "None", "true", "1e5", "007", "-", "#N/A", "<NA>", ",", '"', "É", " x"]


def test_ids_and_names_are_text_whatever_they_look_like(tmp_path):
    """Queries, a task and a suite whose names pandas takes for missing values or numbers."""
    config = make_config(task_lists={"general": ["1e5", "null"], "domain": ["mbpp"]})
    folder = make_cells(tmp_path, config)
    ids, names = {f"boolq-{i}": odd for i, odd in enumerate(ODD)}, {"drop": "null", "boolq": "1e5"}
    for path in (folder / "evaluate").glob("*-general.csv"):
        edit_cell(path, lambda table: table.assign(query_id=table.query_id.replace(ids)))
        text = path.read_text(encoding="utf-8").replace("open,drop,", "NA,null,").replace("open,boolq,", "NA,1e5,")
        path.write_text(text, encoding="utf-8")
        edit_json(path.with_suffix(".json"), lambda records: [r.update(suite="NA", task=names[r["task"]]) for r in records])
    results = cells.load(config, folder)
    assert results.suites == {"NA": ["1e5", "null"], "code": ["mbpp"]}
    assert set(ODD) < set(results.scores("dream", "1e5").index) and len(results.scores("dream", "1e5")) == 40
    rows = list(csv.DictReader(render.csv(registry.main(results)).splitlines()))
    assert {(r["suite"], r["task"], r["queries"]) for r in rows if r["suite"] == "NA"} == {
        ("NA", "1e5", "40"), ("NA", "null", "30"), ("NA", "mean", "70"),
    }  # fmt: skip


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1)  # no set has an id with these


@given(st.lists(st.tuples(TEXT, TEXT, st.floats(0, 1)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_a_table(tmp_path, rows):
    path = tmp_path / "t.csv"
    pd.DataFrame(rows, columns=["point", "system", "value"]).to_csv(path, index=False, lineterminator="\n", encoding="utf-8")
    again = cells.read_csv(path, "", ["point", "system"])
    assert list(again.itertuples(index=False, name=None)) == [(a, b, pytest.approx(value)) for a, b, value in rows]


def _lines(change):
    """An edit of a file's lines, as bytes."""

    def edit(data):
        lines = data.splitlines(keepends=True)
        return b"".join(change(lines))

    return edit


def _field(number, value):
    return _lines(
        lambda lines: [
            *lines[:5],
            b",".join([*(f := lines[5].strip().split(b","))[:number], value, *f[number + 1 :]]) + b"\n",
            *lines[6:],
        ]
    )


BOTH = r"bm25-general\.csv and bm25-general\.json disagree: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lines(lambda lines: lines[:-1]), BOTH + "29 and 30 queries of drop"),
        (_lines(lambda lines: lines[:41]), BOTH + "only one of them has drop"),
        (_lines(lambda lines: lines[:-31] + lines[-30:]), BOTH + "39 and 40 queries of boolq"),
        (_lines(lambda lines: [*lines[:5], *lines[6:], lines[6]]), "holds query 'boolq-5' of boolq twice"),
        (_field(5, b"0.123456"), BOTH + "ndcg_at_10 of boolq is"),
        (_field(6, b"0.5"), BOTH + "recall_at_100 of boolq is"),
        (_field(7, b"0.123456"), BOTH + "mrr_at_10 of boolq is"),
        (_field(5, b""), "line 6: ndcg_at_10 is nan, not a number from 0 to 1"),
        (_field(5, b"nan"), "'nan' stands where a number of ndcg_at_10 belongs"),
        (_field(6, b"1.5"), "line 6: recall_at_100 is 1.5, not a number from 0 to 1"),
        (_field(7, b"-0.1"), r"line 6: mrr_at_10 is -0\.1, not a number from 0 to 1"),
        (_field(5, b"1_0"), "'1_0' stands where a number of ndcg_at_10 belongs"),
        (_field(5, b"inf"), "line 6: ndcg_at_10 is inf"),
        (_field(3, b"0.0"), "seed '0.0' is no whole number"),
        (_field(4, b"a\0b"), "it holds a NUL character"),
        (_field(4, b"caf\xe9"), "is not UTF-8 .byte "),
        (lambda data: data.decode().encode("utf-16"), "is not UTF-8 .byte 0"),
        (lambda data: data[:-20], "is nan, not a number|disagree"),
    ],
)
def test_a_cell_that_was_cut_or_edited_is_one_line(config, tmp_path, change, message):
    folder = make_cells(tmp_path, config)
    path = folder / "evaluate" / "bm25-general.csv"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DreamError, match=message) as caught:
        cells.load(config, folder)
    assert "`dvc repro reference@bm25-general`" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": 41}, BOTH + "40 and 41 queries of boolq"),
        ({"ndcg_at_10": 0.5}, BOTH + "ndcg_at_10 of boolq is"),
        ({"mrr_at_10": None}, BOTH + "mrr_at_10 of boolq is"),
        ({"task": "drop"}, "two records of one task"),
        ({"task": 7}, "a name that is no text"),
        ({"seed": True}, "seed True is no whole number"),
        ({"seed": 0}, "holds results of bm25"),
    ],
)
def test_a_record_that_was_edited_is_one_line(config, tmp_path, change, message):
    folder = make_cells(tmp_path, config)
    edit_json(folder / "evaluate" / "bm25-general.json", lambda records: records[0].update(change))
    with pytest.raises(DreamError, match=message):
        cells.load(config, folder)


def test_a_byte_order_mark_is_accepted(config, folder, tmp_path):
    marked = make_cells(tmp_path, config)
    for path in (marked / "evaluate").glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    pd.testing.assert_frame_equal(cells.load(config, marked).queries, cells.load(config, folder).queries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lines(lambda lines: lines[:-1]), r"was cut or edited: its steps do not go up to the 48 of the run"),
        (_lines(lambda lines: [*lines[:4], lines[3], *lines[4:]]), "was cut or edited"),
        (_field(1, b"low"), "'low' stands where a number of loss belongs"),
        (lambda data: data + b"\xff", "is not UTF-8"),
    ],
)
def test_a_training_curve_that_was_cut_or_edited_is_one_line(config, tmp_path, change, message):
    folder = make_cells(tmp_path, config)
    path = folder / "train" / "dream-0.csv"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DreamError, match=message) as caught:
        cells.load(config, folder)
    assert "`dvc repro train@dream-0`" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluate/bm25-general.csv", "a,b\n1,2\n", "another schema"),
        ("evaluate/bm25-general.csv", "", "not a readable CSV"),
        ("evaluate/bm25-general.json", "{}", "another schema"),
        ("evaluate/bm25-general.json", "{", "not valid JSON"),
        ("evaluate/bm25-general.json", '[{"task": "boolq"}]', "another schema .no suite"),
        ("runs/train-dream-0.json", "[]", "another schema"),
        ("train/dream-0.csv", "loss\n1\n", "another schema .no step"),
    ],
)
def test_other_schemas_are_answered_in_one_line(config, tmp_path, file, content, message):
    folder = make_cells(tmp_path, config)
    (folder / file).write_text(content)
    with pytest.raises(DreamError, match=message) as caught:
        cells.load(config, folder)
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_a_renamed_cell_is_noticed(config, tmp_path):
    folder = make_cells(tmp_path, config)
    (folder / "evaluate" / "dream-0-domain.csv").replace(folder / "evaluate" / "infonce-0-domain.csv")
    (folder / "evaluate" / "dream-0-domain.csv").write_bytes((folder / "evaluate" / "dream-1-domain.csv").read_bytes())
    with pytest.raises(DreamError, match=r"holds results of dream"):
        cells.load(config, folder)


def test_an_empty_folder_is_answered_in_one_line(config, tmp_path):
    with pytest.raises(DreamError, match="holds no results"):
        cells.load(config, tmp_path)


def test_unknown_tables_plots_and_formats_are_answered_with_the_known_ones(results, tmp_path):
    for call in (
        lambda: registry.build(results, ["qwerty"]), lambda: plots.draw(results, tmp_path, ["mian"]),
        lambda: render.render(registry.main(results), "docx"), lambda: results.check_system("bm52"),
    ):  # fmt: skip
        with pytest.raises(DreamError, match="Choose one of"):
            call()
    with pytest.raises(DreamError, match="table 'mian' is unknown. Did you mean 'main'?"):
        registry.build(results, ["mian"])


# ------------------------------------------------------------------------------------------------------ rendering

HOSTILE = "<script>alert(1)</script> a|b & 50% _x_ $y$ \\end{table} [z](javascript:1)"


def drawn(table, width):
    """What a terminal of this width shows."""
    import io

    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width).print(render.rich_table(table))
    return stream.getvalue()


def test_a_wide_table_stands_in_blocks_and_no_number_is_folded():
    """Nine systems on a terminal of 120 columns: each block names its rows, and every score is whole."""
    systems = [f"system-{i}" for i in range(9)]
    scores = [[f".{t}{i}5 [.{t}{i}1, .{t}{i}9]↑" for i in range(9)] for t in range(3)]
    rows = [render.fields(f"suite-{t}", f"task-{t}", *scores[t], "200") for t in range(3)]
    table = render.Table("main", "Wide", pd.DataFrame(), ["Suite", "Task", *systems, "Queries"], rows)
    text = drawn(table, 120)
    assert max(map(len, text.splitlines())) <= 120
    assert all(text.count(cell.text) == 1 for row in rows for cell in row[2:-1])
    heads = [line.split() for line in text.splitlines() if line.startswith("Suite")]
    assert len(heads) > 1 and all(head[:2] == ["Suite", "Task"] for head in heads)
    assert [name for head in heads for name in head[2:]] == [*systems, "Queries"]
    assert len([line for line in drawn(table, 300).splitlines() if line.startswith("Suite")]) == 1


def test_at_80_columns_the_references_and_their_rivals_stand_together():
    """Two blocks; the column that says the same of every row stands in the title instead."""
    systems = ["bm25", "untrained", "minilm", "dream", "infonce"]
    rows = [render.fields("packaged", f"docstring-{t}", *([".123 [.101, .145]↑"] * 5), "200", "1,364") for t in range(3)]
    head = ["Suite", "Task", *systems, "Queries", "Documents"]
    table = render.Table("main", "Title", pd.DataFrame(), head, rows, together=("dream", "infonce"))
    text = drawn(table, 80)
    assert text.splitlines()[0].strip() == "Title, Suite packaged"
    heads = [line.split() for line in text.splitlines() if line.startswith("Task")]
    assert heads == [["Task", *systems[:3]], ["Task", *systems[3:], "Queries", "Documents"]]
    assert drawn(table, 200).splitlines()[0].strip() == "Title"  # what fits is left as it is
    two = replace(table, rows=[*rows, render.fields("all", "mean", *rows[0][2:])])
    heads = [line.split()[2:] for line in drawn(two, 80).splitlines() if line.startswith("Suite")]
    assert heads == [systems[:2], ["minilm"], [*systems[3:], "Queries"], ["Documents"]]
    apart = [
        head[2:] for head in (line.split() for line in drawn(replace(two, together=()), 80).splitlines()) if head[:1] == ["Suite"]
    ]
    assert apart == [systems[:2], systems[2:4], ["infonce", "Queries", "Documents"]]


@pytest.fixture
def hostile():
    return render.Table("t", HOSTILE, pd.DataFrame({"a": [HOSTILE]}), ["a"], [render.fields(HOSTILE)], [HOSTILE])


def test_html_is_escaped(hostile):
    assert "<script" not in render.html_table(hostile)


def test_markdown_is_escaped(hostile):
    text = render.markdown(hostile)
    assert "<script" not in text.replace("\\<", "") and "](" not in text
    assert text.splitlines()[4].replace("\\|", "").count("|") == 2


def test_latex_is_escaped(hostile):
    text = render.latex(hostile)
    assert text.count(r"\end{table}") == 1 and r"50\%" in text and r"\$y\$" in text


def test_csv_reads_back(results):
    import io

    for table in registry.build(results):
        again = pd.read_csv(io.StringIO(render.csv(table)))
        assert list(again.columns) == list(table.data.columns) and len(again) == len(table.data)


@pytest.mark.slow
def test_every_plot_is_drawn_from_the_fixture(results, tmp_path):
    files = plots.draw(results, tmp_path)
    assert {file.stem for file in files} == set(plots.PLOTS) - {"curves"}  # these need snapshots: test_report_curves.py
    for file in files:
        assert file.stat().st_size > 5000
        assert file.suffix == ".png" or "<dc:date>" not in file.read_text()


def test_manifest_holds_what_is_needed_to_repeat_a_run(results):
    made = json.loads(json.dumps(build.manifest(results)))
    assert made["config"]["model"]["size"] == "tiny"
    assert made["versions"]["mteb"] == "2.26.24" and made["hardware"]["cores"] == 2
    assert set(made["runs"]) >= {"train-dream-0", "evaluate-bm25-general", "heads"}
    assert np.isfinite(made["runs"]["train-dream-0"]["wall_s"])
    assert set(made["models"]) == {"untrained", *(f"{name}-{seed}" for name in ("dream", "infonce") for seed in (0, 1, 2))}
    assert made["models"]["dream-1"] == {"model": "packaged/smollm2-135m", "checkpoint": "dream-1"}
    assert made["tasks"] == {task: f"{task}-revision" for task in ("boolq", "drop", "mbpp")}
    assert made["assets"] == {}


def test_the_manifest_names_every_loaded_model_and_data_set_once_with_its_content(results):
    loaded = [
        {"name": "packaged/smollm2-135m", "content_sha256": "e" * 64, "layers": 6, "licence": "Apache-2.0"},  # the encoder
        {"name": "packaged/smollm2-135m", "content_sha256": "e" * 64, "licence": "Apache-2.0"},  # the judge
        {"name": "mbpp", "content_sha256": "f" * 64, "used_for": "task mbpp", "licence": "CC BY 4.0"},
    ]
    runs = results.runs | {"assets": results.runs["assets"] | {"notes": {"assets": loaded}}}
    assert build.manifest(replace(results, runs=runs))["assets"] == {
        "packaged/smollm2-135m": {"content_sha256": "e" * 64, "licence": "Apache-2.0"},
        "mbpp": {"content_sha256": "f" * 64, "licence": "CC BY 4.0"},
    }


def test_the_committed_manifest_has_the_content_of_every_model_that_was_evaluated():
    root = Path(__file__).parent.parent
    committed = cells.load(configs.load(root / "params.yaml"), root / "reports" / "results")
    made = build.manifest(committed)
    assert all(len(model["checkpoint"]) == 64 for model in made["models"].values())
    assert {model["model"] for model in made["models"].values()} <= set(made["assets"])
    assert all(len(one["content_sha256"]) == 64 for one in made["assets"].values())


def test_two_cells_of_one_system_made_by_different_models_are_refused(config, tmp_path):
    folder = make_cells(tmp_path, config)
    edit_json(folder / "evaluate/untrained-domain.json", lambda rows: rows[0]["settings"].update(checkpoint="another"))
    with pytest.raises(DreamError, match="cells untrained-general and untrained-domain were made by different models"):
        cells.load(config, folder)


def test_a_published_system_is_said_to_follow_its_own_rules(results):
    """The numbers of a published model depend on other settings than ours: the committed report names them."""
    from dream import config

    root = Path(__file__).parent.parent
    committed = cells.load(config.load(root / "params.yaml"), root / "reports" / "results")
    (note,) = [n for n in notes.footnotes(committed) if n.startswith("minilm:")]
    assert "packaged/minilm" in note and "mean pooling" in note and "256 tokens" in note
    assert not [n for n in notes.footnotes(results) if n.startswith("minilm:")]


@pytest.mark.parametrize(
    ("lists", "own", "line"),
    [
        ({"general": ["boolq", "drop", "squad"], "domain": ["mbpp"]}, {}, "has no result on squad, which general holds now"),
        ({"general": ["boolq"], "domain": ["mbpp"]}, {}, "has results on drop, which general no longer holds"),
        (
            {"general": ["boolq", "drop"], "domain": ["mbpp"]},
            {"mine": "sets/mine"},
            "has no result on mine, which general holds now",
        ),
    ],
)
def test_cells_of_other_tasks_than_params_lists_are_noticed(folder, lists, own, line):
    with pytest.raises(DreamError, match=rf"bm25-general\.json {line}\. Run `dvc repro`"):
        cells.load(make_config(task_lists=lists, own=own), folder)


@pytest.mark.parametrize("value", [{}, [], {"rows": []}, [{"layer": 0}], "heads"])
def test_a_file_of_heads_without_heads_is_named(config, tmp_path, value):
    folder = make_cells(tmp_path, config)
    (folder / "heads.json").write_text(json.dumps(value))
    with pytest.raises(DreamError, match=r"heads\.json has another schema \(no layer, head and score\)\. Run `dvc repro heads`"):
        cells.load(config, folder)


def test_the_mark_of_plain_text_is_the_one_that_the_notes_speak_of(results):
    for name in ("main", "significance"):
        text = render.plain(*registry.build(results, [name]))
        assert "\n* marked\n" in text and "marked" in text.partition("\n* marked\n")[2] and "bold" not in text
