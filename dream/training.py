"""The training loop: one for all objectives, on ``accelerate``, resumable to the byte.

The order of the candidate sets and the random numbers of a step are functions of seed and step alone, so a run that was
killed goes on exactly where it stopped. Checkpoints lie in ``$DVC_ROOT/.dream/checkpoints/<key>``, outside DVC's outs
(DVC deletes those before a stage runs); the key holds everything that can change the result: configuration, code, data,
objective, seed. Where the rate does not depend on the number of steps, a longer run begins as a shorter one (:func:`order`)
and the key leaves that number out (:func:`resume_key`): a finished run is lengthened, not repeated. What the encoder was
after ``training.snapshots`` pairs is kept beside the checkpoints.

The global batch of ``training.batch`` sets is cut into micro-batches, which are dealt to the processes; losses are
weighted so that the gradient is that of the mean over the global batch, whatever the split (of an objective of the whole
batch, too: see :func:`_cached_backward`). What is trained is small
(LoRA, tau, gate): every process holds all of it, and the gradients are summed over the processes once a step. So a batch
need not be divisible by the processes, and a process that runs out of memory or is told to stop can say so before the
others wait for it. Under an FSDP configuration the encoder's frozen weights are spread over the processes.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dream import models, objectives
from dream.errors import DreamError
from dream.files import lasting, replacing, replacing_folder, value_hash, write_json
from dream.instances import CandidateSet, used

if TYPE_CHECKING:
    from dream.config import Config
    from dream.config.sections import Training
    from dream.encoder import Encoder

COLLAPSED_GATE = 1e-3
STATE = ("steps", "pairs", "flops", "seconds", "history", "micro", "snapshots")  # what a checkpoint keeps of a result


@dataclass
class Result:
    """What a run leaves: the trained step module, its curves, the steps, pairs and operations it took.

    ``micro`` is the micro-batch in use: that of params, unless it did not fit. ``scalars`` are the learned scalars by name
    (see :func:`reach`). ``snapshots`` says what it took to get to each of ``training.snapshots`` (steps, pairs, operations,
    seconds), by its number of pairs; ``checkpoints`` holds their encoders. ``seconds`` are those of all steps, ``earlier``
    those of the processes before this one.
    """

    step: Step
    micro: int
    checkpoints: Checkpoints
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    pairs: int = 0
    flops: float = 0.0
    scalars: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    earlier: float = 0.0
    snapshots: dict[int, dict[str, float]] = field(default_factory=dict)

    def cost(self) -> dict[str, float]:
        """What it took so far."""
        return {"steps": self.steps, "pairs": self.pairs, "flops": self.flops, "seconds": round(self.seconds, 2)}


@dataclass
class Report:
    """What one process found in one step; :func:`_together` sums the processes'."""

    logs: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    graded: set[str] = field(default_factory=set)  # names of the parameters that got a gradient
    out_of_memory: str = ""
    stop: str = ""  # name of the signal that asked to stop


