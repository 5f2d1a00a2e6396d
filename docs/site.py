"""Hooks of mkdocs.yml: the site has the repository's own layout, so that a link is right in both; a page a room of docstrings."""

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ["*.md", "*.yaml", "LICENSE", "NOTICE", "CITATION.cff", "docs", "reports", "dream", "stages", "examples", "configs"]
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Docstrings as Markdown: roles (:func:`name`) are code, doctests are blocks of it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that is read."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")
            obj.docstring.value = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The library's pages stand last in the contents."""
    config.nav.append({"Library": [f"api/{room}.md" for room in rooms()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Everything that git tracks and a document may link to, and one generated page for every room of dream/."""
    found = subprocess.run(["git", "ls-files", "--", *SHOWN], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in found.stdout.splitlines()]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*theme, *shown, *(File.generated(config, f"api/{room}.md", content=text) for room, text in rooms().items())])


def rooms() -> dict[str, str]:
    """Room → text of its page: its modules that say something, in order."""
    pages: dict[str, list[str]] = {}
    for path in sorted((ROOT / "dream").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            pages.setdefault(".".join(path.relative_to(ROOT).parent.parts), []).append(f"::: {module}\n")
    return {room: f"# {room}\n\n" + "\n".join(lines) for room, lines in pages.items()}
