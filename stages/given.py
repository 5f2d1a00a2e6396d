"""Stage given: what an objective needs of the judge (its heads, if there is a signal; its teacher) → work/given/<objective>."""

import argparse
import shutil
from pathlib import Path

from dream import manifest, progress
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import read_json, replacing_folder, write_json


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.given", description=__doc__)
    parser.add_argument("--objective", required=True, help="a name in dream/objectives")
    name = parser.parse_args().objective

    config, needs = stages.load(f"given-{name}"), read_json(stages.FOLDER / f"given-{name}.json")["needs"]
    progress.begin(f"given-{name}")
    files = []
    if {"judge", "lm"} & set(needs):
        files.append("reports/assets/judge.json")
    if "heads" in needs:
        from dream.judge import diagnostics

        manifest.check("heads", "work/heads")
        manifest.check("signal", "work/signal")
        diagnostics.require_signal(read_json("work/signal/diagnostic.json"), config.injection.force)
        files.append("work/heads/heads.json")
    if "teacher" in needs:
        manifest.check(f"teacher-{name}", table := f"work/teacher/{name}/teacher.parquet")
        files.append(table)
    with replacing_folder(Path("work/given") / name) as folder:
        write_json(folder / "needs.json", needs)
        for file in files:
            shutil.copy(file, folder)
    print(f"[given-{name}] {', '.join(files) or 'nothing: this objective asks no judge'}")


if __name__ == "__main__":
    main()
