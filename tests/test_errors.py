"""Whatever a user does to a command, the answer is one line: paths, locales, closed pipes, signals, hostile text."""

import ast
import csv
import errno
import html
import io
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import unicodedata
from types import SimpleNamespace

import pandas as pd
import pytest
import toy_project as toy
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from dream import errors
from dream.errors import DreamError, explain, visible
from dream.files import write_json
from dream.manifest import ROOT
from dream.report import page as paging
from dream.report.commands import compare
from dream.report.tables import render

TEXTS = st.text(
    st.characters() | st.sampled_from("\x1b\x07\x9b\u202e\u2066\u200b\ufeff\x00\n\t\r|`*_\\[]()<>&~#+-=@!$%{}^\"'"), max_size=30
)

# ---------------------------------------------------------------------------------------------- text that is only data


@given(TEXTS)
def test_visible_text_neither_acts_nor_hides(text):
    shown = visible(text)
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
    if "\\" not in text and text.isascii():  # nothing is lost: the escapes read back
        assert shown.encode().decode("unicode_escape") == text
    assert visible(shown) == shown


def table(text):
    return render.Table(
        "t",
        text,
        pd.DataFrame({"a": pd.Series([text], dtype=object), "b": [-0.5]}),
        ["a", text],
        [render.fields(text, "-.5")],
        [text],
    )


def content(tokens):
    return [(t.tag, token.content if not token.children else "".join(c.content for c in token.children))
            for t, token in itertools.pairwise(tokens) if token.type == "inline"]  # fmt: skip


