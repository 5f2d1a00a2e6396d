"""The embedding cache: keys that hold everything, kill and resume, several processes, a full disk, search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from test_encoder import LORA, TEXTS, make_model

from dream.encoder import Encoder
from dream.errors import DreamError, explain
from dream.evaluation import cache

IDS = [f"d{i}" for i in range(len(TEXTS))]
RULES = {"max_length": 16, "token_budget": 64}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def encoder(llama):
    return Encoder.from_pretrained(llama)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 10)


def files(folder):
    return sorted(p.name for p in folder.glob("*.f16"))


def test_cached_vectors_are_the_encoders_rounded_once(encoder, tmp_path, monkeypatch):
    fresh = cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)
    assert fresh.dtype == np.float16 and fresh.shape == (64, 32) and encoder.tokens > 0
    np.testing.assert_allclose(fresh, encoder.encode(TEXTS, max_length=16), atol=5e-4)
    monkeypatch.setattr(encoder, "encode", None)
    again = cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)
    assert again.tobytes() == fresh.tobytes(), "the second time nothing is encoded"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".f16", ".json"], "nothing is left over"


def test_the_tokens_are_those_of_the_texts_whoever_encoded_them(encoder, llama, tmp_path, monkeypatch):
    """Cold, warm, after an interruption, half of it by another process, a part or a file that does not say."""
    texts, ids = [*TEXTS, *TEXTS[:8], TEXTS[7]], [*IDS, *(f"e{i}" for i in range(9))]
    chunks = [texts[i : i + 10] for i in range(0, len(texts), 10)]
    by_hand = sum(len(s) for chunk in chunks for s in set(map(tuple, encoder.tokenize(["the " + t for t in chunk], 16))))

    def cost(folder, model=encoder):
        before = model.tokens
        cache.embeddings(model, texts, ids, folder=tmp_path / folder, prompt="the ", **RULES)
        return model.tokens - before

    assert cost("whole") == cost("whole") == by_hand < sum(map(len, encoder.tokenize(["the " + t for t in texts], 16)))
    encode, done = encoder.encode, []

    def stops(*args, **kwargs):
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder, "encode", stops)
        cost("shared")
    next((tmp_path / "shared").glob("*.parts/*.json")).unlink()  # a part that was written before parts said it
    assert cost("shared", Encoder.from_pretrained(llama)) == by_hand
    for change in ({"tokens": 3}, {}):
        (about,) = (tmp_path / "whole").glob("*.json")
        about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "tokens"} | change))
        assert cost("whole") == cost("whole") == change.get("tokens", by_hand), "what is stored is believed"
    about.unlink()
    monkeypatch.setattr(cache, "write_json", lambda path, value: (_ for _ in ()).throw(PermissionError(13, "read-only")))
    assert cost("whole") == by_hand and not about.exists()


def test_anything_that_changes_a_vector_misses(encoder, llama, tmp_path):
    def count(model=encoder, texts=TEXTS, **rules):
        cache.embeddings(model, texts, IDS, folder=tmp_path, **{**RULES, **rules})
        return len(files(tmp_path))

    assert [count(), count()] == [1, 1]
    assert count(prompt="the ") == 2
    assert count(max_length=15) == 3
    assert count(texts=[*TEXTS[:-1], "cat"]) == 4
    assert count(texts=TEXTS[::-1]) == 5
    assert count(model=Encoder.from_pretrained(llama, dtype="bfloat16")) == 6
    assert count(model=Encoder.from_pretrained(llama, pooling="mean")) == 7
    changed = Encoder.from_pretrained(llama)
    with torch.no_grad():
        changed.backbone.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert count(model=changed) == 8
    changed.add_lora(LORA, 0)
    assert count(model=changed) == 9
    assert count() == 9, "and the first one still hits"


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(encoder, tmp_path, monkeypatch):
    whole = cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path / "whole", **RULES).tobytes()
    encode, calls = encoder.encode, []

    def stops(texts, *args, **kwargs):
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(texts, *args, **kwargs)

    monkeypatch.setattr(encoder, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path / "cut", **RULES)
    assert not files(tmp_path / "cut"), "a half file never has the final name"
    cut = cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path / "cut", **RULES)
    assert cut.tobytes() == whole and calls == [10, 10, 10, 10, 10, 10, 10, 4], "three parts were kept"


WORKER = """
    import pathlib, sys, time
    sys.path[:0] = [{tests!r}, {root!r}]
    from test_encoder import TEXTS
    from dream.encoder import Encoder
    from dream.evaluation import cache
    cache.CHUNK = 4
    encoder = Encoder.from_pretrained({model!r})
    encode = encoder.encode
    def slow(*args, **kwargs):
        time.sleep({pause})
        print("part", flush=True)
        return encode(*args, **kwargs)
    encoder.encode = slow
    ids = [str(i) for i in range(len(TEXTS))]
    cache.embeddings(encoder, TEXTS, ids, folder=pathlib.Path({folder!r}), max_length=16, token_budget=64)
    print("done", flush=True)
