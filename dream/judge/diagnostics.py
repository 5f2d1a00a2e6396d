"""Is there a signal? The judge's loss with p on the right candidate against p on a wrong one, before any training.

The gradient that trains the encoder is the slope of the judge's loss in p. If the loss with all of p on a wrong
candidate is no higher than with all of p on the gold one, there is nothing to learn from, and training would make a
bad model without an error. :func:`measure` takes four readings (no injection, uniform p, one-hot on gold, one-hot on a
wrong one) for each choice of rows; :func:`require_signal` stops where the gap is not above zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.judge.attention import ROWS, Injection
from dream.judge.model import Judge

CONDITIONS = ("uniform", "gold", "wrong")
POSITIONS = 32


@torch.no_grad()
def measure(
    judge: Judge, sets: Sequence[CandidateSet], injection: Injection, gate: float, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """Losses of the first question of every set (nats per target token), with a 95 % bootstrap interval of the gap.

    Args:
        judge: the frozen LLM.
        sets: candidate sets; which wrong candidate is used is drawn with ``seed``.
        injection: heads and budget; all three choices of rows are measured.
        gate: g, between 0 and 1.

    Returns:
        ``{"rows": [one flat record per choice of rows], "positions": [one record per target position]}``; a record has
        ``rows, gate, instances, none, uniform, gold, wrong, gap, gap_low, gap_high, used``; positions belong to
        ``injection.rows``.
    """
    generator, g = np.random.default_rng(seed), torch.tensor(gate)
    per_token: dict[tuple[str, str], list[np.ndarray]] = {}
    for candidates in tqdm(sets, desc="loss gap", unit="set"):
        one = dataclasses.replace(candidates, questions=candidates.questions[:1])
        thrice = dataclasses.replace(candidates, questions=candidates.questions[:1] * 3)
        k, gold = len(candidates.passages), candidates.questions[0].gold
        wrong = int(generator.choice([j for j in range(k) if j != gold]))
        p = torch.stack([torch.full((k,), 1 / k), torch.eye(k)[gold], torch.eye(k)[wrong]])
        reading = judge.read(candidates)
        found = {("none", "none"): judge.target_losses(one, reading=reading, per_token=True)[0]}
        for rows in ROWS:
            at = dataclasses.replace(injection, rows=rows)
            losses = judge.target_losses(thrice, p, g, at, reading=reading, per_token=True)
            found |= {(rows, name): loss for name, loss in zip(CONDITIONS, losses, strict=True)}
        for key, loss in found.items():
            per_token.setdefault(key, []).append(loss.double().cpu().numpy())
    means = {key: np.array([x.mean() for x in values]) for key, values in per_token.items()}
    records = []
    for rows in ROWS:
        gaps = means[rows, "wrong"] - means[rows, "gold"]
        low, high = _interval(gaps, resamples, seed)
        records.append(
            {"rows": rows, "gate": round(gate, 4), "instances": len(gaps), "none": _round(means["none", "none"])}
            | {name: _round(means[rows, name]) for name in CONDITIONS}
            | {"gap": _round(gaps), "gap_low": low, "gap_high": high, "used": rows == injection.rows}
        )
    return {"rows": records, "positions": _positions(per_token, injection.rows)}


def require_signal(diagnosis: dict[str, Any], force: bool = False) -> None:
    """Stop training where the gap's interval is not above zero.

    Raises:
        DreamError: explains what the gap is and what to change; not with ``force``.
    """
    used = next(r for r in diagnosis["rows"] if r["used"])
    if used["gap_low"] > 0 or force:
        return
    raise DreamError(
        f"the judge's loss does not tell the right candidate from a wrong one: gap {used['gap']:.4f} nats a token, "
        f"95 % interval {used['gap_low']:.4f} to {used['gap_high']:.4f} over {used['instances']} instances with "
        f"injection.rows={used['rows']}, so training has nothing to learn from",
        "Choose injection.rows=all, other heads, more candidates or a larger judge; "
        "more injection.diagnostic instances narrow the interval; injection.force=true trains anyway",
    )


def table(diagnosis: dict[str, Any]) -> str:
    """The readings as plain text, one line for each choice of rows."""
    lines = [f"{'rows injected':<14}{'none':>8}{'uniform':>9}{'gold':>8}{'wrong':>8}{'gap':>9}   95 % interval"]
    for r in diagnosis["rows"]:
        lines.append(
            f"{r['rows'] + (' *' if r['used'] else ''):<14}{r['none']:>8.3f}{r['uniform']:>9.3f}{r['gold']:>8.3f}"
            f"{r['wrong']:>8.3f}{r['gap']:>9.4f}   {r['gap_low']:.4f} to {r['gap_high']:.4f}"
        )
    return "\n".join([*lines, f"(nats per target token, {r['instances']} instances, g = {r['gate']}; * = used)"])


def _interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return round(float(low), 6), round(float(high), 6)


def _positions(per_token: dict[tuple[str, str], list[np.ndarray]], rows: str) -> list[dict[str, float]]:
    """Mean loss at each of the first target positions, over the instances that are long enough."""
    keys = {"none": ("none", "none"), **{name: (rows, name) for name in CONDITIONS}}
    longest = min(POSITIONS, max(len(x) for x in per_token["none", "none"]))

    def mean(key: tuple[str, str], i: int) -> float:
        return _round(np.array([losses[i] for losses in per_token[key] if len(losses) > i]))

    return [{"position": i, **{name: mean(key, i) for name, key in keys.items()}} for i in range(longest)]


def _round(values: np.ndarray) -> float:
    return round(float(values.mean()), 6)
