"""Cross-entropy of target tokens from hidden states, without keeping logits for the backward pass.

For one row ``h`` with label ``t``: ``ce = logsumexp(W h) − (W h)_t`` and ``d ce / d h = Wᵀ (softmax(W h) − e_t)``. The
output matrix is frozen, so the gradient is known as soon as the logits are: it is computed beside the loss, chunk by
chunk, and only ``[rows, hidden]`` is kept. A vocabulary of 128,000 never stands in memory for more than one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 256  # rows whose logits exist at one time


class _TargetLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        losses, gradients = [], []
        for h, t in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
            logits = h @ weight.T
            logits = logits if logits.dtype == torch.float64 else logits.float()
            losses.append(torch.nn.functional.cross_entropy(logits, t, reduction="none"))
            if ctx.needs_input_grad[0]:
                error = logits.softmax(-1)
                error[torch.arange(len(t), device=t.device), t] -= 1
                gradients.append(error.to(h.dtype) @ weight)
        ctx.save_for_backward(torch.cat(gradients) if gradients else None)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        return upstream.to(gradient.dtype)[:, None] * gradient, None, None


def target_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Per-token cross-entropy ``[rows]`` of ``labels`` under ``hidden @ weight.T``; float32 at least.

    Args:
        hidden: ``[rows, hidden]`` final hidden states of the rows that predict.
        weight: ``[vocabulary, hidden]``, frozen.
        labels: ``[rows]`` the tokens to predict.
    """
    return _TargetLoss.apply(hidden, weight, labels)
