"""Stage rerank: BM25's candidates of a task or list of tasks, reranked by the judge's heads → scores per query."""

import argparse

from dream.config import load_for_stage
from dream.errors import exits_cleanly


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.rerank", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    parser.add_argument("--system", required=True, choices=["qrhead"])
    parser.add_argument("--tasks", required=True, help="a task, or a list of task_lists")
    asked = parser.parse_args(arguments)
    config = load_for_stage(asked.size)

    import torch

    from dream import rerank
    from dream.evaluation import cells

    torch.set_num_threads(config.training.threads)
    cells.make(config, asked.system, None, asked.tasks, lambda _: rerank.build(config), [rerank.HEADS])


if __name__ == "__main__":
    main()
