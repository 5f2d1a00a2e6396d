"""Experiments: the workspace, commits and ``dvc exp`` experiments, each read from git without checking anything out.

A DVC experiment is a commit under ``refs/exps`` that holds its params.yaml and its small results, so one experiment's
whole report can be rebuilt from it. :func:`open_revision` unpacks those files into a temporary folder and reads them
with the same code, and the same checks, as the workspace's.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dream import config as configs
from dream.config import stages
from dream.errors import DreamError
from dream.files import read_json
from dream.report.results import cells as reading
from dream.report.results.agreement import flat

WORKSPACE = "workspace"
NEEDED = ("reports/config", "reports/results")


@dataclass(frozen=True)
class Revision:
    """A place that may hold results: a name people use and the commit behind it (empty for the workspace)."""

    name: str
    commit: str


def _git(*arguments: str, binary: bool = False) -> Any:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except FileNotFoundError:
        raise DreamError("git is not installed", "Install it: experiments are read from git") from None
    except subprocess.CalledProcessError as error:
        line = (error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise DreamError(f"git {arguments[0]}: {line}", "Run from a clone of the project") from None
    return done.stdout if binary else done.stdout.decode()


def found(commits: int = 1) -> list[Revision]:
    """The workspace, the last commits that changed results, and all DVC experiments by name."""
    revisions = [Revision(WORKSPACE, "")]
    log = _git("log", f"-{commits}", "--format=%H", "--", "reports/results").split()
    revisions += [Revision(commit[:7], commit) for commit in log]
    for line in _git("for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines():
        name, commit = line.split()
        parts = name.split("/")
        if len(parts) == 5 and parts[2] not in ("exec", "celery"):  # refs/exps/<2 of base>/<38 of base>/<name>
            revisions.append(Revision(parts[-1], commit))
    return revisions


def resolve(name: str) -> Revision:
    """A revision by the name of an experiment, a branch, a tag or a commit; ``workspace`` is what lies in the
    folder."""
    if name == WORKSPACE:
        return Revision(WORKSPACE, "")
    for revision in found():
        if revision.name == name:
            return revision
    try:
        commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except DreamError:
        known = ", ".join(revision.name for revision in found())
        raise DreamError(f"revision {name!r} is no experiment and no commit", f"Known: {known}, and any git revision") from None
    return Revision(name, commit)


def open_revision(revision: Revision, params: Path | str = "params.yaml", folder: Path | str = reading.CELLS) -> reading.Results:
    """Read a revision's results.

    Raises:
        DreamError: the commit holds no results, or they do not belong together; the line starts with the revision's
        name.
    """
    if not revision.commit:
        return reading.load(configs.load(params), folder)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            archive = _git("archive", "--format=tar", revision.commit, *NEEDED, binary=True)
        except DreamError:
            raise DreamError(f"{revision.name} holds no results", "It has no reports/config and reports/results in git") from None
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            opened.extractall(temporary, filter="data")
        root = Path(temporary)
        try:
            wanted = {path.stem: read_json(path) for path in (root / stages.FOLDER).glob("*.json")}
            return reading.load(stages.load("report", root / stages.FOLDER), root / "reports" / "results", wanted)
        except DreamError as error:
            what = error.what.replace(f"{root}/", "")
            raise DreamError(f"{revision.name}: {what}", error.remedy) from None


def settings(results: reading.Results) -> dict[str, Any]:
    """Dotted knobs of an experiment's resolved config, without lists of what could be chosen."""
    ignored, config = ("sizes", "models", "task_lists", "report", "probes"), results.config.model_dump(mode="json")
    knobs = {k: v for name, part in config.items() if name not in ignored for k, v in flat(part, name).items()}
    return {key.removeprefix("knobs."): value for key, value in knobs.items()}


def differing(flats: list[dict[str, Any]]) -> list[str]:
    """Knobs whose value is not the same everywhere.

    >>> differing([{"a.b": 1, "c": 2}, {"a.b": 3, "c": 2}])
    ['a.b']
    """
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)]


def short(value: Any) -> str:
    """A knob's value on a screen."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
