"""The one exception that a user may see, and the one place where it becomes a line on the screen."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

CODE = [Path(__file__).resolve().parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
PLACES = {  # what a path of the user's can be, and what to do about it
    errno.ENOENT: ("is missing", "Name another, or run `dvc repro` if it is a result"),
    errno.EISDIR: ("is a folder", "Name a file"),
    errno.ENOTDIR: ("is not a folder", "Name a folder"),
    errno.EEXIST: ("is there and is not a folder", "Name a folder"),
    errno.EACCES: ("cannot be opened: permission denied", "Name another place or change its permissions"),
    errno.EPERM: ("cannot be changed: not permitted", "Name another place or change its permissions"),
    errno.EROFS: ("lies on a read-only file system", "Name a place that can be written"),
    errno.ENAMETOOLONG: ("has too long a name", "Choose a shorter one"),
    errno.ELOOP: ("is a symbolic link that leads to itself", "Mend the link or name another place"),
    errno.ENOTEMPTY: ("was written by another process at the same time", "Run again when that one has ended"),
}
TEMPORARY = re.compile(r"(^|/)\.([^/]+)\.[a-z0-9_]{8}(\.[^/.]*)?$")  # how dream.files names what it renames in the end
AGAIN = "Run the same command again: long steps go on where they stopped"


class DreamError(Exception):
    """Something the user can cause and mend: one line that names the thing and the remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}. {remedy}".strip() if remedy else what)


def visible(text: str, keep: str = "") -> str:
    r"""Text in which nothing acts or hides: control, bidirectional, zero-width and unassigned characters as escapes.

    Text of documents goes through here on its way to any output. Spaces of every width stay; so do the characters in
    ``keep`` (``"\n"`` where lines are wanted).

    >>> print(visible("red\x1b[31m \u202egnp.exe\u200b\n é 中🙂"))
    red\x1b[31m \u202egnp.exe\u200b\n é 中🙂
    """
    if text.isprintable():
        return text
    shown = lambda c: c.isprintable() or c in keep or unicodedata.category(c) == "Zs"  # noqa: E731
    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in text)


def explain(error: BaseException) -> str | None:
    """Return the one line for an error that a user can cause, or None for a defect of ours.

    >>> explain(DreamError("tasks: 'bolq' is unknown", "Did you mean 'boolq'?"))
    "tasks: 'bolq' is unknown. Did you mean 'boolq'?"
    >>> explain(OSError(28, "No space left on device", "work/x"))
    'no space left on the disk while writing work/x. Free some space or move DREAM_CACHE, then run again'
    >>> explain(IsADirectoryError(21, "Is a directory", "params"))
    'params is a folder. Name a file'
    >>> explain(KeyError("x")) is None
    True
    """
    if isinstance(error, DreamError):
        return str(error)
    if isinstance(error, OSError):
        return _explain_system(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            "out of memory. Lower training.micro_batch, encoder.max_length or candidates.count in params.yaml "
            f"({str(error).splitlines()[0] if str(error) else 'no details given'})"
        )
    if isinstance(error, ModuleNotFoundError) and error.name and error.name not in ("dream", "stages", "benchmarks"):
        return f"the package {error.name} is missing. Run `pip install -c constraints.txt -e '.[bench]'` in this environment"
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        letter = error.object[error.start]
        return f"the locale's encoding {error.encoding} has no {letter!r}. Set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "there is no home folder. Set HOME or DREAM_CACHE to a folder that can be written"
    return None


def _explain_system(error: OSError) -> str | None:
    """The line of an error of the file system: for a path of the user's; one inside the code is a defect of ours."""
    path = error.filename2 or error.filename  # of a rename, what was to be replaced
    if isinstance(path, (str, os.PathLike)):
        path = TEMPORARY.sub(r"\1\2", str(path))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {path}" if path else ""
        return f"no space left on the disk{where}. Free some space or move DREAM_CACHE, then run again"
    if not isinstance(path, str) or error.errno not in PLACES:
        return None
    place = Path(os.path.abspath(path))
    if any(place.is_relative_to(code) for code in CODE):
        return None
    what, remedy = PLACES[error.errno]
    home = Path(os.path.expanduser("~"))
    caches = [*map(Path, filter(None, map(os.environ.get, ("DREAM_CACHE", "HF_HOME")))), home / ".cache"]
    no_home = error.errno == errno.ENOENT and home.is_relative_to(place)
    if no_home or any(place.is_relative_to(os.path.abspath(cache)) for cache in caches):
        remedy = "Set DREAM_CACHE (ours) or HF_HOME (the model hub's) to a folder that can be written"
    return f"{path[:200]} {what}. {remedy}"


def exits_cleanly(main: Callable) -> Callable:
    """Make a function the entry point of a program: what a user can cause is one line on stderr and exit code 1.

    * A :class:`DreamError`, or what :func:`explain` knows: its line. Other errors keep their traceback, and ``DREAM_DEBUG=1``
      keeps that of user errors too.
    * Ctrl-C and SIGTERM: one line; what was being written is removed on the way out.
    * A reader that has gone (``| head``): silence. No stdout or stderr at all: nothing is printed.
    * Text that the terminal's encoding lacks is printed as escapes; pipes and files get UTF-8, whatever the locale.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        _prepare_streams()
        try:
            with _leaving_on_sigterm():
                try:
                    return main(*args, **kwargs)
                finally:
                    sys.stdout.flush()  # what stdout cannot take is found here, not in the interpreter's last moment
        except KeyboardInterrupt:
            sys.exit(f"interrupted. {AGAIN}")
        except Exception as error:
            line, stdout_is_broken = explain(error), _drop_broken_stdout()
            if isinstance(error, BrokenPipeError) and stdout_is_broken:
                sys.exit(1)
            if line is None or os.environ.get("DREAM_DEBUG"):
                raise
            sys.exit(f"error: {visible(line)}")

    return run


def run_to_its_end(command: list[str]) -> int:
    """Run a program and return its exit code; it is waited for even when Ctrl-C is pressed.

    The terminal sends Ctrl-C to both. Left alone the other puts its things in order (DVC its workspace, a training its
    checkpoint); then KeyboardInterrupt is raised here. Killed at once, as :func:`subprocess.run` would, it cannot.

    Raises:
        DreamError: the program is not installed.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise DreamError(f"{command[0]} is not installed", "Activate the environment: `. .venv/bin/activate`") from None
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
    return code


def _prepare_streams() -> None:
    """Any text can be printed: see :func:`exits_cleanly`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def _drop_broken_stdout() -> bool:
    """Whether stdout takes nothing any more; if so, what it still holds is dropped: the interpreter would print a traceback."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        sys.stdout.flush()
        is_broken = any(event & select.POLLERR for _, event in poll.poll(0))
    except io.UnsupportedOperation:  # no file, a test's
        return False
    except OSError:
        is_broken = True
    if is_broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_broken


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that no temporary file stays; a handler of somebody else's is left alone."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"stopped by SIGTERM. {AGAIN}"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
