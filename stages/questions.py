"""Stage questions: passages of sources without questions → generated questions, filtered on request; else an empty table."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.questions", description=__doc__).parse_args()
    config, inputs = stages.load("questions"), ["reports/assets/generator.json"]
    with manifest.recording("questions", inputs=inputs) as record:
        import pandas as pd

        from dream.candidates import round_trip
        from dream.data import development, questions, sources

        needed, lines = questions.needed(config), list[str]()
        kept = pd.DataFrame(columns=questions.COLUMNS, dtype="str")
        record.notes = {"sources": needed, "questions": 0, "written": 0, "wordless": 0}
        if needed:
            asked = config.questions
            passages = {name: sources.get(name, config).passages(config) for name in needed}
            lines += [f"{name}: {note}" for name, table in passages.items() for note in table.attrs.get("notes", [])]
            targets = questions.targets(config)
            development.enough(config, min(map(len, passages.values())), targets)
            written = questions.generate(config, targets)
            parts = [round_trip.keep(written[written["source"] == name], table, config) for name, table in passages.items()]
            found = kept = pd.concat(parts, ignore_index=True)
            if asked.round_trip:
                lines.append(questions.dropped(f"passage not among BM25's {asked.round_trip} best", written, found))
            if asked.gap_filter is not None:
                import torch

                from dream.judge import gain

                inputs.append("reports/assets/judge.json")
                torch.set_num_threads(config.training.threads)
                kept = gain.keep(found, pd.concat(passages.values()), config)
                lines.append(questions.dropped(f"judge's gain not above {asked.gap_filter} nats a token", found, kept))
            questions.require(kept, written, needed)
            wordless = sum(part.attrs.get("wordless", 0) for part in parts)
            record.notes |= {"questions": len(kept), "written": len(written), "wordless": wordless,
                             "after_round_trip": len(found)}  # fmt: skip
        with replacing_folder("work/questions") as folder:
            kept.to_parquet(folder / questions.PATH.name, index=False)
    if not needed:
        print("[questions] every source has its own questions: nothing to write")
        return
    for line in lines:
        print(f"[questions] {line}")
    print(f"[questions] {len(written)} written for {', '.join(needed)}, {len(kept)} kept"
          + (f"; {wordless} had no word for BM25" if asked.round_trip else ""))  # fmt: skip


if __name__ == "__main__":
    main()
