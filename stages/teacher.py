"""Stage teacher: the frozen judge's log-likelihood of the target given each candidate, for the objectives that learn from it."""

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
    if not read_json(stages.FOLDER / f"{name}.json")["needs"]:
        with replacing_folder(folder) as temporary:
            (temporary / "none.txt").write_text("This objective has no teacher.\n", encoding="utf-8")
        print(f"[{name}] this objective has no teacher: nothing to compute")
        return
    with manifest.recording(name, inputs=inputs) as record:
        import pandas as pd
        import torch
        from tqdm import tqdm

        from dream.instances import load_sets, split, used
        from dream.judge import Judge, flops

        manifest.check("prepare", "work/data")
        manifest.check("candidates", "work/candidates")
        torch.set_num_threads(config.training.threads)
        judge, (sets, _) = Judge.build(config), split(load_sets(), config.probes)
        rows = []
        for candidates in tqdm(used(sets, config.training.steps, config.training.batch), desc="teacher", unit="set"):
            scores = judge.passage_log_likelihood(candidates).float().tolist()
            record.flops += flops.likelihoods(
                judge.model.config, judge.prompt.documents(candidates), judge.prompt.suffixes(candidates)
            )
            rows += [{"instance_id": q.id, "log_likelihoods": s} for q, s in zip(candidates.questions, scores, strict=True)]
        with replacing_folder(folder) as temporary:
            pd.DataFrame(rows, columns=["instance_id", "log_likelihoods"]).to_parquet(temporary / "teacher.parquet")
        record.notes["questions"] = len(rows)


if __name__ == "__main__":
    main()
