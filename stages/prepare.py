"""Stage prepare: sources and tasks → training data (work/data) that holds no evaluation query, tasks (work/tasks)."""

import argparse
import tempfile
from pathlib import Path

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.prepare", description=__doc__).parse_args()
    config = stages.load("prepare")
    with manifest.recording("prepare", inputs=["work/questions"]) as record:
        import pandas as pd

        from dream.data import prepare
        from dream.data.questions import PATH

        manifest.check("questions", "work/questions")
        questions = pd.read_parquet(PATH)
        with replacing_folder("work/data") as data, tempfile.TemporaryDirectory() as scratch:
            prepared = prepare.prepare(config, questions, Path(scratch))
            prepare.write(prepared, data)
        write_json("reports/results/prepare.json", prepared.records)
        record.outputs = ["reports/results/prepare.json"]
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
