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
from dream.errors import DreamError
from dream.files import read_yaml, write_json
from dream.report.results import cells as reading
from dream.report.results.agreement import flat, later

WORKSPACE = "workspace"
NEEDED = ("params.yaml", "reports/cells")


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
    log = _git("log", f"-{commits}", "--format=%H", "--", "reports/cells").split()
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
        raise DreamError(
            f"revision {name!r} is no experiment and no commit", f"Known: {known}, and any git revision"
        ) from None
    return Revision(name, commit)


def open_revision(
    revision: Revision, params: Path | str = "params.yaml", folder: Path | str = reading.CELLS
) -> reading.Results:
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
            raise DreamError(
                f"{revision.name} holds no results", "It has no params.yaml and reports/cells in git"
            ) from None
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            opened.extractall(temporary, filter="data")
        root = Path(temporary)
        try:
            _complete(root / "params.yaml", Path(params))
            return reading.load(configs.load(root / "params.yaml"), root / "reports" / "cells")
        except DreamError as error:
            what = error.what.replace(f"{root}/", "")
            raise DreamError(f"{revision.name}: {what}", error.remedy) from None


def _complete(then: Path, now: Path) -> None:
    """Give an older params file the knobs that came later, as they stand now: without them it could not be read."""
    old, new = (read_yaml(path) if path.exists() else None for path in (then, now))
    if isinstance(old, dict) and isinstance(new, dict):
        write_json(then, _with_missing(old, new))  # JSON is YAML 1.2


def _with_missing(old: Any, new: Any) -> Any:
    """``old`` with the keys that only ``new`` has; a value per recipe is one value.

    >>> _with_missing({"a": {"b": 1}, "k": {"packaged": 8}}, {"a": {"b": 2, "c": 3}, "k": {"packaged": 9, "paper": 1}, "d": 4})
    {'a': {'b': 1, 'c': 3}, 'k': {'packaged': 8}, 'd': 4}
    """
    if not (isinstance(old, dict) and isinstance(new, dict)) or set(old) <= set(configs.RECIPES):
        return old
    kept = {key: _with_missing(value, new.get(key)) for key, value in old.items()}
    return kept | {key: value for key, value in new.items() if key not in old}


def settings(results: reading.Results) -> dict[str, Any]:
    """Dotted knobs of an experiment's resolved config, without lists of what could be chosen and knobs that came later."""
    ignored, config = ("sizes", "task_lists", "report", "published"), results.config.model_dump(mode="json")
    new = later(results.config, results.runs)
    knobs = {k: v for name, part in config.items() if name not in ignored for k, v in flat(part, name).items()}
    return {key: value for key, value in knobs.items() if key not in new}


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
