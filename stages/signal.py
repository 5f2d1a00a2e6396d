"""Stage signal: the loss gap that training would use: the judge's loss with the scores on a wrong and on the right candidate."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import read_json, replacing_folder, write_json


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.signal", description=__doc__).parse_args()
    config = stages.load("signal")
    inputs = ["work/data", "work/candidates", "work/heads"]
    with manifest.recording("signal", inputs=inputs) as record:
        import torch

        from dream.instances import load_sets, split
        from dream.judge import Injection, Judge, diagnostics
        from dream.judge.store import Store

        manifest.check("prepare", "work/data")
        manifest.check("candidates", "work/candidates")
        manifest.check("heads", "work/heads")
        torch.set_num_threads(config.training.threads)
        knobs, heads = config.injection, read_json("work/heads/heads.json")["selected"]
        _, probes = split(load_sets(), knobs.diagnostic)
        injection = Injection(tuple(map(tuple, heads)), knobs.rows, knobs.budget)
        judge = Judge.build(config, store=(store := Store.of(stages.load("readings"))))
        diagnosis = diagnostics.measure(judge, probes, injection, knobs.gate_init, config.heads.seed)
        with replacing_folder("work/signal") as folder:
            write_json(folder / "diagnostic.json", diagnosis)
        write_json("reports/results/diagnostic.json", diagnosis["rows"])
        record.outputs = ["reports/results/diagnostic.json"]
        record.notes["readings"] = store.told()
    print(diagnostics.table(diagnosis))


if __name__ == "__main__":
    main()
