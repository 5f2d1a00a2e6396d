"""Stage queries: cells and tasks → the queries that changed most, with texts and ranks (reports/queries.json)."""

import argparse

from dream import progress
from dream.config import stages
from dream.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.queries", description=__doc__).parse_args()
    config = stages.load("report")
    from dream.report.commands import queries
    from dream.report.results import cells

    progress.begin("queries")
    found = queries.find(cells.load(config))
    queries.write(found)
    print(f"[queries] {len(found)} queries of {len({(one['before'], one['after']) for one in found})} pairs of systems")


if __name__ == "__main__":
    main()
