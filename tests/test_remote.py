"""One machine trains and pushes, another pulls one cell or shares the cache; queue workers keep to their device.

The real stage ``train`` of dvc.yaml in a repository of its own with toy data, and a local folder as the remote. Every
step is the command that a user types. Slow: DVC and torch start anew each time.
"""

import os
import shutil
import subprocess
import sys
import time

import pytest
import toy_project as toy
import yaml

from dream.manifest import ROOT

pytestmark = pytest.mark.slow
DVC = [sys.executable, "-m", "dvc"]


def command(folder, *arguments, **env):
    keep = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "PYTHONPATH")}
    mine = {
        **keep, "DVC_NO_ANALYTICS": "1", "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t", **env,
    }  # fmt: skip
    ran = subprocess.run(arguments, cwd=folder, env=mine, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{arguments}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout + ran.stderr


def dvc(folder, *arguments, **env):
    return command(folder, *DVC, *arguments, **env)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A trained and pushed repository; its remote is the folder beside it."""
    folder = tmp_path_factory.mktemp("first") / "repository"
    toy.make(folder, toy.model(tmp_path_factory), **{"training.steps": 3, "objectives": ["infonce"], "seeds": [0, 1]})
    (folder / "reports" / "assets" / "encoder.json").write_text("{}")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stages["train"]}}, sort_keys=False))
    for part in ("dream", "stages"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__/\n.dream/\n")
    command(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init", "-q")
    dvc(folder, "add", "-q", "work/data", "work/candidates", "work/given")
    dvc(folder, "remote", "add", "-q", "--default", "store", str(folder.parent / "store"))
    dvc(folder, "repro", "-q")
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-q", "-m", "trained")
    dvc(folder, "push", "-q", "--run-cache")
    return folder


def clone(repository, folder):
    command(folder, "git", "clone", "-q", str(repository), "clone")
    return folder / "clone"


def test_one_cell_is_pulled_alone(repository, tmp_path):
    other = clone(repository, tmp_path)
    dvc(other, "pull", "-q", "work/models/infonce-0")
    cell = {k: v for k, v in toy.outs(repository).items() if k.startswith("work/models")}
    assert {k: v for k, v in toy.outs(other).items() if k.startswith("work/models")} == cell and cell
    assert not (other / "work" / "models" / "infonce-1").exists() and not (other / "work" / "data").exists()
    assert "up to date" in dvc(other, "repro", "--allow-missing", "--dry")


def test_a_shared_cache_saves_another_machine_the_training(repository, tmp_path):
    """`dvc push --run-cache` leaves out results that are not cached (`cache: false`), so a remote alone is not enough."""
    other = clone(repository, tmp_path)
    (other / "dvc.lock").unlink()  # as if this machine had come to the same parameters by itself
    dvc(other, "cache", "dir", "-q", "--local", str(repository / ".dvc" / "cache"))
    dvc(other, "checkout", "-q", "work/data.dvc", "work/candidates.dvc", "work/given.dvc")
    said = dvc(other, "repro")
    assert "Stage 'train@infonce-0' is cached - skipping run" in said and "[train-infonce" not in said
    assert toy.outs(other) == toy.outs(repository)
    assert toy.outs(other, "infonce-1") == toy.outs(repository, "infonce-1")


def test_a_queue_worker_keeps_to_the_device_it_was_started_with(tmp_path):
    """`dvc queue start` names no device; its worker inherits the environment of the command that starts it."""
    (tmp_path / "write.py").write_text("import os; open('out', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])")
    (tmp_path / "params.yaml").write_text("number: 0\n")
    stage = {"cmd": f"{sys.executable} write.py", "deps": ["write.py"], "params": ["number"]}
    stage["metrics"] = [{"out": {"cache": False}}]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"show": stage}}))
    command(tmp_path, "git", "init", "-q", "-b", "main")
    dvc(tmp_path, "init", "-q")
    command(tmp_path, "git", "add", "-A")
    command(tmp_path, "git", "commit", "-q", "-m", "start")
    dvc(tmp_path, "exp", "run", "-q", "--queue", "-n", "cell", "-S", "number=1", CUDA_VISIBLE_DEVICES="0")
    try:
        dvc(tmp_path, "queue", "start", "-j", "1", CUDA_VISIBLE_DEVICES="1")
        until = time.monotonic() + 200
        while "Success" not in (said := dvc(tmp_path, "queue", "status")):
            assert time.monotonic() < until and "Failed" not in said, said
            time.sleep(2)
    finally:
        dvc(tmp_path, "queue", "stop")
    names = command(tmp_path, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert [command(tmp_path, "git", "show", f"{n}:out") for n in names if n.endswith("/cell")] == ["1"]
