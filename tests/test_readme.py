"""What README shows is what the committed reports hold."""

import pathlib
import re

README = pathlib.Path("README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_that_the_pipeline_wrote():
    shown = re.findall(r"<!-- (reports/\S+\.md) -->\n(.*?)<!-- end -->", README, re.S)
    assert [file for file, _ in shown] == ["reports/tables/main.md"]
    for file, block in shown:
        written = pathlib.Path(file).read_text(encoding="utf-8")
        assert block.strip() == "\n".join(line for line in written.splitlines() if line.startswith("|"))


def test_every_file_that_readme_names_exists():
    names = set(re.findall(r"(?:docs|reports|stages|dream|tests)/[\w./-]+\.\w+", README))
    assert names
    assert not [n for n in names if not pathlib.Path(n).exists()]
