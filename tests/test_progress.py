"""What the pipeline says while it runs, asked of DVC itself on a pipeline whose stages are the real first and last lines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from report_fixture import make_cells, make_config, write_params

from dream import progress
from dream.config import stages
from dream.files import write_json
from dream.report.commands import closing
from dream.report.results import cells

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with results that are committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    config = make_config()
    write_params(tmp_path, config)
    make_cells(tmp_path, config)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "results")
    return tmp_path


def test_every_stage_of_dvc_has_one_place(project):
    """The list is DVC's own: every stage once, and no other. Evaluations of every kind are called evaluate in their record."""
    from dvc.repo import Repo

    (project / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    Repo.init(no_scm=True).close()
    with Repo() as repo:
        theirs = [stage.addressing.replace("@", "-") for stage in repo.index.stages]
    theirs = [re.sub("^(reference|rerank)-", "evaluate-", name) for name in theirs]
    ours = progress.stages()
    assert sorted(ours) == sorted(theirs) and ours[0] == "configure" and ours[-1] == "report"
    assert ours.index("train-dream-2") < ours.index("evaluate-dream-0-general")


def test_the_overview_adds_up_the_last_records(project):
    seconds = {name: progress._seconds(name) for name in progress.stages()}
    expected = sum(json.loads(file.read_text())[0]["wall_s"] for file in Path("reports/results/runs").glob("*.json"))
    first, second = progress.overview(seconds, "encoder toy")
    assert first.startswith(f"[pipeline] {len(seconds)} stages;") and first.endswith("encoder toy")
    assert f"{progress.duration(expected)} if all run" in second and "(train 17 min 30 s, evaluate" in second
    assert "; no record yet of 7; disk: " in second  # questions, two of tasks, signal, two teachers, adapt


def test_a_record_that_dvc_took_away_is_read_from_git(project):
    Path("reports/results/runs/heads.json").unlink()
    assert progress._seconds("heads") == 95.0
    assert progress._seconds("signal") is None
    Path("reports/results/runs/prepare.json").write_text("[{", encoding="utf-8")
    assert progress._seconds("prepare") is None


def test_a_run_with_other_settings_took_another_time(project):
    """Of another recipe or size: the estimate would be of another run. A knob that came later is no other setting."""
    for change, known in (({"seed": 7}, None), ({"strategy": "random"}, None), ({}, 95.0)):
        file = Path("reports/results/runs/heads.json")
        (record,) = json.loads(file.read_text(encoding="utf-8"))
        record["config"]["heads"] = json.loads(Path("reports/config/heads.json").read_text(encoding="utf-8"))["heads"] | change
        file.write_text(json.dumps([record]), encoding="utf-8")
        assert progress._seconds("heads") == known
    del record["config"]["heads"]["drop_low_tokens"]
    file.write_text(json.dumps([record]), encoding="utf-8")
    assert progress._seconds("heads") == 95.0
    Path("reports/config/heads.json").unlink()
    assert progress._seconds("heads") is None


def test_without_a_past_run_it_says_so(project):
    (second,) = list(progress.overview({"configure": None, "heads": None}, ""))[1:]
    assert "no past run is known; no record yet of 1" in second


def test_disk_counts_each_out_of_the_lock_once_and_twice_for_the_cache(project):
    entry = "- path: {}\n      hash: md5\n      md5: a.dir\n      size: {}\n      nfiles: 2\n"
    text = entry.format("work/a", 3 * 2**20) * 2 + entry.format("work/b", 2**20) + entry.format("dream/judge", 9 * 2**20)
    Path("dvc.lock").write_text(f"    {text}", encoding="utf-8")
    Path("cache").mkdir()
    Path("cache/model").write_bytes(b"0" * 5 * 2**20)
    assert progress.disk().startswith("disk: results 8 MiB, models and data 5 MiB, free ")


def test_a_stage_by_hand_says_its_place_its_time_and_its_models(project, capsys):
    progress.begin("heads", "judge toy")
    place = f"stage {progress.stages().index('heads') + 1} of {len(progress.stages())}"
    assert capsys.readouterr().out == f"[heads] {place}, last time 1 min 35 s; judge toy\n"
    assert not Path(".dream").exists()


def test_dvc_says_once_what_the_run_is_and_a_line_a_stage(project):
    """Two stages under the real command line; the first one's record is gone when it starts, as DVC leaves it."""
    call = f"{sys.executable} -c \"from dream import progress; progress.begin('NAME', 'judge toy')\""
    pipeline = {
        name: {"cmd": f"{call.replace('NAME', name)} && touch {name}.txt", "outs": [f"{name}.txt"]}
        for name in ("heads", "prepare")
    }
    pipeline["prepare"]["deps"] = ["heads.txt"]
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": pipeline}), encoding="utf-8")
    write_json("reports/config/assets.json", {"roles": {"judge": {"model": "toy", "layers": None, "dtype": "float32"}}})
    Path("reports/results/runs/heads.json").unlink()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    subprocess.run(["dvc", "init", "-q", "--no-scm"], check=True, env=env)

    def said():
        done = subprocess.run(["dvc", "repro"], check=True, capture_output=True, text=True, env=env)
        return [line for line in done.stdout.splitlines() if line.startswith("[")]

    first, second, heads, prepare = said()
    assert first.startswith("[pipeline] ") and "judge toy, float32" in first and " if all run" in second
    assert re.fullmatch(r"\[heads\] stage \d+ of \d+, last time 1 min 35 s", heads), "the models are said once"
    assert re.fullmatch(r"\[prepare\] stage \d+ of \d+, last time 32 s", prepare)
    Path("heads.txt").unlink()
    assert said()[0].startswith("[pipeline] "), "another run says it again"


def test_bars_of_quick_work_and_deprecations_are_silent():
    code = (
        "import stages, sys, time, warnings\nfrom tqdm import tqdm\n"
        "for _ in tqdm(range(3), desc='quick'): pass\n"
        "for _ in tqdm(range(3), desc='slow'): time.sleep(.5)\n"
        "warnings.warn('old', FutureWarning)\nwarnings.warn('odd', UserWarning)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "slow" in done.stderr and "quick" not in done.stderr
    assert "odd" in done.stderr and "old" not in done.stderr


def last_lines():
    return list(closing.lines(cells.load(stages.load("report"))))


def test_the_last_lines_are_the_sentence_the_main_row_and_three_commands(project):
    sentence, row, head, *commands = last_lines()
    assert sentence.startswith("nothing has run here: all 24 scores are HEAD's own")
    assert re.fullmatch(r"nDCG@10, mean over 3 tasks: bm25 \.\d{3}, untrained \.\d{3}, dream \.\d{3}, infonce \.\d{3}", row)
    assert head == "Next:" and [re.split(" {2,}", line)[1] for line in commands] == [
        "dream-report page", "dream-report compare dream infonce", "dream-report sweep",
    ]  # fmt: skip


def test_a_changed_score_ends_the_run_with_its_name(project):
    from report_fixture import edit_cell

    edit_cell(Path("reports/results/evaluate/dream-1-domain.csv"), lambda t: t.assign(ndcg_at_10=(t.ndcg_at_10 * 0.5)))
    sentence, more, *_ = last_lines()
    assert sentence.startswith("not reproduced: 23 of 24 scores within .003 of HEAD, largest change dream on mbpp, seed 1")
    assert more == "  `dream-report verify` lists them"


def test_without_git_the_run_still_ends_well(project, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(project / "nowhere"))
    assert last_lines()[0].startswith("not compared with the committed scores: ")
