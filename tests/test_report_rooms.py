"""Rooms of the report: who imports whom, read from the source, imports inside functions too."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from dream import names

ROOT = Path(__file__).resolve().parent.parent
FILES = [*(ROOT / "dream" / "report").rglob("*.py"), *(ROOT / "dream" / "planning").rglob("*.py"), ROOT / "dream" / "export.py"]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
ROOMS = [
    "stats",
    "results",
    "tables",
    "plots",
    "build",
    "commands",
    "verdict",
    "page",
    "planning",
    "export",
    "cli",
]  # lowest first


def room(module: str) -> str:
    """The room of a module: the first part below dream or dream.report.

    >>> room("dream.report.tables.render"), room("dream.export")
    ('tables', 'export')
    """
    return module.removeprefix("dream.").removeprefix("report.").partition(".")[0]


def imports(module: str, text: str) -> set[str]:
    """The modules of these rooms that a source text imports, wherever the import stands; of a package, what is taken from it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            given = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])]) if node.level else node.module
            inner = [f"{base}.{alias.name}" for alias in node.names]
            given = [name if name in MODULES else base for name in inner]
        else:
            continue
        found |= {name for name in given if name in MODULES}
    return found


GRAPH = {module: imports(module, path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def test_the_reader_of_imports_sees_every_kind():
    text = (
        "import dream.report.stats\nfrom dream.report import plots, stats as s\nfrom dream.report.tables.render import Table\n"
        "def f():\n    from dream import export\n    from . import page\n    from dream.config import Config\n"
    )
    seen = ("report.stats", "report.plots", "report.tables.render", "export", "report.page")
    assert imports("dream.report.build", text) == {f"dream.{name}" for name in seen}


def test_no_module_imports_one_that_imports_it():
    order = list(TopologicalSorter(GRAPH).static_order())  # a circle raises with its modules
    assert order.index("dream.report.results.cells") < order.index("dream.report.page")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_knows_only_the_rooms_below_it(module):
    if module in ("dream.report", "dream.planning"):
        assert not GRAPH[module]
    else:
        allowed = ROOMS[: ROOMS.index(room(module)) + 1]
        assert {room(other) for other in GRAPH[module]} <= set(allowed), GRAPH[module]


def test_what_is_tested_imports_nothing_of_the_evaluation():
    text = MODULES["dream.report.stats"].read_text(encoding="utf-8")
    assert "dream." not in "\n".join(line for line in text.splitlines() if line.startswith(("import ", "from ")))


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"dream.export"}))
def test_no_objective_is_named(module):
    """What holds for one of them is asked of its class. A quoted "dream" is the objective; bare it may be the package."""
    others = "|".join(name for name in names.registered("objectives") if name != "dream")
    text = MODULES[module].read_text(encoding="utf-8")
    assert re.findall(rf"(?i)\b(?:{others})\b|[\"']dream[\"']", text) == []
