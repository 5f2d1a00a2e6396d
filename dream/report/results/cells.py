"""Reading results: exactly the cells that params.yaml lists, checked to belong together.

Ids and names are text, whatever they look like, and a cell's table must hold what its record says: as many queries, the same
means. Nothing here globs: a file left over from another list of systems is never picked up, and a listed cell that is missing
stops the report with its path and the command that makes it. Every cell has a run record (``reports/results/runs``) that
holds the resolved configuration it was made with; :mod:`agreement` compares them, so that numbers of two
configurations never stand in one table.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dream import names
from dream.config import Config, stages
from dream.data import lists
from dream.errors import DreamError
from dream.files import read_json, sha256
from dream.report import stats
from dream.report.results.agreement import check_agreement

NO_TEACHER = {"teacher": None}  # notes of an objective without one
CELLS = Path("reports/results")
METRIC = "ndcg_at_10"
SCORES = ["ndcg_at_10", "recall_at_100", "mrr_at_10"]
TEXTS = ["suite", "task", "system", "seed", "query_id"]
QUERY_COLUMNS = [*TEXTS, *SCORES]
RECORD_KEYS = ["suite", "task", "system", "seed", "queries", "documents", *SCORES, "settings"]
ROUNDING = 2e-6  # by which two means of the same scores may differ: scores and means have six decimals


@dataclass(frozen=True)
class Cell:
    """One evaluated system: a reference (no seed) or one training run of an objective (at its end, or after some of its
    ``pairs``), on one entry of ``tasks``."""

    system: str
    seed: int | None
    tasks: str
    pairs: int | None = None

    @property
    def name(self) -> str:
        """The cell's file name without its ending.

        >>> Cell("bm25", None, "general").name, Cell("bm25", 0, "general").name
        ('bm25-general', 'bm25-0-general')
        """
        return names.cell(self.system, self.seed, self.tasks, self.pairs)

    @property
    def run(self) -> str:
        """The training run that the cell evaluates (``<objective>-0``), or the system's own name."""
        return self.system if self.seed is None else f"{self.system}-{self.seed}"

    @property
    def stage(self) -> str:
        """The DVC stage that makes the cell."""
        if self.seed is not None:
            return "evaluate" if self.pairs is None else "snapshot"
        return "rerank" if self.system in names.registered("systems", "reranker") else "reference"


