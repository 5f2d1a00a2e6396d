"""What every setting finds on held-out questions, and the chosen one on everything else: ``reports/adapt.json``.

Settings are every objective after every number of pairs at every strength, each with all seeds, beside the untouched encoder,
BM25 and both fused. The choice (:mod:`dream.adapt.verdict`) sees their scores on held-out questions and nothing else; only then
are own test queries (with the best setting of every objective, which the verdict does not read but for the choice) and the
control task scored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dream import cells, systems
from dream.adapt import held_out, verdict
from dream.adapt.verdict import FREE, UNTOUCHED, Setting
from dream.data import own, tasks
from dream.data.tasks.base import Task
from dream.files import read_json
from dream.instances import passage_text
from dream.progress import RUNS
from dream.report import stats
from dream.systems import System
from dream.systems.encoder import Dense, trained

if TYPE_CHECKING:
    from dream.config import Config

SHOWN = 10  # queries that got better, and worse
EXCERPT = 300  # characters of a passage that are shown


@dataclass(frozen=True)
class Scored:
    """nDCG@10 of a setting per task (``[seeds, queries]`` where it is trained, else ``[queries]``, queries by id), and the mean
    cosine of its passages' vectors with the untouched encoder's."""

    values: list[np.ndarray]
    cosine: float | None = None


def run(config: Config) -> dict[str, Any]:
    """Score, choose, decide: everything that ``reports/adapt.json`` holds.

    Args:
        config: what the stage may read.
    """
    started = time.perf_counter()
    asked, notes = held_out.load(config)
    questions, seeds = sum(len(task.queries) for task in asked), len(config.seeds)
    about = {"encoder": config.roles["encoder"].model, "own": list(config.own), "seeds": config.seeds, "questions": questions}
    if not asked:
        word, why = verdict.OPEN, verdict.too_few(seeds, 0, config.adapt.queries)
        return about | {"verdict": word, "why": why, "notes": notes, "cost": _cost(config, started)}
    held = score(config, [*FREE, *settings(config)], asked)
    choice = verdict.choose({setting: one.values for setting, one in held.items()}, config.report)
    tests = [tasks.build(name, config) for name in own.labelled(config)]
    final = score(config, [*FREE, *choice.each], tests) if tests else {}
    control = score(config, [UNTOUCHED, choice.trained], [tasks.build(config.adapt.control, config)])
    changed, aside = (_changes(config, scored) for scored in (final, control))
    word, why = verdict.decide(choice, seeds, questions, config.adapt.queries, changed)
    better, worse = examples(asked, held[UNTOUCHED].values, held[choice.trained].values)
    return about | {
        "verdict": word,
        "why": why,
        "notes": notes + remarks(config, choice.best),
        "best": choice.best._asdict(),
        "trained": choice.trained._asdict() | {"seed": _middle(config, held[choice.trained])},
        "held_out": rows(held, choice.changes),
        "test": {"tasks": {task.name: len(task.queries) for task in tests}, "rows": rows(final, changed)},
        "control": {"task": config.adapt.control, "rows": rows(control, aside)},
        "better": better,
        "worse": worse,
        "cost": _cost(config, started),
    }


def settings(config: Config) -> Iterator[Setting]:
    """Every trained setting that is tried."""
    for name in config.objectives:
        for pairs in (*config.training.snapshots, None):
            yield from (Setting(name, pairs, strength) for strength in config.adapt.strengths)


def score(config: Config, asked: Iterable[Setting], on: Sequence[Task]) -> dict[Setting, Scored]:
    """Score settings on tasks."""
    old = systems.load(UNTOUCHED.system, config)
    assert isinstance(old, Dense)
    return {setting: _scored(config, setting, on, old) for setting in tqdm(list(asked), desc="adapt", unit="setting")}


def _scored(config: Config, setting: Setting, on: Sequence[Task], old: Dense) -> Scored:
    if not setting.trained:
        return Scored(measured(old if setting == UNTOUCHED else systems.load(setting.system, config), on, config))
    runs, cosines = [], []
    for seed in config.seeds:
        new = trained(setting.system, seed, config, pairs=setting.pairs, strength=setting.strength or 0)
        runs.append(measured(new, on, config))
        cosines += [similarity(new, old, task) for task in on]
    return Scored([np.stack(values) for values in zip(*runs, strict=True)], float(np.mean(cosines)))


def measured(system: System, on: Sequence[Task], config: Config) -> list[np.ndarray]:
    """nDCG@10 of a system per task, queries by id."""
    return [cells.score(system, task, config)[0]["ndcg_at_10"].to_numpy() for task in on]


def similarity(new: Dense, old: Dense, task: Task) -> float:
    """Mean cosine of the vectors that two encoders give a task's documents."""
    pairs = (np.asarray(system.corpus(task), np.float32) for system in (new, old))
    return float(np.einsum("nd,nd->n", *pairs).mean())


