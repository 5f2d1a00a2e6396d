"""Stage teacher: what a frozen model makes of each candidate, for an objective that learns from such a table."""

import argparse
from pathlib import Path

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import read_json, replacing_folder


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.teacher", description=__doc__)
    parser.add_argument("--objective", required=True, help="a name in dream/objectives")
    name = f"teacher-{parser.parse_args().objective}"

    config, inputs = stages.load(name), ["work/data", "work/candidates"]
    folder = Path("work/teacher") / name.removeprefix("teacher-")
    asked = read_json(stages.FOLDER / f"{name}.json")["teacher"]
    if not asked:
        with manifest.recording(name, inputs=[]) as record:
            record.notes = {"teacher": None}
            with replacing_folder(folder) as temporary:
                (temporary / "none.txt").write_text("This objective has no teacher.\n", encoding="utf-8")
        print(f"[{name}] this objective has no teacher: nothing to compute")
        return
    with manifest.recording(name, inputs=inputs) as record:
        import pandas as pd
        import torch

        from dream import teachers
        from dream.instances import load_sets, split, used

        manifest.check("prepare", "work/data")
        manifest.check("candidates", "work/candidates")
        heads = []
        if teachers.needs_heads(asked):
            manifest.check("heads", "work/heads")
            heads = read_json("work/heads/heads.json")["selected"]
            inputs.append("work/heads")
        torch.set_num_threads(config.training.threads)
        sets, _ = split(load_sets(), config.probes)
        sets = used(sets, config.training.steps, config.training.batch, config.training.block)
        found = teachers.build(asked, config, heads, stages.load("readings"))
        rows, record.flops, record.earlier, new = teachers.table(found, sets)
        with replacing_folder(folder) as temporary:
            pd.DataFrame(rows).to_parquet(temporary / "teacher.parquet")
        record.notes |= {"teacher": asked, "questions": len(rows), "sets": len(sets), "asked_now": new}
    print(f"[{name}] {asked}: {len(sets)} sets, {len(sets) - new} of them from the journal")


if __name__ == "__main__":
    main()
