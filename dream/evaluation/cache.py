"""Corpus embeddings as float16 files in ``$DREAM_CACHE/embeddings``: never stale, never half.

A file's name is a hash of everything that can change its content: weights, tokenizer and pooling (the encoder's
fingerprint), every text and its order, prompt, maximal length, batch budget, device kind and library versions. A changed
weight or prompt is another file. Texts are encoded in chunks of ``CHUNK`` in the order of the corpus and appended to
``<key>.partial``, whose length says how far it got: a killed run goes on at its last whole chunk and ends with the same
bytes as a run that was not. The finished file is renamed to ``<key>.f16``; a ``<key>.json`` beside it says what it
holds. The folder can be deleted at any time.

Search always reads these rounded vectors, fresh or cached, so both give the same scores.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from dream.encoder import Encoder
from dream.errors import DreamError
from dream.files import cache_folder, value_hash, write_json

CHUNK = 4096  # texts per append: a killed run repeats at most so many


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
    shape = (len(texts), encoder.dimension)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".partial")) as stream:
            if not path.exists():  # another process may have finished it while this one waited
                _encode(stream, encoder, texts, ids, settings, label)
                write_json(path.with_suffix(".json"), {**settings, "shape": shape, "model": encoder.reference})
                os.replace(stream.name, path)
            else:
                Path(stream.name).unlink(missing_ok=True)
    return open_map(path, shape)


def _encode(
    stream: IO[bytes], encoder: Encoder, texts: Sequence[str], ids: Sequence[str], how: dict[str, Any], label: str | None
) -> None:
    """Append the chunks that ``stream`` does not hold yet."""
    row = encoder.dimension * 2
    start = os.fstat(stream.fileno()).st_size // row // CHUNK * CHUNK
    stream.truncate(start * row)
    stream.seek(0, os.SEEK_END)
    bar = tqdm(total=len(texts), initial=start, desc=label, unit="text", disable=label is None)
    with bar:
        for first in range(start, len(texts), CHUNK):
            rows = slice(first, first + CHUNK)
            vectors = encoder.encode(
                texts[rows], how["prompt"], how["max_length"], how["token_budget"], ids=ids[rows]
            )
            if vectors.shape[1] * 2 != row:
                raise DreamError(
                    f"{encoder.reference} gives vectors of {vectors.shape[1]} numbers, its configuration says {row // 2}",
                    "The model's folder mixes files of two models: get it again",
                )
            try:
                stream.write(vectors.astype(np.float16).tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            except OSError as error:
                error.filename = error.filename or stream.name
                raise
            bar.update(len(vectors))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading and appending, alone: a second process waits until the first one is done."""
    with open(path, "a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


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
