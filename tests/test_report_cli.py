"""``dream-report`` as a user runs it: starts quickly, says what is wrong in one line, and every subcommand answers."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from report_fixture import make_cells, make_config, write_params
from typer.testing import CliRunner

from dream import cli
from dream.errors import DreamError

ROOT = Path(__file__).resolve().parent.parent
SUBCOMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with params.yaml and synthetic cells."""
    folder = tmp_path_factory.mktemp("project")
    config = make_config()
    write_params(folder, config)
    make_cells(folder, config)
    return folder


@pytest.fixture
def run(project, monkeypatch):
    """Run a subcommand in the project; returns its output. A DreamError comes through as one."""
    monkeypatch.chdir(project)

    def call(*arguments, code=0):
        result = CliRunner().invoke(cli.app, list(map(str, arguments)))
        if isinstance(result.exception, DreamError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    return call


def test_the_subcommands_are_those_of_the_readme():
    expected = (
        "adapt compare doctor explain export export-runs fetch knobs page paper plan plots runs sweep tables verdict verify"
    )
    assert " ".join(SUBCOMMANDS) == expected


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_help_has_examples_and_json(name):
    text = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    assert "Examples" in text and f"dream-report {name}" in text and "--json" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from dream import cli\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'scipy', 'transformers', 'mteb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_help_starts_quickly():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dream.cli", "--help"], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.7


def test_wrong_usage_is_one_line_and_exit_code_one(project):
    done = subprocess.run(
        [sys.executable, "-m", "dream.cli", "tables", "--cells", "nowhere"],
        capture_output=True, text=True, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "error: nowhere holds no results. Run `dvc repro` first, or check out a commit that has results"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables", "--table", "mian"], "table 'mian' is unknown"),
        (["tables", "--format", "docx"], "format 'docx' is unknown"),
        (["plots", "--plot", "mian"], "plot 'mian' is unknown"),
        (["compare", "dream", "bm52"], "system 'bm52' is not in this report"),
        (["tables", "--reference", "bm52"], "system 'bm52' is not in this report"),
        (["compare", "dream", "dream"], "is compared with itself"),
        (["plan", "--size", "30b"], "params.yaml with the settings given: model.size '30b' is not defined"),
        (["plan", "--recipe", "papre"], "recipe 'papre' is not defined"),
        (["plan", "--size", "1b", "-S", "model.size=3b"], "model.size is given twice: 1b and 3b. Give it once"),
        (["explain", "no-such-query"], "is in no training set and no task"),
        (["tables", "--params", "none.yaml"], "none.yaml is missing"),
    ],
)
def test_user_errors_name_the_thing_and_the_remedy(run, arguments, message):
    with pytest.raises(DreamError, match=message) as caught:
        run(*arguments)
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_tables_print_all_or_one_in_every_format(run):
    assert "Spread over seeds" in run("tables", "--all")
    one = run("tables", "--table", "main")
    assert "nDCG@10, size tiny" in one and "Spread over seeds" not in one
    assert run("tables", "-t", "main", "-f", "csv").startswith("suite,task,system,size,recipe,ndcg_at_10")
    assert run("tables", "-t", "main", "-f", "latex").startswith(r"\begin{table}")
    assert "<table" in run("tables", "-t", "main", "-f", "html")
    assert run("tables", "-t", "main", "-f", "md").startswith("# nDCG@10")


def test_without_options_the_main_table_and_its_first_notes_are_printed(run):
    text, full = run("tables"), run("tables", "--table", "main")
    assert "Spread over seeds" not in text
    notes, every = ([line for line in one.splitlines() if line.startswith("- ")] for one in (text, full))
    assert notes[:-1] == every[:3]
    assert notes[-1] == f"- `dream-report tables --all`: {len(every) - 3} more notes, all tables."
    (table,) = json.loads(run("tables", "--json"))
    assert table["name"] == "main" and len(table["notes"]) == len(every)
    assert run("tables", "-f", "md").count("\n- ") == len(every)
    with pytest.raises(DreamError, match="--all and --table are two ways to choose tables"):
        run("tables", "--all", "-t", "main")


