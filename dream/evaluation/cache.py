"""Corpus embeddings as float16 files in ``$DREAM_CACHE/embeddings``: never stale, never half, shared by processes.

A file's name is a hash of everything that can change its content: weights, tokenizer and pooling (the encoder's
fingerprint), every text and its order, prompt, maximal length, batch budget, device kind and library versions. A
changed weight or prompt is another file. Texts are encoded in chunks of ``CHUNK`` in the order of the corpus; each
chunk is a file of its own in ``<key>.parts``, written whole or not at all. So a killed run goes on at its first
missing chunk and ends with the same bytes as a run that was not, and several processes (one per GPU) can share the
work: each takes chunks that no other has locked; the operating system drops the locks of a killed one. The last one
joins the chunks to ``<key>.f16``, with ``<key>.json`` beside it that says what it holds and how many tokens were
encoded for it: a result costs the same whoever made its vectors. The folder can be deleted at any time.

Search always reads these rounded vectors, fresh or cached, so both give the same scores.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dream.encoder import Encoder, unique
from dream.errors import DreamError
from dream.files import cache_folder, read_json, replacing, value_hash, write_json

CHUNK = 1024  # texts per part: what a killed process loses at most, and the step of the progress bar


def embeddings(
    encoder: Encoder,
    texts: Sequence[str],
    ids: Sequence[str],
    *,
    prompt: str = "",
    max_length: int,
    token_budget: int,
    fingerprint: str | None = None,
    label: str | None = None,
    folder: Path | None = None,
) -> np.ndarray:
    """Embeddings of a corpus as a read-only float16 memory map [n, d]; encoded if they are not in the cache.

    ``encoder.tokens`` grows by the tokens that were encoded for them, here, in another process or in an earlier run;
    equal texts of a chunk are encoded once.

    Args:
        encoder: makes them.
        texts, ids: the corpus in its order; ids appear in error messages only.
        prompt, max_length, token_budget: as in :meth:`Encoder.encode`.
        fingerprint: the encoder's, if the caller has it already.
        label: of the progress bar (None: no bar).
        folder: of the cache.

    Raises:
        DreamError: an embedding is not finite, or has another dimension than the model says.
    """
    settings = {
        "encoder": fingerprint or encoder.fingerprint(),
        "texts": texts_hash(texts),
        "prompt": prompt,
        "max_length": max_length,
        "token_budget": token_budget,
        "chunk": CHUNK,
        "device": encoder.device.type,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    folder = folder or cache_folder() / "embeddings"
    path = folder / f"{value_hash(settings)}.f16"
    shape, before = (len(texts), encoder.dimension), encoder.tokens
    about = {**settings, "shape": shape, "model": encoder.reference}
    if not path.exists():
        parts = path.with_suffix(".parts")
        parts.mkdir(parents=True, exist_ok=True)
        _encode_parts(path, parts, encoder, texts, ids, settings, label)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                counts = [_count(part_file(parts, i).with_suffix(".json"), encoder, texts[i : i + CHUNK], about)
                          for i in range(0, len(texts), CHUNK)]  # fmt: skip
                write_json(path.with_suffix(".json"), about | {"tokens": sum(counts)})
                _join(parts, path, len(texts))
        shutil.rmtree(parts, ignore_errors=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
    encoder.tokens = before + _count(path.with_suffix(".json"), encoder, texts, about)
    return open_map(path, shape)


def _count(path: Path, encoder: Encoder, texts: Sequence[str], about: dict[str, Any]) -> int:
    """Tokens that were encoded for these texts; where the file does not say, they are counted once and written to it."""
    stored = read_json(path) if path.exists() else about
    if "tokens" not in stored:
        chunks = (texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK))
        asked = ([about["prompt"] + text for text in chunk] for chunk in chunks)
        tokens = sum(len(s) for chunk in asked for s in unique(encoder.tokenize(chunk, about["max_length"]))[0])
        stored = stored | {"tokens": tokens}
        with contextlib.suppress(OSError):  # a cache that cannot be written is counted again next time
            write_json(path, stored)
    return stored["tokens"]


def _encode_parts(
    path: Path, parts: Path, encoder: Encoder, texts: Sequence[str], ids: Sequence[str], how: dict, label: str | None
) -> None:
    """Write every missing chunk: first those that no other process works on, then those that one left behind."""
    with tqdm(total=len(texts), desc=label, unit="text", disable=label is None) as bar:
        for wait in (False, True):
            bar.reset()
            for first in range(0, len(texts), CHUNK):
                rows, part = slice(first, first + CHUNK), part_file(parts, first)
                # A part disappears only after the whole file has come into being: look in this order.
                while not part.exists() and not path.exists():
                    with contextlib.suppress(FileNotFoundError), locked(part.with_suffix(".lock"), wait) as mine:
                        if mine and not part.exists() and not path.exists():
                            before = encoder.tokens
                            vectors = encoder.encode(
                                texts[rows], how["prompt"], how["max_length"], how["token_budget"], ids=ids[rows]
                            )
                            _write_part(part, vectors, encoder.tokens - before, encoder)
                    if not wait:
                        break
                bar.update(len(texts[rows]))


def _write_part(part: Path, vectors: np.ndarray, tokens: int, encoder: Encoder) -> None:
    if vectors.shape[1] != encoder.dimension:
        raise DreamError(
            f"{encoder.reference} gives vectors of {vectors.shape[1]} numbers, its configuration says {encoder.dimension}",
            "The model's folder mixes files of two models: get it again",
        )
    with replacing(part) as temporary, naming(part):
        write_json(part.with_suffix(".json"), {"tokens": tokens})
        temporary.write_bytes(vectors.astype(np.float16).tobytes())


def _join(parts: Path, path: Path, count: int) -> None:
    """Put the chunks together in their order."""
    with replacing(path) as temporary, naming(path), open(temporary, "wb") as stream:
        for first in range(0, count, CHUNK):
            stream.write(part_file(parts, first).read_bytes())


def part_file(parts: Path, first: int) -> Path:
    """File of the chunk that starts at text number ``first``."""
    return parts / f"{first:010d}.f16"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the disk the name of the file that was written: a full disk is reported with it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file alone; yields False if another process holds it and ``wait`` is off."""
    with open(path, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine


def open_map(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Memory-map a finished file, after a look at its length."""
    if path.stat().st_size != shape[0] * shape[1] * 2:
        raise DreamError(f"{path} does not hold {shape[0]} × {shape[1]} numbers", "It was damaged: delete it and run again")
    return np.memmap(path, np.float16, mode="r", shape=shape)


def texts_hash(texts: Iterable[str]) -> str:
    """Content hash of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