class Step(nn.Module):
    """Encoder and objective as one module, so that data-parallel wrappers see every trained parameter."""

    def __init__(self, encoder: Encoder, objective: objectives.Objective) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.objective: Any = objective

    def forward(self, sets: Sequence[CandidateSet]) -> tuple[Tensor, dict[str, float]]:
        return self.objective.loss(sets, self.encoder)

    def trained(self) -> dict[str, nn.Parameter]:
        """Names and parameters that are optimised."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def order(n: int, batch: int, step: int, seed: int, block: int) -> list[int]:
    """Indices of the sets of one global batch: every epoch takes the sets block by block, each in a fresh seeded shuffle.

    No set comes twice within an epoch. A step does not depend on how many follow, so a longer run begins as a shorter one.

    >>> sorted(order(8, 2, 0, seed=0, block=4) + order(8, 2, 1, seed=0, block=4))
    [0, 1, 2, 3]
    >>> order(8, 2, 1, seed=0, block=4) == order(4, 2, 1, seed=0, block=4)
    True
    """
    chosen = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, n)
        number, place = divmod(place, block)
        length = min(block, n - number * block)
        chosen.append(number * block + _shuffled(length, seed, epoch * math.ceil(n / block) + number)[place])
    return chosen


@lru_cache(maxsize=4)
def _shuffled(n: int, seed: int, block: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 100_003 + block)
    return torch.randperm(n, generator=generator).tolist()


def resume_key(made_with: dict[str, Any], training: Training, *inputs: Any) -> str:
    """The name of a run's resume folder: a hash of what it is made with and from, without what cannot change a step.

    Args:
        made_with: the settings of the stage, objective and seed; ``made_with["settings"]["training"]`` are those of ``training``.
        training: the section.
        inputs: hashes of code and data.
    """
    free = {"snapshots", "checkpoint_every", "keep_checkpoints"} | ({"steps"} if extensible(training) else set())
    settings = made_with["settings"]
    kept = {**settings, "training": {k: v for k, v in settings["training"].items() if k not in free}}
    return value_hash([{**made_with, "settings": kept}, *inputs])[:24]


def extensible(training: Training) -> bool:
    """Whether the rate of a step does not depend on how many steps the run takes."""
    return training.schedule == "constant" and not training.warmup


def train(config: Config, name: str, seed: int, sets: Sequence[CandidateSet], given: objectives.Given, key: str) -> Result:
    """Train one encoder with one objective and seed.

    Args:
        config: what the stage may read: ``roles.encoder``, ``encoder``, ``training``, ``temperature``, the objective's knobs.
        name: a registered objective.
        seed: of the adapter's initialisation and of the order of the sets.
        sets: the candidate sets; one step takes ``training.batch`` of them.
        given: what the objective needs of the judge: the frozen LLM, its heads, its teacher.
        key: names the resume folder; must change with everything that can change the result.

    Raises:
        DreamError: the loss is not finite, step 1 has no gradient, the gate collapsed, or memory ran out at micro-batch 1.
    """
    from accelerate import Accelerator
    from transformers import get_scheduler

    from dream.encoder import Encoder

    knobs = config.training
    sets = used(sets, knobs.steps, knobs.batch, knobs.block)
    torch.set_num_threads(knobs.threads)
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    encoder = Encoder.load(
        models.rules(config.roles["encoder"], "encoder"),
        trainable=True,
        lora=knobs.lora,
        seed=seed,
        max_length=config.encoder.max_length,
        token_budget=config.encoder.token_budget,
        gradient_checkpointing=knobs.gradient_checkpointing,
        device=accelerator.device,
    )
    objective = objectives.find(name)
    step = Step(encoder, objective.build(config.knobs[name], config, given)).to(accelerator.device)
    if step.objective.whole_batch and accelerator.num_processes > 1:
        raise DreamError(
            f"{name} takes its negatives from the whole batch, which only one process holds", "Leave training.accelerate out"
        )
    _shard(accelerator, encoder, knobs)
    parameters = step.trained()
    optimizer = torch.optim.AdamW(groups(parameters, knobs), weight_decay=knobs.weight_decay)
    start = scalars(parameters)
    kind = "constant_with_warmup" if knobs.schedule == "constant" else knobs.schedule
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=round(knobs.warmup * knobs.steps), num_training_steps=knobs.steps)
    checkpoints = Checkpoints(key, knobs.keep_checkpoints)
    result = Result(step, knobs.micro_batch, checkpoints)
    checkpoints.restore(parameters, optimizer, scheduler, result, knobs)
    result.earlier = result.seconds
    result.micro = min(result.micro, math.ceil(knobs.batch / accelerator.num_processes))  # work for every process
    main = is_main_process()
    with (
        _stopping_on_signals() as stop,
        tqdm(total=knobs.steps, initial=result.steps, desc=f"train {name} seed {seed}", unit="step", disable=not main) as bar,
    ):
        for number in range(result.steps, knobs.steps):
            started = time.perf_counter()
            batch = [sets[i] for i in order(len(sets), knobs.batch, number, seed, knobs.block)]
            step.objective.step = number
            report = _gradient(step, batch, result, accelerator, (seed, number), stop, bar)
            norm = nn.utils.clip_grad_norm_(parameters.values(), knobs.clip or math.inf) if parameters else torch.zeros(())
            encoder_norm = _norm(p.grad for p in encoder.parameters() if p.grad is not None)
            _guard(name, number, report.logs, encoder_norm, float(norm), step.objective)
            if step.objective.expects_gradient:
                optimizer.step()
            lr = scheduler.get_last_lr()[0]
            scheduler.step()
            result.steps, result.flops = number + 1, result.flops + report.flops
            result.pairs += sum(len(s.questions) for s in batch)
            result.seconds += time.perf_counter() - started
            for pairs in sorted(set(knobs.snapshots) - set(result.snapshots)):
                if pairs <= result.pairs:
                    result.snapshots[pairs] = result.cost()
                    if main:
                        checkpoints.keep_encoder(encoder, pairs)
            last = result.steps == knobs.steps
            if number % knobs.log_every == 0 or last:
                row = {"step": result.steps, **report.logs, "learning_rate": lr, "grad_norm": float(norm)}
                result.history.append(row)
            bar.set_postfix(loss=f"{report.logs['loss']:.3f}", rank=f"{report.logs.get('gold_rank', math.nan):.2f}")
            bar.update()
            if main and (last or result.steps % knobs.checkpoint_every == 0 or report.stop):
                checkpoints.save(parameters, optimizer, scheduler, result)
            if report.stop and not last:
                line = f"stopped by {report.stop} after step {result.steps}, which is saved. Run the same command again to go on"
                sys.exit(line if main else 1)
    if missing := set(knobs.snapshots) - set(result.snapshots):
        raise DreamError(
            f"training.snapshots: {min(missing)} pairs were not reached, the run took {result.pairs}", "Leave it out"
        )
    result.scalars = reach(start, scalars(parameters), knobs.scalar_learning_rate, scheduler.lr_lambdas[0], knobs.steps)
    return result


def groups(parameters: dict[str, nn.Parameter], knobs) -> list[dict[str, Any]]:
    """The optimiser's groups: weights at ``learning_rate``; scalars (log tau, gamma) at ``scalar_learning_rate``, never decayed.

    A step of AdamW moves a parameter by about its rate at most. The rate of the weights would hold a scalar where it
    starts: 36 steps of 5e-4 move gamma by .018, the gate from .5 to .504.
    """
    weights = [p for p in parameters.values() if p.ndim]
    single = [p for p in parameters.values() if not p.ndim]
    found = [
        {"params": weights, "lr": knobs.learning_rate},
        {"params": single, "lr": knobs.scalar_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in found if group["params"]]


def scalars(parameters: dict[str, nn.Parameter]) -> dict[str, float]:
    """The learned scalars' values by their own name (``log_tau``, ``gamma``)."""
    return {name.rpartition(".")[-1]: p.item() for name, p in parameters.items() if not p.ndim}


