"""Exact search against a numpy product and faiss's flat index: ``python benchmarks/search.py [--documents 1000000]``.

Random unit vectors stand in a float16 file, as in the embedding cache. Ours reads the file; the other two get the same
vectors as float32 in blocks (numpy) or in memory (faiss, ``pip install faiss-cpu``; left out where it is missing).
Target: at most 1.3 times the faster of the two, under 6 GiB of resident memory. Each method runs in a process of its
own, so that its peak memory is its own. Writes reports/bench/search.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from dream.errors import exits_cleanly

K, BLOCK = 100, 50_000
METHODS = ("ours", "numpy", "faiss")


def make(path: Path, documents: int, dimension: int) -> None:
    """Write seeded random unit vectors, block by block."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as stream:
        for start in range(0, documents, BLOCK):
            block = rng.standard_normal((min(BLOCK, documents - start), dimension), dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            stream.write(block.astype(np.float16).tobytes())


def plain(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """What one would write: product and partition per block, then merge."""
    best_scores, best = [], []
    for start in range(0, len(documents), BLOCK):
        scores = queries @ documents[start : start + BLOCK].astype(np.float32).T
        part = np.argpartition(-scores, min(K, scores.shape[1]) - 1, axis=1)[:, :K]
        best.append(part + start)
        best_scores.append(np.take_along_axis(scores, part, 1))
    scores, positions = np.concatenate(best_scores, 1), np.concatenate(best, 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(positions, order, 1)


def measure(method: str, path: str, documents: int, dimension: int, queries: int, threads: int) -> dict:
    """Time one method once (after a small warm-up) and report its peak memory; runs in a child process."""
    vectors = np.memmap(path, np.float16, mode="r", shape=(documents, dimension))
    rng = np.random.default_rng(1)
    asked = rng.standard_normal((queries, dimension), dtype=np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    ready = time.perf_counter()
    if method == "ours":
        import torch

        from dream.evaluation.search import exact

        torch.set_num_threads(threads)
        ids = [str(i) for i in range(documents)]
        exact(asked[:8], vectors[:1000], ids[:1000], K)
        started = time.perf_counter()
        found = exact(asked, vectors, ids, K).positions
    elif method == "numpy":
        plain(asked[:8], vectors[:1000])
        started = time.perf_counter()
        found = plain(asked, vectors)
    else:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(dimension)
        started = time.perf_counter()
        for start in range(0, documents, BLOCK):
            index.add(vectors[start : start + BLOCK].astype(np.float32))
        found = index.search(asked, K)[1]
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "setup_s": started - ready, "peak_gib": peak, "first": found[:, 0].tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="reports/bench/search.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(measure(*a.child, a.documents, a.dimension, a.queries, a.threads)))
        return
    shape = [f"--{name}={getattr(a, name)}" for name in ("documents", "dimension", "queries", "threads")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(a.threads),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    results: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        path = Path(folder) / "documents.f16"
        make(path, a.documents, a.dimension)
        for repeat in range(a.repeats):  # in turn, so that a busy minute hits all of them
            for method in METHODS:
                command = [sys.executable, __file__, "--child", method, str(path), *shape]
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    print(f"{method}: left out ({(done.stderr.strip().splitlines() or ['?'])[-1]})", flush=True)
                    continue
                results.setdefault(method, []).append(json.loads(done.stdout.splitlines()[-1]))
                last = results[method][-1]
                print(f"{repeat} {method}: {last['seconds']:.2f} s, {last['peak_gib']:.2f} GiB", flush=True)
    medians = {method: statistics.median(r["seconds"] for r in rows) for method, rows in results.items()}
    reference = min((m for m in medians if m != "ours"), key=medians.get)
    same = np.mean([np.equal(rows[0]["first"], results["ours"][0]["first"]).mean() for rows in results.values()])
    report = {
        "name": "search",
        "ratio": round(medians["ours"] / medians[reference], 3),
        "target": "at most 1.3",
        "reference": {"numpy": "numpy matrix product and argpartition", "faiss": "faiss IndexFlatIP, adding included"}[reference],
        "device": f"cpu, {a.threads} threads",
        "medians_s": {m: round(s, 3) for m, s in medians.items()},
        "peak_gib": {m: round(max(r["peak_gib"] for r in rows), 2) for m, rows in results.items()},
        "same_first_hit": float(same),
        "documents": a.documents,
        "dimension": a.dimension,
        "queries": a.queries,
        "repeats": a.repeats,
    }
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    exits_cleanly(main)()
