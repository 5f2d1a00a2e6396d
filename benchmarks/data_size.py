"""Preparing a large set of one's own, and BM25 candidates from it: peak memory, passages and queries per second.

    python -m benchmarks.data_size [--passages 1000000 --instances 100000 --candidates 8]

A made-up BEIR-format folder with training judgements is written line by line: words of a Zipf-like vocabulary, passages of
60 to 100 words, queries of eight words drawn from a passage. The product's own path follows, each phase in a process of its
own, so that its peak is its own: ``prepare`` (the set named under ``own``, evaluated and trained on) and ``candidates``
(BM25 index, search of all instances, candidate sets). The reference is bm25s as its README calls it on the same corpus:
everything read into lists, tokenised at once, indexed, ``retrieve``; same analyser, same depth, the first queries only.
Target: under 4 GiB in every phase. Writes reports/bench/data_size.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from dream.errors import exits_cleanly

NAME = "synthetic"  # of the set
VOCABULARY, LENGTHS, QUERY_WORDS, TEST_QUERIES = 500_000, (60, 100), 8, 1000
BLOCK = 10_000  # passages drawn at a time
SPARE = 1.2  # training queries per instance: a share is held out, the rest is drawn from
PLAIN_QUERIES = 1000  # the reference searches no more than so many
SYLLABLES = [first + vowel + last for last in ("", "n", "r") for first in "bdfghklmnprstvz" for vowel in "aeiou"]


def word(rank: int) -> str:
    """A word of syllables: the more frequent, the shorter.

    >>> word(0), word(224), word(225)
    ('ba', 'zur', 'baba')
    """
    text = ""
    while rank >= 0:
        rest, place = divmod(rank, len(SYLLABLES))
        rank, text = rest - 1, SYLLABLES[place] + text
    return text


def passages(count: int, rng: np.random.Generator) -> Iterator[list[str]]:
    """The words of every passage: word of rank r with probability proportional to 1/r."""
    vocabulary = np.array([word(rank) for rank in range(VOCABULARY)], dtype=object)
    shares = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    for start in range(0, count, BLOCK):
        ends = np.cumsum(rng.integers(*LENGTHS, size=min(BLOCK, count - start), endpoint=True))
        drawn = vocabulary[np.searchsorted(shares, rng.random(ends[-1]) * shares[-1])]
        yield from (part.tolist() for part in np.split(drawn, ends[:-1]))


def write_set(folder: Path, count: int, training: int) -> None:
    """Write corpus.jsonl, queries.jsonl, qrels/train.tsv and qrels/test.tsv, seeded, one passage in memory at a time."""
    (folder / "qrels").mkdir(parents=True)
    rng, asking = np.random.default_rng(0), np.random.default_rng(1)
    asked = np.bincount(asking.integers(count, size=training + TEST_QUERIES), minlength=count)
    test = set(asking.choice(training + TEST_QUERIES, TEST_QUERIES, replace=False).tolist())
    number = 0
    with (
        open(folder / "corpus.jsonl", "w", encoding="utf-8") as corpus,
        open(folder / "queries.jsonl", "w", encoding="utf-8") as queries,
        open(folder / "qrels/train.tsv", "w", encoding="utf-8") as train_qrels,
        open(folder / "qrels/test.tsv", "w", encoding="utf-8") as test_qrels,
    ):
        for i, words in enumerate(passages(count, rng)):
            corpus.write(json.dumps({"_id": f"d{i}", "title": " ".join(words[:3]), "text": " ".join(words)}) + "\n")
            for _ in range(asked[i]):
                text = " ".join(words[place] for place in asking.choice(len(words), QUERY_WORDS, replace=False))
                queries.write(json.dumps({"_id": f"q{number}", "text": text}) + "\n")
                (test_qrels if number in test else train_qrels).write(f"q{number}\td{i}\t1\n")
                number += 1


def configuration(folder: str, instances: int, candidates: int):
    """The config of a user with one line under ``own`` and nothing else to train on or to evaluate."""
    from dream import config as configs

    return configs.load(overrides={
        "own": {NAME: f"{folder}/set"}, "data.sources": [], "tasks": [NAME], "data.instances": instances,
        "candidates.count": candidates,
    })  # fmt: skip


def run_prepare(folder: str, instances: int, candidates: int) -> dict:
    """What stage prepare does, into ``folder``."""
    from dream.data import prepare

    started = time.perf_counter()
    prepared = prepare.prepare(configuration(folder, instances, candidates), folder=Path(folder) / "tasks")
    prepare.write(prepared, Path(folder) / "data")
    return {
        "seconds": time.perf_counter() - started,
        "passages": len(prepared.passages),
        "instances": len(prepared.instances),
    }


def run_candidates(folder: str, instances: int, candidates: int) -> dict:
    """What stage candidates does, with the clock at the index and at the search."""
    import pandas as pd

    from dream.candidates import BM25Index, sets

    seconds = {}

    class Timed(BM25Index):
        def __init__(self, *arguments, **more) -> None:
            started = time.perf_counter()
            super().__init__(*arguments, **more)
            seconds["index"] = time.perf_counter() - started

        def search(self, *arguments):
            started = time.perf_counter()
            found = super().search(*arguments)
            seconds["search"] = time.perf_counter() - started
            return found

    sets.BM25Index = Timed
    started = time.perf_counter()
    tables = [pd.read_parquet(f"{folder}/data/{name}.parquet") for name in ("passages", "instances")]
    built, summary = sets.build(configuration(folder, instances, candidates), *tables)
    built.to_parquet(f"{folder}/candidates.parquet", index=False)
    return {"seconds": time.perf_counter() - started, **seconds, "depth": max(sets.DEPTH, candidates), "summary": summary[0]}


def run_plain(folder: str, instances: int, candidates: int) -> dict:
    """bm25s as its README calls it: lists of texts, ``tokenize``, ``index``, ``retrieve``."""
    import bm25s
    import Stemmer

    from dream.candidates.sets import DEPTH

    settings = configuration(folder, instances, candidates).bm25
    stemmer = Stemmer.Stemmer("english")
    started = time.perf_counter()
    with open(f"{folder}/set/corpus.jsonl", encoding="utf-8") as stream:
        texts = [f"{record['title']} {record['text']}" for record in map(json.loads, stream)]
    with open(f"{folder}/set/queries.jsonl", encoding="utf-8") as stream:
        queries = [json.loads(line)["text"] for line in islice(stream, min(instances, PLAIN_QUERIES))]
    read = time.perf_counter()
    retriever = bm25s.BM25(k1=settings.k1, b=settings.b)
    retriever.index(bm25s.tokenize(texts, stopwords=[], stemmer=stemmer, show_progress=False), show_progress=False)
    indexed = time.perf_counter()
    asked = bm25s.tokenize(queries, stopwords=[], stemmer=stemmer, show_progress=False)
    retriever.retrieve(asked, k=min(len(texts), max(DEPTH, candidates)), show_progress=False)
    return {"read": read - started, "index": indexed - read, "search": time.perf_counter() - indexed, "queries": len(queries)}


PHASES = {"prepare": run_prepare, "candidates": run_candidates, "plain": run_plain}


def measured(phase: str, folder: str, instances: int, candidates: int) -> dict:
    """Run one phase in this process and add its peak resident memory in GiB (Linux)."""
    found = PHASES[phase](folder, instances, candidates)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1]
    return found | {"peak_gib": int(peak) / 2**20}


def in_child(phase: str, folder: str, instances: int, candidates: int) -> dict:
    """Run one phase in a process of its own; its progress bars go to this one's stderr."""
    sizes = ["--instances", str(instances), "--candidates", str(candidates)]
    command = [sys.executable, "-m", "benchmarks.data_size", "--child", phase, folder, *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{phase}: {found['peak_gib']:.2f} GiB", flush=True)
    return found


def report(count: int, instances: int, candidates: int, prepare: dict, ours: dict, plain: dict) -> dict:
    """The record that is written: ratios are plain over ours."""
    rates = {"ours": ours["search"] / prepare["instances"], "plain": plain["search"] / plain["queries"]}
    return {
        "ratio": round(plain["peak_gib"] / ours["peak_gib"], 3),
        "target": "under 4 GiB in every phase",
        "reference": "peak memory of bm25s as its README calls it (lists, tokenize, index, retrieve), same corpus and analyser",
        "passages": count,
        "instances": prepare["instances"],
        "candidates": candidates,
        "depth": ours["depth"],
        "peak_gib": {n: round(p["peak_gib"], 2) for n, p in (("prepare", prepare), ("candidates", ours), ("plain", plain))},
        "seconds": {
            "prepare": round(prepare["seconds"], 1),
            "candidates": round(ours["seconds"], 1),
            "index": round(ours["index"], 1),
            "search": round(ours["search"], 1),
        },
        "passages_per_s": {
            "prepare": round(count / prepare["seconds"]),
            "index": round(count / ours["index"]),
            "plain index": round(count / plain["index"]),
        },
        "queries_per_s": {name: round(1 / seconds, 1) for name, seconds in rates.items()},
        "time_ratio": {
            "index": round(plain["index"] / ours["index"], 3),
            "search": round(rates["plain"] / rates["ours"], 3),
        },
        "plain_queries": plain["queries"],
        "positive_found": ours["summary"]["positive_found"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_size", description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--candidates", type=int, default=8, help="K, passages per candidate set")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.instances, args.candidates
    if args.child:
        print(json.dumps(measured(*args.child, *sizes)))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        started = time.perf_counter()
        write_set(Path(folder) / "set", args.passages, round(SPARE * args.instances))
        print(f"set written in {time.perf_counter() - started:.0f} s", flush=True)
        found = [in_child(phase, folder, *sizes) for phase in PHASES]
    import torch

    from benchmarks import common

    record = report(args.passages, *sizes, *found)
    path = common.write("data_size", torch.device("cpu"), record)
    print(json.dumps(record, indent=1))
    print(f"memory {record['ratio']} times, search {record['time_ratio']['search']} times the plain form's; written to {path}")


if __name__ == "__main__":
    exits_cleanly(main)()
