"""Stage configure: params.yaml, resolved for one size and recipe → one small JSON per stage (reports/config)."""

import argparse
from pathlib import Path

from dream import config as configs
from dream import progress
from dream.errors import DreamError, exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.configure", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    args = parser.parse_args()

    config = configs.load()
    # DVC leaves a parameter named `size` out of its run-cache key (treeverse/dvc#10296), so the command has it too.
    if config.model.size != args.size:
        raise DreamError(
            f"--size {args.size} was asked for, but params.yaml says model.size: {config.model.size}",
            "Run it through `dvc repro`",
        )
    from dream.config import stages
    from dream.data import tasks

    config = tasks.mirrored(config)
    if (settings := config.training.accelerate) and not Path(settings).is_file():
        raise DreamError(f"training.accelerate: {settings} is missing", "configs/accelerate holds some")
    with replacing_folder(stages.FOLDER) as folder:
        for name, values in stages.files(config).items():
            write_json(folder / f"{name}.json", values)
    progress.begin("configure")
    size = config.size
    print(f"[configure] size {config.model.size}, recipe {config.recipe}: encoder {size.encoder}, judge {size.judge}; "
          f"{len(config.objectives)} objectives, {len(config.seeds)} seeds, {len(config.tasks)} entries of tasks")  # fmt: skip


if __name__ == "__main__":
    main()
