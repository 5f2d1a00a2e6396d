"""What the judge adds to a training step: DREAM's time over InfoNCE's, on the same encoder and instances.

    python -m benchmarks.dream_over_infonce          packaged models, measured; the paper's sizes from the FLOP model

Measured with an encoder as large as the judge and the paper's geometry (K = 16, 130 tokens), and with the default recipe's
encoder and geometry, each with 1 and with 4 questions a set. Steps that measure the gap (one in `injection.gap_every`) are
left out.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks import common, models
from benchmarks.pairs_per_second import build, parser
from dream.errors import exits_cleanly
from dream.judge import flops
from dream.objectives import find

QUERY, PROMPT, SUFFIX = 16, 40, 24  # tokens of a question, and of the prompt's fixed words before and after the documents


def measure(args: argparse.Namespace) -> dict:
    """Seconds of both objectives' steps on one geometry."""
    device = torch.device(args.device)
    dream, encoder, sets = build(args)
    objectives = {"dream": dream, "infonce": find("infonce")(dream.tau().item()).to(device)}
    dream.step = 1  # a step without a measurement of the gap, as three of four are
    steps = {
        name: common.training_step(lambda c, o=objective: o.loss([c], encoder)[0], common.adamw(encoder, objective))
        for name, objective in objectives.items()
    }
    steps["later"] = common.stored(dream.judge, steps["dream"], sets)["later"]
    seconds = common.over_sets(steps, sets, device, args.repetitions)
    return {
        "ratio": round(common.ratio(seconds["dream"], seconds["infonce"]), 3),
        "ratio_later": round(common.ratio(seconds["later"], seconds["infonce"]), 3),
        "dtype": str(dream.judge.dtype).removeprefix("torch."),
        "geometry": {k: getattr(args, k) for k in ("encoder", "layers", "candidates", "passage", "questions", "rows")},
        "median_s": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "seconds": {name: [round(v, 4) for v in values] for name, values in seconds.items()},
    }


def counted(encoder: dict, judge: dict, questions: int, lowest: int, candidates: int = 16, passage: int = 130) -> float:
    """DREAM's operations over InfoNCE's, from shapes alone; the encoder's backward pass gives activations' gradients."""
    shape, reader = models.shape(encoder), models.shape(judge)
    tokens = candidates * passage + questions * QUERY
    passes = 4 * shape.num_hidden_layers * flops.weights_per_layer(shape) * tokens
    suffix = SUFFIX + QUERY + passage
    step = flops.fast_step(reader, PROMPT + tokens, [suffix] * questions, passage * questions, lowest)
    return (passes + step.total) / passes


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(args.threads)
    layers = 30 if args.encoder == "packaged" else None
    shapes = [
        ("equal", {"layers": layers, "questions": 1}),
        ("equal, 4 questions", {"layers": layers, "questions": 4}),
        ("default recipe, 1 question", {"layers": 6, "candidates": 8, "passage": 48, "rows": "all", "questions": 1}),
        ("default recipe, 4 questions", {"layers": 6, "candidates": 8, "passage": 48, "rows": "all", "questions": 4}),
    ]
    measured = {}
    for name, more in shapes:
        measured[name] = measure(argparse.Namespace(**{**vars(args), **more}))
        seconds = measured[name]["median_s"]
        ratio, later = measured[name]["ratio"], measured[name]["ratio_later"]
        print(f"{name:<30} dream {seconds['dream']:.3f} s  infonce {seconds['infonce']:.3f} s  ratio {ratio:.2f}, "
              f"in later epochs {later:.2f}")  # fmt: skip
    lowest = min(layer for layer, _ in models.LLAMA_HEADS)
    paper = {
        size: {q: round(counted(models.SHAPES[size], models.LLAMA_8B, q, lowest), 2) for q in (1, 4)}
        for size in ("0.5b", "1b", "3b", "8b")
    }
    for size, ratios in paper.items():
        print(f"{size:<30} judge Llama-3.1-8B, counted operations: ratio {ratios[1]:.2f}, with 4 questions a set {ratios[4]:.2f}")
    record = {
        "ratio": measured["equal"]["ratio"],
        "reference": "a step of InfoNCE on the same encoder (as large as the judge) and instances; lower is better",
        "models": {"judge": args.judge, "encoder": args.encoder},
        "measured": measured,
        "counted_for_the_paper": paper,
    }
    print(f"written to {common.write('dream_over_infonce', torch.device(args.device), record)}")


if __name__ == "__main__":
    exits_cleanly(main)()
