"""Sweeps: what sweeps.yaml says becomes commands that resolve, and experiments become a table and a figure."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.collections import PathCollection
from report_fixture import edit_cell, make_cells, make_config, write_params
from typer.testing import CliRunner

from dream import cli
from dream import config as configs
from dream.errors import DreamError
from dream.report import page
from dream.report.commands import sweeps
from dream.report.results import collected, runs
from dream.report.tables import render

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = sweeps.load(ROOT / "sweeps.yaml")
TINY = {"k1": {"question": "Which k1?", "base": ["seeds=[0,1,2]"], "points": {"0.9": ["bm25.k1=0.9"], "1.2": ["bm25.k1=1.2"]}}}


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose two points of sweep ``k1`` are experiments; the second was scored a little higher."""
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "sweeps.yaml").write_text(yaml.safe_dump(TINY))
    for number, k1 in enumerate((0.9, 1.2)):
        config = make_config(**{"bm25.k1": k1})
        write_params(tmp_path, config)
        cells = make_cells(tmp_path, config)
        if number:
            for file in (cells / "evaluate").glob("dream-*.csv"):
                edit_cell(file, lambda table: table.assign(ndcg_at_10=(table.ndcg_at_10 + 0.1).clip(upper=1)))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", f"point {number}")
        git(tmp_path, "update-ref", f"refs/exps/ab/{'c' * 38}/k1-{str(k1).replace('.', '-')}", "HEAD")
    return tmp_path


@pytest.mark.parametrize(("name", "label"), [(s.name, p.label) for s in SWEEPS.values() for p in s.points])
def test_every_point_resolves_as_dvc_puts_its_overrides_in(name, label, tmp_path):
    from dvc.utils.hydra import apply_overrides

    point = next(p for p in SWEEPS[name].points if p.label == label)
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    apply_overrides(params, list(point.overrides))
    assert configs.load(params).recipe == "packaged"


def test_an_override_of_one_recipe_changes_the_knob_itself():
    assert sweeps._knob("data.sources.packaged=[squad]") == "data.sources"
    assert sweeps._knob("candidates.count=4") == "candidates.count"
    assert sweeps._knob("++dream.judge=lora") == "dream.judge"


def test_names_of_experiments_are_unique_and_known_to_git():
    names = [p.experiment for s in SWEEPS.values() for p in s.points]
    assert len(set(names)) == len(names)
    for name in names:
        assert subprocess.run(["git", "check-ref-format", f"refs/exps/x/{name}"], check=False).returncode == 0, name


def test_commands_survive_a_shell():
    for line, point in zip(sweeps.commands(SWEEPS["objectives"]), SWEEPS["objectives"].points, strict=True):
        assert shlex.split(line) == point.command()
        assert shlex.split(line)[:4] == ["dvc", "exp", "run", "--temp"]


def test_points_that_were_run_are_not_run_again(repository, monkeypatch):
    git(repository, "update-ref", "-d", f"refs/exps/ab/{'c' * 38}/k1-1-2")
    asked = []
    monkeypatch.setattr(sweeps, "run_to_its_end", lambda command: asked.append(command) or 0)
    assert sweeps.run(sweeps.find("k1")) == 1
    assert [c[:6] for c in asked] == [["dvc", "exp", "run", "--temp", "-n", "k1-1-2"]]


def test_experiments_become_a_table_and_a_figure(repository):
    table = sweeps.collect(sweeps.find("k1"))
    rows = table.data.set_index(["point", "system"])
    assert rows.loc[("1.2", "dream"), "difference"] > 0.02 and rows.loc[("1.2", "dream"), "p_holm"] < 0.05
    assert rows.loc[("1.2", "infonce"), "difference"] == 0 and pd.isna(rows.loc[("0.9", "dream"), "p"])
    assert rows.loc[("0.9", "dream"), "commit"] == git(repository, "rev-parse", "HEAD~1")[:10]
    assert list(table.data.columns) == collected.COLUMNS and set(table.data.over) == {collected.BOTH}
    assert (table.data.seed_low < table.data.ndcg_at_10).all() and (table.data.ndcg_at_10 < table.data.seed_high).all()
    assert "Inside the seeds' spread (the ranges meet) is the difference of infonce (1.2)" in " ".join(table.notes)
    folder = repository / "reports" / "sweeps" / "k1"
    assert {f.name for f in folder.iterdir()} == {"k1.csv", "k1.md", "k1.png", "k1.svg"}
    assert (folder / "k1.md").read_text().count("**") == 6  # the best of each system: one point for dream, a tie for infonce
    again = sweeps.stored()[0]
    assert [[c.text for c in row] for row in again.rows] == [[c.text for c in row] for row in table.rows]