def reach(
    start: dict[str, float], end: dict[str, float], rate: float, schedule: Callable[[int], float], steps: int
) -> dict[str, dict[str, float]]:
    """How far every scalar moved, and how far it could have: the sum of its rates over the steps.

    A scalar that used nearly all of its reach was held back by its rate, not by the loss.

    >>> reach({"gamma": 0.0}, {"gamma": -0.5}, rate=0.1, schedule=lambda step: 1.0, steps=10)
    {'gamma': {'start': 0.0, 'end': -0.5, 'reach': 1.0, 'used': 0.5}}
    """
    most = round(rate * sum(schedule(step) for step in range(steps)), 6)
    return {
        name: {"start": value, "end": end[name], "reach": most, "used": round(abs(end[name] - value) / most, 4) if most else 0.0}
        for name, value in start.items()
    }


def _gradient(step: Step, batch, result: Result, accelerator, moment: tuple[int, int], stop, bar) -> Report:
    """Leave the gradient of the mean loss over the global batch in every process; halve the micro-batch until it fits.

    Args:
        moment: seed and step number: what the random numbers of the step (dropout) depend on.

    Raises:
        DreamError: one candidate set at a time does not fit into memory.
    """
    parameters = step.trained()
    while True:
        torch.manual_seed(hash((*moment, accelerator.process_index)))
        step.zero_grad(set_to_none=True)
        report, before = Report(), operations(step.objective, step.encoder)
        try:
            if step.objective.whole_batch and result.micro < len(batch):
                report.logs = _cached_backward(step, batch, result.micro)
            else:
                report.logs = _backward(step, batch, result.micro, accelerator)
        except (RuntimeError, MemoryError) as error:
            # Under FSDP the others wait inside a joint pass: this process cannot try again alone.
            if not _is_out_of_memory(error) or accelerator.distributed_type == "FSDP":
                raise
            report.out_of_memory = str(error).strip().split("\n")[0] or type(error).__name__
        report.flops = operations(step.objective, step.encoder) - before
        report.stop = stop.requested
        report.graded = {name for name, p in parameters.items() if p.grad is not None}
        report = _together(report)
        if not report.out_of_memory:
            _sum_gradients({name: p for name, p in parameters.items() if name in report.graded}, accelerator)
            return report
        step.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if result.micro == 1:
            raise DreamError(
                f"one candidate set does not fit into memory ({report.out_of_memory})",
                "Lower candidates.count, encoder.max_length or judge.passage_tokens, or set training.gradient_checkpointing",
            )
        result.micro //= 2
        if accelerator.is_main_process:
            bar.write(f"out of memory: micro-batch halved to {result.micro}, global batch stays {len(batch)}")