@dataclass(frozen=True)
class Results:
    """Everything a report is made from, in memory.

    ``queries`` has one row per system, seed and query; ``records`` one per system, seed and task; ``runs`` the run
    record of every stage and cell by name; ``wanted`` what each stage would read now;
    ``curves`` the training curve of every training run; ``snapshots`` the same report with every trained system as it was
    after so many pairs, by their number.
    """

    config: Config
    queries: pd.DataFrame
    records: pd.DataFrame
    runs: dict[str, dict[str, Any]]
    wanted: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    snapshots: dict[int, Results] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # intervals, computed once

    @cached_property
    def systems(self) -> list[str]:
        """The systems in the order of params: references and rerankers first, then objectives."""
        return [*self.config.evaluated_only, *self.config.objectives]

    @cached_property
    def tasks(self) -> list[tuple[str, str]]:
        """``(suite, task)`` in the order in which params lists them; a suite's tasks stand together."""
        pairs = list(dict.fromkeys(zip(self.records.suite, self.records.task, strict=True)))
        suites = list(dict.fromkeys(suite for suite, _ in pairs))
        return sorted(pairs, key=lambda pair: suites.index(pair[0]))

    @cached_property
    def suites(self) -> dict[str, list[str]]:
        """Suite → its tasks."""
        found: dict[str, list[str]] = {}
        for suite, task in self.tasks:
            found.setdefault(suite, []).append(task)
        return found

    @cached_property
    def _tables(self) -> dict[tuple[str, str], pd.DataFrame]:
        """``(system, task)`` → nDCG@10, query ids (sorted) × seeds; a system without seeds has one column."""
        rows = self.queries.assign(seed=self.queries["seed"].fillna(-1).astype(int))
        return {
            key: part.pivot(index="query_id", columns="seed", values=METRIC).sort_index()
            for key, part in rows.groupby(["system", "task"], sort=False)
        }

    def scores(self, system: str, task: str) -> pd.Series:
        """nDCG@10 of every query of a task, averaged over the system's seeds, indexed and sorted by query id."""
        return self._tables[system, task].mean(axis=1)

    def values(self, system: str, tasks: list[str]) -> list[np.ndarray]:
        """nDCG@10 for :mod:`dream.report.stats`: ``[seeds, queries]`` of a trained system, else ``[queries]``.

        One array a task, several for a task of several parts (mteb's CQADupstackRetrieval), which is the mean over them;
        :meth:`weights` has what each array weighs.
        """
        trained = bool(self.seeds(system))
        found = []
        for task in tasks:
            runs = self._tables[system, task].to_numpy().T
            found += [(runs if trained else runs[0])[..., part] for part in self._parts(task)]
        return found

    def weights(self, tasks: list[str]) -> list[float]:
        """The share of each array of :meth:`values` in the mean over the tasks."""
        counts = [len(self._parts(task)) for task in tasks]
        return [1 / count / len(tasks) for count in counts for _ in range(count)]

    def _parts(self, task: str) -> list[Any]:
        """Which of a task's queries belong to each of its parts."""
        parts = self.record(self.systems[0], task).get("parts")
        if not isinstance(parts, dict):
            return [slice(None)]
        ids = self._tables[self.systems[0], task].index
        return [ids.str.startswith(f"{name}:") for name in parts]

    def seed_means(self, system: str, tasks: list[str]) -> list[float]:
        """Mean nDCG@10 over the tasks of each training run; empty for a system that is not trained here."""
        return stats.seed_means(self.values(system, tasks), self.weights(tasks))

    @cached_property
    def reference(self) -> str:
        """The system that all others are tested against: params' choice, or the first trained one if it is not
        shown."""
        wanted = self.config.report.reference_system
        return wanted if wanted in self.systems else [*self.config.objectives, *self.systems][0]

    def against(self, reference: str) -> Results:
        """The same results with another system as the one that all others are tested against."""
        report = self.config.report.model_copy(update={"reference_system": self.check_system(reference)})
        return replace(self, config=self.config.model_copy(update={"report": report}), cache={})

    def seeds(self, system: str) -> list[int]:
        return list(self.config.seeds) if system in self.config.objectives else []

    def record(self, system: str, task: str) -> dict[str, Any]:
        """The first record of a system on a task: what is the same for all its seeds (counts, settings)."""
        rows = self.records[(self.records.system == system) & (self.records.task == task)]
        return rows.iloc[0].to_dict()

    def pairs_trained(self, system: str) -> int:
        """(query, target) pairs that one training run of the system saw; 0 for systems that are not trained here."""
        if system not in self.config.objectives:
            return 0
        notes = self.runs.get(f"train-{system}-{self.config.seeds[0]}", {}).get("notes", {})
        if "pairs_trained" in notes:
            return int(notes["pairs_trained"])
        training = self.config.training
        return training.steps * training.batch * self.config.candidates.questions_per_set

    def check_system(self, name: str) -> str:
        """Return the name, or stop with the list of known ones."""
        if name not in self.systems:
            raise DreamError(f"system {name!r} is not in this report", f"Choose one of {', '.join(self.systems)}")
        return name


def expected(config: Config) -> list[Cell]:
    """The evaluation cells that params lists: references and rerankers × tasks, then objectives × seeds × tasks."""
    references = [Cell(system, None, tasks) for system in config.evaluated_only for tasks in config.tasks]
    trained = [Cell(o, seed, tasks) for o in config.objectives for seed in config.seeds for tasks in config.tasks]
    return references + trained


def after(config: Config, pairs: int) -> list[Cell]:
    """The cells of the trained systems after some of their pairs."""
    return [Cell(o, seed, tasks, pairs) for o in config.objectives for seed in config.seeds for tasks in config.tasks]