def test_untrained_encoders_that_differ_stand_in_the_table(repository):
    """Points with encoders of their own: what training adds is read from the row of each untrained one."""
    assert "untrained" not in set(sweeps.collect(sweeps.find("k1")).data.system), "one floor is a line of the figure"
    for file in (repository / "reports" / "results" / "evaluate").glob("untrained-*.csv"):
        edit_cell(file, lambda table: table.assign(ndcg_at_10=(table.ndcg_at_10 + 0.1).clip(upper=1)))
    git(repository, "commit", "-qam", "another encoder")
    git(repository, "update-ref", f"refs/exps/ab/{'c' * 38}/k1-1-2", "HEAD")
    floor = sweeps.collect(sweeps.find("k1")).data.set_index(["system", "point"]).loc["untrained"]
    assert (
        floor.difference["1.2"] == pytest.approx(floor.ndcg_at_10["1.2"] - floor.ndcg_at_10["0.9"])
        and floor.difference["1.2"] > 0.02
    )
    assert set(floor.pairs) == {0} and floor.seed_low.isna().all()


@pytest.mark.parametrize("base", [[], ["training.steps=48"]])
def test_points_that_differ_in_more_than_they_override_are_refused(repository, base):
    """The second was run after params changed, or the base that both share: it would be compared with another configuration's."""
    changed = TINY["k1"] | {"base": TINY["k1"]["base"] + base}
    (repository / "sweeps.yaml").write_text(yaml.safe_dump({"k1": changed}))
    config = make_config(**{"bm25.k1": 1.2, "training.steps": 7})
    write_params(repository, config)
    make_cells(repository, config)
    git(repository, "commit", "-qam", "later")
    git(repository, "update-ref", f"refs/exps/ab/{'c' * 38}/k1-1-2", "HEAD")
    with pytest.raises(DreamError, match=r"sweep k1: 1\.2 was run with training\.steps = 7, 0\.9 with 48\. `dvc exp remove`"):
        sweeps.collect(sweeps.find("k1"))


def test_a_collected_sweep_is_a_table_and_a_figure_of_the_report(repository):
    sweeps.collect(sweeps.find("k1"))
    call = lambda *arguments: CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False).stdout  # noqa: E731
    assert call("tables", "--all").count("Which k1?") == 1 and "Which k1?" not in call("tables")
    assert call("tables", "--table", "sweep-k1", "--format", "md").startswith("# Which k1?")
    assert call("plots", "--plot", "sweep-k1", "--out", "figures").split() == ["figures/sweep-k1.png", "figures/sweep-k1.svg"]
    assert Path("figures/sweep-k1.png").read_bytes() == Path("reports/sweeps/k1/k1.png").read_bytes()
    results = runs.open_revision(runs.resolve("workspace"))
    (shown,) = [table for table in page.content(results)["sweeps"] if table["figure"]]
    assert shown["name"] == "sweep-k1" and shown["figure"]["caption"] == "Which k1?"


def test_tables_and_plots_of_an_experiment_are_read_from_git(repository):
    call = lambda *arguments: CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False).stdout  # noqa: E731
    read = lambda *more: json.loads(call("tables", "-t", "main", "--json", *more))[0]["rows"]  # noqa: E731
    mean = lambda rows: [r["ndcg_at_10"] for r in rows if (r["system"], r["task"]) == ("dream", "boolq")][0]  # noqa: E731, RUF015
    assert mean(read()) == mean(read("--experiment", "k1-1-2")) > mean(read("--experiment", "k1-0-9")) + 0.05
    files = call("plots", "-p", "systems", "-e", "k1-0-9", "--out", "figures").split()
    assert [Path(file).exists() for file in files] == [True, True]


OLD = [column for column in collected.COLUMNS if column not in ("seed_low", "seed_high", "over")]


