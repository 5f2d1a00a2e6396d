"""A user's own BEIR-format set as an evaluation task: all of its test queries and documents."""

from __future__ import annotations

from dream.data import beir
from dream.data.tasks.base import Task, make


def build(name: str, path: str) -> Task:
    """Read the test split. Faults in the files are errors that name file and line."""
    own = beir.read(path)
    return make(
        name, "own", own.corpus, own.queries, own.qrels, description=f"Own set {name}", licence="as given by its owner",
        notes=own.notes,
    )  # fmt: skip
