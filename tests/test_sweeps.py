"""Sweeps: what sweeps.yaml says becomes commands that resolve, and experiments become a table and a figure."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from report_fixture import make_cells, make_config, write_params
from typer.testing import CliRunner

from dream import config as configs
from dream.errors import DreamError
from dream.report import cli, page, runs, sweeps

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = sweeps.load(ROOT / "sweeps.yaml")
TINY = {"k1": {"question": "Which k1?", "base": ["seeds=[0,1]"], "points": {"0.9": ["bm25.k1=0.9"], "1.2": ["bm25.k1=1.2"]}}}


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
                table = pd.read_csv(file)
                table["ndcg_at_10"] = (table.ndcg_at_10 + 0.1).clip(upper=1)
                table.to_csv(file, index=False)
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


def test_names_of_experiments_are_unique_and_known_to_git():
    names = [p.experiment for s in SWEEPS.values() for p in s.points]
    assert len(set(names)) == len(names)
    for name in names:
        assert subprocess.run(["git", "check-ref-format", f"refs/exps/x/{name}"], check=False).returncode == 0, name


def test_commands_survive_a_shell():
    for line, point in zip(sweeps.commands(SWEEPS["rows"]), SWEEPS["rows"].points, strict=True):
        assert shlex.split(line) == point.command()
        assert shlex.split(line)[:4] == ["dvc", "exp", "run", "--temp"]


def test_points_that_were_run_are_not_run_again(repository, monkeypatch):
    git(repository, "update-ref", "-d", f"refs/exps/ab/{'c' * 38}/k1-1-2")
    asked = []
    monkeypatch.setattr(sweeps.subprocess, "run", spy(asked, subprocess.run))
    assert sweeps.run(sweeps.find("k1")) == 1
    assert [c[:6] for c in asked] == [["dvc", "exp", "run", "--temp", "-n", "k1-1-2"]]


def spy(asked, real):
    """Answer dvc's calls with success, let git's through."""

    def run(arguments, **more):
        if arguments[0] != "dvc":
            return real(arguments, **more)
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 0)

    return run


def test_experiments_become_a_table_and_a_figure(repository):
    table = sweeps.collect(sweeps.find("k1"))
    rows = table.data.set_index(["point", "system"])
    assert rows.loc[("1.2", "dream"), "difference"] > 0.02 and rows.loc[("1.2", "dream"), "p_holm"] < 0.05
    assert rows.loc[("1.2", "infonce"), "difference"] == 0 and pd.isna(rows.loc[("0.9", "dream"), "p"])
    assert rows.loc[("0.9", "dream"), "commit"] == git(repository, "rev-parse", "HEAD~1")[:10]
    folder = repository / "reports" / "sweeps" / "k1"
    assert {f.name for f in folder.iterdir()} == {"k1.csv", "k1.md", "k1.png", "k1.svg"}
    assert (folder / "k1.md").read_text().count("**") == 6  # the best of each system: one point for dream, a tie for infonce
    again = sweeps.stored()[0]
    assert [[c.text for c in row] for row in again.rows] == [[c.text for c in row] for row in table.rows]


def test_points_that_differ_in_more_than_they_override_are_refused(repository):
    """The second experiment was run after params changed: its number would be compared with another configuration's."""
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
    assert call("tables").count("Which k1?") == 1
    assert call("tables", "--table", "sweep-k1", "--format", "md").startswith("# Which k1?")
    assert call("plots", "--plot", "sweep-k1", "--out", "figures").split() == ["figures/sweep-k1.png", "figures/sweep-k1.svg"]
    assert Path("figures/sweep-k1.png").read_bytes() == Path("reports/sweeps/k1/k1.png").read_bytes()
    results = runs.open_revision(runs.resolve("workspace"))
    (shown,) = [table for table in page.content(results)["tables"] if table["figure"]]
    assert shown["name"] == "sweep-k1" and shown["figure"]["caption"] == "Which k1?"


def test_tables_and_plots_of_an_experiment_are_read_from_git(repository):
    call = lambda *arguments: CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False).stdout  # noqa: E731
    read = lambda *more: json.loads(call("tables", "-t", "main", "--json", *more))[0]["rows"]  # noqa: E731
    mean = lambda rows: [r["ndcg_at_10"] for r in rows if (r["system"], r["task"]) == ("dream", "boolq")][0]  # noqa: E731, RUF015
    assert mean(read()) == mean(read("--experiment", "k1-1-2")) > mean(read("--experiment", "k1-0-9")) + 0.05
    files = call("plots", "-p", "systems", "-e", "k1-0-9", "--out", "figures").split()
    assert [Path(file).exists() for file in files] == [True, True]


def test_a_table_of_another_schema_is_one_line(repository):
    sweeps.collect(sweeps.find("k1"))
    Path("reports/sweeps/k1/k1.csv").write_text("sweep,point\nk1,0.9\n", encoding="utf-8")
    with pytest.raises(DreamError, match=r"k1\.csv has another schema .*Run `dream-report sweep k1 --collect`"):
        sweeps.stored()


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
    assert "k1     Which k1?" in run(cli.app, ["sweep"]).stdout
    assert run(cli.app, ["sweep", "k1"]).stdout.splitlines() == sweeps.commands(sweeps.find("k1"))
    assert "0 of 2 points run" in run(cli.app, ["sweep", "k1", "--run"]).stdout
    with pytest.raises(DreamError, match=r"sweep 'k2' is unknown\. Choose one of k1"):
        raise run(cli.app, ["sweep", "k2"]).exception


@pytest.mark.parametrize("labels", [["0.9", "1.2"], ["a rather long label of a point", "b"]])
def test_a_long_question_stays_inside_its_figure(repository, labels, monkeypatch):
    from dream.report import plots

    inside = []

    def look(figure, stem):
        box = figure._suptitle.get_window_extent(figure.canvas.get_renderer())
        inside.append(box.x0 >= 0 and box.x1 <= figure.bbox.x1)

    sweep = replace(sweeps.find("k1"), question="Which learning rate, temperature and number of steps suit all of them? " * 2)
    sweeps.collect(sweep)
    frame = sweeps._read(sweeps.FOLDER / "k1" / "k1.csv")
    frame["point"] = frame.point.map(dict(zip(("0.9", "1.2"), labels, strict=True)))
    points = tuple(replace(p, label=label) for p, label in zip(sweep.points, labels, strict=True))
    monkeypatch.setattr(plots, "save", look)
    sweeps._figure(frame, replace(sweep, points=points, against=labels[0]), 0.1, Path("figures"))
    assert inside == [True]