def _changes(config: Config, scored: dict[Setting, Scored]) -> dict[Setting, stats.Difference]:
    return verdict.compare({setting: one.values for setting, one in scored.items()}, config.report) if scored else {}


def rows(scored: dict[Setting, Scored], changes: Mapping[Setting, stats.Difference]) -> list[dict[str, Any]]:
    """A flat record of every setting: its mean, that of every seed, and its change, as ``verdict.compare`` gives it."""
    found = []
    for setting, one in scored.items():
        row = {**setting._asdict(), "ndcg_at_10": stats.mean(one.values), "seeds": stats.seed_means(one.values)}
        row |= {"cosine": one.cosine, "difference": None, "low": None, "high": None}
        if gap := changes.get(setting):
            row |= {"difference": gap.value, "low": gap.low, "high": gap.high}
        found.append({key: _rounded(value) for key, value in row.items()})
    return found


def examples(on: Sequence[Task], old: list[np.ndarray], new: list[np.ndarray]) -> tuple[list[dict], list[dict]]:
    """The queries that got better and worse by most, with a passage that answers each, and nDCG@10 before and after."""
    found = []
    for task, before, after in zip(on, old, new, strict=True):
        answers = task.qrels.drop_duplicates("query_id").merge(task.corpus, left_on="doc_id", right_on="id")
        passages = dict(zip(answers["query_id"], map(passage_text, answers["title"], answers["text"]), strict=True))
        scores = zip(task.queries["id"], task.queries["text"], before, np.atleast_2d(after).mean(axis=0), strict=True)
        found += [
            {"query": text, "passage": passages[name][:EXCERPT], "before": round(float(was), 6), "after": round(float(now), 6)}
            for name, text, was, now in scores
        ]
    found.sort(key=lambda one: one["after"] - one["before"])  # stable: of equals the first by task and id
    better = [one for one in reversed(found) if one["after"] > one["before"]]
    return better[:SHOWN], [one for one in found if one["after"] < one["before"]][:SHOWN]


def _middle(config: Config, one: Scored) -> int:
    """The seed whose run stands in the middle: what is exported is as good as the mean says."""
    means = stats.seed_means(one.values)
    return sorted(zip(means, config.seeds, strict=True))[len(means) // 2][1]


def remarks(config: Config, best: Setting) -> list[str]:
    """What a reader must know of this choice: the questions favour what trains nothing."""
    if best.trained or best == UNTOUCHED:
        return []
    trip = config.questions.round_trip
    kept = f"; they were kept only if BM25 finds their passage again (questions.round_trip: {trip})" if trip else ""
    return [f"Questions that a model writes share words with their passages, which favours BM25{kept}. Queries of people decide"]


def _cost(config: Config, started: float) -> dict[str, float]:
    """Seconds of what was run for this answer, from the run records, and of this stage."""
    parts = {
        "questions": ["questions"],
        "judge": ["heads", "signal", *(f"teacher-{name}" for name in config.objectives)],
        **{f"training of {name}": [f"train-{name}-{seed}" for seed in config.seeds] for name in config.objectives},
    }
    files = {part: [RUNS / f"{name}.json" for name in names] for part, names in parts.items()}
    seconds = {part: sum(read_json(file)[0]["wall_s"] for file in there if file.exists()) for part, there in files.items()}
    return {part: round(value, 1) for part, value in seconds.items()} | {"adapt": round(time.perf_counter() - started, 1)}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [round(one, 6) for one in value]
    return round(value, 6) if isinstance(value, float) else value
