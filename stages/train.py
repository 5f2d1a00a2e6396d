"""Stage train: one objective, one seed → a PEFT adapter and its training curves."""

import argparse
import contextlib
import sys
from pathlib import Path

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import read_json


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    parser.add_argument("--objective", required=True, help="a name in dream/objectives")
    parser.add_argument("--seed", required=True, type=int)
    args = parser.parse_args()

    settings = f"train-{args.objective}"
    config = stages.load(settings)
    from dream import training

    if config.training.accelerate and not training.launched():
        training.launch(config.training.accelerate, "stages.train", sys.argv[1:])
    name = f"{args.objective}-{args.seed}"
    given = Path("work/given") / args.objective
    inputs = ["work/data", "work/candidates", given]
    main_process = training.is_main_process()
    silent = contextlib.nullcontext(manifest.Record(name))
    with manifest.recording(f"train-{name}", settings, inputs) if main_process else silent as record:
        from dream import objectives
        from dream.instances import load_sets, split, used
        from dream.judge import Judge
        from dream.judge.store import Store

        manifest.check("prepare", "work/data")
        manifest.check("candidates", "work/candidates")
        needs = read_json(given / "needs.json")
        store = Store.of(stages.load("readings")) if "judge" in needs else None
        judge = Judge.build(config, training.device(), store) if store else None
        heads = read_json(given / "heads.json")["selected"] if "heads" in needs else []
        table = objectives.load_teacher(given / "teacher.parquet") if "teacher" in needs else (None, None)
        made_with = {"settings": read_json(stages.FOLDER / f"{settings}.json"), "objective": args.objective, "seed": args.seed}
        sets, _ = split(load_sets(), config.probes)
        first = [q.id for s in used(sets, 1, 1, config.training.block) for q in s.questions]
        taught = [list(map(float, table[0].get(i, ()))) for i in first] if table[0] else []  # a longer run's table begins so
        read = [*inputs[:2], *(path for path in sorted(given.iterdir()) if path.suffix == ".json")]
        key = training.resume_key(made_with, config.training, manifest.code_hash(), taught, *map(manifest.content_hash, read))
        result = training.train(config, args.objective, args.seed, sets, objectives.Given(judge, heads, *table), key)
        if main_process:
            training.save(result, Path("work/models") / name, made_with)
            training.save_curves(result, curves := Path("reports/results/train") / f"{name}.csv")
            result.checkpoints.finish(result.steps, keep=training.extensible(config.training))
            record.outputs = [curves]
        record.flops, record.earlier = result.flops, result.earlier
        record.notes |= {"pairs_trained": result.pairs, **result.step.objective.state(), "scalars": result.scalars}
        record.notes["snapshots"] = {
            str(pairs): cost for pairs, cost in (*result.snapshots.items(), (result.pairs, result.cost()))
        }
        record.notes |= {"readings": store.told()} if store else {}
        for scalar, moved in result.scalars.items() if main_process else ():
            print(f"[train-{name}] {scalar} {moved['start']:+.3f} → {moved['end']:+.3f}: {moved['used']:.0%} of the "
                  f"{moved['reach']:.3f} that training.scalar_learning_rate lets it move")  # fmt: skip
    training.finish()


if __name__ == "__main__":
    main()
