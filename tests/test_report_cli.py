"""``dream-report`` as a user runs it: starts quickly, says what is wrong in one line, and every subcommand answers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from report_fixture import make_cells, make_config, write_params
from typer.testing import CliRunner

from dream.errors import DreamError
from dream.report import cli

ROOT = Path(__file__).resolve().parent.parent
SUBCOMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with params.yaml and synthetic cells."""
    folder = tmp_path_factory.mktemp("project")
    config = make_config()
    write_params(folder, config)
    make_cells(folder, config)
    return folder


@pytest.fixture
def run(project, monkeypatch):
    """Run a subcommand in the project; returns its output. A DreamError comes through as one."""
    monkeypatch.chdir(project)

    def call(*arguments, code=0):
        result = CliRunner().invoke(cli.app, list(map(str, arguments)))
        if isinstance(result.exception, DreamError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    return call


def test_the_subcommands_are_those_of_the_readme():
    assert SUBCOMMANDS == ["compare", "doctor", "explain", "export", "page", "paper", "plan", "plots", "runs", "sweep", "tables"]


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_help_has_examples_and_json(name):
    text = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    assert "Examples" in text and f"dream-report {name}" in text and "--json" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from dream.report import cli\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'scipy', 'transformers', 'mteb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_help_starts_quickly():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dream.report.cli", "--help"], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.7


def test_wrong_usage_is_one_line_and_exit_code_one(project):
    done = subprocess.run(
        [sys.executable, "-m", "dream.report.cli", "tables", "--cells", "nowhere"],
        capture_output=True, text=True, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "error: nowhere holds no results. Run `dvc repro` first, or check out a commit that has results"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables", "--table", "mian"], "table 'mian' is unknown"),
        (["tables", "--format", "docx"], "format 'docx' is unknown"),
        (["plots", "--plot", "mian"], "plot 'mian' is unknown"),
        (["compare", "dream", "bm52"], "system 'bm52' is not in this report"),
        (["tables", "--reference", "bm52"], "system 'bm52' is not in this report"),
        (["compare", "dream", "dream"], "is compared with itself"),
        (["plan", "--size", "30b"], "model.size '30b' is not defined"),
        (["plan", "--recipe", "papre"], "recipe 'papre' is not defined"),
        (["explain", "no-such-query"], "is in no training set and no task"),
        (["tables", "--params", "none.yaml"], "none.yaml is missing"),
    ],
)
def test_user_errors_name_the_thing_and_the_remedy(run, arguments, message):
    with pytest.raises(DreamError, match=message) as caught:
        run(*arguments)
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_tables_print_all_or_one_in_every_format(run):
    assert "Spread over seeds" in run("tables")
    one = run("tables", "--table", "main")
    assert "nDCG@10, size tiny" in one and "Spread over seeds" not in one
    assert run("tables", "-t", "main", "-f", "csv").startswith("suite,task,system,size,recipe,ndcg_at_10")
    assert run("tables", "-t", "main", "-f", "latex").startswith(r"\begin{table}")
    assert "<table" in run("tables", "-t", "main", "-f", "html")
    assert run("tables", "-t", "main", "-f", "md").startswith("# nDCG@10")


def test_tables_are_rebuilt_from_cells_alone(run, project):
    names = run("tables", "--out", "rebuilt").split()
    assert "rebuilt/main.csv" in names
    assert all((project / name).exists() for name in names)


def test_json_reads_back(run):
    (table,) = json.loads(run("tables", "-t", "main", "--json"))
    assert {row["system"] for row in table["rows"]} == {"bm25", "untrained", "dream", "infonce"}
    assert json.loads(run("compare", "dream", "bm25", "--json"))["changed"]
    plans = [json.loads(run("plan", "--size", "3b", "--device-gib", gib, "--json")) for gib in (24, 80)]
    assert plans[0]["parameters"]["judge"] == 8_030_261_248 and [plan["fits"] for plan in plans] == [False, True]
    paper, ablations, scaling = json.loads(run("paper", "--json"))
    assert len(ablations["rows"]) == 10 and len(scaling["rows"]) == 5
    assert len(paper["rows"]) == 299


def test_compare_shows_tests_and_changed_queries(run):
    text = run("compare", "dream", "untrained", "--queries", "4")
    assert "dream against untrained" in text and "Queries that changed most" in text
    assert "Not at hand, so not shown" in text


def test_plots_are_written_where_asked(run, project):
    assert run("plots", "--plot", "systems", "--out", "figures").split() == ["figures/systems.png",
    "figures/systems.svg"]
    assert (project / "figures" / "systems.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_has_nothing_to_show_is_an_error_where_it_is_named(run, project):
    diagnostic = project / "reports" / "cells" / "diagnostic.json"
    kept = diagnostic.read_bytes()
    diagnostic.unlink()
    with pytest.raises(DreamError, match="plot 'diagnostic' has nothing to show"):
        run("plots", "--plot", "diagnostic", "--out", "figures")
    diagnostic.write_bytes(kept)


def test_the_reference_can_be_chosen(run):
    (table,) = json.loads(run("tables", "-t", "significance", "--reference", "untrained", "--json"))
    assert {row["reference"] for row in table["rows"]} == {"untrained"}
    with pytest.raises(DreamError, match="Give another folder with --out"):
        run("plots", "--reference", "untrained")


def test_paper_says_honestly_that_nothing_was_run(run):
    text = run("paper")
    assert "0 of 299 printed numbers have been run here" in text
    assert "−.003 against Revela's own paper" in text and "on 10 of 23 tasks" in text
