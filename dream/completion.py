"""Values that the shell completes: read from params.yaml, sweeps.yaml and the source's text, which takes no time.

Each function takes what has been typed and gives the values that begin so; none where a file cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dream import names

Complete = Callable[[str], list[str]]


def _of(values: Callable[[], Iterable[Any]]) -> Complete:
    def complete(incomplete: str) -> list[str]:
        try:
            return [str(value) for value in values() if str(value).startswith(incomplete)]
        except Exception:  # nothing of it belongs on a line that is being typed
            return []

    return complete


def _read(path: str) -> dict[str, Any]:
    from dream.files import read_yaml

    return read_yaml(path)


def _listed(*keys: str) -> Iterable[str]:
    """The names in lists of params.yaml, those of every recipe."""
    raw = _read("params.yaml")
    for key in keys:
        value = raw.get(key, [])
        yield from dict.fromkeys(name for one in value.values() for name in one) if isinstance(value, dict) else value


def _sections() -> Iterable[str]:
    carriers = [names.registered("objectives"), names.registered("systems"), names.registered("systems", "reranker")]
    yield from dict.fromkeys([*_read("params.yaml"), *(name for found in carriers for name in found)])


def _recipes() -> Iterable[str]:
    from dream.knobs import RECIPES

    return ("auto", *RECIPES)


def _collected() -> Iterable[str]:
    return (
        f"sweep-{path.parent.name}" for path in sorted(Path("reports/sweeps").glob("*/*.csv")) if path.stem == path.parent.name
    )


systems = _of(lambda: _listed("references", "rerankers", "objectives"))
objectives = _of(lambda: _listed("objectives"))
sizes = _of(lambda: _read("params.yaml")["sizes"])
recipes = _of(_recipes)
sweeps = _of(lambda: _read("sweeps.yaml"))
tables = _of(lambda: [*names.registered("report/tables", "table"), *_collected()])
plots = _of(lambda: [*names.registered("report", "plot"), *_collected()])
sections = _of(_sections)
