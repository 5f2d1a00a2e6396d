"""The retriever's scores inside the judge's attention (paper, equations 7 to 9; method.md, section 1, item 4).

For a selected head and an injected row ``a``, with ordinary attention ``alpha(a, ·)`` and documents ``D_1 … D_K``:

    alphahat_j(a, b) = alpha(a, b) / sum over b' in D_j of alpha(a, b')        the judge chooses within a document
    alphaR(a, b)     = p_j · alphahat_j(a, b)  for b in D_j, else 0            the retriever chooses between documents
    alpha'(a, b)     = (1 − g) alpha(a, b) + g · alphaR(a, b)

Both factors of ``alpha = exp(logit) / Z`` that are common to a row cancel in ``alphahat_j``: it is the softmax of the
logits *restricted to* ``D_j``. With ``A_j(a) = Attn(a; K_{D_j}, V_{D_j})`` the head's output becomes

    o'(a) = (1 − g) o(a) + g · Σ_j p_j A_j(a)                                   budget ``paper``

so no attention matrix is edited: the stock kernel computes ``o`` for all heads and rows, and only selected heads and
rows are corrected. In the variant that keeps the head's own total mass on documents, ``m(a) = Σ_j m_j(a)`` with
``m_j(a) = Σ_{b in D_j} alpha(a, b)``, what falls outside the documents stays and the mass inside is shared out by p:

    alpha'(a, b) = (1 − g) alpha(a, b) + g · (alpha(a, b) outside the documents, m(a) · p_j · alphahat_j(a, b) inside)
    o'(a) = o(a) + g · Σ_j (m(a) p_j − m_j(a)) A_j(a)                           budget ``preserve``

Rows sum to 1 in both. The function is registered with transformers' public attention interface under :data:`NAME`;
what it needs arrives as the keyword ``dream`` of the model's forward call. Without it the function is the stock one.
Logits, softmaxes and mixtures of selected rows are computed in float32 at least, whatever the judge's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dream.errors import DreamError

NAME = "dream_judge"
ROWS = ("query", "query+label", "all")
BUDGETS = ("paper", "preserve")
Head = tuple[int, int]  # (layer, query head), zero-based


@dataclass(frozen=True)
class Injection:
    """Where and how scores enter the judge.

    Attributes:
        heads: the selected ``(layer, head)`` pairs.
        rows: ``query`` (the paper), ``query+label`` or ``all`` (query, label and target rows).
        budget: ``paper`` (equation 9) or ``preserve`` (documents keep the head's own total mass).
    """

    heads: tuple[Head, ...]
    rows: str = "query"
    budget: str = "paper"

    def __post_init__(self) -> None:
        for value, known, name in ((self.rows, ROWS, "rows"), (self.budget, BUDGETS, "budget")):
            if value not in known:
                raise DreamError(f"injection.{name}: {value!r} is not defined", f"Choose one of {', '.join(known)}")
        if len(set(self.heads)) != len(self.heads):
            raise DreamError("heads: a head is named twice", "Name every (layer, head) pair once")
        if not self.heads:
            raise DreamError("heads: none is selected", "Select at least one head, or set injection.gate=off")

    def validate(self, layers: int, heads: int) -> None:
        """Stop if a head does not exist in a judge with so many layers and heads a layer."""
        for layer, head in self.heads:
            if not (0 <= layer < layers and 0 <= head < heads):
                raise DreamError(
                    f"head ({layer}, {head}) does not exist: the judge has layers 0 to {layers - 1} with heads 0 to {heads - 1}",
                    "Give zero-based (layer, query head) pairs of this judge",
                )

    def by_layer(self) -> dict[int, list[int]]:
        """Layer → its selected heads."""
        found: dict[int, list[int]] = {}
        for layer, head in sorted(self.heads):
            found.setdefault(layer, []).append(head)
        return found


@dataclass(frozen=True)
class Spans:
    """The documents as a padded index: which key positions belong to which document.

    Attributes:
        index: ``[K, L]`` key positions, L the longest document; padding repeats position 0.
        valid: ``[K, L]`` False at padding.
    """

    index: Tensor
    valid: Tensor

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Spans:
        longest = max(end - start for start, end in spans)
        offsets = torch.arange(longest)
        starts, ends = torch.tensor(spans).T[..., None]
        valid = starts + offsets < ends
        return cls(((starts + offsets) * valid).to(device), valid.to(device))


@dataclass
class Scores:
    """What one forward call injects; indices lie on the device of ``rows`` once a call.

    Attributes:
        heads: layer → selected heads; becomes layer → index ``[n]``.
        rows: ``[R]`` injected rows of the call's queries.
        spans: the documents among the keys.
        p: ``[R, K]`` the retriever's distribution for each row's question.
        gate: scalar g.
        budget: see :class:`Injection`.
    """

    heads: dict[int, Any]
    rows: Tensor
    spans: Spans
    p: Tensor
    gate: Tensor
    budget: str

    def __post_init__(self) -> None:
        self.heads = {layer: torch.tensor(heads, device=self.rows.device) for layer, heads in self.heads.items()}


@dataclass
class Masses:
    """Records the attention that every document token gets, in every layer of the call and head, averaged over rows.

    Attributes:
        groups: one tensor of row indices per question; the mean is over these rows.
        documents: ``[P]`` key positions that are recorded.
        found: one ``[questions, H, P]`` tensor per layer, filled by the forward call.
    """

    groups: list[Tensor]
    documents: Tensor
    found: list[Tensor] = field(default_factory=list)


def wide(x: Tensor) -> Tensor:
    """Float32, or float64 if the tensor is float64."""
    return x if x.dtype == torch.float64 else x.float()


def judge_attention(module, query, key, value, attention_mask, scaling=None, dream=None, **kwargs):
    """Attention of the judge: the stock kernel, then the correction of selected heads and rows.

    Args:
        module: the attention layer; its ``layer_idx`` tells the layer.
        query: ``[1, H, S, d]`` after position encoding (and after q/k norms where a model has them).
        key, value: ``[1, H_kv, T, d]``, with the documents among the first keys.
        attention_mask: None (causal) or additive ``[1, 1, S, T]``, or :func:`folded` once for all layers.
        dream: :class:`Scores` to inject, :class:`Masses` to fill, or None.

    Returns:
        ``[1, S, H, d]`` and None, as transformers asks.
    """
    output = _stock(module, query, key, value, attention_mask, scaling, **kwargs)
    if isinstance(dream, Masses):
        _record(dream, query, key, attention_mask, scaling)
    elif dream is not None and module.layer_idx in dream.heads:
        output = _inject(dream, dream.heads[module.layer_idx], output, query, key, value, attention_mask, scaling)
    return output, None


def _stock(module, query, key, value, attention_mask, scaling, **kwargs) -> Tensor:
    """Scaled dot-product attention, ``[B, S, H, d]``.

    With a mask, the G query heads that share a key/value head are folded into the rows (``[B, H_kv, G·S, d]``): keys and
    values are then read where they lie instead of being repeated G times.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)[0]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, width),
        key,
        value,
        attn_mask=attention_mask if attention_mask.shape[2] == groups * length else folded(attention_mask, groups),
        scale=scaling,
    )
    return mixed.view(batch, heads, length, value.shape[-1]).transpose(1, 2)


