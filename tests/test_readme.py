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


def prose():
    """README without its generated blocks."""
    return re.sub(r"<!-- reports/.*?<!-- end -->", "", README, flags=re.S)


def commands():
    """The commands of README, without their comments."""
    lines = [line.strip() for line in prose().splitlines() if line.startswith("    ")]
    found = [part.strip() for line in lines for part in re.split(r" {2,}#", line)[0].split("&&")]
    return [command.removeprefix(". ") if command.startswith(". .venv") else command for command in found]


def test_readme_is_short():
    assert README.count("\n") <= 110


def test_no_score_stands_in_readme_but_in_generated_blocks():
    assert re.findall(r"(?<![\w.])\.\d{3}\b", README) and not re.findall(r"(?<![\w.])\.\d{3}\b", prose())


def test_every_file_that_readme_names_is_a_link_to_it():
    """In prose; a command's files are its own."""
    text = "\n".join(line for line in prose().splitlines() if not line.startswith("    "))
    links = dict(re.findall(r"\[([^\]]*)\]\(([^)]+)\)", text))
    assert links and not [place for place in links.values() if not pathlib.Path(place).exists()]
    bare = re.sub(r"\[[^\]]*\]\([^)]+\)", "", text)
    named = re.findall(r"(?:\b[\w-]+/)+[\w-]+\.\w+|\b\w+\.(?:md|yaml|py|cff|txt)\b", bare)
    assert not named, "these are names without a link"
    assert {"docs/own.md", "docs/objectives.md", "CONTRIBUTING.md", "docs/ablations.md"} <= set(links.values())


def test_the_three_doors_stand_as_headings_in_their_order():
    heads = re.findall(r"^## (.*)$", README, re.M)
    doors = ["Does the claim hold?", "My documents", "Add a method"]
    assert [head for head in heads if head in doors] == doors
    assert README.index("## See it") < README.index("## Run it") < README.index(doors[0])


ELSEWHERE = {  # a command of README that CI runs in another place: the file, and how it stands there
    "make repro": ("Makefile", "repro: .venv/installed\n\tPATH="),
    "python3 -m venv .venv": ("Makefile", "-m venv .venv"),
    ".venv/bin/activate": ("tests/readme_commands.sh", 'export PATH="$root/.venv/bin:$PATH"'),
    "pip install -c constraints.txt torch": ("Makefile", "install -q -c constraints.txt torch"),
    "pip install -c constraints.txt -e '.[test]'": ("Makefile", "install -q -c constraints.txt -e '.[test]'"),
    "dvc exp run -S model.size=0.5b": ("tests/test_paper_recipe.py", "0.5b"),
    "dvc exp run -S recipe=smoke": ("tests/readme_commands.sh", "s/^recipe: auto/recipe: smoke/"),
    "python examples/sentence_transformers_loss.py": ("tests/test_losses.py", "sentence_transformers_loss"),
}


def test_every_command_of_readme_is_run_by_ci():
    script = pathlib.Path("tests/readme_commands.sh").read_text(encoding="utf-8")
    steps = re.findall(r"^step (.*)$", script, re.M)
    for command in commands():
        if command in ELSEWHERE:
            file, text = ELSEWHERE[command]
            assert text in pathlib.Path(file).read_text(encoding="utf-8"), command
        else:
            assert any(f"{step} ".startswith(f"{command} ") for step in steps), f"{command} is run nowhere"
    assert not set(ELSEWHERE) - set(commands())


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
    rooms = [path for room in ("dream/judge", "dream/objectives", "stages") for path in pathlib.Path(room).glob("*.py")]
    assert counts.keys() == {*modules, "all"}
    assert {
        str(path) for path in rooms if "\ndef " in (text := path.read_text(encoding="utf-8")) or "\nclass " in text
    } <= modules.keys()
    assert counts["all"][-1] == 0, "every survivor has a reason"
    assert counts.pop("all") == [sum(column) for column in zip(*counts.values(), strict=True)]
    assert all(count[0] == sum(count[1:]) for count in counts.values())
