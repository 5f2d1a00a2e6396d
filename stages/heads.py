"""Stage heads: score and select the judge's retrieval heads, then measure the loss gap that training would use."""

import argparse

from dream import config as configs
from dream import manifest
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.heads", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    args = parser.parse_args()

    config = configs.load_for_stage(args.size)
    inputs = ["work/data", "work/candidates"]
    with manifest.recording(config, "heads", inputs) as record:
        import torch

        from dream.instances import load_sets, split
        from dream.judge import Injection, Judge, diagnostics, heads

        for folder in inputs:
            manifest.check(folder, config)
        torch.set_num_threads(config.training.threads)
        _, probes = split(load_sets(), config)
        judge = Judge.from_config(config)
        heads.require_possible(config.heads, judge)
        scores = heads.detect(judge, probes[-config.heads.probes :], config.heads.drop_low_tokens)
        selected = heads.select(scores.mean, config.heads)
        described = heads.describe(scores, selected, config.heads, judge)
        knobs = config.injection
        injection = Injection(tuple(selected), knobs.rows, knobs.budget)
        diagnosis = diagnostics.measure(judge, probes[-knobs.diagnostic :], injection, knobs.gate_init, config.heads.seed)
        with replacing_folder("work/heads") as folder:
            write_json(folder / "heads.json", described)
            write_json(folder / "diagnostic.json", diagnosis)
            manifest.stamp(folder, config, "judge", "heads", "injection", "candidates", "data")
        chosen = {tuple(h) for h in selected}
        write_json(
            "reports/cells/heads.json",
            [
                {"layer": layer, "head": head, "score": value, "selected": (layer, head) in chosen}
                for layer, row in enumerate(described["scores"])
                for head, value in enumerate(row)
            ],
        )
        write_json("reports/cells/diagnostic.json", diagnosis["rows"])
        record.notes |= {key: described[key] for key in ("judge", "strategy", "probes", "stability", "best", "mean")}
    print(f"[heads] best {described['best']:.3f}, mean of all {described['mean']:.3f}, chance "
          f"{heads.chance(config.candidates.count):.3f}; top-{config.heads.count} overlap over resamples "
          f"{described['stability']:.2f}; selected {', '.join(f'({a},{b})' for a, b in selected[:16])}")  # fmt: skip
    print(diagnostics.table(diagnosis))


if __name__ == "__main__":
    main()
