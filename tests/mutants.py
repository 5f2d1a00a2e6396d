"""Mutation testing: change one thing in a module, run the tests that execute the changed line; a test must go red.

    make mutants                                  # every module of [tool.mutants] in pyproject.toml
    make mutants FILE=dream/judge/heads.py

The operators are mutmut's, less what no test should pin down (messages, types, devices), and two more: a statement
that is a call, a raise or a return is left out, a condition is turned round. mutmut's own runner passes over decorated functions
(every stage, everything under ``no_grad``) and restarts pytest for each mutant. Here pytest collects once, the tests run once
to see which lines each executes, and every mutant is a fork in which the function's code is exchanged and these tests run,
first those that are fast and have killed others. Constants and class attributes change by a new import instead.

Outcomes lie in ``.dream/mutants``, one file a module: a killed mutant is not run again as long as the mutated source is the
same, a survivor as long as the tests are too. docs/mutants.md is written anew: counts, and the survivors with the reasons that
stand there. A survivor without a reason ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import hashlib
import json
import multiprocessing.forkserver
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
STORE, REPORT = ROOT / ".dream" / "mutants", ROOT / "docs" / "mutants.md"
SECONDS = 20  # of processor time that one mutant's tests may take, beyond three times what they take without it
SILENT = {"print", "tqdm", "DreamError", "ValueError", "RuntimeError", "ArgumentParser", "add_argument"}  # calls with messages
WITHOUT_EFFECT = {"device", "desc", "unit", "disable", "stacklevel", "encoding", "strict"}  # keywords; no accelerator is here
STDERR = 93  # a file descriptor that pytest does not capture: why a mutant died
BETWEEN = "`<br>`"  # what a line becomes in mutants that survive for one reason: one row
MARKS = "| file | mutants | killed | timeout | explained | unexplained |"


# ------------------------------------------------------------------------------------------------------------ mutants


def mutants(path: Path) -> list[dict]:
    """All mutants of a module: the whole mutated ``source``, ``line``, the line ``was`` and ``becomes``, the ``function``."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation import mutators

    before = path.read_text(encoding="utf-8")

    def statement(node):
        small = node.body[0] if len(node.body) == 1 else None
        called = isinstance(small, cst.Expr) and isinstance(small.value, cst.Call) and name(small.value) not in SILENT
        if called or isinstance(small, (cst.Raise, cst.Return)):
            yield node.with_changes(body=[cst.Pass()])

    def condition(node):
        yield node.with_changes(
            test=cst.UnaryOperation(cst.Not(), node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]))
        )

    def arguments(node):
        """A positional argument becomes None, a keyword falls back on its default."""
        for i, given in enumerate(node.args):
            if given.keyword is None and not given.star and not _is_none(given.value) and name(given.value) != "device":
                yield node.with_changes(args=[*node.args[:i], given.with_changes(value=cst.Name("None")), *node.args[i + 1 :]])
            elif given.keyword is not None and given.keyword.value not in WITHOUT_EFFECT:
                yield node.with_changes(args=[*node.args[:i], *node.args[i + 1 :]])

    def string(node):
        yield from list(mutators.operator_string(node))[:1]

    def swap(node):
        if not (isinstance(node, cst.UnaryOperation) and isinstance(node.expression, cst.Integer)):  # -1 and 1 are one dimension
            yield from mutators.operator_swap_op(node)

    def name(node):
        """The last name of what is called or looked up."""
        node = getattr(node, "func", node)
        return node.attr.value if isinstance(node, cst.Attribute) else getattr(node, "value", "")

    def names_a_type(node):
        """``tuple[int, int]`` or ``Sequence[float] | None`` as the value of a module's name."""
        union = isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.BitOr)
        return isinstance(node, cst.Subscript) or (union and names_a_type(node.left))

    def _is_none(node):
        return isinstance(node, cst.Name) and node.value == "None"

    replaced = {mutators.operator_arg_removal: arguments, mutators.operator_string: string, mutators.operator_swap_op: swap}
    operators = [(kind, replaced.get(op, op)) for kind, op in mutators.mutation_operators]
    operators += [(cst.SimpleStatementLine, statement), (cst.If, condition), (cst.While, condition)]

    class Visitor(cst.CSTVisitor):
        METADATA_DEPENDENCIES = (PositionProvider,)

        def __init__(self):
            self.part, self.found, self.within = 0, [], []

        def on_visit(self, node):
            if isinstance(node, (cst.Annotation, cst.Decorator, cst.FormattedString, cst.Assert, cst.Import, cst.ImportFrom)):
                return False
            if isinstance(node, cst.Call) and name(node) in SILENT:
                return False
            if isinstance(node, cst.Expr) and isinstance(node.value, (cst.SimpleString, cst.ConcatenatedString)):
                return False  # a docstring
            if isinstance(node, cst.Arg) and (
                name(node.value) == "device" or (node.keyword and node.keyword.value in WITHOUT_EFFECT)
            ):
                return False
            if isinstance(node, cst.If) and name(getattr(node.test, "left", node.test)) in ("TYPE_CHECKING", "__name__"):
                return False  # what a type checker reads, what a process of its own runs
            if isinstance(node, cst.Assign) and not self.within and names_a_type(node.value):
                return False
            if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
                self.within.append(node)
            for kind, operator in operators:
                if isinstance(node, kind):
                    line = self.get_metadata(PositionProvider, node, None)
                    for mutated in operator(node):
                        self.found.append((self.part, node, mutated, line.start.line if line else 0, tuple(self.within)))
            return True

        def on_leave(self, node):
            if self.within and self.within[-1] is node:
                self.within.pop()

    tree = MetadataWrapper(cst.parse_module(before))
    visitor = Visitor()
    body = tree.module.body
    with visitor.resolve(tree):
        for visitor.part in range(len(body)):
            body[visitor.part].visit(visitor)
    written = [tree.module.code_for_node(part) for part in body]
    header, footer = before.split("".join(written))
    found, seen = [], {before}
    for part, node, mutated, line, within in visitor.found:
        changed = tree.module.code_for_node(body[part].deep_replace(node, mutated))
        source = "".join([header, *written[:part], changed, *written[part + 1 :], footer])
        if source in seen:
            continue
        seen.add(source)
        try:
            compile(source, str(path), "exec")
        except SyntaxError:
            continue
        functions = [n for n in within if isinstance(n, cst.FunctionDef)]
        outer = within[: within.index(functions[0]) + 1] if functions else ()
        inside = functions and not _in_header(functions[0], node)
        found.append(
            {"source": source, "function": ".".join(n.name.value for n in outer) if inside else None}
            | _change(before, source, line)
        )
    return found