def load(config: Config, folder: Path | str = CELLS, wanted: dict[str, dict[str, Any]] | None = None) -> Results:
    """Read every listed cell and check that all of them belong to one configuration.

    Args:
        config: lists systems, seeds and tasks.
        folder: of the small results.
        wanted: what every stage read, by file of ``reports/config`` (default: what this configuration gives).

    Raises:
        DreamError: a listed cell or its run record is missing or has another schema, two cells were made with
            different settings, or two systems were scored on different queries of one task.
    """
    folder = Path(folder)
    cells = expected(config)
    if not cells:
        raise DreamError("params lists nothing to report", "Name systems in references or objectives, and tasks in tasks")
    if not folder.is_dir() or not any(folder.rglob("*")):
        raise DreamError(f"{folder} holds no results", "Run `dvc repro` first, or check out a commit that has results")
    kept = getattr(config.training, "snapshots", [])  # a commit from before the knob has none
    snapshots = {pairs: after(config, pairs) for pairs in sorted(kept)}
    every = [*cells, *(cell for group in snapshots.values() for cell in group)]
    runs = {f"evaluate-{c.name}": _read_run(folder / "runs" / f"evaluate-{c.name}.json", _command(c)) for c in every}
    trained = list(dict.fromkeys(cell.run for cell in cells if cell.seed is not None))
    runs |= {f"train-{run}": _read_run(folder / "runs" / f"train-{run}.json", f"dvc repro train@{run}") for run in trained}
    tasks = [f"tasks-{entry}" for entry in config.tasks]
    teachers = [f"teacher-{name}" for name in config.objectives]
    for stage in ("assets", "questions", *tasks, "prepare", "candidates", "heads", "signal", *teachers):
        path = folder / "runs" / f"{stage}.json"
        if path.exists() and (record := _read_run(path, f"dvc repro {stage}")).get("notes") != NO_TEACHER:
            runs[stage] = record
    records = {cell: _read_records(cell, folder) for cell in every}
    _check_tasks(config, records, folder)
    wanted = wanted or stages.files(config)
    check_agreement(wanted, runs, folder)
    curves = {run: _read_curve(run, folder, runs) for run in trained if (folder / "train" / f"{run}.csv").exists()}
    read = {cell: _read_queries(cell, folder, records[cell]) for cell in every}
    untrained = [cell for cell in cells if cell.seed is None]
    results = Results(config, *_joined(cells, read, records), runs, wanted, curves, _read_extras(folder))
    for pairs, group in snapshots.items():
        results.snapshots[pairs] = Results(config, *_joined([*untrained, *group], read, records), runs, wanted)
    for one in (results, *results.snapshots.values()):
        _check_queries(one)
        _check_models(one.records)
    return results


