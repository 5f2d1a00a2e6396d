"""Whether a model can be a judge: its attention must be the one that the method's equations speak of.

Two questions, asked when a judge is loaded. :func:`refuse` reads the configuration for what the equations do not have (local
attention, soft-capped logits) and names it. :func:`check` runs a few tokens: the fast path of :mod:`dream.judge.model` must
give the loss of the model's own plain forward pass, and with scores injected the loss of attention matrices that were edited
entry by entry (paper, equations 7 to 9). So no list of architectures is kept: any decoder that passes is a judge.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.judge.attention import Injection

if TYPE_CHECKING:
    from dream.judge.model import Judge

NAME = "dream_definition"
ALLOWED = {
    torch.float64: 1e-4,
    torch.float32: 1e-3,
}  # largest difference of a token's loss in nats, per nat of loss; less exact: LOW
LOW = 0.1
REMEDY = "Choose a judge with plain full attention in every layer, such as Llama, Qwen2, Qwen3 or SmolLM2"
CAPPED = {"attn_logit_softcapping": "soft-capped attention logits", "final_logit_softcapping": "soft-capped output logits"}


def refuse(config: Any) -> None:
    """Stop for a judge whose configuration says that its attention is not the one that the method describes.

    Raises:
        DreamError: local (sliding-window, chunked) or linear attention, whose heads cannot see all candidates, or soft-capped
            logits; the line names it.
    """
    name = config.name_or_path or config.model_type
    types = getattr(config, "layer_types", None) or []
    if not types and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        types = ["sliding_attention"]
    if not types and getattr(config, "attention_chunk_size", None):
        types = ["chunked_attention"]
    local = set(types) - {"full_attention"}
    if local:
        what = ", ".join(sorted(local))
        raise DreamError(f"judge {name} uses local attention ({what}): its heads cannot see all candidates", REMEDY)
    for key, what in CAPPED.items():
        if getattr(config, key, None):
            raise DreamError(f"judge {name} has {what} ({key}), which equation 7 does not have", REMEDY)


def logit_scale(config: Any) -> float:
    """What the model multiplies its output logits by: Granite's and Cohere's are scaled, most are not."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


@torch.no_grad()
def check(judge: Judge) -> None:
    """Compare the judge's losses on a few tokens with those of the definition, without and with scores in every head.

    A judge on the meta device has no weights to ask.

    Raises:
        DreamError: they differ, or the model cannot be run as a judge at all; the line says which.
    """
    if judge.device.type == "meta":
        return
    asked = Question("q", "How many eyes has a bee?", 1)
    passages = ("Honey is made from nectar.", "A bee has five eyes.", "Wax is made by workers.")
    sets = CandidateSet("check", "", ("0", "1", "2"), passages, (asked,))
    heads = tuple((layer, head) for layer in range(judge.layers) for head in range(judge.heads))
    p, gate = torch.tensor([[0.1, 0.7, 0.2]], device=judge.device), torch.tensor(0.5, device=judge.device)
    for kind, given in {"": (None, None), "with scores in its heads ": (p, gate)}.items():
        try:
            fast = judge.target_losses(sets, *given, Injection(heads, "all"), per_token=True)[0].float()
            slow = _by_definition(judge, sets, *given).float()
        except DreamError:
            raise
        except Exception as error:  # another architecture's forward call may fail in any way
            line = str(error).strip().split("\n")[0] or type(error).__name__
            raise DreamError(f"judge {judge.reference} cannot be run as a judge ({line})", REMEDY) from error
        apart = ((fast - slow).abs() / (1 + slow)).max().item()
        if not apart <= ALLOWED.get(judge.dtype, LOW):
            raise DreamError(
                f"judge {judge.reference}: {kind}its loss is not the method's (a token's differs by {apart:.2g} of itself): "
                f"the attention of {judge.model.config.model_type} is of another kind",
                REMEDY,
            )


def _by_definition(judge: Judge, sets: CandidateSet, p: Tensor | None, gate: Tensor | None) -> Tensor:
    """Losses of the target's tokens, from one plain pass over the whole prompt in which attention matrices are edited."""
    layout, config = judge.prompt.layout(sets), judge.model.config
    ids = torch.tensor([layout.ids], device=judge.device)
    edit = None if p is None else (range(layout.query[0], layout.target[1] - 1), layout.documents.spans, p[0], gate)
    implementation = config._attn_implementation
    judge.model.set_attn_implementation(NAME)
    try:
        logits = judge.model(input_ids=ids, use_cache=False, dream=edit).logits[0]
    finally:
        judge.model.set_attn_implementation(implementation)
    first, last = layout.target
    log_p = logits[first - 1 : last - 1].float().log_softmax(-1)
    return -log_p.gather(1, ids[0, first:last, None])[:, 0]


def edited_attention(module, query, key, value, attention_mask, scaling=None, dream=None, **kwargs):
    """The architecture's own eager attention, with equations 7 to 9 done on its matrix where ``dream`` says so.

    Args:
        dream: rows, document spans, p ``[K]`` and gate; None: nothing is edited.
    """
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise DreamError(f"{type(module).__name__} has no attention function of transformers' kind", REMEDY)
    output, alpha = eager(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # [1, S, H, d], [1, H, S, S]
    if dream is None:
        return output, alpha
    rows, spans, p, gate = dream
    alpha = alpha.clone()
    chosen = slice(rows.start, rows.stop)
    retriever = torch.zeros_like(alpha[:, :, chosen])
    for p_j, (start, end) in zip(p, spans, strict=True):
        inside = alpha[:, :, chosen, start:end]
        retriever[..., start:end] = p_j * inside / inside.sum(-1, keepdim=True)  # equations 7 and 8
    alpha[:, :, chosen] = (1 - gate) * alpha[:, :, chosen] + gate * retriever  # equation 9
    values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return (alpha.to(values.dtype) @ values).transpose(1, 2).contiguous(), alpha


AttentionInterface.register(NAME, edited_attention)
AttentionMaskInterface.register(NAME, eager_mask)
