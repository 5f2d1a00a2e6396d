"""Stage report: the cells that params lists → tables, plots, metrics.json and manifest.json."""

import argparse

from dream import progress
from dream.config import stages
from dream.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.report", description=__doc__).parse_args()
    config = stages.load("report")
    from dream.adapt import text
    from dream.report import build, verdict
    from dream.report.commands import closing
    from dream.report.results import cells

    progress.begin("report", f"size {config.model.size}, recipe {config.recipe}")
    results = cells.load(config)
    written = build.write_all(results)
    verdict.write(found := verdict.verdict(results))
    text.write()
    print(f"[report] reports/: {', '.join(written)}, verdict, adapt")
    print(*verdict.lines(found), "", *closing.lines(results), sep="\n")


if __name__ == "__main__":
    main()
