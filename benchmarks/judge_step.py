"""The judge's part of a step, forward and backward to p and g: the product against the plain full-sequence way.

    python -m benchmarks.judge_step                                   packaged judge, K = 16, 130 tokens, one question
    python -m benchmarks.judge_step --questions 4                     several questions of one set
    python -m benchmarks.judge_step --device cuda --judge llama-8b    random Llama-3.1-8B, bfloat16

``later`` is the product where the store has kept the documents' readings, as in later epochs and further seeds; ``first``
reads them and keeps them. Plain and product give the same losses and gradients (the difference is printed). Memory is counted
in two ways: what autograd keeps for the backward pass (every storage once, weights left out; the product's own keys and values
of the documents are added to its side), and the peak of the process (resident memory of a process of its own, or CUDA's
allocator).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import common, models
from dream.errors import exits_cleanly
from dream.judge import Injection, Judge, flops
from dream.judge.model import DTYPES, pick_dtype


def build(args: argparse.Namespace) -> tuple[Judge, Injection, list]:
    """The judge, the injection and the instances that the arguments name."""
    device = torch.device(args.device)
    judge, heads = models.judge(args.judge, pick_dtype(args.dtype, device), device, args.passage)
    sets = common.instances(2, args.candidates, args.passage, args.questions, judge.model.config.vocab_size)
    return judge, Injection(heads, args.rows, args.budget), sets


def steps(judge: Judge, injection: Injection, sets: list):
    """The two sides, each a function (forward, step) over the sets in turn: losses, and losses with gradients."""
    generator = torch.Generator().manual_seed(1)
    q, k = len(sets[0].questions), len(sets[0].passages)
    scores = torch.randn(q, k, generator=generator).to(judge.device).requires_grad_()
    gamma = torch.zeros((), device=judge.device, requires_grad=True)

    def forward(side: str, candidates):
        p, gate = scores.softmax(-1), gamma.sigmoid()
        if side == "plain":
            return common.plain_losses(judge, candidates, p, gate, injection).mean()
        return judge.target_losses(candidates, p, gate, injection).mean()

    def step(side: str, candidates):
        loss = forward(side, candidates)
        return loss.detach(), *torch.autograd.grad(loss, (scores, gamma))

    return forward, step


def peak(args: argparse.Namespace, side: str) -> float:
    """Peak memory in GiB that one step of a side adds to the loaded judge, in a process of its own on a CPU."""
    if args.device == "cpu":
        command = [sys.executable, "-m", "benchmarks.judge_step", *sys.argv[1:], "--peak-of", side]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return added_peak(args, side)


def added_peak(args: argparse.Namespace, side: str) -> float:
    """As :func:`peak`, in this process."""
    judge, injection, sets = build(args)
    _, step = steps(judge, injection, sets)
    if args.device == "cpu":
        short = common.instances(1, args.candidates, 8, args.questions, judge.model.config.vocab_size)[0]
        step(side, short)  # libraries are loaded, threads started
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of loading the weights
        before = common.resident_peak()
        step(side, sets[0])
        return (common.resident_peak() - before) / 2**20
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(side, sets[0])
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def run(args: argparse.Namespace) -> dict:
    """Measure both sides; return the record that is written."""
    device = torch.device(args.device)
    judge, injection, sets = build(args)
    forward, step = steps(judge, injection, sets)
    results = {side: step(side, sets[0]) for side in ("plain", "fast")}
    difference = [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(results["plain"], results["fast"], strict=True)]
    config, prompts = judge.model.config, [judge.prompt.layout(sets[0], i) for i in range(args.questions)]
    lowest, documents = min(layer for layer, _ in injection.heads), len(prompts[0].documents.ids)
    rows, targets = flops.asked([p.suffix for p in prompts])
    counted = {
        "fast": flops.fast_step(config, documents, rows, targets, lowest).total,
        "plain": sum(flops.plain_step(config, len(p.ids), lowest).total for p in prompts),
    }
    parameters = list(judge.model.parameters())
    graph = {side: common.graph_bytes(lambda s=side: forward(s, sets[0]), parameters) for side in ("plain", "fast")}
    shared = sum(x.nbytes for layer in judge.read(sets[0]).layers for x in layer)
    sides = {side: lambda candidates, s=side: step(s, candidates) for side in ("plain", "fast")}
    seconds = common.over_sets(sides | common.stored(judge, sides["fast"], sets), sets, device, args.repetitions)
    rate = common.matmul_rate(judge.dtype, device)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    memory = {"plain": graph["plain"], "fast": graph["fast"] + shared}
    return {
        "ratio": round(common.ratio(seconds["plain"], seconds["fast"]), 3),
        "ratio_first": round(common.ratio(seconds["plain"], seconds["first"]), 3),
        "ratio_later": round(common.ratio(seconds["plain"], seconds["later"]), 3),
        "reference": "plain: one full sequence with labels per question, all logits, autograd's own graph",
        "judge": judge.reference if args.judge == "packaged" else args.judge,
        "geometry": {
            "candidates": args.candidates, "passage_tokens": args.passage, "questions": args.questions,
            "prompt_tokens": len(prompts[0].ids), "rows": args.rows, "budget": args.budget,
            "heads": len(injection.heads), "lowest_layer": lowest,
        },
        "dtype": str(judge.dtype).removeprefix("torch."),
        "median_s": {side: round(value, 4) for side, value in median.items()},
        "seconds": {side: [round(v, 4) for v in values] for side, values in seconds.items()},
        "memory_mib": {side: round(value / 2**20, 1) for side, value in memory.items()},
        "memory_ratio": round(memory["plain"] / memory["fast"], 2),
        "memory_is": "kept for the backward pass, every storage once; fast: with the documents' keys and values",
        "gflop": {side: round(value / 1e9, 1) for side, value in counted.items()},
        "gflop_per_s": {side: round(counted[side] / median[side] / 1e9, 1) for side in counted},
        "matmul_gflop_per_s": round(rate / 1e9, 1),
        "share_of_matmul_rate": {side: round(counted[side] / median[side] / rate, 3) for side in counted},
        "tokens_per_s": {side: round(documents / median[side], 1) for side in median},
        "relative_difference": {k: float(f"{v:.1e}") for k, v in zip(("loss", "p", "gate"), difference, strict=True)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge_step", description=__doc__.splitlines()[0])
    parser.add_argument("--judge", choices=models.JUDGES, default="packaged")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--passage", type=int, default=130, help="tokens of a passage")
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--rows", default="query", choices=["query", "query+label", "all"])
    parser.add_argument("--budget", default="paper", choices=["paper", "preserve"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-peak", action="store_true", help="leave out the peak of the process")
    parser.add_argument("--peak-of", choices=["plain", "fast"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print(added_peak(args, args.peak_of))
    record = run(args)
    if not args.no_peak:
        record["peak_gib"] = {side: round(peak(args, side), 3) for side in ("plain", "fast")}
    print(f"judge_step: {record['judge']}, {record['dtype']}, {record['geometry']}")
    print(f"{'':<8}{'median s':>10}{'graph MiB':>11}{'peak GiB':>10}{'GFLOP':>9}{'GFLOP/s':>9}{'of matmul':>11}")
    for side in ("plain", "fast"):
        print(f"{side:<8}{record['median_s'][side]:>10.3f}{record['memory_mib'][side]:>11.1f}"
              f"{record.get('peak_gib', {}).get(side, float('nan')):>10.2f}{record['gflop'][side]:>9.0f}"
              f"{record['gflop_per_s'][side]:>9.0f}{record['share_of_matmul_rate'][side]:>11.1%}")  # fmt: skip
    print(f"{record['ratio']:.2f} times as fast ({record['ratio_first']:.2f} with its readings kept, {record['ratio_later']:.2f} "
          f"where they are), 1/{record['memory_ratio']:.1f} of the memory; "
          f"largest relative differences {record['relative_difference']}; "
          f"matrix products {record['matmul_gflop_per_s']:.0f} GFLOP/s")  # fmt: skip
    name = "judge_step" if args.questions == 1 else f"judge_step_{args.questions}q"
    print(f"written to {common.write(name, torch.device(args.device), record)}")


if __name__ == "__main__":
    exits_cleanly(main)()
