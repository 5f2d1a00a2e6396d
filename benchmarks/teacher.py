"""RePlug's teacher, the likelihood of a target given one passage at a time: all passages together against one by one.

    python -m benchmarks.teacher                                   packaged judge, the default recipe's shape
    python -m benchmarks.teacher --candidates 16 --passage 130     the paper's shape

The plain side is what one writes first with the library: for every question and passage one full sequence with ``labels``, all
logits. Both sides give the same numbers (the difference is printed).
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

from benchmarks import common, models
from dream.errors import exits_cleanly
from dream.instances import CandidateSet
from dream.judge import Judge, flops
from dream.judge.model import DTYPES, pick_dtype


@torch.no_grad()
def one_by_one(judge: Judge, candidates: CandidateSet) -> Tensor:
    """Mean log-likelihoods ``[Q, K]``, a forward pass each."""
    found = []
    for suffix in judge.prompt.suffixes(candidates):
        for alone in judge.prompt.documents(candidates).alone():
            ids = torch.tensor([(*alone.ids, *suffix.ids)], device=judge.device)
            labels = ids.clone()
            labels[:, : len(alone.ids) + suffix.target[0]] = -100
            found.append(-judge.model(input_ids=ids, labels=labels, use_cache=False).loss.float())
    return torch.stack(found).view(len(candidates.questions), -1)


def run(args: argparse.Namespace) -> dict:
    """Measure both sides; return the record that is written."""
    device = torch.device(args.device)
    judge, _ = models.judge(args.judge, pick_dtype(args.dtype, device), device, args.passage)
    sets = common.instances(2, args.candidates, args.passage, args.questions, judge.model.config.vocab_size)
    sides = {"plain": lambda candidates: one_by_one(judge, candidates), "fast": judge.passage_log_likelihood}
    plain, fast = (side(sets[0]) for side in sides.values())
    seconds = common.over_sets(sides, sets, device, args.repetitions)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    counted = flops.likelihoods(judge.model.config, judge.prompt.documents(sets[0]), judge.prompt.suffixes(sets[0]))
    rate = common.matmul_rate(judge.dtype, device)
    return {
        "ratio": round(common.ratio(seconds["plain"], seconds["fast"]), 3),
        "reference": "plain: one full sequence with labels per question and passage, all logits",
        "judge": judge.reference if args.judge == "packaged" else args.judge,
        "geometry": {k: getattr(args, k) for k in ("candidates", "passage", "questions")},
        "dtype": str(judge.dtype).removeprefix("torch."),
        "median_s": {side: round(value, 4) for side, value in median.items()},
        "seconds": {side: [round(v, 4) for v in values] for side, values in seconds.items()},
        "gflop": float(f"{counted / 1e9:.4g}"),
        "share_of_matmul_rate": float(f"{counted / median['fast'] / rate:.3g}"),
        "relative_difference": float(f"{((plain - fast).abs() / plain.abs()).max().item():.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", choices=models.JUDGES, default="packaged")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--passage", type=int, default=48, help="tokens of a passage")
    parser.add_argument("--questions", type=int, default=1, help="questions of a set")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = run(args)
    median = record["median_s"]
    print(f"teacher: {record['judge']}, {record['dtype']}, {record['geometry']}: one by one {median['plain']:.3f} s a set, "
          f"together {median['fast']:.3f} s: {record['ratio']:.2f} times as fast; "
          f"numbers differ by {record['relative_difference']:.0e} of themselves")  # fmt: skip
    print(f"written to {common.write('teacher', torch.device(args.device), record)}")


if __name__ == "__main__":
    exits_cleanly(main)()
