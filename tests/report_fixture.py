"""A factory of synthetic results in the format of docs/design.md: small, deterministic, with known numbers."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dream import config as configs
from dream import names
from dream.config import stages
from dream.files import write_json

TASKS = {"general": [("open", "boolq", 40, 300), ("open", "drop", 30, 120)], "domain": [("code", "mbpp", 25, 50)]}
QUALITY = {"bm25": 0.45, "untrained": 0.06, "dream": 0.5, "infonce": 0.44}
# Every knob that a table prints, so that tuning params.yaml changes no golden file.
OVERRIDES = {
    "model.size": "tiny", "recipe": "packaged", "objectives": ["dream", "infonce"], "seeds": [0, 1, 2],
    "references": ["bm25", "untrained"], "tasks": ["general", "domain"],
    "task_lists": {"general": ["boolq", "drop"], "domain": ["mbpp"]},
    "sizes.tiny": {"encoder": "toy-encoder", "judge": "toy-judge", "recipe": "packaged"},
    "models.toy-encoder": {
        "model": "packaged/smollm2-135m", "layers": 6, "pooling": "last", "append_eos": False, "max_length": 192, "dtype": "bfloat16",
    },
    "models.toy-judge": {"model": "packaged/smollm2-135m", "dtype": "bfloat16"},
    "data.seed": 0, "candidates.count": 8, "candidates.source": "auto", "candidates.questions_per_set": 1,
    "bm25": {"k1": 0.9, "b": 0.4, "stemmer": "english", "stopwords": "none", "tokenizer": "words"},
    "judge.passage_tokens": 64, "judge.query_tokens": 64, "judge.target_tokens": 64,
    "heads.strategy": "query_focused", "heads.count": 16, "heads.probes": 96,
    "injection.rows": "all", "injection.budget": "paper", "injection.gate": "learned", "injection.gate_init": 0.5,
    "injection.scores": "learned", "injection.force": False, "temperature": {"init": 0.05, "learned": True},
    "encoder.max_length": 64,
    "training.steps": 48, "training.batch": 8, "training.micro_batch": 8, "training.learning_rate": 5e-4,
    "training.schedule": "linear", "training.warmup": 0.05, "training.gradient_checkpointing": False,
    "training.lora.r": 32, "training.lora.alpha": 64,
    "evaluate.depth": 100, "evaluate.drop_identical_ids": False,
    "dream.learning_rate": None, "dream.temperature": None, "dream.judge": "frozen", "dream.r": 32, "dream.alpha": 64,
    "infonce.learning_rate": None, "infonce.temperature": None, "infonce.negatives": "candidates", "infonce.margin": None,
    "infonce.teacher": "minilm", "infonce.confidence": 0.0,
    "report": {"reference_system": "dream", "resamples": 500, "confidence": 0.95, "seed": 0},
}  # fmt: skip


def make_config(**overrides):
    """The repository's params.yaml with the knobs above pinned, and a small bootstrap."""
    root = Path(__file__).resolve().parent.parent
    return configs.load(root / "params.yaml", copy.deepcopy(OVERRIDES) | overrides)


def write_params(folder: Path, config) -> None:
    """A params.yaml that resolves to exactly this config."""
    plain = config.model_dump(mode="json", exclude={"roles", "knobs", "probes", "mirror"})
    plain["judge"]["cache_gib"] = config.judge.cache_gib  # changes no number, so no record holds it
    text = yaml.safe_dump(plain | {name: own.model_dump(mode="json") for name, own in config.knobs.items()}, sort_keys=False)
    (folder / "params.yaml").write_text(text)


def make_cells(folder: Path, config=None) -> Path:
    """Write reports/results below ``folder`` for everything that params lists; return the cells' folder."""
    config = config or make_config()
    cells = folder / "reports" / "results"
    for system in config.evaluated_only:
        for tasks in config.tasks:
            _evaluation(cells, config, system, None, tasks)
    for system in config.objectives:
        for seed in config.seeds:
            for tasks in config.tasks:
                for pairs in (None, *config.training.snapshots):
                    _evaluation(cells, config, system, seed, tasks, pairs)
            _training(cells, config, system, seed)
    for stage, seconds in (("assets", 20.0), ("prepare", 31.5), ("candidates", 12.25), ("heads", 95.0)):
        _run(cells, config, stage, seconds)
    _heads(cells)
    _diagnostic(cells)
    for name, record in stages.files(config).items():
        write_json(folder / stages.FOLDER / f"{name}.json", record)
    return cells


def values(system: str, seed: int | None, task: str, count: int) -> np.ndarray:
    """nDCG@10 per query: one of the values that a single relevant document can give."""
    rng = np.random.default_rng([sum(map(ord, task)), sum(map(ord, system)), seed or 0])
    hits = rng.random(count) < QUALITY.get(system, 0.3) * 1.4
    ranks = rng.integers(1, 11, count)
    return np.round(np.where(hits, 1 / np.log2(ranks + 1), 0.0), 6)


