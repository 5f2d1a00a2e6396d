"""Stage tasks: the evaluation tasks of one entry of `tasks` → work/tasks/<entry>, packaged and own sets (mteb keeps its own)."""

import argparse
from pathlib import Path

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.tasks", description=__doc__)
    parser.add_argument("--tasks", required=True, help="an entry of tasks: a task, or a list of task_lists")
    entry = parser.parse_args().tasks

    config = stages.load(f"tasks-{entry}")
    from dream.data import tasks

    manifest.check("questions", "work/questions")
    names = tasks.of(config)
    with replacing_folder(Path("work/tasks") / entry) as folder:
        for name in names:
            if tasks.kind(name, config) != "mteb":
                tasks.write(tasks.build(name, config), folder)
        write_json(folder / "entry.json", {"tasks": names})
    print(f"[tasks-{entry}] {', '.join(names)}")


if __name__ == "__main__":
    main()
