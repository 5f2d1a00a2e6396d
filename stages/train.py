"""Stage train: one objective, one seed → a PEFT adapter and its training curves."""

import argparse
import contextlib
import sys
from pathlib import Path

from dream import config as configs
from dream import manifest
from dream.errors import exits_cleanly
from dream.files import read_json, value_hash

SECTIONS = ("candidates", "judge", "heads", "injection", "temperature", "encoder", "training", "data", "questions", "bm25", "own")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    parser.add_argument("--objective", required=True, help="a name in dream/objectives")
    parser.add_argument("--seed", required=True, type=int)
    args = parser.parse_args()

    config = configs.load_for_stage(args.size)
    from dream import training

    if config.training.accelerate and not training.launched():
        training.launch(config.training.accelerate, "stages.train", sys.argv[1:])
    name = f"{args.objective}-{args.seed}"
    inputs = ["work/data", "work/candidates", "work/heads"]
    main_process = training.is_main_process()
    silent = contextlib.nullcontext(manifest.Record(name))
    with manifest.recording(config, f"train-{name}", inputs) if main_process else silent as record:
        from dream import objectives
        from dream.instances import load_sets, split
        from dream.judge import Judge, diagnostics

        for folder in inputs:
            manifest.check(folder, config)
        objective = objectives.find(args.objective)
        heads, judge = [], None
        if objective.needs_judge:
            heads = read_json("work/heads/heads.json")["selected"]
            diagnostics.require_signal(read_json("work/heads/diagnostic.json"), config.injection.force)
            judge = Judge.from_config(config, training.device())
        sections = (*SECTIONS, *objectives.own_section(args.objective))
        made_with = manifest.made_with(config, *sections, objective=args.objective, seed=args.seed)
        key = value_hash([made_with, manifest.code_hash(), *map(manifest.content_hash, inputs)])[:24]
        sets, _ = split(load_sets(), config)
        result = training.train(config, args.objective, args.seed, sets, judge, heads, key)
        if main_process:
            training.save(result, Path("work/models") / name, made_with)
            training.save_curves(result, Path("reports/cells/train") / f"{name}.csv")
            training.Checkpoints(key, 1).clear()
        record.flops = result.flops
        record.notes |= {"pairs_trained": result.pairs, **result.step.objective.state(), "scalars": result.scalars}
        for scalar, moved in result.scalars.items() if main_process else ():
            print(f"[train-{name}] {scalar} {moved['start']:+.3f} → {moved['end']:+.3f}: {moved['used']:.0%} of the "
                  f"{moved['reach']:.3f} that training.scalar_learning_rate lets it move")  # fmt: skip
    training.finish()


if __name__ == "__main__":
    main()
