"""What a change reruns: every row of the table in docs/design.md, asked of DVC itself.

The real dvc.yaml runs, with what the real ``configure`` writes; the work of every other stage is replaced by a script that
writes, in place of each out, a hash of what the stage reads. So DVC decides, on the dependencies that the pipeline declares.
A row starts where the row before it ended: what it takes back comes from the run-cache and is not run.
"""

import contextlib
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from dvc import dvcfile
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from dream import config
from dream.config import stages as settings
from dream.files import write_json

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent
STUB = """
import hashlib, json, pathlib, sys, time
name, deps, outs = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
settings = json.loads(pathlib.Path(next(d for d in deps if d.startswith("reports/config/"))).read_text())
settings.pop("code", None)
deps = [d for d in deps if not d.startswith(("dream", "stages", "reports/config"))]
if name == "given":  # an objective sees what it needs
    kept = {"judge": "reports/assets/judge.json", "heads": "work/heads", "teacher": "work/teacher"}
    deps = [d for d in deps if any(d.startswith(kept[n]) for n in settings["needs"])]
    settings.pop("injection", None)
if name == "teacher" and settings["teacher"] != "attention":  # the one that reads heads
    deps.remove("work/heads")
if name == "prepare":  # the passages and questions of the new task stand nowhere in training
    settings = settings["data"]
def content(path):
    path = pathlib.Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [p.read_text() for p in files]
said = hashlib.sha256(json.dumps([settings, [content(d) for d in deps]]).encode()).hexdigest()
for out in map(pathlib.Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    if "runs" in out.parts:
        out.write_text(str(time.time()))  # wall times differ from run to run
    elif out.suffix:
        out.write_text(said)
    else:
        out.mkdir(exist_ok=True)
        roles = settings.get("roles", {}) if name == "assets" else {"all": said}
        files = ["encoder", "judge", "generator", "dense", *settings["references"], "data"] if name == "assets" else ["all"]
        for role in files:
            shown = "encoder" if role == "untrained" else role
            (out / f"{role}.json").write_text(json.dumps(roles.get(shown, {})))
"""


def rows():
    """(change, what runs beside `configure`, `queries` and `report`) of every row of the table."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.split("## What a change reruns")[1].split("\n\n")[2]
    found = [[field.strip() for field in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [(re.findall("`([^`]+)`", change), re.findall("`([^`]+)`", runs)) for change, runs in found]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in ("dream", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for name, stage in pipeline["stages"].items():
        outs = [o if isinstance(o, str) else next(iter(o)) for kind in ("outs", "plots", "metrics") for o in stage.get(kind, [])]
        if name == "configure":
            stage["cmd"] = "mkdir -p reports && cp -r configured reports/config # ${model.size}"
        else:
            stage["cmd"] = f"{sys.executable} stub.py {name} {','.join(stage['deps'])} {','.join(outs)}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    (folder / "stub.py").write_text(STUB, encoding="utf-8")
    (folder / "reports" / "sweeps").mkdir(parents=True)
    (folder / "reports" / "sweeps" / "none.csv").write_text("", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    Repo.init(str(folder)).close()
    apply_overrides(folder / "params.yaml", ["objectives=[dream,infonce,replug]", "seeds=[0]", "rerankers=[qrhead]"])
    repro(folder)
    return folder


class Ran(logging.Handler):
    """The stages that DVC says it runs."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def emit(self, record):
        self.names |= set(re.findall(r"Running stage '([^']+)'", record.getMessage()))


@contextlib.contextmanager
def modify_yaml(path, fs=None):
    """DVC's, on libyaml: ruamel's round trip of dvc.lock takes a second a stage."""
    path = pathlib.Path(path)
    data = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader) if path.exists() else {}
    yield data
    path.write_text(yaml.dump(json.loads(json.dumps(data)), Dumper=yaml.CSafeDumper), encoding="utf-8")


def repro(folder):
    """Run the pipeline; the stages that DVC ran, by name."""
    shutil.rmtree(folder / "configured", ignore_errors=True)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patched:
        patched.setattr(settings, "ROOT", folder)
        patched.setattr(dvcfile, "modify_yaml", modify_yaml)
        for name, values in settings.files(config.load()).items():
            write_json(f"configured/{name}.json", values)
        ran, log = Ran(), logging.getLogger("dvc.stage.run")
        log.addHandler(ran)
        level, log.level = log.level, logging.INFO
        try:
            with Repo() as repo:
                repo.reproduce()
        finally:
            log.removeHandler(ran)
            log.level = level
    return ran.names


@pytest.mark.parametrize(("change", "expected"), rows(), ids=lambda value: " ".join(value) if value else "nothing")
def test_a_change_reruns_what_the_table_says(project, change, expected):
    paths = [project / "params.yaml", *map(project.joinpath, filter(is_file, change))]
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        for one in change:
            if is_file(one):
                with (project / one).open("a", encoding="utf-8") as file:
                    file.write("\n# a change\n")
            else:
                apply_overrides(project / "params.yaml", [one])
        ran, everything = repro(project) - {"configure", "adapt", "queries", "report"}, stages(project)
    finally:
        for path, content in before.items():
            path.unlink() if content is None else path.write_bytes(content)
    wanted = {name for name in everything for pattern in expected if pathlib.PurePath(name).match(pattern)}
    assert ran == wanted, f"ran {sorted(ran - wanted)} too, and not {sorted(wanted - ran)}"


def test_going_back_runs_nothing_but_restores(project):
    before = (project / "params.yaml").read_bytes()
    apply_overrides(project / "params.yaml", ["training.learning_rate=0.002"])
    assert any(name.startswith("train@") for name in repro(project))
    (project / "params.yaml").write_bytes(before)
    assert repro(project) <= {
        "configure",
        "adapt",
        "queries",
        "report",
    }  # their outs are no plots, which the run-cache would restore


def is_file(change):
    return change.endswith(".py")


def stages(folder):
    with Repo(str(folder)) as repo:
        return {stage.addressing.split(":")[-1] for stage in repo.index.stages}
