"""Whether this machine's scores are those of a git revision: the committed ones, as a rule.

A score is a mean nDCG@10 of one system, task and seed. Ours are read cell by cell, each with every check that the report makes,
so that a missing or foreign cell is a line of its own and hides no other. Nothing of ``work/`` is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dream import names
from dream.config import Config, stages
from dream.data import lists
from dream.errors import DreamError
from dream.report.results import cells as reading
from dream.report.results import runs
from dream.report.results.agreement import settings
from dream.report.results.cells import METRIC, Cell, Results
from dream.report.tables.render import number

TOLERANCE = 0.003
Key = tuple[str, str, int | None]  # system, task, seed


@dataclass(frozen=True)
class Score:
    """One score there (``old``) and here (``new``).

    ``fault`` says why the two do not compare; ``own`` that nothing has run for it here: its run record is the revision's.
    """

    system: str
    task: str
    seed: int | None
    old: float | None = None
    new: float | None = None
    fault: str = ""
    own: bool = False

    @property
    def key(self) -> Key:
        """What names the score."""
        return self.system, self.task, self.seed

    @property
    def change(self) -> float | None:
        """New minus old; None where one of them is missing or the two do not compare."""
        return None if self.fault or self.old is None or self.new is None else round(self.new - self.old, 6)

    def line(self) -> str:
        """The score in one line."""
        named = f"{self.system} on {self.task}{'' if self.seed is None else f', seed {self.seed}'}"
        if self.change is None:
            return f"{named}: {self.fault}"
        sign = "+" if self.change > 0 else ""
        return f"{named}: {number(self.old, 4)} → {number(self.new, 4)} ({sign}{number(self.change, 4)})"


@dataclass(frozen=True)
class Comparison:
    """All scores of the two, in the order of the report, and how far apart two that count as equal may lie."""

    against: str
    tolerance: float
    scores: list[Score]

    @property
    def odd(self) -> list[Score]:
        """The scores that were not reproduced."""
        return [score for score in self.scores if score.change is None or abs(score.change) > self.tolerance]

    @property
    def largest(self) -> Score | None:
        """The score that changed most."""
        return max((score for score in self.scores if score.change is not None), key=lambda s: abs(s.change or 0), default=None)

    def lines(self) -> Iterator[str]:
        """The verdict, then a line for every score that was not reproduced."""
        if not self.odd and all(score.own for score in self.scores):
            yield f"nothing has run here: all {len(self.scores)} scores are {self.against}'s own. `dvc repro` makes them here"
            return
        verdict = "not reproduced" if self.odd else "reproduced"
        found = (
            f"{len(self.scores) - len(self.odd)} of {len(self.scores)} scores within {number(self.tolerance)} of {self.against}"
        )
        top = self.largest
        yield f"{verdict}: {found}" + (
            f", largest change {top.line()}" if top and top.change else ", none has changed" if top else ""
        )
        yield from (f"  {score.line()}" for score in self.odd)
        if own := [score for score in self.scores if score.own]:
            yield f"Nothing has run here for {len(own)} of them: their run records are those of {self.against}"

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        head = {"reproduced": not self.odd, "against": self.against, "tolerance": self.tolerance}
        return head | {"scores": [{**asdict(score), "change": score.change} for score in self.scores]}


def verify(
    config: Config,
    against: str = "HEAD",
    tolerance: float = TOLERANCE,
    folder: Path | str = reading.CELLS,
    wanted: dict[str, dict[str, Any]] | None = None,
) -> Comparison:
    """Compare the results in a folder with those of a revision.

    Args:
        config: lists systems, seeds and tasks.
        against: the revision.
        tolerance: how far apart two scores may lie.
        folder: of the small results.
        wanted: what every stage read, by file of ``reports/config`` (default: what this configuration gives).

    Raises:
        DreamError: the revision is unknown, or its results do not belong together.
    """
    theirs, wanted = runs.open_revision(runs.resolve(against)), wanted or stages.files(config)
    there = {_key(record): record for record in theirs.records.to_dict("records")}
    found: dict[Key, Score] = {}
    for cell in reading.expected(config):
        for score in _scores(cell, config, wanted, Path(folder), theirs, against):
            found.setdefault(score.key, replace(score, old=there.get(score.key, {}).get(METRIC)))
    absent = [Score(*key, old=record[METRIC], fault="params.yaml lists no such score") for key, record in there.items()]
    return Comparison(against, tolerance, [*found.values(), *(score for score in absent if score.key not in found)])


def _key(record: dict[str, Any]) -> Key:
    return record["system"], record["task"], None if pd.isna(record["seed"]) else int(record["seed"])


def _scores(
    cell: Cell, config: Config, wanted: dict[str, dict[str, Any]], folder: Path, theirs: Results, against: str
) -> Iterator[Score]:
    """The scores of one cell here, each with what keeps it from being compared."""
    try:
        ours = reading.load(_alone(cell, config), folder, wanted)
    except DreamError as error:
        for task in lists.resolve([cell.tasks], config):
            yield Score(cell.system, task, cell.seed, fault=str(error))
        return
    made_otherwise, run = _difference(cell, wanted, theirs.wanted, against), f"evaluate-{cell.name}"
    revisions = {_key(record): record.get("revision") for record in theirs.records.to_dict("records")}
    for record in ours.records.to_dict("records"):
        key, fault = _key(record), made_otherwise
        if key not in revisions:
            fault = f"{against} has no such score"
        elif not fault and record.get("revision") != revisions[key]:
            fault = f"its queries, documents or judgements are not those of {against}"
        yield Score(*key, new=record[METRIC], fault=fault, own=ours.runs[run] == theirs.runs.get(run))


def _alone(cell: Cell, config: Config) -> Config:
    """The configuration of a report of this cell and nothing else."""
    one = {"evaluate": "objectives", "rerank": "rerankers", "reference": "references"}[cell.stage]
    lists_of = {name: [cell.system] if name == one else [] for name in ("objectives", "rerankers", "references")}
    seeds = config.seeds if cell.seed is None else [cell.seed]
    return config.model_copy(update={**lists_of, "seeds": seeds, "tasks": [cell.tasks]})


def _difference(cell: Cell, ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], against: str) -> str:
    """The first setting behind a cell that is another one there; empty if none is. One that only one of the two knows came later
    and is not compared."""
    for file in _files(cell, ours):
        here, there = settings(ours[file]), settings(theirs.get(file, {}))
        for key in here:
            if key in there and here[key] != there[key]:
                return f"another configuration ({key} is {here[key]!r} here, {there[key]!r} in {against})"
    return ""


def _files(cell: Cell, wanted: dict[str, dict[str, Any]]) -> list[str]:
    """The files of ``reports/config`` that a cell depends on, from the last stage to the first."""
    found = [f"evaluate-{names.cell(cell.system, None, cell.tasks)}", f"tasks-{cell.tasks}"]
    needs = ["heads"] if cell.stage == "rerank" else []
    if cell.stage == "evaluate":
        found.append(f"train-{cell.system}")
        needs = wanted[f"given-{cell.system}"]["needs"]
    if "teacher" in needs:
        found.append(f"teacher-{cell.system}")
    if "heads" in needs:
        found.append("heads")
    return found if cell.stage == "reference" else [*found, "candidates", "prepare", "questions"]
