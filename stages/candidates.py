"""Stage candidates: instances and passages → sets of K candidate passages (work/candidates), and how good they are."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.candidates", description=__doc__).parse_args()
    config = stages.load("candidates")
    with manifest.recording("candidates", inputs=["work/data"]) as record:
        import pandas as pd

        from dream import candidates

        manifest.check("prepare", "work/data")
        passages, instances = (pd.read_parquet(f"work/data/{name}.parquet") for name in ("passages", "instances"))
        sets, summary = candidates.build(config, passages, instances)
        with replacing_folder("work/candidates") as folder:
            sets.to_parquet(folder / "candidates.parquet", index=False)
        write_json("reports/results/candidates.json", summary)
        record.outputs = ["reports/results/candidates.json"]
        record.notes = {"sets": len(sets)}
    for r in summary:
        found = "" if r["positive_found"] is None else f", positive among them {r['positive_found']:.1%}"
        dropped = r["dropped_in_small_groups"] + r["dropped_without_positive"]
        remarks = {"copies dropped": r["copies_dropped"], "places filled at random": r["filled_at_random"],
                   "queries without a word that BM25 knows": r["wordless_queries"]}  # fmt: skip
        print(f"[candidates] {r['source']}: {r['strategy']}, {r['sets']} sets of {r['count']} from {r['pool']}{found}, "
              f"{dropped} instances dropped", *(f"{n} {what}" for what, n in remarks.items() if n), sep=", ")  # fmt: skip


if __name__ == "__main__":
    main()
