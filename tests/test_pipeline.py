"""dvc.yaml keeps the rules that its numbers depend on (docs/design.md, "DVC")."""

import ast
import pathlib
import re
import shlex
import shutil

import pytest
from dvc.utils.hydra import apply_overrides

from dream import config, names
from dream.config import check
from dream.files import read_yaml

STAGES = read_yaml("dvc.yaml")["stages"]
PLUMBING = {"dream", "dream.errors", "dream.files", "dream.knobs", "dream.manifest", "dream.names", "dream.progress"}
LONGEST = "0_a." + "x" * 60


@pytest.mark.parametrize("name", STAGES)
def test_only_configure_reads_params_and_every_other_stage_its_own_file(name):
    """DVC leaves parameters named `size` and `nfiles` out of its run-cache key, at every depth: the command has the size."""
    stage = STAGES[name]
    if name == "configure":
        assert stage["params"] == [{"params.yaml": None}] and stage["cmd"].endswith("--size ${model.size}")
        return
    assert "params" not in stage and "model.size" not in stage["cmd"]
    (file,) = [dep for dep in stage["deps"] if dep.startswith("reports/config")]
    script = pathlib.Path("stages", re.search(r"stages\.(\w+)", stage["cmd"])[1] + ".py").read_text(encoding="utf-8")
    assert "stages.load(" in script and not re.search(r"configs?\.load\(|read_yaml|params\.yaml", script)
    assert pathlib.Path(file).name.startswith(
        {"reference": "evaluate-", "rerank": "evaluate-", "snapshot": "evaluate-", "queries": "report"}.get(name, name)
    )


def test_no_other_parameter_has_a_name_that_dvc_forgets():
    def keys(value, path=""):
        if isinstance(value, dict):
            for key, below in value.items():
                yield f"{path}.{key}".lstrip(".")
                yield from keys(below, f"{path}.{key}")

    found = [k for k in keys(read_yaml("params.yaml")) if k.split(".")[-1] in ("size", "nfiles")]
    assert found == ["model.size"]


@pytest.mark.parametrize("name", STAGES)
def test_small_results_are_without_cache_and_outs_of_work_are_cached(name):
    stage = STAGES[name]
    for out in stage.get("outs", []) + stage.get("plots", []) + stage.get("metrics", []):
        path, how = (out, {}) if isinstance(out, str) else next(iter(out.items()))
        assert (how.get("cache") is False) == path.startswith("reports/") and path.startswith(("reports/", "work/")), out
        assert name in ("configure", "queries", "report") or out not in stage.get("outs", []) or path.startswith("work/"), (
            "kept from the run-cache"
        )


@pytest.mark.parametrize("name", STAGES)
def test_what_reaches_a_command_is_a_name(name):
    """Nothing is quoted: only the size, and items of lists of names and seeds, stand in a command (dream/names.py)."""
    stage = STAGES[name]
    placeholders = set(re.findall(r"\$\{([^}]*)\}", stage["cmd"]))
    assert placeholders == ({"model.size"} if name == "configure" else {f"item.{key}" for key in stage.get("matrix", {})})
    for reference in stage.get("matrix", {}).values():
        assert re.fullmatch(r"\$\{(objectives|seeds|references|rerankers|tasks|training\.snapshots)\}", reference)


def test_dvc_makes_of_every_accepted_name_one_stage_and_one_word(tmp_path, monkeypatch):
    """DVC's own reading of dvc.yaml, with all published models and names as odd as the rule allows."""
    from dvc.repo import Repo

    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(file, tmp_path)
    models = list(read_yaml("params.yaml")["models"])
    odd = ["1e5", "true", "a--b", "A_.-0", LONGEST]
    lists = {"references": ["bm25", *models], "tasks": ["general", *odd], "rerankers": ["qrhead"], "seeds": [0, 2**32 - 1]}
    apply_overrides(tmp_path / "params.yaml", [f"{key}=[{','.join(repr(v) for v in values)}]" for key, values in lists.items()])
    found = config.load(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    with Repo() as repo:
        commands = {stage.addressing: shlex.split(stage.cmd) for stage in repo.index.stages}
    assert len(commands) == 10 + 2 * 2 + 6 + 4 + 24 + 6 * (1 + len(models)) + 6
    for tasks in found.tasks:
        for system in found.references:
            assert commands[f"reference@{names.cell(system, None, tasks)}"][-4:] == ["--system", system, "--tasks", tasks]
        for system in found.objectives:
            for seed in found.seeds:
                command = commands[f"evaluate@{names.cell(system, seed, tasks)}"]
                assert command[-6:] == ["--system", system, "--seed", str(seed), "--tasks", tasks]


def imported(path: pathlib.Path) -> set[str]:
    """Modules of dream/ that a file imports anywhere, but for types alone, as dotted names of files that exist."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {n for n in names if n.split(".")[0] == "dream" and module_path(n)}


def module_path(name: str) -> pathlib.Path | None:
    place = pathlib.Path(*name.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


def hashed(name: str) -> list[pathlib.Path]:
    """The code that `configure` hashes into a stage's file, because only one objective or system uses it."""
    room = {"train": "objectives", "evaluate": "systems", "reference": "systems", "rerank": "systems", "snapshot": "systems"}.get(
        name
    )
    kinds = [check.carrier(n) for found in (check.trained(), check.built_in(), check.rerankers()) for n in found] if room else []
    kinds = [kind for kind in kinds if kind.__module__.startswith(f"dream.{room}.")]
    return [module_path(kind.__module__) for kind in kinds] + [pathlib.Path(p) for kind in kinds for p in kind.uses]


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_cover_what_the_stage_imports(name):
    """A change in code that decides a value reruns the stage; plumbing (files, errors, records) does not."""
    declared = [pathlib.Path(d) for d in STAGES[name]["deps"] if d.startswith(("dream/", "stages/"))] + hashed(name)
    script = pathlib.Path("stages", re.search(r"stages\.(\w+)", STAGES[name]["cmd"])[1] + ".py")
    assert script in declared
    missing, seen, queue = set(), set(), [script]
    while queue:
        for module in imported(queue.pop()) - PLUMBING - seen:
            seen.add(module)
            path = module_path(module)
            if module.startswith("dream.config") and name != "configure":
                continue  # what it decides is in the stage's file
            queue.append(path)
            if not any(path.is_relative_to(d) for d in declared):
                missing.add(str(path))
    assert not missing, f"{name} imports {sorted(missing)}: add them to its deps in dvc.yaml"


def test_params_and_dvc_agree_on_the_matrix_lists():
    found = config.load()
    assert found.objectives and found.seeds and len(found.seeds) >= 2 and {"bm25", "untrained"} <= set(found.references)
