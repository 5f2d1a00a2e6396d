"""An evaluation cell: one system (one seed) on a task or a list of tasks → a few small files.

Embeddings are cached by content, so a cell that was stopped starts again and spends its time on what is missing only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dream import manifest, systems
from dream import names as names_of
from dream.data import tasks
from dream.data.tasks.base import Task
from dream.errors import DreamError, exits_cleanly
from dream.evaluation import geometry, metrics
from dream.files import replacing, replacing_folder, write_json
from dream.systems.encoder import TRAINED, Dense

if TYPE_CHECKING:
    from dream.config import Config

WORK, CELLS = Path("work/evaluate"), Path("reports/results/evaluate")
SCORES = ["ndcg_at_10", "recall_at_100", "mrr_at_10"]
ROWS = ["suite", "task", "system", "seed", "query_id", *SCORES]
RULES = "ties: −score, then id; grades of 0 and below are not relevant; unjudged hits are not relevant"


def make(config: Config, name: str, seed: int | None, entry: str, pairs: int | None = None) -> None:
    """Evaluate one system on an entry of ``tasks``, write its cell and its run record, print its scores.

    Args:
        config: what the stage may read.
        name: of the system.
        seed: of a trained system.
        entry: a task, or a list of ``task_lists``.
        pairs: a trained system after so many of its pairs; default: after all.
    """
    names, cell = tasks.resolve([entry], config), names_of.cell(name, seed, entry, pairs)
    inputs: list[Path | str] = [tasks.FOLDER / entry, *([TRAINED / f"{name}-{seed}"] if seed is not None else [])]
    manifest.check(f"tasks-{entry}", tasks.FOLDER / entry)
    with manifest.recording(f"evaluate-{cell}", f"evaluate-{names_of.cell(name, None, entry)}", inputs) as record:
        system = systems.load(name, config, seed, pairs=pairs)
        inputs += system.inputs
        if config.evaluate.workers > 1 and isinstance(system, Dense):
            encode_in_parallel(name, seed, names, config, config.evaluate.workers, pairs)
        table, records = run(system, seed, names, config)
        record.outputs = write(cell, table, records)
        record.flops = system.flops
    for row in records:
        print(f"[evaluate-{cell}] {row['task']}: nDCG@10 {row['ndcg_at_10']:.3f} ({row['queries']} queries)", flush=True)


def run(system: systems.System, seed: int | None, names: list[str], config: Config) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Evaluate a system on tasks.

    Returns:
        Per query: suite, task, system, seed, query_id, the metrics, the hits and their scores. Per task: a record
        with the means, counts, the task's revision and everything that the numbers depend on. A task of several parts
        (mteb's CQADupstackRetrieval) has the mean over its parts; its query ids are ``part:id``.
    """
    tables, records = [], []
    for name in tqdm(names, desc=system.name, unit="task"):
        scored = [score(system, part, config) for part in tasks.parts(name, config)]
        for table, record in scored:
            tables.append(table.assign(suite=record["suite"], task=name, system=system.name, seed=seed))
        records.append({"system": system.name, "seed": seed, **_remarked(merge([record for _, record in scored]), config)})
    table = pd.concat(tables, ignore_index=True).sort_values(["suite", "task", "query_id"], ignore_index=True)
    return table.astype({"seed": "Int64"})[[*ROWS, "hits", "scores"]], sorted(records, key=lambda r: (r["suite"], r["task"]))


def score(system: systems.System, task: Task, config: Config) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Scores of a system on one corpus: a row per query, and a record."""
    check(task)
    depth = config.evaluate.depth
    drop = config.evaluate.drop_identical_ids if task.drop_identical_ids is None else task.drop_identical_ids
    found = system.search(task, depth + drop)
    ranked = {q: metrics.rank(hits, without=q if drop else None)[:depth] for q, hits in found.items()}
    table = metrics.per_query(metrics.explicit(ranked), task.qrels)
    left_out = table.attrs["left_out"]
    table["hits"] = [ranked.get(q, []) for q in table["query_id"]]
    table["scores"] = [[round(found[q][d], 6) for d in ranked.get(q, [])] for q in table["query_id"]]
    record = {
        "suite": task.suite,
        "task": task.name,
        "part": task.part,
        "queries": len(table),
        "queries_left_out": left_out,
        "documents": len(task.corpus),
        **{name: round(float(table[name].mean()), 6) for name in SCORES},
        "revision": task.revision,
        "notes": list(task.notes),
        "settings": {
            **system.settings,
            "depth": depth,
            "identical_ids": "dropped" if drop else "kept",
            "rules": RULES,
        },
    }
    if "bm25" in system.reads:
        record["wordless_queries"] = sum(not found.get(q) for q in table["query_id"])
    if isinstance(system, Dense):
        record.update(_geometry(system, task))
    if task.part:
        table["query_id"] = [f"{task.part}:{q}" for q in table["query_id"]]
    table[SCORES] = table[SCORES].round(6)
    return table, record


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of a task: of its only part, or means and totals over its parts, with their scores kept."""
    if len(parts) == 1:
        return {key: value for key, value in parts[0].items() if key != "part"}
    means = [*SCORES, *(name for name in ("alignment", "uniformity") if name in parts[0])]
    more = (name for name in ("geometry_pairs", "wordless_queries") if name in parts[0])
    totals = ("queries", "queries_left_out", "documents", *more)
    merged = {key: value for key, value in parts[0].items() if key not in ("part", "projection")}
    return {
        **merged,
        **{name: round(float(np.mean([p[name] for p in parts])), 6) for name in means},
        **{name: sum(p[name] for p in parts) for name in totals},
        "revision": "+".join(p["revision"][:8] for p in parts),
        "notes": list(dict.fromkeys(note for p in parts for note in p["notes"])),
        "parts": {p["part"]: p["ndcg_at_10"] for p in parts},
    }


