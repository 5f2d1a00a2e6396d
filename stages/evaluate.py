"""Stage evaluate: one system on a task or a list of tasks → scores per query.

``python -m stages.evaluate --system bm25 --tasks general``. A trained system needs its seed: ``--system dream --seed 0``.
After some of its pairs: ``--pairs 144``. Stages ``evaluate``, ``snapshot``, ``reference`` and ``rerank`` of dvc.yaml.
"""

from __future__ import annotations

import argparse

from dream.config import stages
from dream.errors import exits_cleanly
from dream.names import cell


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--system", required=True, help="a name under references, rerankers or objectives")
    parser.add_argument("--seed", type=int, help="of a trained system")
    parser.add_argument("--pairs", type=int, help="of a trained system: one of training.snapshots; default: after all")
    parser.add_argument("--tasks", required=True, help="an entry of tasks: a task, or a list of task_lists")
    asked = parser.parse_args(arguments)
    config = stages.load(f"evaluate-{cell(asked.system, None, asked.tasks)}")

    import torch

    from dream import cells

    torch.set_num_threads(config.training.threads)
    cells.make(config, asked.system, asked.seed, asked.tasks, asked.pairs)


if __name__ == "__main__":
    main()
