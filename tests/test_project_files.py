"""The files beside the code say what the code says: licences, citation, changelog, contributing."""

import re
import tomllib
from pathlib import Path

import pytest

from dream import __version__
from dream.assets.registry import DATA, MODELS, WHEELS
from dream.data.code import DISTRIBUTIONS, HELD_OUT, TRAINING
from dream.export import ARXIV
from dream.files import read_yaml

ROOT = Path(__file__).resolve().parent.parent
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
NAMES = {
    "smollm2-135m": "SmolLM2-135M-Instruct",
    "minilm": "all-MiniLM-L6-v2",
    "boolq-train": "BoolQ",
    "boolq-validation": "BoolQ",
}


@pytest.mark.parametrize("name", [*MODELS, *DATA])
def test_notice_has_the_licence_and_the_package_of_every_packaged_model_and_data_set(name):
    asset = (MODELS | DATA)[name]
    wheel, shown = WHEELS[asset.wheel], NAMES.get(name, name)
    (line,) = [line for line in NOTICE.splitlines() if line.lower().startswith(f"  {shown.lower()} ")]
    assert re.split(r"\s{2,}", line.strip())[1] == asset.licence
    assert f"in {wheel.package} {wheel.version}" in line


def test_notice_has_every_package_whose_code_is_read():
    for name in (*TRAINING, *HELD_OUT):
        shown = {"stdlib": "Python's standard library"}.get(name, DISTRIBUTIONS.get(name, name))
        assert re.search(rf"^  {shown} +\S", NOTICE, re.MULTILINE), name


def test_the_licence_is_the_one_that_the_package_declares():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0" == read_yaml(ROOT / "CITATION.cff")["license"]
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"] and "9. Accepting Warranty" in text
    assert set(project["license-files"]) == {"LICENSE", "NOTICE"}


def test_the_citation_names_the_paper_and_this_version():
    cited = read_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys(), "what the format asks for"
    assert str(cited["version"]) == __version__ and cited["type"] == "software"
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys() and ARXIV in paper["url"]
    assert all(author.keys() <= {"name", "family-names", "given-names"} for one in (cited, paper) for author in one["authors"])
    assert paper["title"] in " ".join(
        (ROOT / "dream/report/templates/model_card.md.j2").read_text().replace('{{ "{" }}', "").split()
    )


def test_the_changelog_keeps_its_headings():
    heads = re.findall(r"^##+ (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [head for head in heads if head.startswith("[")]
    assert versions[0] == "[Unreleased]" and all(
        re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in versions[1:]
    )
    assert set(heads) - set(versions) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_file_and_every_command_that_is_named_exists(name):
    from typer.main import get_command

    from dream import cli

    text = (ROOT / name).read_text(encoding="utf-8")
    files = set(re.findall(r"(?:docs|dream|tests)/[\w/]+(?:\.\w+)?|\b[A-Z]{4,}(?:\.\w+)?\b(?=[ ,;.)])", text))
    files = {file for file in files if "/" in file or (ROOT / file).suffix}
    assert files and [file for file in files if not (ROOT / file).exists()] == []
    commands = set(re.findall(r"dream-report ([a-z-]+)", text))
    assert commands and commands <= set(get_command(cli.app).commands)
