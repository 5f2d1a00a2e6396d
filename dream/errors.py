"""The one exception that a user may see, and the one place where it becomes a line on the screen."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable


class DreamError(Exception):
    """Something the user can cause and mend: one line that names the thing and the remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}. {remedy}".strip() if remedy else what)


def explain(error: BaseException) -> str | None:
    """Return the one line for an error that a user can cause, or None for a defect of ours.

    >>> explain(DreamError("tasks: 'bolq' is unknown", "Did you mean 'boolq'?"))
    "tasks: 'bolq' is unknown. Did you mean 'boolq'?"
    >>> explain(OSError(28, "No space left on device", "work/x"))
    'no space left on the disk while writing work/x. Free some space or move DREAM_CACHE, then run again'
    >>> explain(KeyError("x")) is None
    True
    """
    if isinstance(error, DreamError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}. Free some space or move DREAM_CACHE, then run again"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            "out of memory. Lower training.micro_batch, encoder.max_length or candidates.count in params.yaml "
            f"({str(error).splitlines()[0] if str(error) else 'no details given'})"
        )
    return None


def exits_cleanly(main: Callable) -> Callable:
    """Turn a :class:`DreamError` into one line on stderr and exit code 1; other errors keep their traceback.

    ``DREAM_DEBUG=1`` keeps the traceback of user errors too.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit("interrupted. Run the same command again: long steps go on where they stopped")
        except Exception as error:
            line = explain(error)
            if line is None or os.environ.get("DREAM_DEBUG"):
                raise
            sys.exit(f"error: {line}")

    return run
