"""The loss-gap diagnostic of method.md on many instances, with intervals; reads the pipeline's own candidate sets.

    python -m benchmarks.diagnostic --instances 200                 writes reports/bench/diagnostic.{json,md}
    python -m benchmarks.diagnostic --instances 200 --gate 0.95     writes reports/bench/diagnostic_g0.95.{json,md}

Needs work/ (after `dvc repro`). The heads are those that stage heads selected. What a step of training can use is the gap:
the loss with all weight on a wrong candidate minus the loss with all weight on the gold one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import common
from dream import config as configs
from dream.errors import exits_cleanly
from dream.files import read_json, replacing
from dream.instances import load_sets
from dream.judge import Injection, Judge, diagnostics


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnostic", description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--gate", type=float, help="g (default: injection.gate_init)")
    args = parser.parse_args()
    config = configs.load()
    torch.set_num_threads(config.training.threads)
    judge, heads = Judge.build(config), read_json("work/heads/heads.json")["selected"]
    injection = Injection(tuple(map(tuple, heads)), config.injection.rows, config.injection.budget)
    gate = config.injection.gate_init if args.gate is None else args.gate
    found = diagnostics.measure(judge, load_sets()[-args.instances :], injection, gate, config.heads.seed)
    text = diagnostics.table(found)
    print(text)
    name = "diagnostic" if args.gate is None else f"diagnostic_g{args.gate:g}"
    path = common.write(name, judge.device, {"judge": judge.reference, "instances": args.instances, **found})
    with replacing(Path(path).with_suffix(".md")) as temporary:
        more = "" if args.gate is None else f" --gate {args.gate:g}"
        command = f"`python -m benchmarks.diagnostic --instances {args.instances}{more}`"
        temporary.write_text(f"{command}\n\n```\n{text}\n```\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    exits_cleanly(main)()
