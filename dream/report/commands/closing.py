"""How a run of the pipeline ends: are these the committed scores, the main row, and three commands to go on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dream.errors import DreamError
from dream.report.commands import verify
from dream.report.results import cells as reading
from dream.report.results.cells import Results
from dream.report.tables import measures
from dream.report.tables.render import number


def lines(results: Results, folder: Path | str = reading.CELLS) -> Iterator[str]:
    """The last lines of stage report."""
    yield from _verified(results, folder)
    tasks = measures.overall(results)[2]
    scores = [f"{name} {number(measures.measured(results, name, tasks).value)}" for name in results.systems]
    yield f"nDCG@10, mean over {len(tasks)} task{'' if len(tasks) == 1 else 's'}: {', '.join(scores)}"
    others = [name for name in reversed(results.systems) if name != results.reference]
    commands = {
        "dream-report page": "all of it in one HTML file",
        **({f"dream-report compare {results.reference} {others[0]}": "the queries that differ most"} if others else {}),
        "dream-report sweep": "what else can be asked, and what was found",
    }
    width = max(map(len, commands)) + 2
    yield "Next:"
    yield from (f"  {command:<{width}}{what}" for command, what in commands.items())


def _verified(results: Results, folder: Path | str) -> Iterator[str]:
    """The sentence of `dream-report verify` against HEAD, or why there is none."""
    try:
        found = verify.verify(results.config, folder=folder, wanted=results.wanted)
    except DreamError as error:  # no git, or nothing committed yet: no fault of this run
        yield f"not compared with the committed scores: {error.what}"
        return
    yield next(found.lines())
    if found.odd:
        yield "  `dream-report verify` lists them"
