"""Stage adapt: every setting of a run with the recipe `adapt` on held-out questions, and a verdict → reports/adapt.json."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import read_json, write_json


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.adapt", description=__doc__).parse_args()
    config, asked = stages.load("adapt"), read_json(stages.FOLDER / "adapt.json")
    inputs = ["work/questions", "work/data"] if asked else []
    with manifest.recording("adapt", inputs=inputs) as record:
        found = {}
        if asked:
            import torch

            from dream.adapt import scoring

            manifest.check("questions", "work/questions")
            manifest.check("prepare", "work/data")
            torch.set_num_threads(config.training.threads)
            inputs += [f"work/models/{name}-{seed}" for name in config.objectives for seed in config.seeds]
            found = scoring.run(config)
        write_json("reports/adapt.json", found)
        record.outputs = ["reports/adapt.json"]
    if not found:
        print("[adapt] the recipe is not `adapt`: nothing to choose")
        return
    print(f"[adapt] {found['verdict']}: {'. '.join(found['why'])}")


if __name__ == "__main__":
    main()
