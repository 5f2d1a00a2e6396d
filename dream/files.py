"""Files written whole or not at all, hashed by content, and archives that stay in their folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dream.errors import DreamError

UNPACKED_RATIO = 100  # an archive may unpack to so many times its own size (texts take 3 to 20 times)
UNPACKED_SMALL = 50_000_000  # or to so many bytes, if that is more
UNPACKED_TOTAL = 200_000_000_000  # and to no more than this
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError)  # what zipfile raises


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary file name beside ``path``; rename it to ``path`` when the block succeeds.

    A block that raises leaves ``path`` as it was and no temporary file behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    os.chmod(name, 0o644)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """As :func:`replacing`, for a folder: ``path`` is replaced by the new folder only when the block succeeds.

    The old folder is moved aside before the new one takes its place, and is back if that fails: one of the two is there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(f"{temporary.name}.old")
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if path.is_dir():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON with sorted keys and a final newline: the same value is the same bytes."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a missing or broken one is a :class:`DreamError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DreamError(f"{path} is missing", "Run `dvc repro` to make it") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise DreamError(f"{path} is not valid JSON ({error})", "Delete it and run `dvc repro`") from None


def read_yaml(path: Path | str) -> Any:
    """Read a YAML 1.2 file, as DVC does: ``1e-5`` is a number, ``off`` and ``yes`` are words. An empty file is None.

    Raises:
        DreamError: it is missing, no file, not UTF-8, not valid YAML (a key twice, a tab, a value that holds itself, a
            tag that stands for more than data); the line is named where there is one.
    """
    from ruamel.yaml import YAML

    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DreamError(f"{path} is missing", "Run from the project's root folder") from None
    except (OSError, ValueError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        raise DreamError(f"{path} cannot be read ({why})", "Name a YAML file in UTF-8") from None
    try:
        value = YAML(typ="safe", pure=True).load(text)
        json.dumps(value, default=str, ensure_ascii=False).encode()  # a value may hold itself, or half a character
        return value
    except Exception as error:  # whatever the parser stumbles over is the file's fault
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        problem = re.sub(r'^found duplicate key (".*?") with value .*', r"the key \1 stands twice in one mapping", problem)
        raise DreamError(f"{path}{place} is not valid YAML ({problem})", "Correct it, or take it from git again") from None


class Journal:
    """Answers by key, a JSON line each, kept as they come: an interrupted run goes on where it stopped.

    Attributes:
        done: the answers so far; a line that was cut by an interruption is dropped from the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.done = Path(path), dict[str, Any]()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        with open(self.path, "a+b") as stream:
            stream.seek(0)
            for line in stream:
                try:
                    key, answer = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.done[key] = answer
                whole += len(line)
            stream.truncate(whole)

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer that can be written as JSON."""
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps([key, answer], ensure_ascii=False) + "\n")
        self.done[key] = answer


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path | str, pattern: str = "*") -> str:
    """SHA-256 over the names and contents of a folder's files: independent of dates and of reading order."""
    folder, digest = Path(folder), hashlib.sha256()
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def value_hash(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value: the key of a cache entry that depends on it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def unpacked_size(archive: Path | str) -> int:
    """Bytes of a zip archive's files; the same errors as :func:`unzip`."""
    with _zip(archive) as opened:
        return sum(info.file_size for info in _members(opened, archive))


def unzip(archive: Path | str, folder: Path | str, members: list[str] | None = None) -> None:
    """Unpack a zip archive (a wheel is one) into ``folder``, all of it or the members with these prefixes.

    ``zipfile`` writes no more of a member than the archive declares, so the limits on declared sizes hold for the disk.

    Raises:
        DreamError: a member is missing, encrypted, points outside the folder (``../``, absolute, a drive, a symbolic link),
            cannot be a file here, or the files are larger than the limits above: nothing is written then. The archive is
            damaged or packed in an unknown way: what was unpacked before is in ``folder`` and is for the caller to remove.
    """
    with _zip(archive) as opened:
        for info in _members(opened, archive, members):
            opened.extract(info, folder)


@contextlib.contextmanager
def _zip(archive: Path | str) -> Iterator[zipfile.ZipFile]:
    """An open archive; what zipfile raises on damaged ones is one line."""
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except NotImplementedError as error:
        raise DreamError(f"{archive} is packed in an unknown way ({error})", "Pack it again as an ordinary zip") from None
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's
            raise
        raise DreamError(f"{archive} is not a complete zip archive ({error})", "Delete it and get it again") from None


def _members(opened: zipfile.ZipFile, archive: Path | str, prefixes: list[str] | None = None) -> list[zipfile.ZipInfo]:
    """The files of an archive, looked over as :func:`unzip` says."""
    found = [info for info in opened.infolist() if not info.filename.endswith("/")]
    for prefix in prefixes or []:
        if not any(info.filename.startswith(prefix) for info in found):
            raise DreamError(f"{archive} holds no {prefix}", "Delete it and run again")
    if prefixes is not None:
        found = [info for info in found if info.filename.startswith(tuple(prefixes))]
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for info in found:
        path = PurePosixPath(info.filename)
        if fault := _fault(info, path, files, folders):
            raise DreamError(
                f"{archive}: member {info.filename[:80]!r} {fault}", "Get the archive again from its publisher, or pack it anew"
            )
        files.add(path)
        folders.update(path.parents)
    size, limit = sum(info.file_size for info in found), _limit(archive)
    if size > limit:
        raise DreamError(
            f"{archive} would unpack to {size / 1e6:.0f} MB, more than the {limit / 1e6:.0f} MB that an archive of its size may",
            "Get it again from its publisher, or unpack it yourself",
        )
    return found


def _fault(info: zipfile.ZipInfo, path: PurePosixPath, files: set[PurePosixPath], folders: set[PurePosixPath]) -> str:
    """What keeps a member from being a file in the folder, after the files and folders of those before it."""
    is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
    if is_link or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", info.filename):
        return "points outside its folder"
    if info.flag_bits & 1:
        return "is encrypted"
    if path in files:
        return "stands in it twice"
    if path in folders or not files.isdisjoint(path.parents):
        return "is a file and a folder"
    odd = "\\" in info.filename or info.orig_filename != info.filename  # of a name with NUL, zipfile keeps the start
    if odd or not path.parts or any(len(part.encode()) > 255 for part in path.parts):
        return "has a name that no file can have"
    return ""


def _limit(archive: Path | str) -> int:
    """Bytes that an archive may unpack to."""
    return min(UNPACKED_TOTAL, max(UNPACKED_SMALL, UNPACKED_RATIO * Path(archive).stat().st_size))


def cache_folder() -> Path:
    """The machine-wide folder for fetched and converted assets: ``$DREAM_CACHE``, by default ~/.cache/dream."""
    return Path(os.environ.get("DREAM_CACHE") or Path.home() / ".cache" / "dream")


def root() -> Path:
    """The project's root, that of the repository for an experiment that DVC runs in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."))


def lasting(*parts: str) -> Path:
    """A path under ``.dream`` in :func:`root`, for what outlasts a run and is no result: checkpoints, journals, readings."""
    return root().joinpath(".dream", *parts)
