"""What README shows is what the committed reports hold; the tests that documents name exist."""

import pathlib
import re
import tomllib

README = pathlib.Path("README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_that_the_pipeline_wrote():
    shown = re.findall(r"<!-- (reports/\S+\.md) -->\n(.*?)<!-- end -->", README, re.S)
    assert [file for file, _ in shown] == ["reports/verdict.md", "reports/tables/main.md"]
    for file, block in shown:
        written = pathlib.Path(file).read_text(encoding="utf-8")
        kept = "|" if "/tables/" in file else "- "
        assert block.strip() == "\n".join(line for line in written.splitlines() if line.startswith(kept))


def test_every_file_that_readme_names_exists():
    names = set(re.findall(r"(?:docs|reports|stages|dream|tests)/[\w./-]+\.\w+", README))
    assert names
    assert not [n for n in names if not pathlib.Path(n).exists()]


def test_every_test_that_the_fault_report_names_exists():
    """``…`` at the beginning is the file or test named last, at the end of a name any ending."""
    report, file, named = pathlib.Path("docs/faults.md").read_text(encoding="utf-8"), "", 0
    cells = [line.rstrip(" |").rpartition(" | ")[2] for line in report.splitlines() if line.startswith("| ")]
    for place in (place for cell in cells for place in re.findall(r"`(.+?)`", cell)):
        its_file, name, open_end = re.match(r"(test_\w+\.py)?(?:…?::)?(test_\w+)?(…)?", place).groups()
        file = its_file or file
        tests = pathlib.Path("tests", file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {name}{'' if open_end else '[(]'}", tests, re.M), place
        named += bool(name)
    assert named > 50


def test_the_report_of_mutants_has_the_counts_of_every_module():
    report = pathlib.Path("docs/mutants.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in report.splitlines() if line.startswith("| ")]
    modules = tomllib.loads(pathlib.Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
    counts = {cells[0]: [int(n.replace(",", "")) for n in cells[1:]] for cells in rows if cells[0] in {*modules, "all"}}
    assert counts.keys() == {*modules, "all"}
    assert counts.pop("all") == [sum(column) for column in zip(*counts.values(), strict=True)]
    assert all(count[0] == sum(count[1:]) for count in counts.values())