def _remarked(record: dict[str, Any], config: Config) -> dict[str, Any]:
    """A record with a note on the queries for which BM25 finds nothing, if there are any."""
    if not (wordless := record.get("wordless_queries")):
        return record
    have = "has" if wordless == 1 else "have"
    note = (
        f"{wordless} of {record['queries']} queries {have} no word for the analyser that any document holds "
        f"(bm25.tokenizer: {config.bm25.tokenizer})"
    )
    return {**record, "notes": [*record["notes"], note]}


def check(task: Task) -> None:
    """Stop at a task that cannot be scored.

    Raises:
        DreamError: no documents or none with text, no queries, ids that appear twice, judgements of unknown ids.
    """
    label = f"task {task.name}{f' ({task.part})' if task.part else ''}"
    for kind, table in (("documents", task.corpus), ("queries", task.queries)):
        if table.empty:
            raise DreamError(f"{label} has no {kind}", "An empty task cannot be evaluated")
        twice = table["id"][table["id"].duplicated()]
        if len(twice):
            raise DreamError(f"{label}: id {twice.iloc[0]!r} appears twice among its {kind}", "Ids must be unique")
    if not any(text.strip() for text in systems.documents(task)):
        raise DreamError(f"{label}: no document has a title or a text", "An empty corpus cannot be searched")
    for column, table in (("query_id", task.queries), ("doc_id", task.corpus)):
        unknown = task.qrels[column][~task.qrels[column].isin(table["id"])]
        if len(unknown):
            raise DreamError(f"{label}: its judgements name {unknown.iloc[0]!r}, which it does not hold", "Correct the qrels")


def write(cell: str, table: pd.DataFrame, records: list[dict[str, Any]]) -> list[Path | str]:
    """Write work/evaluate/<cell>/ and reports/results/evaluate/<cell>.{csv,json}: no dates, sorted, rounded; return these."""
    with replacing_folder(WORK / cell) as folder:
        table.to_parquet(folder / "queries.parquet", index=False)
    scores, means = CELLS / f"{cell}.csv", CELLS / f"{cell}.json"
    with replacing(scores) as temporary:
        table[ROWS].to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    write_json(means, records)
    return [scores, means]


def encode_in_parallel(
    name: str, seed: int | None, names: list[str], config: Config, workers: int, pairs: int | None = None
) -> None:
    """Fill the embedding cache with several processes, one per GPU where there are GPUs; the caller then finds it full.

    Raises:
        DreamError: a process failed; what the others encoded stays in the cache.
    """
    import torch

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    context = torch.multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers) if devices == ["cpu"] else torch.get_num_threads()
    helpers = [
        context.Process(target=_encode, args=(name, seed, names, config, devices[i % len(devices)], threads, pairs), daemon=True)
        for i in range(workers)
    ]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join()
    if failed := [h.exitcode for h in helpers if h.exitcode]:
        raise DreamError(
            f"{len(failed)} of {workers} encoding processes failed (exit code {failed[0]})",
            "Run again: finished parts are kept. The reason is printed above",
        )


@exits_cleanly
def _encode(name: str, seed: int | None, names: list[str], config: Config, device: str, threads: int, pairs: int | None) -> None:
    import torch

    torch.set_num_threads(threads)
    system = systems.load(name, config, seed, device, pairs)
    for task in names:
        for part in tasks.parts(task, config):
            check(part)
            if isinstance(system, Dense):
                system.corpus(part)


def _geometry(system: Dense, task: Task) -> dict[str, Any]:
    left, right = geometry.pairs(task.queries, task.corpus, task.qrels)
    queries, corpus = system.vectors(task)
    return geometry.measure(queries[left], np.asarray(corpus[right], np.float32))