def old_table(seeds, pairs=(144, 144)):
    """A sweep as it was collected before seeds were part of the uncertainty: points a, b and b's p over queries."""
    row = dict.fromkeys(OLD, None) | {"sweep": "k1", "overrides": "", "system": "dream", "seeds": seeds, "tasks": 2, "queries": 70,
                                      "ndcg_at_10": 0.3, "ci_low": 0.2, "ci_high": 0.4, "experiment": "x", "commit": "1e10000000"}  # fmt: skip
    change = {
        "against": "NA",
        "ndcg_at_10": 0.4,
        "difference": 0.1,
        "diff_low": 0.05,
        "diff_high": 0.15,
        "p": 0.0001,
        "p_holm": 0.0002,
    }
    return pd.DataFrame([row | {"point": "NA", "pairs": pairs[0]}, row | {"point": "1e5", "pairs": pairs[1]} | change])[OLD]


def read_old(folder, table):
    path = folder / "k1" / "k1.csv"
    path.parent.mkdir()
    table.to_csv(path, index=False)
    (folder / "sweeps.yaml").write_text(yaml.safe_dump({"k1": {"question": "?", "points": {"NA": [], "1e5": []}}}))
    (shown,) = sweeps.stored(folder, folder / "sweeps.yaml")
    return shown


def test_a_sweep_of_the_old_schema_says_what_its_p_is_over(tmp_path):
    shown = read_old(tmp_path, old_table(3))
    assert [row[4].text for row in shown.rows] == ["–", "< .001 (queries only)"]
    assert [row[0].text for row in shown.rows] == ["NA", "1e5"] and shown.rows[1][-1].text == "1e10000"
    assert sweeps.BEFORE in shown.notes and not [note for note in shown.notes if "not tested" in note]


@pytest.mark.parametrize(("seeds", "word"), [(1, "one seed"), (2, "two seeds")])
def test_a_sweep_with_few_seeds_shows_no_p(tmp_path, seeds, word):
    shown = read_old(tmp_path, old_table(seeds))
    assert [row[4].text for row in shown.rows] == ["–", "–"] and shown.rows[1][3].text == "+.100 [+.050, +.150]"
    assert f"dream: {word}: not tested (a test needs three); their intervals are over queries only." in shown.notes


def test_a_system_without_seeds_keeps_its_test_in_an_old_sweep(tmp_path):
    shown = read_old(tmp_path, old_table(1, pairs=(0, 0)).assign(system="qrhead"))
    assert shown.rows[1][4].text == "< .001" and sweeps.BEFORE not in shown.notes


def test_no_committed_sweep_prints_a_p_that_forgets_its_seeds():
    for shown in sweeps.stored(ROOT / "reports" / "sweeps", ROOT / "sweeps.yaml"):
        for row, data in zip(shown.rows, shown.data.to_dict("records"), strict=True):
            fair = data["pairs"] == 0 or (data["seeds"] >= 3 and data["over"] == collected.BOTH)
            assert fair or row[4].text == "–" or row[4].text.endswith("(queries only)"), (shown.name, data["point"])
        name = shown.name.removeprefix("sweep-")
        written = ROOT / "reports" / "sweeps" / name / f"{name}.md"
        assert written.read_text(encoding="utf-8") == render.markdown(shown)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda data: data.replace(b",0.3,", b",,", 1), r"k1\.csv, line 2: ndcg_at_10 is nan, not a number from 0 to 1"),
        (lambda data: data.replace(b",0.3,", b",3,", 1), r"k1\.csv, line 2: ndcg_at_10 is 3\.0, not a number"),
        (lambda data: data + data.splitlines(keepends=True)[-1], "holds point '1e5' twice"),
        (lambda data: data.splitlines(keepends=True)[0], "holds no point"),
        (lambda data: data.replace(b"NA", b"\xe9", 1), "is not UTF-8"),
        (lambda data: data.replace(b"NA", b"\0", 1), "it holds a NUL character"),
        (lambda data: data.replace(b",144,", b",many,", 1), "'many' stands where a number of pairs belongs"),
    ],
)
def test_a_stored_sweep_that_was_damaged_is_one_line(tmp_path, change, line):
    path = tmp_path / "k1" / "k1.csv"
    path.parent.mkdir()
    old_table(3).to_csv(path, index=False)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DreamError, match=rf"{line}.*Run `dream-report sweep k1 --collect`"):
        collected.read(path)