def _in_header(function, node) -> bool:
    """Whether a node is a default value of a function: evaluated at import."""
    return any(node is n for n in _walk(function.params))


def _walk(node):
    yield node
    for child in node.children:
        yield from _walk(child)


def _change(before: str, after: str, line: int) -> dict:
    """First changed line of a mutant, before and after, without what both have around it."""
    a, b = before.splitlines(), after.splitlines()
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal":
            was, becomes = (" ".join(" ".join(x).split()) for x in (a[a0:a1], b[b0:b1]))
            return {"line": a0 + 1, "was": was, "becomes": becomes or "(left out)"}
    return {"line": line, "was": "", "becomes": ""}


# ------------------------------------------------------------------------------------------------------------- running


class Witness:
    """A pytest plugin: the first failure ends a mutant's process: no report, no teardown."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item, call) -> None:
        if os.getpid() != self.parent and call.excinfo and not call.excinfo.errisinstance(pytest.skip.Exception):
            os.write(STDERR, f"{item.nodeid}\n{call.when}: {call.excinfo.exconly()}\n{call.excinfo.traceback[-1]}\n".encode())
            os._exit(1)


class Runner(Witness):
    """A pytest plugin: in place of the test loop, the mutants of some modules."""

    def __init__(self, modules: dict[str, list[str]], fresh: bool, jobs: int) -> None:
        super().__init__(os.getpid())
        self.modules, self.fresh, self.jobs = modules, fresh, jobs
        self.counts, self.survivors, self.kills, self.hashes = {}, [], Counter(), {}
        for module, files in modules.items():  # before anybody can edit them
            tests = sorted({*files, "tests/reference.py", "tests/toy_project.py"})
            self.hashes[module] = _hash(*((ROOT / f).read_text(encoding="utf-8") for f in tests))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session) -> bool:
        self.session, self.items = session, {item.nodeid: item for item in session.items}
        lines = self._baseline()
        for module, files in self.modules.items():
            self._module(module, lines[module], {n for n in self.items if any(n.startswith(f) for f in files)})
            self.missing = write(self.counts, self.survivors, reasons())
        return True

    def _baseline(self) -> dict[str, dict[int, set[str]]]:
        """The tests that execute each line of each module; takes the processor time of every test."""
        from coverage import Coverage

        coverage = Coverage(data_file=None, include=[str(ROOT / m) for m in self.modules], config_file=False)
        coverage.start()
        seconds = self.seconds = {}
        for nodeid, item in self.items.items():
            coverage.switch_context(nodeid)
            started = time.process_time()
            self._run(item)
            seconds[nodeid] = time.process_time() - started
            if self.session.testsfailed:
                raise pytest.UsageError(f"{nodeid} fails without a mutant")
        coverage.stop()
        data, found = coverage.get_data(), {}
        for module in self.modules:
            contexts = data.contexts_by_lineno(str(ROOT / module))
            found[module] = {line: set(names) & set(seconds) for line, names in contexts.items()}
        print(f"\n{len(seconds)} tests pass in {sum(seconds.values()):.0f} s", flush=True)
        gc.collect()
        self.functions = _functions({str(ROOT / module) for module in self.modules})
        gc.freeze()
        return found

    def _run(self, item) -> None:
        """One test; fixtures of the session stay."""
        doctest = getattr(item, "dtest", None)
        names = dict(doctest.globs) if doctest else {}
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=self.session)
        if doctest:
            doctest.globs.update(names)  # a doctest is made to run once

    def _module(self, module: str, lines: dict[int, set[str]], tests: set[str]) -> None:
        path, store, found, tests_now = ROOT / module, STORE / f"{module.replace('/', '-')}.json", {}, self.hashes[module]
        known = json.loads(store.read_text(encoding="utf-8")) if store.exists() and not self.fresh else {}
        self.kills.clear()
        statements, every, work = _statements(path), {_hash(m["source"]): m for m in mutants(path)}, {}
        for key, mutant in every.items():
            stored = known.get(key, {})
            if stored.get("outcome") in ("killed", "timeout") or stored.get("tests") == tests_now:
                found[key] = stored
            else:
                first, last = statements.get(mutant["line"], (mutant["line"],) * 2)
                on_line = set().union(*(lines.get(line, set()) for line in range(first, last + 1))) & tests
                if mutant["function"] and on_line:
                    work[key] = mutant, on_line
                else:  # what runs at import
                    work[key] = mutant | {"function": None}, tests
        same = {"source": path.read_text(encoding="utf-8")}
        control = {bool(mutant["function"]): (mutant | same, several) for mutant, several in reversed(work.values())}
        for in_function, outcome in self._outcomes(path, control):
            if outcome != "survived":
                kind = "function" if in_function else "import"
                raise pytest.UsageError(f"{module}: without a change the tests give {outcome} ({kind}): {self.died}")
        started = time.perf_counter()
        for number, (key, outcome) in enumerate(self._outcomes(path, work), 1):
            found[key] = {"outcome": outcome, "tests": tests_now}
            if outcome == "survived":
                print(f"survived  {module}:{every[key]['line']}  {every[key]['was']}  →  {every[key]['becomes']}", flush=True)
            if number % 20 == 0 or number == len(work):
                store.write_text(json.dumps(known | found, indent=0), encoding="utf-8")
                print(f"{module}: {number} of {len(work)}, {(time.perf_counter() - started) / number:.1f} s each", flush=True)
        outcomes = [found[key]["outcome"] for key in every]
        self.counts[module] = {"mutants": len(every)} | {o: outcomes.count(o) for o in ("killed", "timeout", "survived")}
        self.survivors += [{"file": module, **m} for key, m in every.items() if found[key]["outcome"] == "survived"]

    def _outcomes(self, path: Path, work: dict[str, tuple[dict, set[str]]]):
        """Yield the key and outcome of every mutant, as they come; ``jobs`` processes at a time."""
        waiting, running = list(work.items())[::-1], {}
        while waiting or running:
            if waiting and len(running) < self.jobs:
                key, (mutant, tests) = waiting.pop()
                if tests:
                    log = tempfile.TemporaryFile()  # noqa: SIM115
                    order = sorted(tests, key=lambda nodeid: self.seconds[nodeid] / (1 + self.kills[nodeid]))
                    running[self._fork(path, mutant, order, log)] = key, log
                else:
                    yield key, "survived"
            else:
                child, status = os.wait()
                if child in running:
                    key, log = running.pop(child)
                    log.seek(0)
                    self.died = log.read().decode()
                    self.kills[self.died.partition("\n")[0]] += 1
                    yield key, _outcome(status)

    def _fork(self, path: Path, mutant: dict, tests: list[str], log) -> int:
        """Run tests on a mutant in a process of its own, with a limit of processor time; returns its number."""
        sys.stdout.flush()
        if child := os.fork():
            return child
        code = 1
        try:
            limit = int(SECONDS + 3 * sum(self.seconds[n] for n in tests))
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            signal.alarm(10 * limit)
            os.dup2(log.fileno(), STDERR)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            code = self._child(path, mutant, tests)
        finally:
            os._exit(code)

    def _child(self, path: Path, mutant: dict, tests: list[str]) -> int:
        gc.disable()
        multiprocessing.forkserver._forkserver.__init__()  # the parent's server is no child of this process
        self.session.config.pluginmanager.unregister(name="terminalreporter")
        if not (mutant["function"] and self._exchange(path, mutant["source"], mutant["function"])):
            return _anew(path, mutant["source"], tests, Witness(self.parent))
        for nodeid in tests:
            self._run(self.items[nodeid])
        return 0

    def _exchange(self, path: Path, source: str, function: str) -> bool:
        """Give a function of a loaded module the mutated code; False if it cannot be exchanged."""
        new, held = compile(source, str(path), "exec"), self.functions.get((str(path), function), [])
        for name in function.split("."):
            new = next(c for c in new.co_consts if isinstance(c, CodeType) and c.co_name == name)
        if any(len(f.__code__.co_freevars) != len(new.co_freevars) for f in held):
            return False
        for one in held:
            one.__code__ = new
        return bool(held)


def _outcome(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL) else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _statements(path: Path) -> dict[int, tuple[int, int]]:
    """Line → first and last line of the smallest statement around it; of a compound statement only its head."""
    found: dict[int, tuple[int, int]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):  # outer ones first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if isinstance(body, list) and body else node.end_lineno
            found |= dict.fromkeys(range(node.lineno, last + 1), (node.lineno, last))
    return found


def _functions(paths: set[str]) -> dict[tuple[str, str], list[FunctionType]]:
    """All functions that were read from some files, by file and qualified name, wherever they are held."""
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for held in gc.get_objects():
        if isinstance(held, FunctionType) and held.__code__.co_filename in paths:
            found.setdefault((held.__code__.co_filename, held.__code__.co_qualname), []).append(held)
    return found


def _anew(path: Path, source: str, tests: list[str], witness: Witness) -> int:
    """Import everything of ours again, the module in its mutated form, and run the tests."""
    import importlib.machinery

    ours = [n for n, m in sys.modules.items() if isinstance(m, ModuleType) and str(getattr(m, "__file__", None) or "").startswith(f"{ROOT}/")
            and ".venv" not in m.__file__ and n not in ("__main__", "conftest")]  # fmt: skip
    for name in ours:
        del sys.modules[name]
    get_code = importlib.machinery.SourceFileLoader.get_code

    def mutated(loader, fullname):
        return compile(source, str(path), "exec") if loader.path == str(path) else get_code(loader, fullname)

    importlib.machinery.SourceFileLoader.get_code = mutated
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "AssertionRewritingHook"]  # it has a loader of its own
    options = [
        "--assert=plain",
        "--tb=no",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={STORE}/anew-{os.getpid()}",
        "--doctest-modules",
    ]
    os.chdir(ROOT)
    return int(pytest.main([*options, *tests], plugins=[witness]))


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- report


def reasons() -> dict[tuple[str, str, str], str]:
    """(file, was, becomes) → why a survivor is no gap in the tests, as docs/mutants.md says."""
    found = {}
    for line in REPORT.read_text(encoding="utf-8").splitlines() if REPORT.exists() else ():
        cells = [c.strip().strip("`").replace("\\|", "|") for c in line.replace("\\|", "\0").strip("|").split("|")]
        cells = [c.replace("\0", "|").strip("`") for c in cells]
        if len(cells) == 4 and ":" in cells[0] and not cells[0].startswith("-"):
            for becomes in cells[2].split(BETWEEN):
                found[cells[0].rsplit(":", 1)[0], cells[1], becomes] = cells[3]
    return found


def write(counts: dict[str, dict], survivors: list[dict], known: dict[tuple[str, str, str], str]) -> int:
    """Write docs/mutants.md for the modules that ran, leaving the others' rows; returns the survivors without a reason."""
    text = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
    head = text.split(MARKS)[0]
    old = [line for line in text.split(MARKS)[-1].splitlines() if line.startswith("| ")] if MARKS in text else []
    ran, missing = set(counts), 0
    rows, explained, folded = {}, [], {}
    for line in old:
        file = line.split("|")[1].strip().rsplit(":", 1)[0]
        if file in ran or file in ("file", "place", "all"):
            continue
        if ":" in line.split("|")[1]:
            explained.append(line)
        else:
            rows[file] = [int(c.replace(",", "")) for c in line.split("|")[2:7]]
    for survivor in survivors:
        why = known.get((survivor["file"], survivor["was"], survivor["becomes"]), "?")
        survivor["why"], missing = why, missing + (why == "?")
        was, becomes = (survivor[k].replace("|", "\\|") for k in ("was", "becomes"))
        folded.setdefault((f"{survivor['file']}:{survivor['line']}", was, why), []).append(becomes)
    explained += [f"| {place} | `{was}` | `{BETWEEN.join(several)}` | {why} |" for (place, was, why), several in folded.items()]
    for file, c in counts.items():
        unexplained = sum(s["file"] == file and s["why"] == "?" for s in survivors)
        rows[file] = [c["mutants"], c["killed"], c["timeout"], c["survived"] - unexplained, unexplained]
    table = [f"| {file} | " + " | ".join(f"{n:,}" for n in row) + " |" for file, row in sorted(rows.items())]
    table.append("| all | " + " | ".join(f"{sum(c):,}" for c in zip(*rows.values(), strict=True)) + " |")
    body = [
        MARKS,
        "|---|---:|---:|---:|---:|---:|",
        *table,
        "",
        "| place | was | becomes | why it survives |",
        "|---|---|---|---|",
    ]

    def place(line):
        file, number = line.split("|")[1].strip().rsplit(":", 1)
        return file, int(number)

    REPORT.write_text(head + "\n".join([*body, *sorted(explained, key=place)]) + "\n", encoding="utf-8")
    print("\n".join(["", MARKS, "|---|---:|---:|---:|---:|---:|", *table]))
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="modules; by default all of [tool.mutants]")
    parser.add_argument("--fresh", action="store_true", help="run every mutant again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time; by default as many as processors")
    parser.add_argument("--count", action="store_true", help="only count the mutants")
    args = parser.parse_args()
    os.chdir(ROOT)
    STORE.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_THREAD_LIMIT"] = "1"  # a fork waits for ever for the threads that a stage had started before it
    known = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
    if unknown := set(args.files) - set(known):
        sys.exit(f"error: [tool.mutants] in pyproject.toml has no tests for {', '.join(sorted(unknown))}")
    modules = {m: [m, *(f"tests/{t}.py" for t in tests)] for m, tests in known.items() if m in args.files or not args.files}
    if args.count:
        for module in modules:
            print(f"{len(mutants(ROOT / module)):6} {module}")
        return
    runner = Runner(modules, args.fresh, args.jobs)
    for left in STORE.glob("anew-*"):  # of processes that a failing test ended
        shutil.rmtree(left)
    options = [
        f"--basetemp={STORE}/tmp",
        "-q",
        "-x",
        "--doctest-modules",
        "-p",
        "no:cacheprovider",
        "-o",
        "tmp_path_retention_policy=none",
        "-o",
        "addopts=",
        "-m",
        "not slow",
    ]
    sys.path.insert(0, str(ROOT))
    with contextlib.suppress(SystemExit):
        code = pytest.main([*options, *sorted({t for tests in modules.values() for t in tests})], plugins=[runner])
    if not runner.counts:
        sys.exit(f"error: the tests do not run (pytest's code {int(code)}). Run them without mutants first")
    found = f"error: {runner.missing} mutants survive without a reason in {REPORT.relative_to(ROOT)}"
    sys.exit(found if runner.missing else 0)


if __name__ == "__main__":
    main()
