"""What a path under ``own`` in params.yaml stands for: a labelled set in BEIR's format, or documents without questions.

A labelled set has ``queries.jsonl`` or ``qrels/*.tsv`` (dream/data/beir.py): it is an evaluation task under its own name, and
joins the list ``general``. Everything else is documents (dream/data/documents): a training source whose questions are
generated, and the task ``<name>-heldout`` on the documents that no run trains on, which joins the list ``heldout``. Labelled
test queries are for final rows; settings are chosen on generated questions. Nothing here reads more than names of files.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dream.files import root

if TYPE_CHECKING:
    from dream.config import Config

HELD_OUT = "-heldout"


def place_of(path: str) -> Path:
    """Where a path of params.yaml is: from the project's root, ``~`` is the home folder."""
    return root() / Path(path).expanduser()


def is_documents(path: str) -> bool:
    """Whether there is something at the path, and it has neither queries nor judgements."""
    place = place_of(path)
    try:
        return _is_documents(str(place.absolute()), place.stat().st_mtime_ns)
    except OSError:  # missing, or a damaged archive: whoever reads it says so
        return False


def labelled(config: Config) -> list[str]:
    """Names of the own sets with queries and judgements."""
    return [name for name, path in config.own.items() if not is_documents(path)]


def documents(config: Config) -> list[str]:
    """Names of the own sets of documents."""
    return [name for name, path in config.own.items() if is_documents(path)]


def held_out(task: str, config: Config) -> str | None:
    """The own set of documents that a task ``<name>-heldout`` asks about; None for any other task."""
    name = task.removesuffix(HELD_OUT)
    return name if name != task and name in config.own else None


def hidden(path: Path | PurePosixPath) -> bool:
    """Whether a file or folder is a system's own (``.git``, ``._notes.md``, ``__MACOSX``)."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def below(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not hidden(Path(name)))
        yield from (Path(place, name) for name in sorted(files) if not hidden(Path(name)))


@functools.lru_cache(maxsize=256)
def _is_documents(place: str, changed: int) -> bool:
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as opened:
            names = [PurePosixPath(name) for name in opened.namelist()]
        return not any(_is_label(name) for name in names if not any(map(hidden, (name, *name.parents))))
    return not (os.path.isdir(place) and any(map(_is_label, below(Path(place)))))


def _is_label(path: Path | PurePosixPath) -> bool:
    return path.name == "queries.jsonl" or (path.suffix == ".tsv" and path.parent.name == "qrels")
