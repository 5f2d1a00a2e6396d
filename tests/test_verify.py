"""``dream-report verify``: this machine's scores against those of a git revision."""

import json
import os
import shutil
import subprocess

import pytest
from report_fixture import edit_cell, edit_json, make_cells, make_config, write_params
from typer.testing import CliRunner

from dream import cli
from dream.errors import DreamError
from dream.report.commands.verify import verify

CELL = "reports/results/evaluate/dream-0-general.csv"
COUNT = (2 + 2 * 3) * 3  # two references, two objectives of three seeds, three tasks


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A repository with params.yaml and results in its only commit; nothing of work/."""
    folder = tmp_path_factory.mktemp("committed")
    write_params(folder, config := make_config())
    make_cells(folder, config)
    who = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "results"]):
        subprocess.run(["git", *command], cwd=folder, check=True, env={**os.environ, **who})
    return folder


@pytest.fixture
def project(committed, tmp_path, monkeypatch):
    """A clone in which every evaluation has run again, with the same scores."""
    shutil.copytree(committed, tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    for run in (tmp_path / "clone" / "reports" / "results" / "runs").glob("evaluate-*.json"):
        edit_json(run, lambda records: records[0].update(wall_s=1.5))
    return tmp_path / "clone"


def shift(project, by, queries=1):
    """Lower nDCG@10 of the first ``queries`` found queries of one cell by ``by`` each."""

    def change(table):
        table.loc[table.index[table.ndcg_at_10 > by][:queries], "ndcg_at_10"] -= by
        return table

    edit_cell(project / CELL, change)


def call(*arguments):
    result = CliRunner().invoke(cli.app, ["verify", *arguments])
    if isinstance(result.exception, DreamError):
        raise result.exception
    return result.exit_code, result.stdout.splitlines()


def test_equal_scores_are_reproduced(project):
    assert call() == (0, [f"reproduced: {COUNT} of {COUNT} scores within .003 of HEAD, none has changed"])


def test_a_clone_in_which_nothing_has_run_says_so(committed, monkeypatch):
    monkeypatch.chdir(committed)
    line = f"nothing has run here: all {COUNT} scores are HEAD's own. `dvc repro` makes them here"
    assert call() == (0, [line])


def test_a_change_inside_the_tolerance_is_named_and_passes(project):
    shift(project, 0.08)  # of one of 40 queries: .002 of the mean
    code, (line,) = call()
    assert code == 0 and f"{COUNT} of {COUNT}" in line and "largest change dream on boolq, seed 0: " in line
    assert line.endswith("(−.0020)")


def test_a_change_beyond_the_tolerance_is_named_and_fails(project):
    shift(project, 0.08)
    code, lines = call("--tolerance", "0.001")
    assert code == 1 and lines[0].startswith(f"not reproduced: {COUNT - 1} of {COUNT} scores within .001 of HEAD")
    assert lines[1].startswith("  dream on boolq, seed 0: ") and len(lines) == 2


def test_json_holds_every_score_with_its_change(project):
    shift(project, 0.2)
    code, lines = call("--json")
    found = json.loads("\n".join(lines))
    changed = [score for score in found["scores"] if score["change"]]
    assert code == 1 and not found["reproduced"] and len(found["scores"]) == COUNT
    assert [(s["system"], s["task"], s["seed"], s["change"]) for s in changed] == [("dream", "boolq", 0, pytest.approx(-0.005))]
    assert changed[0]["new"] == pytest.approx(changed[0]["old"] - 0.005)


def test_a_missing_cell_and_an_edited_one_are_a_line_for_each_score(project):
    (project / CELL).unlink()
    edit_json(project / "reports/results/evaluate/bm25-domain.json", lambda rows: rows[0].update(ndcg_at_10=0.9))
    code, lines = call()
    assert code == 1 and f"{COUNT - 3} of {COUNT}" in lines[0] and len(lines) == 4
    assert lines[1].startswith("  bm25 on mbpp: ") and "disagree: ndcg_at_10 of mbpp" in lines[1]
    for task, line in zip(("boolq", "drop"), lines[2:], strict=True):
        assert line.startswith(f"  dream on {task}, seed 0: {CELL} is missing. Run `dvc repro evaluate@dream-0-general`")


def test_scores_that_only_one_of_the_two_has_are_named(project):
    config = make_config(seeds=[0, 1], references=["bm25", "untrained", "minilm"])
    write_params(project, config)
    make_cells(project, config)
    code, lines = call()
    assert code == 1
    assert sum(line.endswith("HEAD has no such score") and line.startswith("  minilm on ") for line in lines) == 3
    assert sum(line.endswith(", seed 2: params.yaml lists no such score") for line in lines) == 2 * 3


def test_scores_of_another_configuration_are_named_with_the_setting(project):
    config = make_config(**{"heads.count": 8})
    write_params(project, config)
    make_cells(project, config)
    code, lines = call()
    assert code == 1 and f"{COUNT - 9} of {COUNT}" in lines[0]  # only dream is given heads
    assert all(" on " in line and line.startswith("  dream on ") for line in lines[1:10])
    assert lines[1].endswith("another configuration (heads.count is 8 here, 16 in HEAD)")


def test_another_revision_of_a_task_does_not_compare(project):
    edit_json(project / "reports/results/evaluate/bm25-domain.json", lambda rows: rows[0].update(revision="another"))
    code, lines = call()
    assert code == 1 and lines[1] == "  bm25 on mbpp: its queries, documents or judgements are not those of HEAD"


def test_what_cannot_be_read_is_one_line(project, tmp_path, monkeypatch):
    with pytest.raises(DreamError, match="revision 'nothing' is no experiment and no commit"):
        call("--against", "nothing")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    shutil.rmtree(project / ".git")
    with pytest.raises(DreamError, match="git log: .*not a git repository"):
        call()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DreamError, match="git is not installed"):
        call()


def test_a_tolerance_counts_a_score_exactly_that_far_away(project):
    shift(project, 0.08)
    assert not verify(make_config(), "HEAD", 0.002).odd and verify(make_config(), "HEAD", 0.0019).odd
