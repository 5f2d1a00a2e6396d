"""The training loop: one for all objectives, on ``accelerate``, resumable to the byte.

The order of the candidate sets is a function of seed and step alone, so a run that was killed goes on exactly where it
stopped. Checkpoints lie in ``$DVC_ROOT/.dream/checkpoints/<key>``, outside DVC's outs (DVC deletes those before a stage
runs); the key holds everything that can change the result: configuration, code, data, objective, seed.

The global batch of ``training.batch`` sets is split over processes and micro-batches; losses are weighted so that the
gradient is that of the mean over the global batch, whatever the split.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dream import objectives
from dream.config import Config
from dream.errors import DreamError
from dream.files import replacing, replacing_folder, write_json
from dream.instances import CandidateSet

COLLAPSED_GATE = 1e-3


@dataclass
class Result:
    """What a finished run leaves: the trained step module, its curves, and the number of pairs it saw."""

    step: Step
    history: list[dict[str, float]] = field(default_factory=list)
    pairs: int = 0
    flops: float = 0.0


class Step(nn.Module):
    """Encoder and objective as one module, so that data-parallel wrappers see every trained parameter."""

    def __init__(self, encoder: nn.Module, objective: objectives.Objective) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective

    def forward(self, sets: Sequence[CandidateSet]) -> tuple[Tensor, dict[str, float]]:
        return self.objective.loss(sets, self.encoder)

    def trained(self) -> dict[str, nn.Parameter]:
        """Names and parameters that are optimised."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def order(n: int, batch: int, step: int, seed: int) -> list[int]:
    """Indices of the sets of one global batch: a fresh seeded shuffle every epoch, no set twice within one.

    >>> [order(4, 2, step, seed=0) for step in range(2)] == [order(4, 2, 0, 0), order(4, 2, 1, 0)]
    True
    >>> sorted(order(4, 2, 0, 0) + order(4, 2, 1, 0))
    [0, 1, 2, 3]
    """
    chosen = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, n)
        chosen.append(_shuffled(n, seed, epoch)[place])
    return chosen


def used(sets: Sequence[CandidateSet], config: Config) -> Sequence[CandidateSet]:
    """The sets that training takes: the first ``steps × batch``, the same for every objective and seed.

    Raises:
        DreamError: there are fewer sets than one batch.
    """
    knobs = config.training
    if len(sets) < knobs.batch:
        raise DreamError(
            f"training.batch is {knobs.batch}, but only {len(sets)} candidate sets are prepared",
            "Lower it or raise data.instances",
        )
    return sets[: knobs.steps * knobs.batch]


