"""What does a teacher know that the encoder does not? Its ranking of what BM25 and the encoder find, on people's queries.

    python -m benchmarks.rankings --task drop --queries 100        writes reports/bench/rankings-drop.json

A teacher that ranks worse than the student teaches mistakes. What the untouched encoder of the size and BM25 find together, K
passages of each query, is ranked by every teacher and by sums of several (``dream/teachers.py``); nDCG@10 on the task's
judgements. Use a packaged task that nothing is claimed on: what is learned here chooses settings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks import common
from dream import config as configs
from dream import systems, teachers
from dream.data import tasks
from dream.data.tasks.base import Task
from dream.errors import exits_cleanly
from dream.evaluation import metrics
from dream.instances import CandidateSet, Question, passage_text
from dream.report import stats

TEACHERS = (
    "encoder", "bm25", "attention", "question_likelihood", "encoder+bm25", "encoder+attention", "encoder+question_likelihood",
    "bm25+attention", "bm25+question_likelihood", "encoder+bm25+attention", "encoder+bm25+question_likelihood",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rankings", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="minilm", help="whose encoder is the student, and whose judge teaches")
    parser.add_argument("--task", default="drop", help="a packaged task")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--count", type=int, default=16, help="K")
    parser.add_argument("--passage-tokens", type=int, default=128, help="of a passage in the judge's prompt")
    args = parser.parse_args()
    size = configs.load(overrides={"model.size": args.size}).size
    dtypes = {f"models.{name}.dtype": "auto" for name in (size.encoder, size.judge)}
    changes = {"model.size": args.size, "tasks": [args.task], "data.task_queries": args.queries,
               "judge.passage_tokens": args.passage_tokens, **dtypes}  # fmt: skip
    config = configs.load(overrides=changes)
    torch.set_num_threads(config.training.threads)
    task = tasks.build(args.task, config)
    sets = found(task, systems.load("hybrid", config).search(task, args.count))
    scores = {}
    with tempfile.TemporaryDirectory() as folder:  # every teacher is asked once, whatever sums it stands in
        for name in TEACHERS:
            rows = teachers.table(teachers.build(name, config, common.PACKAGED_HEADS), sets, Path(folder)).rows
            scores[name] = values(task, sets, {row["instance_id"]: row["scores"] for row in rows})
    base = scores["encoder"]
    table = {}
    for name, value in scores.items():
        gap = stats.paired([value], [base])
        table[name] = {"ndcg_at_10": round(stats.mean([value]), 4)} | {
            key: round(getattr(gap, field), 4) for key, field in (("difference", "value"), ("low", "low"), ("high", "high"))
        }
        print(f"{name:36} {table[name]['ndcg_at_10']:.3f}  {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]")
    judge = config.roles["judge"]
    asked = {"task": args.task, "queries": len(sets), "candidates": args.count, "passage_tokens": args.passage_tokens}
    path = common.write(
        f"rankings-{args.task}", torch.device("cpu"),
        {"encoder": config.roles["encoder"].model, "judge": judge.model, "dtype": judge.dtype, **asked, "rankings": table},
    )  # fmt: skip
    print(f"written to {path}")


def found(task: Task, run: systems.Run) -> list[CandidateSet]:
    """A candidate set of every query: its hits, best first."""
    texts = dict(zip(task.corpus["id"], map(passage_text, task.corpus["title"], task.corpus["text"]), strict=True))
    asked = dict(zip(task.queries["id"], task.queries["text"], strict=True))
    ranked = {query: tuple(metrics.rank(hits)) for query, hits in run.items()}
    return [
        CandidateSet(query, task.name, ids, tuple(texts[name] for name in ids), (Question(query, asked[query], 0),))
        for query, ids in sorted(ranked.items())
    ]


def values(task: Task, sets: list[CandidateSet], scores: Mapping[str, list[float]]):
    """nDCG@10 of every query with its candidates in the order of these scores, queries by id."""
    run = {one.id: dict(zip(one.passage_ids, scores[one.id], strict=True)) for one in sets}
    return metrics.per_query(run, task.qrels)["ndcg_at_10"].to_numpy()


if __name__ == "__main__":
    exits_cleanly(main)()