"""


def worker(model, folder, pause):
    here = os.path.dirname(os.path.abspath(__file__))
    code = textwrap.dedent(WORKER).format(
        tests=here, root=os.path.dirname(here), model=str(model), folder=str(folder), pause=pause
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_and_parallel_workers_end_with_the_same_bytes(encoder, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)
    whole = cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path / "whole", **RULES).tobytes()
    killed = worker(llama, tmp_path / "cut", 0.3)
    for _ in range(3):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = len(list((tmp_path / "cut").glob("*.parts/*.f16")))
    assert 1 <= kept < 16 and not files(tmp_path / "cut")
    workers = [worker(llama, tmp_path / "cut", 0.2) for _ in range(2)]
    parts = [w.communicate()[0].count("part") for w in workers]
    assert [w.returncode for w in workers] == [0, 0]
    assert sum(parts) == 16 - kept and min(parts) > 0, "each part once, shared by both"
    (name,) = files(tmp_path / "cut")
    assert (tmp_path / "cut" / name).read_bytes() == whole
    assert not list((tmp_path / "cut").glob("*.parts"))


def test_a_damaged_cache_file_is_named(encoder, tmp_path):
    cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)
    (name,) = files(tmp_path)
    (tmp_path / name).write_bytes(b"short")
    with pytest.raises(DreamError, match=f"{name} does not hold 64 × 32"):
        cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)


def test_a_full_disk_is_one_line_and_loses_nothing(encoder, tmp_path, monkeypatch):
    """RLIMIT_FSIZE would do for one file; here the third write fails as on a full disk."""
    from pathlib import Path

    write, calls = Path.write_bytes, []

    def full(self, data):
        calls.append(self)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)
    assert explain(caught.value).startswith("no space left on the disk while writing") and ".f16" in explain(caught.value)
    assert len(list(tmp_path.glob("*.parts/*.f16"))) == 2
    assert cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES).shape == (64, 32)


def test_nan_and_a_changed_dimension_are_refused(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "encode", lambda texts, *args, **kwargs: np.ones((len(texts), 7), np.float32))
    with pytest.raises(DreamError, match="gives vectors of 7 numbers, its configuration says 32"):
        cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)
    monkeypatch.undo()
    with torch.no_grad():
        encoder.backbone.embed_tokens.weight[encoder.tokenizer.convert_tokens_to_ids("river")] = float("nan")
    first = next(i for i, text in zip(IDS, TEXTS, strict=True) if "river" in text.split()[:16])
    with pytest.raises(DreamError, match=f"text {first} "):
        cache.embeddings(encoder, TEXTS, IDS, folder=tmp_path, **RULES)


def test_a_waiting_process_takes_over_what_a_killed_one_held(tmp_path):
    path = tmp_path / "part.lock"
    with cache.locked(path) as mine:
        assert mine
        with cache.locked(path, wait=False) as second:
            assert not second
    started = time.monotonic()
    with cache.locked(path) as mine:
        assert mine and time.monotonic() - started < 1