def _joined(
    cells: list[Cell], queries: dict[Cell, pd.DataFrame], records: dict[Cell, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores and the records of some cells, those of a task that stands in two lists once."""
    keys = ["task", "system", "seed"]
    scores = pd.concat([queries[cell] for cell in cells], ignore_index=True).drop_duplicates(ignore_index=True)
    if (twice := scores.duplicated([*keys, "query_id"])).any():
        one = scores[twice].iloc[0]
        raise DreamError(f"two cells of {one.system} have different scores on {one.task}", "Run `dvc repro` so that both agree")
    return scores, pd.concat([records[cell] for cell in cells], ignore_index=True).drop_duplicates(keys, ignore_index=True)


def _command(cell: Cell) -> str:
    return f"dvc repro {cell.stage}@{cell.name}"


def _missing(path: Path, command: str) -> DreamError:
    return DreamError(f"{path} is missing", f"Run `{command}` to make it")


def _read_run(path: Path, command: str) -> dict[str, Any]:
    if not path.exists():
        raise _missing(path, command)
    value = read_json(path)
    record = value[0] if isinstance(value, list) and value else value
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict) or not isinstance(record.get("settings"), str):
        raise DreamError(f"{path} has another schema (it does not say what its stage read)", f"Run `{command}` to make it anew")
    for file, digest in (record.get("outputs") or {}).items():
        place = path.parent.parent / Path(file).relative_to(CELLS)
        if place.exists() and sha256(place) != digest:
            raise DreamError(f"{place} is not what its stage wrote", f"Run `{command}`, or take it from git again")
    return record


def read_csv(path: Path, remedy: str, texts: Collection[str] = (), columns: list[str] | None = None) -> pd.DataFrame:
    """A CSV whose columns ``texts`` are read as they stand ("NA", "007" and "1e5" are texts), all others as numbers; an empty
    field is no number.

    Raises:
        DreamError: it is not UTF-8, holds a NUL, is no CSV, has other columns, or a word where a number belongs.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds a NUL character")
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except UnicodeDecodeError as error:
        raise DreamError(f"{path} is not UTF-8 (byte {error.start})", remedy) from None
    except ValueError as error:  # pandas' own errors are some
        raise DreamError(f"{path} is not a readable CSV ({' '.join(str(error).split())})", remedy) from None
    if columns is not None and list(table.columns) != columns:
        odd = sorted(set(table.columns) ^ set(columns)) or ["their order"]
        raise DreamError(f"{path} has another schema (differs in {', '.join(odd)})", remedy)
    for name in [name for name in table.columns if name not in texts]:
        numbers = pd.to_numeric(table[name].replace("", None), errors="coerce")
        if (wrong := numbers.isna() & table[name].fillna("").ne("")).any():
            raise DreamError(f"{path}: {table[name][wrong].iloc[0]!r} stands where a number of {name} belongs", remedy)
        table[name] = numbers
    return table


def check_scores(table: pd.DataFrame, metrics: list[str], path: Path, remedy: str) -> None:
    """Scores are numbers from 0 to 1.

    Raises:
        DreamError: one is missing, NaN or outside; the line names its row.
    """
    for metric in metrics:
        wrong = ~table[metric].between(0, 1)
        if wrong.any():
            row = table[wrong].iloc[0]
            raise DreamError(f"{path}, line {row.name + 2}: {metric} is {row[metric]}, not a number from 0 to 1", remedy)


def _read_queries(cell: Cell, folder: Path, records: pd.DataFrame) -> pd.DataFrame:
    """The cell's scores of every query, compared with its records."""
    path, remedy = folder / "evaluate" / f"{cell.name}.csv", f"Run `{_command(cell)}` to make it anew"
    if not path.exists():
        raise _missing(path, _command(cell))
    table = read_csv(path, remedy, TEXTS, QUERY_COLUMNS)
    if table.empty:
        raise DreamError(f"{path} holds no query", remedy)
    table["seed"] = pd.array([_seed(seed, path, remedy) for seed in table["seed"]], dtype="Int64")
    _check_owner(table, cell, path)
    check_scores(table, SCORES, path, remedy)
    if (twice := table.duplicated(["task", "query_id"])).any():
        row = table[twice].iloc[0]
        raise DreamError(f"{path} holds query {row.query_id!r} of {row.task} twice", remedy)
    _check_sums(table, records, path, _command(cell))
    return table


def _check_sums(table: pd.DataFrame, records: pd.DataFrame, path: Path, command: str) -> None:
    """Counts and means of the table are those of the records: a table that was cut or edited is noticed."""
    remedy = f"One of them was cut or edited: run `{command}`, which makes both anew, or take them from git again"
    both = f"{path} and {path.with_suffix('.json').name} disagree"
    if odd := set(table["task"]) ^ set(records["task"]):
        raise DreamError(f"{both}: only one of them has {min(odd)}", remedy)
    for record in records.to_dict("records"):
        rows = table[table["task"] == record["task"]]
        if len(rows) != record["queries"]:
            raise DreamError(f"{both}: {len(rows)} and {record['queries']} queries of {record['task']}", remedy)
        parts = record.get("parts")
        groups = rows["query_id"].str.partition(":")[0] if isinstance(parts, dict) else rows["task"]
        for metric in SCORES:
            mean = rows.groupby(groups)[metric].mean().mean()
            if not isinstance(record[metric], int | float) or not abs(mean - record[metric]) <= ROUNDING:
                raise DreamError(f"{both}: {metric} of {record['task']} is {mean:.6f} and {record[metric]}", remedy)


def _seed(value: Any, path: Path, remedy: str) -> int | None:
    """A seed as cells hold it: a whole number, or nothing."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not str(value).isascii() or not str(value).isdigit():
        raise DreamError(f"{path}: seed {value!r} is no whole number", remedy)
    return int(value)


def _read_records(cell: Cell, folder: Path) -> pd.DataFrame:
    path, remedy = folder / "evaluate" / f"{cell.name}.json", f"Run `{_command(cell)}` to make it anew"
    if not path.exists():
        raise _missing(path, _command(cell))
    value = read_json(path)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DreamError(f"{path} has another schema (not a list of records)", remedy)
    for key in RECORD_KEYS:
        if not value or any(key not in row for row in value):
            raise DreamError(f"{path} has another schema (no {key})", remedy)
    if any(not isinstance(row[key], str) for row in value for key in ("suite", "task", "system")):
        raise DreamError(f"{path} has another schema (a name that is no text)", remedy)
    if len({row["task"] for row in value}) < len(value):
        raise DreamError(f"{path} has two records of one task", remedy)
    table = pd.DataFrame(value)
    table["seed"] = pd.array([_seed(row["seed"], path, remedy) for row in value], dtype="Int64")
    table["cell"] = cell.name
    _check_owner(table, cell, path)
    return table


def _check_owner(table: pd.DataFrame, cell: Cell, path: Path) -> None:
    """A cell holds its own system and seed: a renamed or copied file is noticed."""
    seeds = {None if pd.isna(seed) else int(seed) for seed in table["seed"].unique()}
    if set(table["system"]) != {cell.system} or seeds != {cell.seed}:
        held = ", ".join(sorted(map(str, set(table["system"]))))
        raise DreamError(
            f"{path} holds results of {held} (seeds {sorted(map(str, seeds))}), not of {cell.run}",
            f"Run `{_command(cell)}` to make it anew",
        )


def _read_curve(run: str, folder: Path, runs: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A training curve, up to the last step of its run."""
    path, remedy = folder / "train" / f"{run}.csv", f"Run `dvc repro train@{run}` to make it anew"
    table = read_csv(path, remedy)
    if "step" not in table.columns:
        raise DreamError(f"{path} has another schema (no step)", remedy)
    steps = runs[f"train-{run}"]["config"].get("training", {}).get("steps")
    if not table["step"].is_monotonic_increasing or not table["step"].is_unique or table["step"].max() != steps:
        raise DreamError(f"{path} was cut or edited: its steps do not go up to the {steps} of the run", remedy)
    return table


def _read_extras(folder: Path) -> dict[str, Any]:
    """The optional JSON files directly under the folder (heads, diagnostic, …) by name."""
    names = ("assets", "prepare", "candidates", "heads", "diagnostic", "geometry")
    found = {name: read_json(folder / f"{name}.json") for name in names if (folder / f"{name}.json").exists()}
    if "heads" in found and not _are_heads(found["heads"]):
        path = folder / "heads.json"
        raise DreamError(f"{path} has another schema (no layer, head and score)", "Run `dvc repro heads` to make it anew")
    return found


def _are_heads(value: Any) -> bool:
    """Whether a value lists attention heads with their scores."""
    rows = value.get("rows", value.get("heads")) if isinstance(value, dict) else value
    keys = {"layer", "head", "score"}
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) and keys <= set(row) for row in rows)


