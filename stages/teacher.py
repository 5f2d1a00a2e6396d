"""Stage teacher: the judge's likelihoods that RePlug learns from, computed once for all seeds; a folder per objective."""

import argparse

from dream import config as configs
from dream import manifest
from dream.errors import exits_cleanly
from dream.files import replacing_folder


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.teacher", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    args = parser.parse_args()

    config = configs.load_for_stage(args.size)
    inputs = ["work/data", "work/candidates"]
    with manifest.recording(config, "teacher", inputs) as record:
        import pandas as pd
        import torch
        from tqdm import tqdm

        from dream import objectives, training
        from dream.instances import load_sets, split
        from dream.judge import Judge, flops

        for folder in inputs:
            manifest.check(folder, config)
        rows, taught = [], [name for name in config.objectives if objectives.find(name).needs_teacher]
        if taught:
            torch.set_num_threads(config.training.threads)
            judge, (sets, _) = Judge.from_config(config), split(load_sets(), config)
            for candidates in tqdm(training.used(sets, config), desc="teacher", unit="set"):
                scores = judge.passage_log_likelihood(candidates).float().tolist()
                record.flops += flops.likelihoods(
                    judge.model.config, judge.prompt.documents(candidates), judge.prompt.suffixes(candidates)
                )
                rows += [{"instance_id": q.id, "log_likelihoods": s} for q, s in zip(candidates.questions, scores, strict=True)]
            record.notes["questions"] = len(rows)
        else:
            print("no objective has a teacher: nothing to compute")
        with replacing_folder("work/teacher") as temporary:
            for name in config.objectives:  # a folder each: another list of objectives leaves the other runs as they are
                (temporary / name).mkdir()
                if name in taught:
                    taught_rows = pd.DataFrame(rows, columns=["instance_id", "log_likelihoods"])
                    taught_rows.to_parquet(temporary / name / "teacher.parquet")
                    manifest.stamp(temporary / name, config, "judge")
                else:
                    (temporary / name / "none.txt").write_text("This objective has no teacher.\n", encoding="utf-8")


if __name__ == "__main__":
    main()
