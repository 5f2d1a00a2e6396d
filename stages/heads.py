"""Stage heads: score and select the judge's retrieval heads."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.heads", description=__doc__).parse_args()
    config = stages.load("heads")
    inputs = ["work/data", "work/candidates"]
    with manifest.recording("heads", inputs=inputs) as record:
        import torch

        from dream.instances import load_sets, split
        from dream.judge import Judge, heads
        from dream.judge.store import Store

        manifest.check("prepare", "work/data")
        manifest.check("candidates", "work/candidates")
        torch.set_num_threads(config.training.threads)
        knobs, (_, probes) = config.heads, split(load_sets(), config.heads.probes)
        judge = Judge.build(config, store=(store := Store.of(stages.load("readings"))))
        heads.require_possible(knobs, judge)
        scores = heads.detect(judge, probes, knobs.drop_low_tokens)
        selected = heads.select(scores.mean, knobs)
        described = heads.describe(scores, selected, knobs, judge)
        with replacing_folder("work/heads") as folder:
            write_json(folder / "heads.json", described)
        chosen = {tuple(h) for h in selected}
        rows = [
            {"layer": layer, "head": head, "score": value, "selected": (layer, head) in chosen}
            for layer, row in enumerate(described["scores"])
            for head, value in enumerate(row)
        ]
        write_json("reports/results/heads.json", rows)
        record.outputs = ["reports/results/heads.json"]
        record.notes |= {key: described[key] for key in ("judge", "strategy", "probes", "stability", "best", "mean")}
        record.notes["readings"] = store.told()
    print(f"[heads] best {described['best']:.3f}, mean of all {described['mean']:.3f}, chance "
          f"{heads.chance(len(probes[0].passages)):.3f}; top-{knobs.count} overlap over resamples "
          f"{described['stability']:.2f}; selected {', '.join(f'({a},{b})' for a, b in selected[:16])}")  # fmt: skip


if __name__ == "__main__":
    main()
