"""Stage evaluate: one system on a task or a list of tasks → scores per query.

``python -m stages.evaluate --size tiny --system bm25 --tasks general``. A trained system needs its seed: ``--system
dream --seed 0``. Stages ``evaluate`` and ``reference`` of dvc.yaml.
"""

from __future__ import annotations

import argparse

from dream.config import load_for_stage
from dream.errors import exits_cleanly


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", required=True, help="model.size of params.yaml")
    parser.add_argument("--system", required=True, help="bm25, untrained, a name under `published`, or an objective")
    parser.add_argument("--seed", type=int, help="of a trained system")
    parser.add_argument("--tasks", required=True, help="a task, or a list of task_lists")
    asked = parser.parse_args(arguments)
    config = load_for_stage(asked.size)

    import torch

    from dream.evaluation import cells, systems

    torch.set_num_threads(config.training.threads)

    def load(names: list[str]) -> systems.System:
        system = systems.load(asked.system, config, asked.seed)
        if config.evaluate.workers > 1 and isinstance(system, systems.Dense):
            cells.encode_in_parallel(asked.system, asked.seed, names, config, config.evaluate.workers)
        return system

    inputs = [] if asked.seed is None else [systems.MODELS / f"{asked.system}-{asked.seed}"]
    cells.make(config, asked.system, asked.seed, asked.tasks, load, inputs)


if __name__ == "__main__":
    main()
