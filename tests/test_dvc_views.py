"""DVC's own views: plots that are declared and drawn without an error, experiments without columns that say nothing."""

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dream.files import read_yaml

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = read_yaml(ROOT / "dvc.yaml")
PLOTS = [next(iter(plot.items())) for stage in PIPELINE["stages"].values() for plot in stage.get("plots", [])]
NARROW = ["dvc", "exp", "show", "--only-changed", "--drop", "^(reports|work|dream|stages)/"]


def test_curves_are_declared_with_columns_that_their_files_have():
    ((path, how),) = [(path, how) for path, how in PLOTS if "template" in how]
    assert {"template", "x", "y", "x_label", "y_label", "title"} <= how.keys()
    folder, pattern = path.rsplit("/", 1)
    files = list((ROOT / folder).glob(pattern.replace("${item.objective}", "*").replace("${item.seed}", "*")))
    assert files
    for file in files:
        assert {how["x"], how["y"]} <= set(pd.read_csv(file, nrows=1).columns), file


def test_dvc_draws_the_committed_plots_without_an_error(tmp_path):
    """Its own command line on dvc.yaml and the committed reports, in a folder that holds nothing else."""
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    os.symlink(ROOT / "reports", tmp_path / "reports")
    dvc(tmp_path, "dvc", "init", "-q", "--no-scm")
    done = dvc(tmp_path, "dvc", "plots", "show", "-o", "drawn")
    assert "failed" not in done.stderr and "WARNING" not in done.stderr
    page = (tmp_path / "drawn" / "index.html").read_text(encoding="utf-8")
    assert "training loss of dream, seed 0" in page and "optimiser step" in page and "systems.png" in page


def dvc(folder, *command):
    """Run a command in a folder, with DVC's own settings and nobody's."""
    env = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    for name in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{name}_NAME": "t", f"GIT_{name}_EMAIL": "t@example.org"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A pipeline of the kinds of outs that ours has, run with k = 1 and committed, then an experiment with k = 2."""
    folder = tmp_path_factory.mktemp("views")
    outs, plots = ["work/big.txt"], [{"reports/small.txt": {"cache": False}}]
    command = "mkdir -p work reports && echo ${k} | tee work/big.txt reports/small.txt > /dev/null && echo 'dream: 0.${k}' > reports/m.yaml"
    stage = {
        "cmd": command,
        "deps": ["dream/code.py"],
        "params": [{"params.yaml": None}],
        "outs": outs,
        "plots": plots,
        "metrics": [{"reports/m.yaml": {"cache": False}}],
    }
    (folder / "dream").mkdir()
    (folder / "dream" / "code.py").write_text("", encoding="utf-8")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"make": stage}}), encoding="utf-8")
    (folder / "params.yaml").write_text("k: 1\nsame: 5\n", encoding="utf-8")
    for line in ("git init -q", "dvc init -q", "dvc repro", "git add -A", "git commit -qm one", "dvc exp run -n two -S k=2"):
        dvc(folder, *line.split())
    return folder


def test_exp_show_is_as_narrow_as_what_differs(project):
    """The command that README gives: metrics and the knob; no column of a file or of a knob that is the same everywhere."""
    head = dvc(project, *NARROW, "--csv").stdout.splitlines()[0].split(",")
    assert "k" in head and "dream" in head and not {"same", "dream/code.py", "work/big.txt", "reports/small.txt"} & set(head)
    everything = dvc(project, "dvc", "exp", "show", "--csv").stdout.splitlines()[0].split(",")
    assert {"same", "dream/code.py"} <= set(everything) and not {"reports/small.txt", "reports/m.yaml"} & set(everything)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{' '.join(NARROW[:-1])} '{NARROW[-1]}'" in readme


def test_a_small_plot_without_cache_is_whole_in_a_clone_and_comes_back_from_the_run_cache(project, tmp_path):
    dvc(project, "git", "checkout", "-q", ".")
    said = dvc(project, "dvc", "repro").stdout
    assert "is cached" in said and (project / "reports" / "small.txt").read_text() == "1\n"
    dvc(project, "git", "clone", "-q", ".", str(tmp_path / "clone"))
    assert (tmp_path / "clone" / "reports" / "small.txt").read_text() == "1\n"
    assert "Running stage" not in dvc(tmp_path / "clone", "dvc", "repro", "--allow-missing", "--dry").stdout
