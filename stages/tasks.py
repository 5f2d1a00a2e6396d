"""Stage tasks: the evaluation tasks of one entry of `tasks` → work/tasks/<entry>, packaged and own sets (mteb keeps its own)."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.tasks", description=__doc__)
    parser.add_argument("--tasks", required=True, help="an entry of tasks: a task, or a list of task_lists")
    entry = parser.parse_args().tasks

    config = stages.load(f"tasks-{entry}")
    with manifest.recording(f"tasks-{entry}", inputs=["work/questions"]):
        from dream.data import tasks

        manifest.check("questions", "work/questions")
        with replacing_folder(tasks.FOLDER / entry) as folder:
            names = tasks.write_entry(entry, config, folder)
    print(f"[tasks-{entry}] {', '.join(names)}")


if __name__ == "__main__":
    main()