def test_the_version_is_that_of_the_package(run):
    from importlib.metadata import version

    assert run("--version") == f"dream-bench {version('dream-bench')}\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("plan --size tiny", {"tiny", "tiny-4l"}),
        ("plan --recipe p", {"packaged", "paper"}),
        (
            "sweep s",
            {
                "signal",
                "sizes",
                "strategies",
                "sources",
                "scalars",
                "search-dream",
                "search-infonce",
                "search-replug",
                "search-revela",
            },
        ),
        ("export --system i", {"infonce"}),
        ("compare m", {"minilm"}),
        ("compare dream b", {"bm25"}),
        ("tables --reference u", {"untrained"}),
        ("tables -t s", {"significance", "seeds", "scalars", "sweep-mine"}),
        ("plots --plot q", {"queries"}),
        ("knobs in", {"injection", "infonce"}),
    ],
)
def test_the_shell_completes_values(tmp_path, typed, expected):
    for name in ("params.yaml", "sweeps.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "reports" / "sweeps" / "mine").mkdir(parents=True)
    (tmp_path / "reports" / "sweeps" / "mine" / "mine.csv").touch()
    found = completed(tmp_path, typed)
    assert set(found) == expected and len(found) == len(expected)


def test_where_nothing_can_be_read_nothing_is_completed(tmp_path):
    (tmp_path / "params.yaml").write_text("model: [")
    assert completed(tmp_path, "plan --size t") == completed(tmp_path, "sweep s") == []


def completed(folder, typed):
    """What a shell in a folder is told for a line that is being typed."""
    words = f"dream-report {typed}"
    asked = {"_DREAM_REPORT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run([sys.executable, "-m", "dream.cli"], cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **asked})  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_tables_are_rebuilt_from_cells_alone(run, project):
    names = run("tables", "--out", "rebuilt").split()
    assert "rebuilt/main.csv" in names
    assert all((project / name).exists() for name in names)


def test_json_reads_back(run):
    (table,) = json.loads(run("tables", "-t", "main", "--json"))
    assert {row["system"] for row in table["rows"]} == {"bm25", "untrained", "dream", "infonce"}
    assert json.loads(run("compare", "dream", "bm25", "--json"))["changed"]
    plans = [json.loads(run("plan", "--size", "3b", "--device-gib", gib, "--json")) for gib in (24, 80)]
    assert plans[0]["parameters"]["judge"] == 8_030_261_248 and [plan["fits"] for plan in plans] == [False, True]
    named = run("plan", "--recipe", "smoke", "--json")
    written = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(re.sub("(?m)^recipe: .*", "recipe: smoke", written), encoding="utf-8")
    assert run("plan", "--json") == named != run("plan", "--recipe", "auto", "--json"), "the file's own recipe is not another's"
    paper, ablations, scaling = json.loads(run("paper", "--json"))
    assert len(ablations["rows"]) == 10 and len(scaling["rows"]) == 5
    assert len(paper["rows"]) == 299


def test_compare_shows_tests_and_changed_queries(run):
    text = run("compare", "dream", "untrained", "--queries", "4")
    assert "dream against untrained" in text and "Queries that changed most" in text
    assert "Not at hand, so not shown" in text


def test_plots_are_written_where_asked(run, project):
    assert run("plots", "--plot", "systems", "--out", "figures").split() == ["figures/systems.png", "figures/systems.svg"]
    assert (project / "figures" / "systems.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_has_nothing_to_show_is_an_error_where_it_is_named(run, project):
    diagnostic = project / "reports" / "results" / "diagnostic.json"
    kept = diagnostic.read_bytes()
    diagnostic.unlink()
    with pytest.raises(DreamError, match="plot 'diagnostic' has nothing to show"):
        run("plots", "--plot", "diagnostic", "--out", "figures")
    diagnostic.write_bytes(kept)


def test_the_reference_can_be_chosen(run):
    (table,) = json.loads(run("tables", "-t", "significance", "--reference", "untrained", "--json"))
    assert {row["reference"] for row in table["rows"]} == {"untrained"}
    with pytest.raises(DreamError, match="Give another folder with --out"):
        run("plots", "--reference", "untrained")


def test_paper_says_honestly_that_nothing_was_run(run):
    text = run("paper")
    assert "0 of 299 printed numbers have been run here" in text
    assert "−.003 against Revela's own paper" in text and "on 10 of 23 tasks" in text


# ------------------------------------------------------------------------------------------------ as the user starts it


@pytest.fixture
def ended(project, monkeypatch, capfd):
    """Run the program itself with these arguments; returns its one line, or its exit code. Nothing in the project changes."""
    monkeypatch.chdir(project)
    monkeypatch.setattr("dream.report.page.html", lambda _: "where it is written matters here, not what")
    monkeypatch.setattr("dream.report.tables.registry.build", lambda *_: [])
    (project / "file").touch()
    (project / "folder" / "sub").mkdir(parents=True, exist_ok=True)
    (project / "bytes").write_bytes(b"\xff\xfe\x00\x01\x80")

    def call(*arguments):
        before = sorted(project.rglob("*"))
        monkeypatch.setattr("sys.argv", ["dream-report", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert sorted(project.rglob("*")) == before
        return caught.value.code

    return call


ONE_LINE = [
    (["tabls"], "No such command 'tabls'. Did you mean 'tables'?"),
    (["tables", "--jsn"], "No such option: --jsn (Possible options: --json). `dream-report tables --help` lists"),
    (["compare", "dream"], "Missing argument 'B'. `dream-report compare --help`"),
    (["compare", "dream", "bm25", "-n", "x"], "Invalid value for '--queries' / '-n': Input should be a valid integer"),
    (["compare", "dream", "bm25", "-n", "9" * 30], "Invalid value for '--queries' / '-n': "),
    (["compare", "dream", "bm25", "-n", "9" * 5000], "Invalid value for '--queries' / '-n': "),
    (["runs", "--commits", "-1"], "Invalid value for '--commits': Input should be greater than or equal to 0"),
    (["plan", "--tflops", "nan"], "Invalid value for '--tflops': "),
    (["plan", "--device-gib", "inf"], "Invalid value for '--device-gib': "),
    (["plan", "--device-gib", "0"], "Invalid value for '--device-gib': "),
    (["explain", "q", "--seed", "1.5"], "Invalid value for '--seed': "),
    (["tables", "--out", "file"], r"\S+/file is not a folder\. Name a folder"),
    (["tables", "--out", "folder"], "folder holds other files, which would be lost. Name a new folder"),
    *(
        ([*command.split(), ""], "the place to write to is empty. Name a folder or a file")
        for command in (
            "tables --out",
            "plots --plot systems --out",
            "page --out",
            "export --out",
            "export-runs --out",
            "explain q --html",
        )
    ),
    (["page", "--out", "folder"], "'folder' is no name of an HTML file. Name one that ends in .html"),
    (["page", "--out", "params.yaml"], "'params.yaml' is no name of an HTML file"),
    (["explain", "q", "--html", "params.yaml"], "'params.yaml' is no name of an HTML file"),
    (["page", "--out", "file/page.html"], "file is there and is not a folder. Name a folder"),
    (["page", "--out", "x" * 300 + ".html"], r"\S+/x+\S* has too long a name\. Choose a shorter one"),
    (["plots", "--plot", "systems", "--out", "file"], "file is there and is not a folder. Name a folder"),
    (["export", "--out", "file"], "work/models/dream-0 is missing"),
    (["tables", "--params", "folder"], "folder "),
    (["tables", "--params", "bytes"], "bytes "),
    (["tables", "--cells", "file"], "file holds no results"),
    (["runs"], "git log: fatal: not a git repository"),
    (["verify"], "git log: fatal: not a git repository"),
    (["sweep"], "git log: fatal: not a git repository"),
    (["compare", "HEAD:dream", "bm25"], "git log: fatal: not a git repository"),
    (["tables", "--experiment", "mine"], "git log: fatal: not a git repository"),
]


@pytest.mark.parametrize(
    ("arguments", "line"), ONE_LINE, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_what_a_user_mistypes_is_one_line_and_writes_nothing(ended, monkeypatch, arguments, line):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    found = ended(*arguments)
    assert isinstance(found, str) and "\n" not in found
    assert found.startswith(f"error: {line}") or re.match(f"error: {line}", found), found


def test_without_a_command_the_help_is_shown(ended, capfd):
    assert ended() == 2 and "Usage: dream-report" in capfd.readouterr().out
    assert not ended("--help") and not ended("tables", "--help")


def test_outside_the_project_and_without_programs_the_line_says_so(ended, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ended("runs") == "error: git is not installed. Install it: experiments are read from git"
    monkeypatch.chdir(tmp_path)
    for command in ("tables", "plots", "page", "plan", "compare a b", "explain q", "export --out x"):
        assert ended(*command.split()) == "error: params.yaml is missing. Run from the project's root folder"


def test_ctrl_c_is_one_line(ended, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    assert ended("tables") == "interrupted. Run the same command again: long steps go on where they stopped"


def test_tables_replace_a_folder_of_tables_and_no_other(run, project, monkeypatch):
    import pandas as pd

    from dream.report.tables.render import Table

    monkeypatch.setattr("dream.report.tables.registry.build", lambda *_: [Table("main", "", pd.DataFrame({"a": [1]}), ["a"], [])])
    run("tables", "--out", "mine")
    (project / "mine" / "old.csv").write_text("a")
    run("tables", "--out", "mine")
    assert not (project / "mine" / "old.csv").exists()
    for name, other in (("mine", "notes.txt"), ("docs", "report.md")):
        (project / name).mkdir(exist_ok=True)
        (project / name / other).write_text("a")
        with pytest.raises(DreamError, match="holds other files"):
            run("tables", "--out", name)
        assert (project / name / other).read_text() == "a"


@pytest.mark.parametrize("command", ["tables -t diagnostic", "tabls"])
def test_an_ascii_locale_changes_nothing(project, command):
    """Every command prints the same bytes into a pipe, whatever the locale."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    runs = [
        subprocess.run([sys.executable, "-m", "dream.cli", *command.split()], cwd=project, capture_output=True, check=False,
                       env={**os.environ, "PYTHONPATH": str(ROOT), **locale})
        for locale in ({"PYTHONUTF8": "1"}, ascii_only)
    ]  # fmt: skip
    assert runs[0].stdout == runs[1].stdout and runs[0].returncode == runs[1].returncode
    assert [r.stderr.count(b"\n") for r in runs] == [runs[0].returncode] * 2, runs[1].stderr


def test_every_make_target_that_is_named_exists():
    """In the source, the README, the docs and the Makefile's own head."""
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    files = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    files += [path for room in ("dream", "stages", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    named = {
        (name, path.name)
        for path in files
        for name in re.findall(r"(?:`|^ {4}|^# |run `)make ([\w./-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"repro", "test"} <= {name for name, _ in named}
    assert {(name, file) for name, file in named if name not in targets} == set()


def test_doctor_reports_a_missing_package_and_a_home_that_is_no_folder(run, monkeypatch):
    from dream.planning import doctor

    def broken(_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
        yield

    monkeypatch.setattr(doctor, "CHECKS", [broken, doctor.disk])
    monkeypatch.setenv("DREAM_CACHE", "/dev/null/cache")
    found = {check.name: check for check in doctor.examine(None)}
    assert found["broken"].found == "not looked at: the package torch is missing" and "pip install" in found["broken"].remedy
    assert found["disk, cache"].state == doctor.PROBLEM and "not writable" in found["disk, cache"].found


def test_doctor_says_if_auto_is_not_the_faster_dtype(monkeypatch):
    import torch

    from dream.planning import doctor

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    fast, slow, close = (doctor._dtype({"float32": 150.0, "bfloat16": rate}) for rate in (400.0, 80.0, 140.0))
    assert fast.found == "float32 150, bfloat16 400 GFLOP/s; `dtype: auto` is bfloat16"
    assert (fast.state, slow.state, close.state) == (doctor.OK, doctor.NOTE, doctor.OK)
    assert slow.remedy == "Give models a dtype of float32" and not (fast.remedy or close.remedy)
    assert all(doctor._rate(name) > 0.01 for name in ("float32", "bfloat16"))


def test_doctor_compares_what_was_fetched_with_its_record_and_fetches_nothing(run, monkeypatch, tmp_path):
    from dream import assets, files
    from dream.planning import doctor

    record = {"name": "mbpp", "kind": "data", "content_sha256": "0" * 64}
    files.write_json("reports/assets/data.json", {"assets": [record]})
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    (found,) = doctor.assets(make_config())
    assert (found.name, found.state) == ("assets", doctor.NOTE) and not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (file := tmp_path / "cache" / "mbpp").write_text("problems")
    monkeypatch.setattr(assets, "data_path", lambda name: file)
    (found,) = [one for one in doctor.assets(make_config()) if one.name == "asset mbpp"]
    assert found.state == doctor.PROBLEM and "recorded 000000000000" in found.found
    files.write_json("reports/assets/data.json", {"assets": [record | {"content_sha256": files.sha256(file)}]})
    assert doctor.OK in [one.state for one in doctor.assets(make_config()) if one.name == "asset mbpp"]


def test_doctor_says_the_same_of_several_sizes_once(run, monkeypatch):
    from dream.data import needs
    from dream.planning import doctor

    def unreachable(config):
        if config.model.size != "tiny":
            raise DreamError("the hub does not answer", "Wait")

    monkeypatch.setattr(needs, "check_available", unreachable)
    tiny, others = doctor.recipes(make_config())
    assert (tiny.name, tiny.state) == ("size tiny", doctor.OK)
    assert others.found == "the hub does not answer" and {"0.5b", "8b"} < set(others.name.removeprefix("size ").split(", "))


@pytest.mark.parametrize("command", ["runs", "paper --rows", "tables"])
def test_a_broken_params_file_is_an_error_of_every_command(run, project, command):
    (project / "broken.yaml").write_text("model: [")
    with pytest.raises(DreamError, match="broken.yaml"):
        run(*command.split(), "--params", "broken.yaml")
