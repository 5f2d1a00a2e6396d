"""The whole training step, in pairs per second: several questions a set against the plain step with one.

    python -m benchmarks.pairs_per_second                                            packaged judge and encoder
    python -m benchmarks.pairs_per_second --device cuda --judge llama-8b --encoder 1b    random models of the paper's shapes

Both sides embed queries and passages with the same encoder, compute DREAM's loss, go backward and take an AdamW step. The
plain side is what one writes first with the library: a full sequence with labels per question, all logits, autograd's own
graph, and the candidates embedded again for every question. ``seeds`` compares training with several seeds and the store of the
judge's readings, which the first seed fills, with as many steps that read the documents themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

import torch

from benchmarks import common, models
from dream.errors import exits_cleanly
from dream.judge.model import DTYPES, pick_dtype
from dream.objectives import find, similarities, vectors
from dream.training import operations


def build(args: argparse.Namespace):
    """The trainer of both sides and the sets: (objective, encoder, sets with Q questions)."""
    device = torch.device(args.device)
    dtype = pick_dtype(args.dtype, device)
    judge, heads = models.judge(args.judge, dtype, device, args.passage)
    encoder = models.encoder(args.encoder, args.layers, dtype, device, args.passage)
    objective = find("dream")(judge, heads, rows=args.rows).to(device)
    vocabulary = min(judge.model.config.vocab_size, encoder.backbone.config.vocab_size)
    return objective, encoder, common.instances(2, args.candidates, args.passage, args.questions, vocabulary)


def single(candidates):
    """A set's questions, each in a set of its own."""
    return [dataclasses.replace(candidates, questions=(question,)) for question in candidates.questions]


def plain_loss(objective, encoder, candidates) -> torch.Tensor:
    """DREAM's loss of a set of one question, written with the library alone."""
    (scores,) = similarities(*vectors([candidates], encoder))
    p, gate = (scores / objective.tau()).softmax(-1), objective.gamma.sigmoid()
    return common.plain_losses(objective.judge, candidates, p, gate, objective.injection).mean()


def run(args: argparse.Namespace) -> dict:
    """Measure both sides; return the record that is written."""
    device = torch.device(args.device)
    objective, encoder, sets = build(args)
    optimizer = common.adamw(encoder, objective)
    losses = {
        "plain": lambda candidates: plain_loss(objective, encoder, single(candidates)[0]),
        "fast": lambda candidates: objective.loss([candidates], encoder)[0],
    }

    with torch.no_grad():
        one_by_one = torch.stack([plain_loss(objective, encoder, c) for c in single(sets[0])]).mean()
        before = operations(objective, encoder)
        together = losses["fast"](sets[0])
        counted = operations(objective, encoder) - before
    frozen = [p for module in (encoder, objective.judge.model) for p in module.parameters()]
    graph = {side: common.graph_bytes(lambda s=side: losses[s](sets[0]), frozen) for side in losses}
    steps = {side: common.training_step(loss, optimizer) for side, loss in losses.items()}
    steps |= common.stored(objective.judge, steps["fast"], sets)
    seconds = common.over_sets(steps, sets, device, args.repetitions)
    further = [first + (args.seeds - 1) * later for first, later in zip(seconds["first"], seconds["later"], strict=True)]
    median = {side: statistics.median(values) for side, values in seconds.items()}
    pairs = {side: 1 if side == "plain" else args.questions for side in steps}
    rate = common.matmul_rate(objective.judge.dtype, device)
    prompts = [objective.judge.prompt.layout(sets[0], i) for i in range(args.questions)]
    tokens = len(prompts[0].documents.ids) + sum(len(prompt.suffix.ids) for prompt in prompts)
    return {
        "ratio": round(args.questions * common.ratio(seconds["plain"], seconds["fast"]), 3),
        "reference": "plain: one question a step, full sequence with labels, all logits, autograd's own graph",
        "seeds": {"count": args.seeds, "ratio": round(common.ratio([args.seeds * s for s in seconds["fast"]], further), 3)},
        "models": {"judge": args.judge, "encoder": args.encoder, "encoder_layers": args.layers},
        "geometry": {
            "candidates": args.candidates, "passage_tokens": args.passage, "questions": args.questions, "rows": args.rows,
        },
        "dtype": str(objective.judge.dtype).removeprefix("torch."),
        "median_s": {side: round(value, 4) for side, value in median.items()},
        "pairs_per_s": {side: round(pairs[side] / median[side], 4) for side in median},
        "judge_tokens_per_s": round(tokens / median["fast"], 1),
        "gflop": float(f"{counted / 1e9:.4g}"),
        "matmul_gflop_per_s": round(rate / 1e9, 1),
        "share_of_matmul_rate": float(f"{counted / median['fast'] / rate:.3g}"),
        "seconds": {side: [round(v, 4) for v in values] for side, values in seconds.items()},
        "graph_mib": {side: round(value / 2**20, 1) for side, value in graph.items()},
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
        "relative_difference": float(f"{((one_by_one - together) / one_by_one).abs().item():.1e}"),
    }  # fmt: skip


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that the training benchmarks share."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--judge", choices=models.JUDGES, default="packaged")
    found.add_argument("--encoder", choices=models.ENCODERS, default="packaged")
    found.add_argument("--layers", type=int, default=6, help="layers of the packaged encoder")
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    found.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    found.add_argument("--candidates", type=int, default=16)
    found.add_argument("--passage", type=int, default=130, help="tokens of a passage")
    found.add_argument("--questions", type=int, default=4, help="questions of a set")
    found.add_argument("--rows", default="query", choices=["query", "query+label", "all"])
    found.add_argument("--seeds", type=int, default=3, help="runs that share the judge's readings")
    found.add_argument("--repetitions", type=int, default=5)
    found.add_argument("--threads", type=int, default=2)
    return found


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(args.threads)
    record = run(args)
    print(f"pairs_per_second: {record['models']}, {record['dtype']}, {record['geometry']}")
    print(f"{'':<8}{'median s':>10}{'pairs/s':>10}{'graph MiB':>11}")
    for side in ("plain", "fast"):
        print(f"{side:<8}{record['median_s'][side]:>10.3f}{record['pairs_per_s'][side]:>10.3f}{record['graph_mib'][side]:>11.1f}")
    seeds = record["seeds"]
    print(f"{seeds['count']} seeds that share readings: {seeds['ratio']:.2f} times as fast as each on its own")
    print(f"{record['ratio']:.2f} times the pairs per second; losses differ by {record['relative_difference']:.0e}")
    print(f"fast: {record['gflop']:.0f} GFLOP a step, {record['judge_tokens_per_s']:.0f} judge tokens/s, "
          f"{record['share_of_matmul_rate']:.1%} of the {record['matmul_gflop_per_s']:.0f} GFLOP/s of products")  # fmt: skip
    print(f"written to {common.write('pairs_per_second', torch.device(args.device), record)}")


if __name__ == "__main__":
    exits_cleanly(main)()
