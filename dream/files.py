"""Files written whole or not at all, hashed by content, and archives that stay in their folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dream.errors import DreamError


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
    """As :func:`replacing`, for a folder: ``path`` is replaced by the new folder only when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    except json.JSONDecodeError as error:
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
        json.dumps(value, default=str)  # a value that holds itself has no end
        return value
    except Exception as error:  # whatever the parser stumbles over is the file's fault
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise DreamError(f"{path}{place} is not valid YAML ({problem})", "Correct it, or take it from git again") from None


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


def unzip(archive: Path | str, folder: Path | str, members: list[str] | None = None) -> None:
    """Unpack a zip archive (a wheel is one) into ``folder``, all of it or the members with these prefixes.

    Raises :class:`DreamError` for a broken archive, for a member that is missing and for one whose path
    leaves the folder (``../``, absolute, or a symbolic link); nothing is written then.
    """
    folder = Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [i for i in opened.infolist() if not i.is_dir()]
            if members is not None:
                for prefix in members:
                    if not any(i.filename.startswith(prefix) for i in names):
                        raise DreamError(f"{archive} holds no {prefix}", "Delete it and run again")
                names = [i for i in names if i.filename.startswith(tuple(members))]
            root = folder.resolve()
            for info in names:
                is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
                if is_link or not (root / info.filename).resolve().is_relative_to(root):
                    raise DreamError(
                        f"{archive}: member {info.filename!r} points outside its folder",
                        "The archive is damaged or hostile: get it again from its publisher",
                    )
            for info in names:
                opened.extract(info, folder)
    except zipfile.BadZipFile as error:
        raise DreamError(f"{archive} is not a complete zip archive ({error})", "Delete it and run again") from None


def cache_folder() -> Path:
    """The machine-wide folder for fetched and converted assets: ``$DREAM_CACHE``, by default ~/.cache/dream."""
    return Path(os.environ.get("DREAM_CACHE") or Path.home() / ".cache" / "dream")
