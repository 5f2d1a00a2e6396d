"""Readings kept as files: what the frozen judge makes of a candidate set's documents is computed once for all who ask.

An entry holds the keys and values of one document prefix in every layer read, as :meth:`dream.judge.Judge.read` computed them.
Entries lie in ``$DVC_ROOT/.dream/readings``, beside the checkpoints, so that epochs, seeds, sweeps, objectives and teachers share
them. The name of an entry is a hash of everything that can change its bytes: the judge's content, dtype and code, versions,
device, threads, and the token ids, which hold every knob of the prompt. So a hit gives the bytes of reading anew, no stage
depends on the store (its settings are a file of their own, :func:`dream.config.stages.files`), and operations are counted as if
every set had been read.

Files are mapped, not loaded: what was used lately lies in the operating system's page cache, in memory once for all processes,
and gives way when memory is short. A file has a checksum, looked at when a process opens it first; one that is cut or changed is
read anew. The entries that were not used for longest leave first.

The rule for when readings are kept is short. The judge is frozen and not quantized (its kernels promise no stable bytes), and
all sets that a run reads fit ``judge.cache_gib`` together. With less room a shuffled epoch would throw out each entry before it
comes up again; a judge of 8B reads 400 MiB a set, so the paper's recipe keeps nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from dream.files import folder_hash, lasting, replacing, value_hash

if TYPE_CHECKING:
    from dream.config import Config
    from dream.judge.model import Judge, Layers

GIB = 2**30
NAMES = "key-{0:04d}", "value-{0:04d}"


def too_large(size: float, sets: int, budget: float) -> str:
    """Why readings of ``size`` bytes are not kept for so many sets; empty if they are."""
    if size * sets <= budget:
        return ""
    return f"{sets} sets of {size / 2**20:.0f} MiB take {size * sets / GIB:.1f} GiB, judge.cache_gib is {budget / GIB:g}"


@cache
def _code() -> list[str]:
    """What computes: the judge's code and the libraries below it."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return [folder_hash(Path(__file__).resolve().parent, "*.py"), *versions]


def identity(judge: Judge) -> list[Any]:
    """Everything but the token ids that can change a reading's bytes."""
    cuda = judge.device.type == "cuda"
    device = torch.cuda.get_device_name(judge.device) if cuda else torch.backends.cpu.get_cpu_capability()
    return [judge.weights, str(judge.dtype), device, torch.get_num_threads(), judge.chunk, *_code()]


class Store:
    """A folder of readings within a budget.

    Args:
        budget: bytes that all entries together may take; 0: nothing is kept.
        sets: readings that a run will ask for; if they do not all fit, none is kept.
        folder: by default ``$DVC_ROOT/.dream/readings``.

    Attributes:
        off: why nothing is kept; empty while the store is on.
        found, made: readings that came from the store, and that were computed.
    """

    def __init__(self, budget: float, sets: int = 1, folder: Path | None = None) -> None:
        self.budget, self.sets = budget, sets
        self.folder = folder or lasting("readings")
        self.off = "" if budget else "judge.cache_gib is 0"
        self.found = self.made = 0
        self._sound: set[str] = set()  # entries whose checksum this process has seen to be right

    @classmethod
    def of(cls, config: Config) -> Store:
        """The store of a stage, from the file of settings ``readings``."""
        return cls(config.judge.cache_gib * GIB, config.sets_read)

    def layers(self, judge: Judge, ids: Sequence[int], depth: int, make: Callable[[], Layers]) -> Layers:
        """The lowest ``depth`` layers' keys and values of the documents with these token ids: from the store, or made now."""
        if self.off:
            return make()
        path = self.folder / f"{value_hash([identity(judge), list(ids)])}.safetensors"
        if (kept := self._open(path, depth, judge.device)) is not None:
            self.found += 1
            return kept
        self.made += 1
        layers = make()
        size = sum(x.nbytes for layer in layers for x in layer)
        if reason := too_large(size, self.sets, self.budget):
            self.close(reason)
        else:
            self._keep(path, layers)
        return layers

    def close(self, reason: str) -> None:
        """Keep and look up nothing from now on."""
        self.off = reason
        tqdm.write(f"the judge's readings are not kept: {reason}")

    def told(self) -> dict[str, Any]:
        """What a run record says of it."""
        return {"off": self.off} if self.off else {"found": self.found, "made": self.made}

    def _open(self, path: Path, depth: int, device: torch.device) -> Layers | None:
        """The entry's lowest layers, mapped; None if there is none, it is not so deep, or it is damaged."""
        try:
            with safe_open(path, framework="pt") as opened:
                has = len(opened.keys()) // 2
                if has < depth:
                    return None
                layers = tuple(tuple(opened.get_tensor(name.format(i)) for name in NAMES) for i in range(has))
                if path.name not in self._sound and opened.metadata()["crc32"] != checksum(layers):
                    raise ValueError("its checksum is wrong")
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a cut or changed file makes safetensors raise
            warnings.warn(f"reading {path} is damaged ({error}): the documents are read anew", stacklevel=3)
            path.unlink(missing_ok=True)
            return None
        self._sound.add(path.name)
        return tuple((key.to(device), value.to(device)) for key, value in layers[:depth])

    def _keep(self, path: Path, layers: Layers) -> None:
        """Write an entry whole or not at all; the entries that were not used for longest make room."""
        found = {name.format(i): x for i, layer in enumerate(layers) for name, x in zip(NAMES, layer, strict=True)}
        try:
            with replacing(path) as temporary:
                save_file({name: x.cpu().contiguous() for name, x in found.items()}, temporary, {"crc32": checksum(layers)})
        except OSError as error:
            self.close(f"{path.parent} cannot be written ({error.strerror or error})")
        else:
            self._sound.add(path.name)
            self._make_room()

    def _make_room(self) -> None:
        """Remove entries, oldest use first, until the others are within the budget."""
        entries, taken = [], 0
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        for _, size, path in sorted(entries, reverse=True):
            taken += size
            if taken > self.budget:
                path.unlink(missing_ok=True)  # mapped elsewhere, it lives until it is let go


def checksum(layers: Layers) -> str:
    """CRC-32 of all keys and values, in hexadecimal."""
    found = 0
    for x in (x for layer in layers for x in layer):
        found = zlib.crc32(x.cpu().contiguous().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