def _backward(step: Step, batch: Sequence[CandidateSet], micro: int, accelerator) -> dict[str, float]:
    """Accumulate this process's share of the gradient; return its share of the batch's mean logs."""
    totals: dict[str, float] = {}
    for piece in dealt(batch, micro, accelerator.num_processes, accelerator.process_index):
        loss, logs = step(piece)
        share = len(piece) / len(batch)
        if loss.requires_grad:
            (loss * share).backward()
        for key, value in {"loss": float(loss.detach()), **logs}.items():
            totals[key] = totals.get(key, 0.0) + value * share
    return totals


def _cached_backward(step: Step, batch: Sequence[CandidateSet], micro: int) -> dict[str, float]:
    """The gradient of one loss of the whole batch, in the memory of a micro-batch; return the batch's logs.

    GradCache (Gao et al. 2021, arXiv 2101.06983): the vectors of all micro-batches without a graph, the loss on them and its
    gradient at each, then every micro-batch again, with the random numbers that it had, from there to the weights.
    """
    encoder, objective, tokens = step.encoder, step.objective, step.encoder.trained_tokens
    pieces = dealt(batch, micro, 1, 0)
    states, kept = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state())
            kept.append(objective.embed(piece, encoder))
    objective.flops += encoder.flops_per_token * (encoder.trained_tokens - tokens)  # forward only
    encoder.trained_tokens = tokens
    kept = [[[v.detach().requires_grad_() for v in side] for side in pair] for pair in kept]
    queries, passages = ([v for side in sides for v in side] for sides in zip(*kept, strict=True))
    loss, logs = objective.from_vectors(queries, passages, batch)
    loss.backward()
    for piece, state, pair in zip(pieces, states, kept, strict=True):
        _random_state(state)
        again = objective.embed(piece, encoder)
        torch.autograd.backward([v for side in again for v in side], [v.grad for side in pair for v in side])
    return {"loss": float(loss.detach()), **logs}


def _random_state(restore: list[Tensor] | None = None) -> list[Tensor]:
    """The state of torch's generators, the processor's and every GPU's; ``restore`` is put in its place first."""
    if restore is not None:
        torch.set_rng_state(restore[0])
        torch.cuda.set_rng_state_all(restore[1:])
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def dealt(batch: Sequence, micro: int, processes: int, process: int) -> list[Sequence]:
    """The micro-batches of one process: the global batch is cut first, then dealt, so that the pieces are the same for any
    number of processes.

    >>> [dealt("abcde", 2, 2, process) for process in range(2)]
    [['ab', 'e'], ['cd']]
    """
    return [batch[i : i + micro] for i in range(0, len(batch), micro)][process::processes]


def _together(report: Report) -> Report:
    """The sum of all processes' reports; the same in every process."""
    from accelerate.utils import gather_object

    reports = gather_object([report])
    logs: dict[str, float] = {}
    for key, value in (item for r in reports for item in r.logs.items()):
        logs[key] = logs.get(key, 0.0) + value
    return Report(
        logs,
        sum(r.flops for r in reports),
        set().union(*(r.graded for r in reports)),
        next((r.out_of_memory for r in reports if r.out_of_memory), ""),
        next((r.stop for r in reports if r.stop), ""),
    )


def _sum_gradients(parameters: dict[str, nn.Parameter], accelerator) -> None:
    """Sum the gradients over the processes, all in one message; a process without one adds zero."""
    if accelerator.num_processes == 1 or not parameters:
        return
    several = parameters.values()
    message = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in several])
    summed = accelerator.reduce(message, "sum").split([p.numel() for p in several])
    for p, gradient in zip(several, summed, strict=True):
        p.grad = gradient.view_as(p).to(p.dtype)


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Python have a class for it, the CPU's allocator a RuntimeError with one of these texts."""
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error).lower() for text in texts)


