"""Stage report: the cells that params lists → tables, plots, metrics.json and manifest.json."""

import argparse

from dream.config import stages
from dream.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.report", description=__doc__).parse_args()
    config = stages.load("report")
    from dream.report import build, verdict
    from dream.report.results import cells
    from dream.report.tables import registry, render

    print(f"[report] size {config.model.size}, recipe {config.recipe}", flush=True)
    results = cells.load(config)
    written = build.write_all(results)
    verdict.write(found := verdict.verdict(results))
    print(render.plain(registry.main(results)))
    print("\n".join(verdict.lines(found)))
    print(f"[report] reports/: {', '.join(written)}, verdict")


if __name__ == "__main__":
    main()