def _shuffled(n: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(n, generator=generator).tolist()


def train(config: Config, name: str, seed: int, sets: Sequence[CandidateSet], judge: Any, heads, key: str) -> Result:
    """Train one encoder with one objective and seed.

    Args:
        config: the resolved config.
        name: a registered objective.
        seed: of the adapter's initialisation and of the order of the sets.
        sets: the candidate sets; one step takes ``training.batch`` of them.
        judge: the frozen LLM, or None where the objective asks none.
        heads: the selected (layer, head) pairs.
        key: names the resume folder; must change with everything that can change the result.

    Raises:
        DreamError: the loss is not finite, step 1 has no gradient, the gate collapsed, or memory ran out at micro-batch 1.
    """
    from accelerate import Accelerator
    from transformers import get_scheduler

    from dream.encoder import Encoder

    knobs = config.training
    sets = used(sets, config)
    torch.set_num_threads(knobs.threads)
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), step_scheduler_with_optimizer=False)
    encoder = Encoder.load(config, trainable=True, seed=seed, device=accelerator.device)
    step = Step(encoder, objectives.find(name)(config, judge, heads)).to(accelerator.device)
    parameters = step.trained()
    optimizer = torch.optim.AdamW(parameters.values(), lr=knobs.learning_rate, weight_decay=knobs.weight_decay)
    scheduler = get_scheduler(
        knobs.schedule, optimizer, num_warmup_steps=round(knobs.warmup * knobs.steps), num_training_steps=knobs.steps
    )
    wrapped = accelerator.prepare_model(step) if accelerator.num_processes > 1 else step
    result, checkpoints = Result(step), Checkpoints(key, knobs.keep_checkpoints)
    begin = checkpoints.restore(parameters, optimizer, scheduler, result)
    micro, flops_before = knobs.micro_batch, result.flops
    with _stopping_on_sigterm() as stop, tqdm(
        total=knobs.steps, initial=begin, desc=f"train {name} seed {seed}", unit="step", disable=not accelerator.is_main_process
    ) as bar:
        for number in range(begin, knobs.steps):
            batch = [sets[i] for i in order(len(sets), knobs.batch, number, seed)]
            while True:
                try:
                    optimizer.zero_grad(set_to_none=True)
                    logs = _backward(wrapped, batch, micro, accelerator)
                    break
                except torch.OutOfMemoryError:
                    if micro == 1:
                        raise
                    micro = max(1, micro // 2)
                    torch.cuda.empty_cache()
                    bar.write(f"out of memory: micro-batch halved to {micro}, global batch stays {knobs.batch}")
            norm = nn.utils.clip_grad_norm_(parameters.values(), knobs.clip or math.inf) if parameters else torch.zeros(())
            encoder_norm = _norm(p.grad for p in encoder.parameters() if p.grad is not None)
            _guard(name, number, logs, encoder_norm, step.objective)
            if step.objective.expects_gradient:
                optimizer.step()
            lr = scheduler.get_last_lr()[0]
            scheduler.step()
            result.flops = flops_before + _flops(step)
            result.pairs += sum(len(s.questions) for s in batch)
            if number % knobs.log_every == 0 or number + 1 == knobs.steps:
                result.history.append({"step": number + 1, **logs, "learning_rate": lr, "grad_norm": float(norm)})
            bar.set_postfix(loss=f"{logs['loss']:.3f}", rank=f"{logs.get('gold_rank', math.nan):.2f}")
            bar.update()
            done = number + 1
            if accelerator.is_main_process and (done % knobs.checkpoint_every == 0 or stop.requested) and done < knobs.steps:
                checkpoints.save(done, parameters, optimizer, scheduler, result)
            if stop.requested:
                sys.exit(f"stopped by SIGTERM after step {done}, which is saved. Run the same command again to go on")
    return result


def _backward(wrapped: nn.Module, batch: list[CandidateSet], micro: int, accelerator) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over the global batch; return the batch's mean logs."""
    world, rank = accelerator.num_processes, accelerator.process_index
    mine = batch[rank::world]
    pieces = [mine[i : i + micro] for i in range(0, len(mine), micro)]
    totals: dict[str, float] = {}
    for n, piece in enumerate(pieces):
        last = n + 1 == len(pieces)
        with contextlib.nullcontext() if last or world == 1 else wrapped.no_sync():
            loss, logs = wrapped(piece)
            share = len(piece) / len(batch)
            if loss.requires_grad:
                (loss * share * world).backward()
        for key, value in {"loss": float(loss.detach()), **logs}.items():
            totals[key] = totals.get(key, 0.0) + value * share
    if world > 1:
        names = sorted(totals)
        summed = accelerator.reduce(torch.tensor([totals[k] for k in names], device=accelerator.device), "sum")
        totals = dict(zip(names, summed.tolist(), strict=True))
    return totals


def _flops(step: Step) -> float:
    """Operations so far: the judge's, and per token of the encoder a forward pass and the gradient of its activations."""
    return step.objective.flops + 2 * step.encoder.flops_per_token * step.encoder.trained_tokens


def _norm(gradients) -> float:
    squares = [g.detach().float().square().sum() for g in gradients]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0


def _guard(name: str, number: int, logs: dict[str, float], encoder_norm: float, objective) -> None:
    """Stop before a bad model is made: non-finite loss, no gradient in step 1, a gate that closed."""
    if not math.isfinite(logs["loss"]) or not math.isfinite(encoder_norm):
        raise DreamError(
            f"{name}: loss {logs['loss']} and gradient norm {encoder_norm} at step {number + 1} are not finite",
            "Lower training.learning_rate, or set judge.dtype and encoder.dtype to float32",
        )
    if number == 0 and objective.expects_gradient and encoder_norm == 0:
        raise DreamError(
            f"{name}: the encoder gets no gradient in step 1",
            "Its loss does not depend on the scores: check heads, injection.rows and injection.gate",
        )
    if objective.expects_gradient and 0 < logs.get("gate", 1) < COLLAPSED_GATE:
        raise DreamError(
            f"{name}: the gate closed to {logs['gate']:.1e} at step {number + 1}: the judge prefers no injection",
            "Set injection.gate=fixed, or choose heads and rows with a larger loss gap",
        )


class Checkpoints:
    """Resume points of one run, written atomically, the last ``keep`` kept, broken ones skipped."""

    def __init__(self, key: str, keep: int) -> None:
        self.folder = Path(os.environ.get("DVC_ROOT", ".")) / ".dream" / "checkpoints" / key
        self.keep = keep

    def save(self, step: int, parameters, optimizer, scheduler, result: Result) -> None:
        """Write ``step-<n>.pt`` and drop the oldest ones."""
        state = {
            "step": step,
            "parameters": {name: p.detach().cpu() for name, p in parameters.items()},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "history": result.history,
            "pairs": result.pairs,
            "flops": result.flops,
        }
        with replacing(self.folder / f"step-{step:07d}.pt") as temporary:
            torch.save(state, temporary)
        for old in sorted(self.folder.glob("step-*.pt"))[: -self.keep]:
            old.unlink()

    def restore(self, parameters, optimizer, scheduler, result: Result) -> int:
        """Load the newest readable checkpoint into the given objects; return its step, 0 where there is none."""
        for path in sorted(self.folder.glob("step-*.pt"), reverse=True):
            try:
                state = torch.load(path, weights_only=True)
            except Exception as error:
                warnings.warn(f"checkpoint {path} cannot be read ({type(error).__name__}): trying the one before", stacklevel=2)
                continue
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(state["parameters"][name])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["rng"])
            result.history, result.pairs, result.flops = state["history"], state["pairs"], state["flops"]
            return state["step"]
        return 0

    def clear(self) -> None:
        """Remove the resume points of a finished run."""
        for path in self.folder.glob("step-*.pt"):
            path.unlink()


class _Stop:
    requested = False


@contextlib.contextmanager
def _stopping_on_sigterm():
    """A SIGTERM asks the loop to save after the current step and leave."""
    stop = _Stop()

    def ask(*_):
        stop.requested = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def save(result: Result, folder: Path | str, made_with: dict[str, Any]) -> None:
    """Write a trained model: ``adapter/`` (PEFT), ``state.json`` (tau, gate, steps, pairs) and ``made_with.json``."""
    with replacing_folder(folder) as temporary:
        result.step.encoder.save_adapter(temporary / "adapter")
        result.step.objective.save(temporary)
        write_json(temporary / "state.json", {**result.step.objective.state(), "steps": len(result.history), "pairs": result.pairs})
        write_json(temporary / "made_with.json", made_with)


def save_curves(result: Result, path: Path | str) -> None:
    """Write the training curves, one row a logged step."""
    with replacing(path) as temporary:
        pd.DataFrame(result.history).round(6).to_csv(temporary, index=False)