def _shard(accelerator, encoder: Encoder, knobs) -> None:
    """Under an FSDP configuration spread the encoder's frozen weights over the processes; what is trained stays whole.

    Gathering a layer's weights is a joint act: every process must make the same number of forward passes. So each piece is
    one pass (no token budget), and the pieces must be the same number in every process.
    """
    if accelerator.distributed_type != "FSDP":
        return
    if not accelerator.is_fsdp2:
        raise DreamError("only FSDP version 2 is supported", "Set fsdp_version: 2 in the accelerate configuration")
    if (knobs.batch // knobs.micro_batch) % accelerator.num_processes:
        raise DreamError(
            f"under FSDP the {knobs.batch // knobs.micro_batch} micro-batches of a step must be a multiple of the "
            f"{accelerator.num_processes} processes",
            "Change training.batch or training.micro_batch",
        )
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    trained = [m for m in encoder.backbone.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    accelerator.state.fsdp_plugin.ignored_modules = trained
    encoder.backbone = fsdp2_prepare_model(accelerator, encoder.backbone)
    encoder.token_budget = sys.maxsize


def operations(objective: objectives.Objective, encoder: Encoder) -> float:
    """So far: the objective's, and per token of the encoder a forward pass and, where one is taken, the activations' gradient."""
    passes = 2 if objective.expects_gradient else 1
    return objective.flops + passes * encoder.flops_per_token * encoder.trained_tokens


def _norm(gradients) -> float:
    squares = [g.detach().float().square().sum() for g in gradients]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0


def _guard(name: str, number: int, logs: dict[str, float], encoder_norm: float, norm: float, objective) -> None:
    """Stop before a bad model is made: non-finite loss, no gradient in step 1, a gate that closed."""
    if not all(map(math.isfinite, (logs["loss"], encoder_norm, norm))):
        raise DreamError(
            f"{name}: loss {logs['loss']} and gradient norm {norm} at step {number + 1} are not both finite",
            "Lower training.learning_rate, or set the dtype of both models to float32",
        )
    if number == 0 and objective.expects_gradient and encoder_norm == 0:
        raise DreamError(
            f"{name}: the encoder gets no gradient in step 1",
            objective.no_gradient,
        )
    if objective.expects_gradient and logs.get("gate", 1) < COLLAPSED_GATE:
        raise DreamError(
            f"{name}: the gate closed to {logs['gate']:.1e} at step {number + 1}: the judge prefers no injection",
            "Set injection.gate=fixed, or choose heads and rows with a larger loss gap",
        )


class Checkpoints:
    """Resume points of one run, written atomically, the last ``keep`` kept, broken ones skipped."""

    def __init__(self, key: str, keep: int) -> None:
        self.folder = lasting("checkpoints", key)
        self.keep = keep

    def save(self, parameters, optimizer, scheduler, result: Result) -> None:
        """Write ``step-<n>.pt`` and drop the oldest ones.

        Raises:
            OSError: the disk is full, for one; the error names the file, and what was there before stays.
        """
        state = {
            "parameters": {name: p.detach().cpu() for name, p in parameters.items()},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            **{name: getattr(result, name) for name in STATE},
        }
        path, buffer = self.folder / f"step-{result.steps:07d}.pt", io.BytesIO()
        torch.save(state, buffer)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        for old in sorted(old for old in self.folder.glob("step-*.pt") if old.name <= path.name)[: -self.keep]:
            old.unlink(missing_ok=True)  # another run of the same key may have been faster; a longer one's stay

    def restore(self, parameters, optimizer, scheduler, result: Result, knobs: Training) -> None:
        """Put the newest sound checkpoint into the given objects of every process; without one they stay as they are.

        It is one of no more steps than the run takes, before the first snapshot that is wanted and not there.
        The main process reads it: another machine need not see the folder.
        """
        from accelerate.utils import broadcast_object_list

        box = [self._newest(parameters, optimizer, knobs) if is_main_process() else None]
        (state,) = broadcast_object_list(box)
        if state is None:
            return
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(state["parameters"][name])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        for name in STATE:
            setattr(result, name, state[name])
        result.snapshots = {pairs: cost for pairs, cost in result.snapshots.items() if pairs in knobs.snapshots}
        logged = (row for row in result.history if (row["step"] - 1) % knobs.log_every == 0 or row["step"] == knobs.steps)
        result.history = list(logged)  # without the last row of a shorter run

    def _newest(self, parameters, optimizer, knobs: Training) -> dict[str, Any] | None:
        for path in sorted(self.folder.glob("step-*.pt"), reverse=True):
            try:
                state = _sound(path, parameters)
                if self._leads_to(knobs, state):
                    optimizer.load_state_dict(state["optimizer"])
                    return state
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".split("\n")[0]
                warnings.warn(f"checkpoint {path} cannot be read ({reason}). Trying the one before", stacklevel=4)
        return None

    def _leads_to(self, knobs: Training, state: dict[str, Any]) -> bool:
        passed = [pairs for pairs in knobs.snapshots if pairs <= state["pairs"]]
        return state["steps"] <= knobs.steps and all(p in state["snapshots"] and self.snapshot(p).is_dir() for p in passed)

    def snapshot(self, pairs: int) -> Path:
        """Where the encoder after so many pairs is kept."""
        return self.folder / f"pairs-{pairs}"

    def keep_encoder(self, encoder: Encoder, pairs: int) -> None:
        """Write the adapter of the encoder after so many pairs."""
        with replacing_folder(self.snapshot(pairs)) as temporary:
            encoder.save_adapter(temporary / "adapter")

    def finish(self, steps: int, keep: bool) -> None:
        """Remove the resume points of a finished run, and what a kill left half-written beside them.

        Args:
            steps: of the run.
            keep: its last point and its snapshots stay, for a longer run to go on from.
        """
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.glob("*"):
            if path.is_dir() and path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file() and path.name < f"step-{steps:07d}.pt":  # half-written ones begin with a dot
                path.unlink(missing_ok=True)


def _sound(path: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Read a checkpoint; raise if a checksum is wrong (torch does not compare them), a part is missing or does not fit."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"checksum of {damaged} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if missing := {"parameters", "optimizer", "scheduler", *STATE} - set(state):
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    if {k: v.shape for k, v in state["parameters"].items()} != {k: p.shape for k, p in parameters.items()}:
        raise ValueError("it holds other parameters")
    return state


class _Stop:
    requested = ""


@contextlib.contextmanager
def _stopping_on_signals():
    """A SIGTERM or the first Ctrl-C asks the loop to save after the current step and leave; a second Ctrl-C ends it at once."""
    stop = _Stop()

    def ask(number, _):
        if number == signal.SIGINT and stop.requested:
            raise KeyboardInterrupt
        stop.requested = signal.Signals(number).name
        if number == signal.SIGINT and is_main_process():
            sys.stderr.write("\nstopping when this step is done and saved. Ctrl-C once more stops at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save(result: Result, folder: Path | str, made_with: dict[str, Any]) -> None:
    """Write a trained model: ``adapter/`` (PEFT), ``state.json`` (tau, gate, steps, pairs) and ``made_with.json``."""
    with replacing_folder(folder) as temporary:
        result.step.encoder.save_adapter(temporary / "adapter")
        result.step.objective.save(temporary)
        for pairs in sorted(result.snapshots):
            shutil.copytree(result.checkpoints.snapshot(pairs), temporary / "snapshots" / str(pairs))
        write_json(temporary / "state.json", {**result.step.objective.state(), "steps": result.steps, "pairs": result.pairs})
        write_json(temporary / "made_with.json", made_with)


def save_curves(result: Result, path: Path | str) -> None:
    """Write the training curves, one row a logged step."""
    with replacing(path) as temporary:
        pd.DataFrame(result.history).round(6).to_csv(temporary, index=False)


# ------------------------------------------------------------------------------------------------------- several processes


def is_main_process() -> bool:
    """True in the one process that writes: rank 0 of all machines."""
    return os.environ.get("RANK", "0") == "0"


def device() -> torch.device:
    """The device of this process; joins the process group where there is one."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available()).device


def finish() -> None:
    """Wait until every process is here (the main one has written its files), then leave the process group."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


def launched() -> bool:
    """True in a process that ``accelerate launch`` or ``torchrun`` started."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "RANK" in os.environ


def launch(settings: Path | str, module: str, arguments: Sequence[str]) -> NoReturn:
    """Run ``python -m <module> <arguments>`` under ``accelerate launch``, then exit with its outcome.

    Args:
        settings: an accelerate configuration file, such as those in configs/accelerate.

    Raises:
        DreamError: the file is missing or is not an accelerate configuration.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not Path(settings).is_file():
        raise DreamError(f"training.accelerate: {settings} is missing", "configs/accelerate holds some")
    given = ["--config_file", str(settings), "--module", module, *arguments]
    try:
        launch_command(launch_command_parser().parse_args(given))
    except (ChildFailedError, subprocess.CalledProcessError, SignalException) as error:
        sys.exit(f"training under {settings} ended early ({type(error).__name__}): the reason stands above")
    except (ValueError, TypeError, AttributeError) as error:
        raise DreamError(f"training.accelerate: {settings} cannot be used ({str(error).splitlines()[0]})") from error
    sys.exit(0)
