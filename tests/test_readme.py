"""What README shows is what the committed reports hold."""

import pathlib
import re

README = pathlib.Path("README.md").read_text()


def test_the_table_is_the_one_that_the_pipeline_wrote():
    shown = re.search(r"<!-- reports/tables/main.md -->\n(.*?)<!-- end -->", README, re.S)[1].strip()
    written = pathlib.Path("reports/tables/main.md").read_text()
    rows = "\n".join(line for line in written.splitlines() if line.startswith("|"))
    assert shown == rows


def test_every_file_that_readme_names_exists():
    names = set(re.findall(r"(?:docs|reports|stages|dream|tests)/[\w./-]+\.\w+", README))
    assert names
    assert not [n for n in names if not pathlib.Path(n).exists()]