def folded(mask: Tensor, groups: int) -> Tensor:
    """A mask ``[B, 1, S, T]`` for the rows of G heads, one head after the other: ``[B, 1, G·S, T]``."""
    return mask.repeat(1, 1, groups, 1)


def _inject(scores: Scores, heads: Tensor, output, query, key, value, attention_mask, scaling) -> Tensor:
    """Replace ``o(a)`` by ``o'(a)`` in the selected heads and rows. Shapes: n selected heads, R rows, K documents."""
    shared = heads // (query.shape[1] // key.shape[1])  # the key/value head of each selected head
    q = wide(query[0].index_select(0, heads).index_select(1, scores.rows)) * scaling  # [n, R, d]
    k, v = (wide(x[0].index_select(0, shared)) for x in (key, value))  # [n, T, d]
    own = output[0].index_select(0, scores.rows).index_select(1, heads).transpose(0, 1)  # [n, R, d]
    p, gate = scores.p.to(q.dtype), scores.gate

    within = torch.einsum("nrd,nkld->nrkl", q, k[:, scores.spans.index])
    within = within.masked_fill(~scores.spans.valid, float("-inf"))
    alone = torch.einsum("nrkl,nkld->nrkd", within.softmax(-1), v[:, scores.spans.index])  # A_j(a)
    if scores.budget == "paper":
        mixed = (1 - gate) * wide(own) + gate * torch.einsum("rk,nrkd->nrd", p, alone)
    else:
        logits = q @ k.transpose(1, 2) + wide(_mask_rows(attention_mask, scores.rows, k))
        mass = (within.logsumexp(-1) - logits.logsumexp(-1, keepdim=True)).exp()  # m_j(a), [n, R, K]
        moved = mass.sum(-1, keepdim=True) * p - mass
        mixed = wide(own) + gate * torch.einsum("nrk,nrkd->nrd", moved, alone)
    return output.index_put(
        (torch.zeros_like(heads)[:1], scores.rows[:, None], heads[None, :]), mixed.transpose(0, 1).to(output.dtype)
    )


def _record(masses: Masses, query, key, attention_mask, scaling) -> None:
    """Append this layer's mean attention on document tokens, ``[questions, H, P]``; only these rows are computed."""
    k = wide(key[0])
    means = []
    for rows in masses.groups:
        q = wide(query[0].index_select(1, rows)) * scaling
        logits = q.view(len(k), -1, q.shape[-1]) @ k.transpose(1, 2)  # the heads of a key head stand behind one another
        alpha = (logits.view(*q.shape[:2], -1) + wide(_mask_rows(attention_mask, rows, k))).softmax(-1)  # [H, R, T]
        means.append(alpha.mean(1).index_select(-1, masses.documents))
    masses.found.append(torch.stack(means))


def _mask_rows(attention_mask: Tensor | None, rows: Tensor, k: Tensor) -> Tensor:
    """Additive mask ``[R, T]`` of some rows; without a mask the call is causal over the whole sequence."""
    if attention_mask is None:
        later = torch.arange(k.shape[-2], device=k.device) > rows[:, None]
        return torch.zeros_like(later, dtype=k.dtype).masked_fill(later, float("-inf"))
    return attention_mask[0, 0].index_select(0, rows)  # of a folded mask, the first head's


AttentionInterface.register(NAME, judge_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
