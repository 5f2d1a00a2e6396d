"""docs/ablations.md and `dream-report sweep`: one line of outcome a sweep, from the collected tables and from nothing else."""

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from dream import cli
from dream.errors import DreamError
from dream.report.commands import ablations, sweeps
from dream.report.results import collected

ROOT = Path(__file__).resolve().parent.parent


def make_sweep(points=("a", "b"), against="a"):
    return sweeps.Sweep("k", "Which?", "", tuple(sweeps.Point(p, (), f"k-{p}") for p in points), against)


def make_frame(*rows, seeds=3, over=collected.BOTH):
    """A collected table with the rows (point, system, score, difference, p_holm)."""
    same = {"sweep": "k", "overrides": "", "seeds": seeds, "seed_low": 0.1, "seed_high": 0.2, "pairs": 8, "tasks": 2, "queries": 70,
            "ci_low": 0.1, "ci_high": 0.9, "over": over, "experiment": "k-a", "commit": "c" * 10}  # fmt: skip
    named = [dict(zip(("point", "system", "ndcg_at_10", "difference", "p_holm"), row, strict=True)) for row in rows]
    frame = pd.DataFrame([{**dict.fromkeys(collected.COLUMNS), **same, **row} for row in named], columns=collected.COLUMNS)
    return frame.astype({"difference": float, "p_holm": float})


def test_the_committed_document_is_what_the_collected_tables_say():
    written = (ROOT / ablations.DOCUMENT).read_text(encoding="utf-8")
    assert written == ablations.document(ROOT / sweeps.FILE, ROOT / collected.FOLDER), (
        "run `dream-report sweep --out docs/ablations.md`"
    )


def test_every_sweep_has_one_line_and_its_scores_are_those_of_its_table():
    text = (ROOT / ablations.DOCUMENT).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    for sweep, line in zip(sweeps.load(ROOT / sweeps.FILE).values(), lines, strict=True):
        file = ROOT / collected.FOLDER / sweep.name / f"{sweep.name}.csv"
        scores = [f"{v:.3f}"[1:] for v in collected.read(file).ndcg_at_10] if file.exists() else []
        outcome = line.split(" | ")[1]
        assert sorted(re.findall(r"(?<= )\.\d{3}", outcome)) == sorted(scores)


@pytest.mark.parametrize(
    ("seeds", "over", "expected"),
    [
        (3, collected.BOTH, "dream: b .300, a .200↓, c .310, “d, e” .400↑"),
        (2, "queries", "dream: b .300, a .200, c .310, “d, e” .400: not decided (2 seeds)"),
        (1, "queries", "dream: b .300, a .200, c .310, “d, e” .400: not decided (1 seed)"),
        (3, "queries", "dream: b .300, a .200, c .310, “d, e” .400: not decided (not tested over seeds)"),
    ],
)
def test_a_difference_is_called_one_only_where_seeds_were_enough(seeds, over, expected):
    frame = make_frame(
        ("a", "dream", 0.2, -0.1, 0.01), ("b", "dream", 0.3, None, None), ("c", "dream", 0.31, 0.01, 0.05), ("d, e", "dream", 0.4, 0.1, 0.04),
        seeds=seeds, over=over,
    )  # fmt: skip
    assert ablations.outcome(frame, make_sweep("abc", "b")) == expected


def test_differences_that_were_tested_and_not_found_are_not_decided():
    frame = make_frame(
        ("a", "dream", 0.2, None, None), ("b", "dream", 0.21, 0.01, 0.4), ("a", "bm25", 0.5, None, None), ("b", "bm25", 0.5, 0, 1)
    )
    assert ablations.outcome(frame, make_sweep()) == "dream: a .200, b .210; bm25: a .500, b .500: not decided"


def test_a_sweep_of_one_point_is_a_list_of_systems():
    frame = make_frame(("all", "qrhead", 0.504, None, None), ("all", "dream", 0.316, None, None))
    assert ablations.outcome(frame, make_sweep(["all"], "all")) == "qrhead .504, dream .316"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository of two sweeps, one of them collected."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x", "--allow-empty"], check=True
    )
    entry = {"question": "Which | k?", "points": {"a": [], "b": []}}
    Path("sweeps.yaml").write_text(yaml.safe_dump({"k": entry, "later": entry}), encoding="utf-8")
    Path("reports/sweeps/k").mkdir(parents=True)
    make_frame(("a", "dream", 0.2, None, None), ("b", "dream", 0.4, 0.2, 0.01)).to_csv("reports/sweeps/k/k.csv", index=False)
    return lambda *arguments: CliRunner().invoke(cli.app, ["sweep", *arguments])


def test_the_list_of_sweeps_shows_which_are_collected_and_what_they_found(project):
    (table,) = json.loads(project("--json").stdout)
    assert [(row["sweep"], row["collected"], row["outcome"]) for row in table["rows"]] == [
        ("k", True, "dream: a .200, b .400↑"), ("later", False, ""),
    ]  # fmt: skip
    assert "not collected" in project().stdout


def test_the_document_is_written_whole_and_nowhere_else(project):
    assert project("--out", "docs/a.md").stdout == "docs/a.md\n"
    text = Path("docs/a.md").read_text(encoding="utf-8")
    assert "| Which \\| k? | dream: a .200, b .400↑ ([k](../reports/sweeps/k/k.md)) | – |" in text and "†" not in text
    assert "not collected: `dream-report sweep later --run --collect`" in text
    for arguments, line in (
        (["--out", "a.csv"], "no name of a Markdown file"),
        (["k", "--out", "a.md"], "--out writes all sweeps"),
    ):
        error = project(*arguments).exception
        assert isinstance(error, DreamError) and line in str(error)


def test_a_sweep_collected_before_seeds_counted_is_marked(project):
    frame = pd.read_csv("reports/sweeps/k/k.csv").drop(columns=collected.NEW)
    frame.to_csv("reports/sweeps/k/k.csv", index=False)
    text = ablations.document()
    assert "not decided (not tested over seeds) †" in text and "\n†: collected before" in text