@given(TEXTS)
def test_markdown_shows_the_text_itself(text):
    """Read by a parser of its own: title, heads, cells and notes hold the text, and nothing became markup."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(render.markdown(table(f"x{text}")))
    shown = render.one_line(f"x{text}")
    assert content(tokens) == [("h1", shown), ("th", "a"), ("th", shown), ("td", shown), ("td", "-.5"), ("p", shown)]
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"text", "text_special"}


@pytest.mark.parametrize(
    "text", ["# a", "- a", "+ a", "1. a", "1) a", "> a", "---", "a #", "~~~", "a ~~b~~ c", "```", "***", "&lt;", "<!--"]
)
def test_a_note_that_begins_like_a_block_stays_a_note(text):
    tokens = MarkdownIt("commonmark").enable("table").parse(render.markdown(table(text)))
    assert content(tokens)[0] == ("h1", text) and content(tokens)[-1] == ("p", text)


@given(st.sampled_from(["", "=", "+", "-", "@", "\t", "\r", "-1", "+.5"]), TEXTS)
def test_csv_holds_no_formula_and_keeps_its_numbers(start, text):
    text = start + text
    (row,) = csv.DictReader(io.StringIO(render.csv(table(text)), newline=""))
    assert row["b"] == "-0.500000" and row["a"].removeprefix("'") in (visible(text), visible(text).removeprefix("'"))
    if re.match(r"[=+@\-\t\r]", row["a"]):
        float(row["a"])


@pytest.mark.parametrize(("text", "latex"), [
    (r"a&b%c_d#e$f", r"a\&b\%c\_d\#e\$f"), ("{}~^", r"\{\}\textasciitilde{}\textasciicircum{}"), ("\\", r"\textbackslash{}"),
    ("--run", "-{}-run"), ("a|b`c", r"a\textbar{}b\textasciigrave{}c"), ("a\\\\input{x}", r"a\textbackslash{}\textbackslash{}input\{x\}"),
    ("\x1b]0;", r"\textbackslash{}x1b]0;"),
])  # fmt: skip
def test_latex_prints_the_text_itself(text, latex):
    written = render.latex(table(text))
    assert written.count(latex) == 4 and rf"\caption{{{latex}}}" in written


def test_a_latex_row_that_begins_with_a_bracket_is_no_option_of_the_command_before():
    assert "\n{}[x] & -.5 \\\\" in render.latex(table("[x]"))


@given(TEXTS)
def test_html_shows_the_text_itself(text):
    (cell, *_) = re.findall("<td.*?>(.*?)</td>", render.html_table(table(f"x{text}")), re.DOTALL)
    assert html.unescape(cell) == render.one_line(f"x{text}") and not re.search("[<>\"']", cell)


@given(TEXTS)
def test_json_reads_back_and_holds_no_control_character(text):
    written = render.json_text({"id": text})
    assert json.loads(written) == {"id": text} and written.replace("\n", "").isprintable()


def test_the_page_shows_text_as_text_and_keeps_the_lines_of_its_json(monkeypatch):
    hostile = "\x1b\u202e\x9b`<b>'\"&"
    lists = {name: [] for name in ("cards", "figures", "changes", "tables", "sweeps", "searches", "stages")}
    claim = {"claim": hostile, "outcome": hostile, "said": [hostile]}
    more = {
        "verdict": [claim],
        "task_count": 1,
        "confidence": "95%",
        "over": "queries",
        "remark": "",
        "reference": "",
        "passage": 1,
        "cells": {hostile: []},
    }
    settings = [{"name": hostile, "json": f"{{\n {hostile}\n}}"}]
    monkeypatch.setattr(paging, "content", lambda *_: {"title": hostile, "lead": hostile, "settings": settings, **lists, **more})
    text, shown = paging.html(None), html.escape(visible(hostile)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    assert not set(hostile[:3]) & set(text) and text.count(shown) == 9
    assert f"<pre>{{\n {shown}\n}}</pre>" in text and f'<div id="cells-{shown}">' in text


def test_a_query_id_cannot_write_to_the_terminal():
    """cases/more/escape-in-query-id, as compare prints it into a pipe and on a terminal."""
    hostile, sides = "q\x1b]0;pwn\x07\x1b[31m", [SimpleNamespace(label=label) for label in ("dream", "bm25")]
    changes = [compare.Change("toy", hostile, 0.5, 0.25, f"{hostile} text", {"dream": [{"relevant": True, "text": hostile}]})]
    lines = lambda width: compare.lines(changes, *sides, "", width)  # noqa: E731
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system=None, width=100).print(render.Coloured(lines))
    for shown in (render.joined(lines(100)), stream.getvalue()):
        assert shown.count(r"q\x1b]0;pwn\x07\x1b[31m") == 3 and shown.replace("\n", "").isprintable()


# --------------------------------------------------------------------------------------------------- errors of the system

KINDS = [IsADirectoryError(errno.EISDIR, ""), NotADirectoryError(errno.ENOTDIR, ""), FileExistsError(errno.EEXIST, ""),
         PermissionError(errno.EACCES, ""), PermissionError(errno.EPERM, ""), OSError(errno.EROFS, ""), OSError(errno.ELOOP, ""),
         OSError(errno.ENAMETOOLONG, ""), FileNotFoundError(errno.ENOENT, ""), OSError(errno.ENOTEMPTY, "")]  # fmt: skip


@pytest.mark.parametrize("error", KINDS, ids=lambda e: errno.errorcode[e.errno])
def test_a_path_of_the_users_is_one_line_and_one_of_ours_a_traceback(error, monkeypatch, tmp_path):
    error.filename = "out/page.html"
    assert re.fullmatch(r"out/page\.html [a-z ,:-]+\. [A-Z][^\n]+", explain(error))
    error.filename = str(ROOT / "dream" / "report" / "templates" / "page.html.j2")
    assert explain(error) is None
    error.filename = None
    assert explain(error) is None
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path))
    error.filename = tmp_path / "models" / "x"
    assert "Set DREAM_CACHE" in explain(error)


def test_the_line_names_the_file_and_not_its_temporary_name(tmp_path):
    (tmp_path / "page").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_json(tmp_path / "page", 1)
    assert explain(caught.value) == f"{tmp_path / 'page'} is a folder. Name a file" and len(list(tmp_path.iterdir())) == 1
    error = PermissionError(errno.EACCES, "", str(tmp_path / ".made_with.json.a1b2c3d4.json"))
    assert explain(error).startswith(f"{tmp_path / 'made_with.json'} cannot be opened")


@pytest.mark.parametrize(("error", "line"), [
    (ModuleNotFoundError("No module named 'peft'", name="peft"), "the package peft is missing. Run `pip install -c"),
    (ModuleNotFoundError("No module named 'dream.x'", name="dream"), None),
    (UnicodeEncodeError("ascii", "aé", 1, 2, "no"), "the locale's encoding ascii has no 'é'. Set LC_ALL=C.UTF-8"),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), None),
    (RuntimeError("Could not determine home directory."), "there is no home folder. Set HOME or DREAM_CACHE"),
    (RuntimeError("ours"), None), (BrokenPipeError(errno.EPIPE, ""), None),
])  # fmt: skip
def test_other_errors_of_the_environment(error, line):
    found = explain(error)
    assert found is None if line is None else found.startswith(line)


def test_an_error_line_is_one_visible_line():
    @errors.exits_cleanly
    def main():
        raise DreamError("q\x1b[31m\n\u202e", "Mend\nit")

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == r"error: q\x1b[31m\n\u202e. Mend\nit"


# ---------------------------------------------------------------------------- programs: locale, pipes, closed streams, signals

ARROWS = "↑ ↓ × − \x7f"
PROGRAM = """
import os, sys, time
from dream.errors import DreamError, exits_cleanly
from dream.files import replacing, replacing_folder
@exits_cleanly
def main():
    {body}
main()
"""


def program(body, **more):
    """A program whose main function has this body."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHONPATH": str(ROOT), **more.pop("env", {})}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(body=body)], env=environment, **more)


