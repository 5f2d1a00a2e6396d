"""Stage questions: passages of sources without questions → generated questions (an empty table if none are needed)."""

import argparse

from dream import config as configs
from dream import manifest
from dream.errors import exits_cleanly
from dream.files import replacing_folder

SECTIONS = ("data", "questions", "own")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.questions", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    args = parser.parse_args()

    config = configs.load_for_stage(args.size)
    with manifest.recording(config, "questions", ["work/assets"]) as record:
        import pandas as pd

        from dream.data import questions

        manifest.check("work/assets", config)
        needed = questions.needed(config)
        if needed:
            written = questions.generate(config, questions.targets(config))
        else:
            written = pd.DataFrame(columns=questions.COLUMNS, dtype="str")
        with replacing_folder("work/questions") as folder:
            written.to_parquet(folder / "questions.parquet", index=False)
            manifest.stamp(folder, config, *SECTIONS)
        record.notes = {"sources": needed, "questions": len(written)}
    print(f"[questions] {len(written)} questions for {', '.join(needed)}" if needed else
          "[questions] every source has its own questions: nothing to write")  # fmt: skip


if __name__ == "__main__":
    main()
