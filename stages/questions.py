"""Stage questions: passages of sources without questions → generated questions, filtered on request; else an empty table."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.questions", description=__doc__).parse_args()
    config = stages.load("questions")
    with manifest.recording("questions", inputs=["reports/assets/generator.json"]) as record:
        import pandas as pd

        from dream.candidates import round_trip
        from dream.data import questions, sources

        needed = questions.needed(config)
        written = kept = pd.DataFrame(columns=questions.COLUMNS, dtype="str")
        wordless = 0
        if needed:
            written = questions.generate(config, questions.targets(config))
            parts = [
                round_trip.keep(written[written["source"] == name], sources.get(name, config).passages(config), config)
                for name in needed
            ]
            kept = pd.concat(parts, ignore_index=True)
            wordless = sum(part.attrs.get("wordless", 0) for part in parts)
        with replacing_folder("work/questions") as folder:
            kept.to_parquet(folder / questions.PATH.name, index=False)
        record.notes = {"sources": needed, "questions": len(kept), "written": len(written), "wordless": wordless}
    if not needed:
        print("[questions] every source has its own questions: nothing to write")
        return
    print(f"[questions] {len(written)} written for {', '.join(needed)}, {len(kept)} kept"
          + (f" (passage among BM25's {config.questions.round_trip} best; {wordless} had no word for BM25)"
             if config.questions.round_trip else ""))  # fmt: skip


if __name__ == "__main__":
    main()
