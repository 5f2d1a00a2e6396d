"""How likely the frozen judge finds a question, given one passage: Σ_t log P(q_t | d_j, q_<t) / |q|.

UPR (Sachan et al. 2022, arXiv 2204.07496) ranks passages by it, ART (Sachan et al. 2023, arXiv 2206.10658) trains a retriever
from it: no target is read, and no passage but d_j is in sight. The prompt is a passage as in :mod:`dream.judge.prompt`, alone
behind the header, and UPR's request::

    PASSAGES:

    <passage j>

    Please write a question based on this passage.

    Question: <question>
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dream.instances import CandidateSet
from dream.judge.prompt import EMPTY_QUERY, Prompt, Suffix

if TYPE_CHECKING:
    from dream.judge import Judge

REQUEST = "\n\nPlease write a question based on this passage.\n\nQuestion:"


def suffix(prompt: Prompt, query: str) -> Suffix:
    """The request with the question in the target's place; the empty query stands for a question without a character."""
    request = prompt.tokens(REQUEST)
    asked = prompt.tokens(" " + (query.strip() or EMPTY_QUERY))[: prompt.limits.query]
    start, end = len(request), len(request) + len(asked)
    return Suffix((*request, *asked), (start, start), (0, start), (start, end))


@torch.no_grad()
def log_likelihood(judge: Judge, candidates: CandidateSet) -> Tensor:
    """Mean log-likelihood per token of every question given one passage at a time, ``[Q, K]``."""
    alone = judge.prompt.documents(candidates).alone()
    return -torch.stack([judge.behind_each(alone, suffix(judge.prompt, question.text)) for question in candidates.questions])
