"""Docstring → code: the recipe of CodeSearchNet on installed Python packages, read with ``ast``, nothing imported.

A function with a docstring gives one pair: the query is the docstring's first sentence, the passage is the source
without the docstring, the group is the module. Which packages are trained on and which are held out is decided here,
by package, never at random. Versions of the packages are part of the data: see :func:`versions`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from dream.data.packaged import Pair
from dream.errors import DreamError
from dream.files import cache_folder, replacing, sha256, value_hash

TRAINING = ("stdlib", "numpy", "scipy", "pandas", "sklearn")
HELD_OUT = ("networkx", "statsmodels")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
SKIPPED = re.compile(
    r"(^|/)(_?tests?|testing|conftest|test_\w+|_vendor\w*|vendored|externals?|extern|array_api_\w+|site-packages|"
    r"idlelib|lib2to3|ensurepip|turtledemo|_pyrepl|compat|sandbox)(/|\.py|$)"
)
WORDS = range(4, 41)
MIN_BODY_LINES = 3
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(\[])")


def versions(packages: tuple[str, ...] = TRAINING + HELD_OUT) -> dict[str, str]:
    """Version of every package: the standard library's is Python's."""
    return {
        name: platform.python_version() if name == "stdlib" else importlib.metadata.version(DISTRIBUTIONS.get(name, name))
        for name in packages
    }


def pairs(package: str) -> list[Pair]:
    """All docstring → code pairs of one package, in the order of its files; a repeated query counts once.

    Reading takes seconds, so the pairs of a version are kept in the cache.

    Raises:
        DreamError: the package is not installed.
    """
    root = folder(package)
    key = value_hash([versions((package,)), sha256(__file__)])[:16]
    kept = cache_folder() / "code" / f"{package}-{key}.parquet"
    if not kept.exists():
        with replacing(kept) as temporary:
            pd.DataFrame(_read(package, root), columns=Pair._fields).to_parquet(temporary)
    return [Pair(*row) for row in pd.read_parquet(kept).itertuples(index=False)]


def _read(package: str, root: Path) -> list[Pair]:
    found: dict[str, Pair] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED.search(name):
            continue
        group = f"{package}.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for query, source in functions(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(query, Pair(query, group, "", source))
    return list(found.values())


def folder(package: str) -> Path:
    """Folder of a package's source files, found without importing it."""
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DreamError(f"the package {package} is not installed", "Install the project's requirements again")
    return Path(next(iter(spec.submodule_search_locations)))


def functions(source: str) -> Iterator[tuple[str, str]]:
    """(query, code) of every function of a module's source that has a usable docstring.

    >>> list(functions('def f(x):\\n "Return the square of x. Really."\\n y = x\\n y *= x\\n return y'))
    [('Return the square of x.', 'def f(x):\\n y = x\\n y *= x\\n return y')]
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            query = first_sentence(ast.get_docstring(node) or "")
            documented = node.body[0]
            body = [line for line in lines[documented.end_lineno : node.end_lineno] if line.strip()]
            if query and len(body) >= MIN_BODY_LINES:
                head = lines[node.lineno - 1 : documented.lineno - 1]
                yield query, textwrap.dedent("\n".join(head + lines[documented.end_lineno : node.end_lineno])).strip()


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring if it can serve as a query (4 to 40 words), else an empty string.

    >>> first_sentence("Return the mean of all values. Slow.\\n\\nMore."), first_sentence("See the other function.")
    ('Return the mean of all values.', '')
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = _SENTENCE.split(paragraph)[0]
    usable = len(sentence.split()) in WORDS and not re.match(r"(See|Deprecated|DEPRECATED|\.\.|:)", sentence)
    return sentence if usable else ""