def test_a_table_of_another_schema_is_one_line(repository):
    sweeps.collect(sweeps.find("k1"))
    Path("reports/sweeps/k1/k1.csv").write_text("sweep,point\nk1,0.9\n", encoding="utf-8")
    with pytest.raises(DreamError, match=r"k1\.csv has another schema .*Run `dream-report sweep k1 --collect`"):
        sweeps.stored()


def test_a_clone_without_the_experiments_is_told_where_they_are(repository):
    for point in ("0-9", "1-2"):
        git(repository, "update-ref", "-d", f"refs/exps/ab/{'c' * 38}/k1-{point}")
    with pytest.raises(DreamError, match=r"no experiment of sweep k1 is in this clone\. They stay in the clone that ran them"):
        sweeps.collect(sweeps.find("k1"))


def test_a_point_that_was_not_run_is_named(repository):
    git(repository, "update-ref", "-d", f"refs/exps/ab/{'c' * 38}/k1-1-2")
    with pytest.raises(DreamError, match=r"sweep k1 lacks 1\.2\. Run `dream-report sweep k1 --run`"):
        sweeps.collect(sweeps.find("k1"))


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"points": {}}, "sweep x has no points"),
        ({"points": {"a": ["heads.count"]}}, "sweep x, point a: 'heads.count' is not key=value"),
        ({"points": {"a": []}, "pints": 1}, "sweep x has the unknown key pints"),
        ({"points": {"a": []}, "against": "b"}, "sweep x is tested against 'b', which is none of its points"),
    ],
)
def test_a_wrong_entry_is_one_line(tmp_path, entry, line):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"x": entry}))
    with pytest.raises(DreamError, match=line):
        sweeps.load(tmp_path / "s.yaml")


def test_the_command_line(repository):
    run = CliRunner().invoke
    assert re.search(r"k1 .*Which k1\?", run(cli.app, ["sweep"]).stdout)
    assert run(cli.app, ["sweep", "k1"]).stdout.splitlines() == sweeps.commands(sweeps.find("k1"))
    assert "0 of 2 points run" in run(cli.app, ["sweep", "k1", "--run"]).stdout
    with pytest.raises(DreamError, match=r"sweep 'k2' is unknown\. Choose one of k1, or add it"):
        raise run(cli.app, ["sweep", "k2"]).exception


@pytest.mark.parametrize("labels", [["0.9", "1.2"], ["a rather long label of a point", "b"]])
def test_a_figure_marks_the_seeds_and_holds_a_long_question(repository, labels):
    from dream.report import plots

    sweep = replace(sweeps.find("k1"), question="Which learning rate, temperature and number of steps suit all of them? " * 2)
    sweeps.collect(sweep)
    frame = collected.read(collected.FOLDER / "k1" / "k1.csv")
    frame["point"] = frame.point.map(dict(zip(("0.9", "1.2"), labels, strict=True)))
    frame["seed_low"], frame["seed_high"] = frame.ndcg_at_10 - 0.03, frame.ndcg_at_10 + 0.02
    points = tuple(replace(p, label=label) for p, label in zip(sweep.points, labels, strict=True))
    with plots.mpl.rc_context(plots.STYLE):
        figure = sweeps._figure(frame, replace(sweep, points=points, against=labels[0]), 0.1)
        box = figure._suptitle.get_window_extent(figure.canvas.get_renderer())
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    marks = np.concatenate([part.get_offsets() for part in figure.axes[0].collections if isinstance(part, PathCollection)])
    across = labels[0] != "0.9"  # names stand below each other, numbers beside
    assert sorted(marks[:, 0 if across else 1]) == pytest.approx(sorted([*frame.seed_low, *frame.seed_high]))


def test_a_collected_table_is_drawn_although_a_point_has_another_name_by_now(repository):
    from dream.report import plots

    sweep = sweeps.find("k1")
    sweeps.collect(sweep)
    frame = collected.read(collected.FOLDER / "k1" / "k1.csv")
    renamed = tuple(replace(p, label=f"k1 {p.label}") for p in sweep.points)
    with plots.mpl.rc_context(plots.STYLE):
        figure = sweeps._figure(frame, replace(sweep, points=renamed, against=renamed[0].label), 0.1)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["k1 0.9", "k1 1.2", "0.9", "1.2"]