def ended(process):
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out or b"", err or b""


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("encoding", ["ascii:strict", "iso-8859-1:strict", "utf-8:strict", ""])
def test_any_text_is_printed_into_a_pipe_as_utf8(encoding):
    env = {**ASCII, **({"PYTHONIOENCODING": encoding} if encoding else {})}
    body = f"print({ARROWS!a}); print('\\\\ud800'); raise DreamError({ARROWS!a})"
    code, out, err = ended(program(body, env=env))
    assert (code, out.decode(), err.decode()) == (1, f"{ARROWS}\n\\ud800\n", r"error: ↑ ↓ × − \x7f" + "\n")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"\u2191 \xd7 \u2212"), ("iso-8859-1", r"\u2191 × \u2212"), ("utf-8", "↑ × −")]
)
def test_a_terminal_shows_what_its_encoding_lacks_as_escapes(encoding, shown):
    ours, theirs = pty.openpty()
    code, *_ = ended(program(f"print({'↑ × −'!a})", env={**ASCII, "PYTHONIOENCODING": encoding}, stdout=theirs))
    os.close(theirs)
    assert code == 0 and os.read(ours, 1000).decode(encoding).strip() == shown
    os.close(ours)


def test_a_reader_that_leaves_and_streams_that_are_closed_or_full():
    for body in ("[print('x' * 100) for _ in range(10_000)]", "print('x')", "sys.exit('x' if print('x') else 0)"):
        read, write = os.pipe()
        os.close(read)
        assert ended(program(body, stdout=write))[::2] == (1, b"")
        os.close(write)
    for stream in (1, 2):
        closed = program("print('x'); print('y', file=sys.stderr)", preexec_fn=lambda stream=stream: os.close(stream))
        assert ended(closed) == (0, b"x\n" if stream == 2 else b"", b"y\n" if stream == 1 else b"")
    with open("/dev/full", "wb") as full:
        code, _, err = ended(program("print('x')", stdout=full))
    assert code == 1 and err.startswith(b"error: no space left on the disk") and err.count(b"\n") == 1


def test_a_pipe_of_ours_that_breaks_keeps_its_traceback():
    code, _, err = ended(program("print('x'); raise BrokenPipeError(32, 'a worker died')"))
    assert code == 1 and b"Traceback" in err and b"a worker died" in err


@pytest.mark.parametrize(("number", "line"), [(signal.SIGINT, b"interrupted. "), (signal.SIGTERM, b"stopped by SIGTERM. ")])
@pytest.mark.parametrize("writer", ["replacing", "replacing_folder"])
def test_a_signal_leaves_one_line_and_nothing_half_written(number, line, writer, tmp_path):
    body = f"""with {writer}('out') as temporary:
        print('ready', flush=True)
        time.sleep(60)"""
    process = program(body, cwd=tmp_path)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 1 and err == line + errors.AGAIN.encode() + b"\n" and not list(tmp_path.iterdir())


def test_a_program_that_we_run_ends_in_its_own_way_on_ctrl_c(tmp_path):
    """Both get the signal, as from a terminal; the other one takes a second to save, and then we end with one line."""
    other = "import time\ntry:\n print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n time.sleep(1); open('saved', 'w')"
    body = f"from dream.errors import run_to_its_end; run_to_its_end([sys.executable, '-c', {other!r}])"
    process = program(body, cwd=tmp_path, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == (1, b"", f"interrupted. {errors.AGAIN}\n".encode()) and (tmp_path / "saved").exists()


def test_the_exit_code_of_a_program_that_we_run():
    assert errors.run_to_its_end([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    with pytest.raises(DreamError, match="no-such-program is not installed"):
        errors.run_to_its_end(["no-such-program"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_handler_of_somebody_elses_stays():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        errors.exits_cleanly(lambda: signal.raise_signal(signal.SIGTERM))()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    errors.exits_cleanly(lambda: None)()
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_program_goes_through_the_one_place():
    """Stages, benchmarks and the command line: what runs as a program is wrapped by exits_cleanly."""
    programs = [*(ROOT / "stages").glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "dream" / "cli.py"]
    programs = [path for path in programs if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert len(programs) > 15
    for path in programs:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        decorated = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "main" and "exits_cleanly" in
                     [getattr(d, "id", "") for d in f.decorator_list]]  # fmt: skip
        assert decorated or ast.unparse(tree.body[-1].body[-1]) == "exits_cleanly(main)()", path


# ------------------------------------------------------------------------------------------------- the real stages

model = pytest.fixture(scope="module")(toy.model)


def test_two_trainings_of_one_run_at_once_leave_the_bytes_of_one(model, tmp_path):
    """Both end, or one ends in a line: the other has removed the resume points that they share."""
    whole = toy.make(tmp_path / "whole", model)
    assert toy.run(whole)[0] == 0
    folder = toy.make(tmp_path / "both", model)
    both = [toy.start(folder), toy.start(folder, rank=1, env={"RANK": "0"})]  # the rank names the log
    codes = [toy.end(process) for process in both]
    assert 0 in codes and set(codes) <= {0, 1}
    for rank, code in enumerate(codes):
        lines = [line for line in toy.log(folder, rank).splitlines() if line.startswith("error: ")]
        assert len(lines) == code and "Traceback" not in toy.log(folder, rank)
    assert toy.outs(folder) == toy.outs(whole)
