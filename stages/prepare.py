"""Stage prepare: sources and tasks → training data (work/data) that holds no evaluation query, tasks (work/tasks)."""

import argparse

from dream import config as configs
from dream import manifest
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json

DATA = ("data", "questions", "own", "tasks", "task_lists")
TASKS = ("data", "own")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.prepare", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    args = parser.parse_args()

    config = configs.load_for_stage(args.size)
    with manifest.recording(config, "prepare", ["work/assets", "work/questions"]) as record:
        import pandas as pd

        from dream.data import prepare
        from dream.data.questions import PATH

        for folder in ("work/assets", "work/questions"):
            manifest.check(folder, config)
        questions = pd.read_parquet(PATH)
        with replacing_folder("work/data") as data, replacing_folder("work/tasks") as tasks:
            prepared = prepare.prepare(config, questions, tasks)
            prepare.write(prepared, data)
            write_json(data / "summary.json", prepared.records)
            manifest.stamp(data, config, *DATA)
            for entry in config.tasks:
                manifest.stamp(tasks / entry, config, *TASKS)
        write_json("reports/cells/prepare.json", prepared.records)
        record.notes = {"passages": len(prepared.passages), "instances": len(prepared.instances)}
    for r in prepared.records:
        if r["kind"] == "source":
            print(f"[prepare] source {r['name']}: {r['instances']} of {r['instances_available']} instances, "
                  f"{r['passages']} passages, {r['dropped_evaluation_queries']} evaluation queries out")  # fmt: skip
        else:
            print(f"[prepare] task {r['name']}{' ' + r['part'] if r['part'] else ''}: {r['queries']} queries, "
                  f"{r['documents']} documents, {r['share_relevant_in_training']:.1%} of the relevant and "
                  f"{r['share_in_training']:.1%} of all also stand in training")  # fmt: skip


if __name__ == "__main__":
    main()
