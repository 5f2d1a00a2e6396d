"""What the benchmarks share: made-up instances, paired timing, memory of the graph, the processor's measured rate.

Every benchmark runs both sides in one process, in turn, on the same instances, with the same threads and dtype, and
reports medians of several repetitions and the median of the paired ratios. On a machine that does other work the ratio
is the figure to trust, not the seconds.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dream import manifest
from dream.files import write_json
from dream.instances import CandidateSet, Question
from dream.judge import Injection, Judge
from dream.judge.attention import Scores, Spans
from dream.judge.store import GIB, Store

FOLDER = Path("reports/bench")
# The sixteen query-focused heads of the packaged judge (stage heads), so that the benchmark needs no earlier stage.
PACKAGED_HEADS = ((2, 4), (8, 0), (14, 3), (15, 6), (17, 0), (17, 3), (17, 4), (18, 6), (18, 7), (18, 8), (20, 6), (21, 2),
                  (21, 7), (23, 2), (23, 7), (23, 8))  # fmt: skip


class Numbers:
    """A stand-in for a tokenizer: a text of numbers is its own token ids, any other word is a hash of its letters."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.bos_token_id = vocabulary, 1

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": [int(w) if w.isdigit() else sum(map(ord, w)) % self.vocabulary for w in text.split()]}


class BatchNumbers(Numbers):
    """The same for an encoder: a list of texts in, lists of token ids out."""

    eos_token_id, pad_token_id, cls_token_id, unk_token_id = 2, 0, None, None

    def __call__(self, texts, max_length: int | None = None, **_) -> dict[str, list[list[int]]]:
        return {"input_ids": [super(BatchNumbers, self).__call__(text)["input_ids"][:max_length] for text in texts]}


def instances(count: int, candidates: int, passage: int, questions: int, vocabulary: int, query: int = 16) -> list[CandidateSet]:
    """Candidate sets of random tokens; every passage has exactly ``passage`` tokens and every query ``query``."""
    generator = torch.Generator().manual_seed(0)

    def text(n: int) -> str:
        return " ".join(map(str, torch.randint(10, vocabulary, (n,), generator=generator).tolist()))

    return [
        CandidateSet(
            id=str(i),
            source="random",
            passage_ids=tuple(map(str, range(candidates))),
            passages=tuple(text(passage) for _ in range(candidates)),
            questions=tuple(Question(f"{i}-{n}", text(query), (3 * i + n) % candidates) for n in range(questions)),
        )
        for i in range(count)
    ]


def plain_losses(judge: Judge, candidates: CandidateSet, p: Tensor, gate: Tensor, injection: Injection) -> Tensor:
    """DREAM's loss as one writes it first with the library: per question one full sequence with ``labels``.

    All rows have logits, autograd decides what it keeps, nothing is shared between questions. The injection itself is
    the product's own correction (no attention matrix is built), so that only the plan of the step is compared.
    """
    losses = []
    for i, question_p in enumerate(p):
        layout = judge.prompt.layout(candidates, i)
        end = {"query": layout.query, "query+label": layout.label, "all": layout.target}[injection.rows][1]
        rows = torch.arange(layout.query[0], end, device=judge.device)
        scores = Scores(
            heads=injection.by_layer(),
            rows=rows,
            spans=Spans.of(layout.documents.spans, judge.device),
            p=question_p.expand(len(rows), -1),
            gate=gate,
            budget=injection.budget,
        )
        ids = torch.tensor([layout.ids], device=judge.device)
        labels = ids.clone()
        labels[:, : layout.target[0]] = -100
        losses.append(judge.model(input_ids=ids, labels=labels, use_cache=False, dream=scores).loss)
    return torch.stack(losses)


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read next measures work and not its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired(
    sides: dict[str, Callable[[], Any]], device: torch.device, repetitions: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every repetition of every side; sides take turns, and the turn order alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-warmup, repetitions):
        for name in list(sides)[:: 1 if repetition % 2 else -1]:
            synchronise(device)
            start = time.perf_counter()
            sides[name]()
            synchronise(device)
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def resident_peak() -> int:
    """Peak resident memory of this process in KiB since it was last reset (Linux: 5 written to /proc/self/clear_refs)."""
    (line,) = [line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def over_sets(
    sides: dict[str, Callable[[CandidateSet], Any]], sets: list[CandidateSet], device: torch.device, repetitions: int
) -> dict[str, list[float]]:
    """As :func:`paired`, with the candidate sets in turn; in one repetition all sides get the same set."""
    turn = count()
    return paired(
        {name: lambda s=side: s(sets[next(turn) // len(sides) % len(sets)]) for name, side in sides.items()},
        device,
        repetitions,
    )


def adamw(*modules: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser of whatever is trained in some modules."""
    return torch.optim.AdamW([p for m in modules for p in m.parameters() if p.requires_grad], lr=1e-4)


def training_step(loss: Callable[[CandidateSet], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[CandidateSet], None]:
    """Forward, backward and optimiser on one candidate set."""

    def step(candidates: CandidateSet) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(candidates).backward()
        optimizer.step()

    return step


def stored(
    judge: Judge, step: Callable[[CandidateSet], Any], sets: Iterable[CandidateSet]
) -> dict[str, Callable[[CandidateSet], Any]]:
    """A step with the store of readings on: ``first`` reads and keeps the documents, ``later`` finds those of all sets kept.

    Each has a store of its own: the sides are measured in turns, and the order of the turns changes nothing.
    """
    judge.weights = judge.weights or "random"
    empty, full = (Store(8 * GIB, folder=Path(tempfile.mkdtemp())) for _ in range(2))

    def run(candidates: CandidateSet, store: Store, do: Callable[[CandidateSet], Any] = step) -> Any:
        if store is empty:
            shutil.rmtree(store.folder)
        judge.store = store
        try:
            return do(candidates)
        finally:
            judge.store = None

    for candidates in sets:
        run(candidates, full, judge.read)
    return {"first": lambda candidates: run(candidates, empty), "later": lambda candidates: run(candidates, full)}


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def graph_bytes(forward: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward()``: every storage once, parameters left out."""
    frozen = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def matmul_rate(dtype: torch.dtype, device: torch.device, repetitions: int = 5) -> float:
    """Operations a second of square matrix products, the best repetition: the ceiling that a share refers to."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = paired({"product": lambda: a @ b}, device, repetitions, warmup=2)["product"]
    return 2 * n**3 / min(seconds)


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else manifest.hardware()["cpu"]


def write(name: str, device: torch.device, record: dict[str, Any]) -> Path:
    """Write ``reports/bench/<name>.json`` (``<name>_cuda.json`` for a CUDA device)."""
    path = FOLDER / f"{name}{'_cuda' if device.type == 'cuda' else ''}.json"
    more = {"versions": manifest.versions(), "threads": torch.get_num_threads(), "device": device_name(device)}
    write_json(path, {"name": name, **more, **record})
    return path