def _check_tasks(config: Config, records: dict[Cell, pd.DataFrame], folder: Path) -> None:
    """Every cell holds the tasks that params lists now: a list or an own set that changed after it is noticed."""
    for cell, table in records.items():
        asked, held = set(lists.resolve([cell.tasks], config)), set(table["task"])
        path = folder / "evaluate" / f"{cell.name}.json"
        if missing := asked - held:
            raise DreamError(f"{path} has no result on {min(missing)}, which {cell.tasks} holds now", "Run `dvc repro`")
        if extra := held - asked:
            raise DreamError(f"{path} has results on {min(extra)}, which {cell.tasks} no longer holds", "Run `dvc repro`")


def _check_models(records: pd.DataFrame) -> None:
    """All cells of a system and seed were made by one model (settings ``checkpoint``, a judge's ``weights``)."""
    seen: dict[tuple[str, str], tuple[str, Any]] = {}
    for row in records.itertuples():
        settings = row.settings if isinstance(row.settings, dict) else {}
        made = settings.get("checkpoint"), settings.get("weights")
        other, theirs = seen.setdefault((row.system, str(row.seed)), (row.cell, made))
        if theirs != made:
            raise DreamError(f"cells {other} and {row.cell} were made by different models", "Run `dvc repro` so that both agree")


def _check_queries(results: Results) -> None:
    """All systems and seeds of a task were scored on the same queries of the same task, else a paired test would be nonsense."""
    remedy = "Run `dvc repro` so that both agree"
    for _, task in results.tasks:
        first = results.systems[0]
        for system in results.systems:
            if (system, task) not in results._tables:
                raise DreamError(f"{system} has no result on {task}, {first} has", remedy)
            ours, theirs = (set(results._tables[name, task].index) for name in (first, system))
            if ours != theirs:
                own = f"{len(ours - theirs)} and {len(theirs - ours)} of their own"
                raise DreamError(f"{task}: {first} and {system} were scored on different queries ({own})", remedy)
            if results._tables[system, task].isna().any(axis=None):
                raise DreamError(f"{task}: the seeds of {system} were scored on different queries", remedy)
    if "revision" in results.records.columns:
        for task, rows in results.records.groupby("task", sort=False):
            if rows["revision"].nunique(dropna=False) > 1:
                a, b = rows.drop_duplicates("revision")["cell"].iloc[:2]
                raise DreamError(f"cells {a} and {b} were scored on different revisions of {task}", remedy)
