"""Scores and hits for other tools: run files and judgements as TREC writes them, result files as mteb writes them.

``OUT/trec/<task>/`` holds ``qrels.txt`` and a run file for every system and seed, with all hits that an evaluation keeps
(``evaluate.depth``), so ``ir_measures qrels.txt dream-0.txt nDCG@10`` gives our score. Hits with the query's own id are gone
where a task drops them. The score of a hit is its place from below, because evaluators break ties of scores in their own ways.
White space in an id would make two columns: it and ``%`` are percent-encoded, in both files. A query without a hit has no line.

``OUT/mteb`` is a cache of mteb: ``mteb.ResultCache("OUT/mteb").load_results()``. It needs the scores only, not ``work/``.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from dream.data import tasks
from dream.errors import DreamError
from dream.evaluation import metrics
from dream.files import replacing_folder, value_hash, write_json
from dream.report.results import cells as reading
from dream.report.results.cells import ROUNDING, SCORES, Cell, Results

if TYPE_CHECKING:
    from mteb.results import TaskResult

FORMATS = ("trec", "mteb")
WORK = Path("work")
OWNER = "dream-bench"  # of the models in mteb's results, whose names are owner/name
LANGUAGES = {"packaged": ["eng-Latn"]}  # of a user's own set nothing is known


def export(results: Results, out: Path | str, formats: tuple[str, ...] = FORMATS, work: Path = WORK) -> list[Path]:
    """Write every system's runs and scores to ``out/trec`` and ``out/mteb``, each folder whole or not at all.

    Returns:
        The folders.

    Raises:
        DreamError: a folder is taken, or hits are not at hand or not those of the scores; the line says what makes them.
    """
    folders = {name: Path(out) / name for name in formats}
    for folder in folders.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DreamError(f"{folder} is not empty", "Choose another --out, or remove it")
    for name, folder in folders.items():
        with replacing_folder(folder) as temporary:
            if name == "trec":
                _write_trec(results, temporary, work)
            else:
                _write_mteb(results, temporary)
    return list(folders.values())


# --------------------------------------------------------------------------------------------------------------- TREC


def _write_trec(results: Results, folder: Path, work: Path) -> None:
    found = [(cell, _hits(cell, work)) for cell in reading.expected(results.config)]
    for _, task in results.tasks:
        parts = list(tasks.parts(task, results.config, work / "tasks"))
        qrels = pd.concat([part.qrels.assign(query_id=_prefix(part.part) + part.qrels["query_id"]) for part in parts])
        place, alone = folder / task, _prefix(parts[0].part) if len(parts) == 1 else ""
        place.mkdir()
        lines = [
            f"{encoded(query.removeprefix(alone))} 0 {encoded(document)} {grade}\n"
            for query, judged in sorted(metrics.judgements(qrels).items())
            for document, grade in judged.items()
        ]
        (place / "qrels.txt").write_text("".join(lines), encoding="utf-8")
        for cell, table in found:
            rows = table[table["task"] == task]
            if rows.empty:
                continue
            ranked = {row.query_id: list(map(str, row.hits)) for row in rows.itertuples()}
            _check(cell, task, metrics.per_query(metrics.explicit(ranked), qrels), results)
            lines = [
                f"{encoded(query.removeprefix(alone))} Q0 {encoded(document)} {rank} {len(hits) - rank + 1} {cell.run}\n"
                for query, hits in sorted(ranked.items())
                for rank, document in enumerate(hits, 1)
            ]
            (place / f"{cell.run}.txt").write_text("".join(lines), encoding="utf-8")


def encoded(name: str) -> str:
    """An id as one column of a file that is split by white space: that, and ``%``, as percent escapes.

    >>> encoded("a b%20"), encoded("q-1")
    ('a%20b%2520', 'q-1')
    """
    return re.sub(r"[\s%]", lambda found: quote(found[0]), name)


def _prefix(part: str) -> str:
    """What a cell puts before the query ids of a task's part."""
    return f"{part}:" if part else ""


def _hits(cell: Cell, work: Path) -> pd.DataFrame:
    """``task, query_id, hits`` of a cell."""
    path = work / "evaluate" / cell.name / "queries.parquet"
    if not path.exists():
        made = f"{cell.stage}@{cell.name}"
        raise DreamError(
            f"{path} is missing: of this cell only the scores are here", f"Run `dvc repro {made}`, or `dvc pull {made}`"
        )
    return pd.read_parquet(path, columns=["task", "query_id", "hits"])


def _check(cell: Cell, task: str, found: pd.DataFrame, results: Results) -> None:
    """The hits give the scores that the report shows: they are of the same evaluation, and all that counts is there."""
    rows = results.queries[(results.queries["system"] == cell.system) & (results.queries["task"] == task)]
    rows = rows if cell.seed is None else rows[rows["seed"] == cell.seed]
    ours, theirs = (table.set_index("query_id")[SCORES].sort_index() for table in (found, rows))
    if list(ours.index) != list(theirs.index) or not np.allclose(ours, theirs, rtol=0, atol=ROUNDING):
        made = f"{cell.stage}@{cell.name}"
        raise DreamError(
            f"the hits of {cell.name} do not give its scores on {task}", f"Run `dvc repro -f {made}` to make both anew"
        )


# --------------------------------------------------------------------------------------------------------------- mteb


def _write_mteb(results: Results, folder: Path) -> None:
    from mteb.models import ModelMeta

    for record in results.records.to_dict("records"):
        run = record["system"] if pd.isna(record["seed"]) else f"{record['system']}-{record['seed']}"
        revision = value_hash(record["settings"])
        place = folder / "results" / f"{OWNER}__{run}" / revision
        place.mkdir(parents=True, exist_ok=True)
        meta = ModelMeta.create_empty({"name": f"{OWNER}/{run}", "revision": revision})
        write_json(place / "model_meta.json", meta.to_dict())
        task_result(results, record).to_disk(place / f"{record['task']}.json")


def task_result(results: Results, record: dict[str, Any]) -> TaskResult:
    """One score as mteb's result: of an mteb task as mteb itself would write it, of another with the content of its tables as its
    revision, under split ``test``."""
    import mteb
    from mteb.results import TaskResult

    seconds = float(results.runs[f"evaluate-{record['cell']}"]["wall_s"])
    whole, kind = _scores(record), tasks.kind(record["task"], results.config)
    if kind != "mteb":
        entry = {**whole, "hf_subset": "default", "languages": LANGUAGES.get(kind, [])}
        return TaskResult(
            task_name=record["task"], dataset_revision=record["revision"], mteb_version=importlib.metadata.version("mteb"),
            scores={"test": [entry]}, evaluation_time=seconds,
        )  # fmt: skip
    rows = results.queries[(results.queries["system"] == record["system"]) & (results.queries["task"] == record["task"])]
    rows = rows if pd.isna(record["seed"]) else rows[rows["seed"] == record["seed"]]
    means = rows.groupby(rows["query_id"].str.partition(":")[0])[SCORES].mean()
    task = mteb.get_task(record["task"])
    scores: dict[str, dict[str, Any]] = {}
    for label, mean in means.to_dict("index").items():  # [member/][subset/]split
        *above, split = str(label).split("/")
        subset = above[-1] if above and not task.is_aggregate else "default"
        scores.setdefault(split, {})[subset] = whole if task.is_aggregate else _scores(mean)
    return TaskResult.from_task_results(task, scores, seconds)


def _scores(values: dict[str, Any]) -> dict[str, float]:
    return {"main_score": values[reading.METRIC], **{name: values[name] for name in SCORES}}
