"""Encoding throughput against sentence-transformers: ``python benchmarks/encode.py [--model packaged/minilm]``.

The same model, texts, pooling, length limit, dtype and threads; both sort by length. Texts have mixed lengths (log-
normal, 4 to ``--max-length`` tokens, seeded). Runs are paired and alternate; the ratio is the median over pairs of
(their seconds / ours): 1 and above is the target. A third run with our batches in the order of the texts says what
sorting gains. Writes reports/bench/encode.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from dream.assets import model_path
from dream.encoder import Encoder
from dream.errors import exits_cleanly


def texts_of(tokenizer, count: int, longest: int) -> list[str]:
    """Seeded texts of random whole words with mixed lengths."""
    rng = np.random.default_rng(0)
    words = [w for w in tokenizer.get_vocab() if w.strip("Ġ").isalpha() and len(w) > 2]
    words = sorted(w.strip("Ġ") for w in words)[:5000]
    lengths = np.clip(rng.lognormal(np.log(longest / 4), 0.8, count), 4, longest).astype(int)
    return [" ".join(rng.choice(words, n)) for n in lengths]


def unsorted(encoder: Encoder, texts: list[str], longest: int, budget: int) -> None:
    """Our forward pass on batches in the order of the texts, each padded to its longest."""
    sequences = encoder.tokenize(texts, longest)
    size = max(1, budget // longest)
    with torch.inference_mode():
        for start in range(0, len(sequences), size):
            encoder._embed(sequences[start : start + size])


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="packaged/minilm")
    parser.add_argument("--pooling", default="mean", choices=["mean", "cls", "last"])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--budget", type=int, default=1024, help="padded tokens per batch of ours")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per batch of sentence-transformers (its default)")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="reports/bench/encode.json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    folder = str(model_path(a.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours = Encoder.from_pretrained(folder, pooling=a.pooling, token_budget=a.budget, device=device)
    body = Transformer(folder, model_kwargs={"dtype": torch.float32})
    theirs = SentenceTransformer(
        modules=[
            body,
            Pooling(ours.dimension, pooling_mode={"last": "lasttoken"}.get(a.pooling, a.pooling)),
            Normalize(),
        ],
        device=device,
    )
    theirs.max_seq_length = a.max_length
    if theirs.tokenizer.pad_token is None:
        theirs.tokenizer.pad_token = theirs.tokenizer.eos_token
    texts = texts_of(ours.tokenizer, a.texts, a.max_length)
    tokens = sum(map(len, ours.tokenize(texts, a.max_length)))
    gap = np.abs(ours.encode(texts[:64], max_length=a.max_length) - theirs.encode(texts[:64])).max()

    runs: dict[str, list[float]] = {"ours": [], "sentence-transformers": [], "ours, not sorted": []}
    for _ in range(a.pairs):
        runs["ours"].append(timed(lambda: ours.encode(texts, max_length=a.max_length)))
        runs["sentence-transformers"].append(timed(lambda: theirs.encode(texts, batch_size=a.batch_size)))
        runs["ours, not sorted"].append(timed(lambda: unsorted(ours, texts, a.max_length, a.budget)))
        print({name: round(tokens / times[-1]) for name, times in runs.items()}, "tokens/s", flush=True)
    pairs = [b / o for o, b in zip(runs["ours"], runs["sentence-transformers"], strict=True)]
    report = {
        "name": "encode",
        "ratio": round(statistics.median(pairs), 3),
        "ratios": [round(p, 3) for p in pairs],
        "target": "at least 1.0",
        "reference": f"sentence-transformers encode, batch size {a.batch_size}",
        "sorting_gain": round(statistics.median(u / o for o, u in zip(runs["ours"], runs["ours, not sorted"], strict=True)), 3),
        "device": f"{device}, {a.threads} threads",
        "medians_s": {name: round(statistics.median(times), 3) for name, times in runs.items()},
        "tokens_per_s": {name: round(tokens / statistics.median(times)) for name, times in runs.items()},
        "largest_difference": float(gap),
        "model": a.model,
        "texts": a.texts,
        "tokens": tokens,
        "max_length": a.max_length,
    }
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    exits_cleanly(main)()
