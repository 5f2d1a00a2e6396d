"""The imports of dream/ are a graph without circles: every module can be read, imported and tested after those it stands on.

An import anywhere in a file counts, at the top or in a function; ``if TYPE_CHECKING`` does not. To import a module of a package
is to import the package too, unless one stands in it oneself. A room is what stands directly under dream/.
"""

import ast
from pathlib import Path

import pytest

ROOMS = sorted({p.stem for p in Path("dream").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"})
NOT_YET = {"report", "export"}  # rooms that may be in a circle still


def statements(node):
    """Import statements at any depth, but for those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from statements(child)


def above(name):
    """The packages that a module stands in.

    >>> above("a.b.c")
    ['a', 'a.b']
    """
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def graph(root="."):
    """Module → modules that it imports, for every file of dream/ and stages/ under ``root``."""
    paths = [p.relative_to(root) for room in ("dream", "stages") for p in Path(root, room).rglob("*.py")]
    known = {".".join(p.with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    found = {}
    for name, path in known.items():
        own = [*above(name), name] if path.stem == "__init__" else above(name)
        targets = set()
        for statement in statements(ast.parse(Path(root, path).read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                targets |= {alias.name for alias in statement.names}
                continue
            start = own[-statement.level] if statement.level else ""
            base = ".".join(filter(None, [start, statement.module]))
            targets |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in statement.names}
        packages = {package for target in targets for package in above(target)} - set(own)
        found[name] = {target for target in targets | packages if target in known} - {name}
    return found


def rooms(imports):
    """Room → rooms that its modules import."""
    found = {}
    for name, targets in imports.items():
        room = ".".join(name.split(".")[:2])
        found.setdefault(room, set()).update({".".join(target.split(".")[:2]) for target in targets} - {room})
    return found


def circle(imports, room):
    """The shortest circle through a module of a room, its first module again at its end; empty if there is none."""
    for start in sorted(name for name in imports if name == room or name.startswith(f"{room}.")):
        paths, seen = [[start]], set()
        for path in paths:  # grows as it goes
            for following in sorted(imports[path[-1]] - seen):
                if following == start:
                    return [*path, start]
                seen.add(following)
                paths.append([*path, following])
    return []


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in NOT_YET])
def test_a_room_is_in_no_circle_of_imports(room):
    imports = graph()
    assert f"dream.{room}" in imports
    for kind, found in (("modules", circle(imports, f"dream.{room}")), ("rooms", circle(rooms(imports), f"dream.{room}"))):
        assert not found, f"{kind}: {' → '.join(found)}"


def test_the_library_imports_no_stage():
    imports = graph()
    assert {"stages.prepare", "stages.evaluate"} <= imports.keys()
    assert not {name for name, targets in imports.items() if any(target.startswith("stages") for target in targets)}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a.py": "import dream.b", "b.py": "def f():\n    from dream import a"}, ["dream.a", "dream.b", "dream.a"]),
        ({"a.py": "import dream.b", "b.py": "if TYPE_CHECKING:\n    from dream import a"}, []),
        ({"a/__init__.py": "from dream.a import one", "a/one.py": "from . import two", "a/two.py": ""}, []),
        ({"a/__init__.py": "from .one import x", "a/one.py": "from dream.a import y"}, ["dream.a", "dream.a.one", "dream.a"]),
        ({"a/__init__.py": "from dream.a import one", "a/one.py": "import dream.b", "b.py": "from dream.a.two import x", "a/two.py": ""},
         ["dream.a", "dream.a.one", "dream.b", "dream.a"]),
        ({"a/__init__.py": "", "a/one.py": "import dream.b", "b.py": "from dream.a.two import x", "a/two.py": ""}, []),
    ],
)  # fmt: skip
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, files, found):
    for name, text in {"__init__.py": "", **files}.items():
        (tmp_path / "dream" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dream" / name).write_text(text, encoding="utf-8")
    assert circle(graph(tmp_path), "dream.a") == found
    assert bool(circle(rooms(graph(tmp_path)), "dream.a")) == ("b.py" in files and "TYPE_CHECKING" not in files["b.py"])