def _evaluation(cells: Path, config, system: str, seed: int | None, tasks: str, pairs: int | None = None) -> None:
    name = names.cell(system, seed, tasks, pairs)
    frames, records = [], []
    for suite, task, queries, documents in TASKS[tasks]:
        score = values(system, seed, task, queries) * (1 if pairs is None else round(pairs / (pairs + 384), 3))
        shared = {"suite": suite, "task": task, "system": system, "seed": "" if seed is None else seed}
        ids = [f"{task}-{i}" for i in range(queries)]
        frames.append(
            pd.DataFrame({**shared, "query_id": ids, "ndcg_at_10": score, "recall_at_100": (score > 0) * 1.0, "mrr_at_10": score})
        )
        records.append(
            shared
            | {"queries": queries, "documents": documents, **means(frames[-1]), "revision": f"{task}-revision", "notes": [f"drawn: {queries} of 900 queries"],
               "settings": {"depth": 100} | ({"analyser": "test analyser, k1 0.9"} if system == "bm25" else
                                             {"model": "packaged/smollm2-135m", "checkpoint": f"{system}-{seed}{'' if pairs is None else pairs}"})}
        )  # fmt: skip
        if system != "bm25":
            records[-1] |= {"alignment": 1.0 - QUALITY.get(system, 0.3), "uniformity": -1 - QUALITY.get(system, 0.3)}
    path = cells / "evaluate" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(path, index=False)
    write_json(path.with_suffix(".json"), records)
    _run(cells, config, f"evaluate-{name}", 33.0)


def means(table: pd.DataFrame) -> dict[str, float]:
    """The means of a task's scores as its record holds them."""
    return {name: round(float(table[name].mean()), 6) for name in ("ndcg_at_10", "recall_at_100", "mrr_at_10")}


def edit_cell(path: Path, change) -> None:
    """Change the scores of a cell's CSV (frame → frame) and the counts and means of its record with them."""
    table = change(pd.read_csv(path, dtype={"query_id": str}))
    table.to_csv(path, index=False)
    edit_json(path.with_suffix(".json"), lambda records: [
        record.update(queries=len(rows), **means(rows)) for record in records for rows in [table[table.task == record["task"]]]
    ])  # fmt: skip


def _training(cells: Path, config, system: str, seed: int) -> None:
    count = config.training.steps
    rng, steps = np.random.default_rng([seed, len(system)]), np.arange(1, count + 1)
    decay = np.exp(-steps / 15)
    curve = pd.DataFrame({
        "step": steps, "loss": 1.2 + decay + rng.normal(0, 0.05, count), "learning_rate": 5e-4 * (1 - steps / count),
        "grad_norm": 0.1 + rng.random(count) / 20, "tau": 0.05 + steps / 4000,
    })  # fmt: skip
    if system == "dream":
        curve["gate"], curve["gap"] = 0.5 + steps / 500, 0.6 * (1 - decay) + rng.normal(0, 0.03, count)
    curve["gold_rank"], curve["entropy"] = 1.6 + 3 * decay, 1.0 + decay
    path = cells / "train" / f"{system}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    curve.round(6).to_csv(path, index=False)
    moved = {"log_tau": {"start": -3.0, "end": -3.2 - seed / 10, "reach": 0.4, "used": 0.5 + seed / 4}}
    wall, flops = (260.0, 1.5e14) if system == "dream" else (90.0, 4e13)
    kept = {str(p): {"seconds": wall * p / 384, "flops": flops * p / 384} for p in (*config.training.snapshots, 384)}
    notes = {"pairs_trained": 384, "snapshots": kept} | ({"scalars": moved} if system == "dream" else {})
    _run(cells, config, f"train-{system}-{seed}", wall, notes)


def _run(cells: Path, config, name: str, wall: float, notes: dict | None = None) -> None:
    stage, _, cell = name.partition("-")
    file = re.sub(r"^(train|evaluate)-([^-]+)-\d+(-\d+)?(?=-|$)", r"\1-\2", name)  # all seeds read the same settings
    record = {
        "settings": file,
        "stage": stage, "cell": cell, "wall_s": wall, "peak_gib": 1.25, "flops": (1.5e14 if "dream" in cell else 4e13)
        if stage == "train" else 0.0, "code": "c" * 64,
        "config": stages.files(config)[file], "inputs": {"work/tasks": "a" * 64} if stage == "evaluate" else {},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "mteb": "2.26.24", "bm25s": "0.3.16"},
        "hardware": {"cpu": "test processor", "cores": 2, "memory_gib": 8.0, "accelerators": []}, "notes": notes or {},
    }  # fmt: skip
    write_json(cells / "runs" / f"{name}.json", [record])


def _heads(cells: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"layer": i, "head": h, "score": round(float(rng.beta(6, 5)), 6), "selected": False} for i in range(30) for h in range(9)
    ]
    for row in sorted(rows, key=lambda r: -r["score"])[:16]:
        row["selected"] = True
    write_json(cells / "heads.json", rows)


def _diagnostic(cells: Path) -> None:
    rows = [
        ("query", 0.476, 0.468, 0.463, 0.469),
        ("query+label", 0.476, 0.476, 0.452, 0.494),
        ("all", 0.476, 0.71, 0.308, 1.112),
    ]
    write_json(
        cells / "diagnostic.json",
        [
            {
                "rows": r,
                "gate": 0.5,
                "none": n,
                "uniform": u,
                "gold": g,
                "wrong": w,
                "gap": round(w - g, 6),
                "used": r == "all",
            }
            for r, n, u, g, w in rows
        ],
    )


def edit_json(path: Path, change) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)
