"""Where a new LoRA goes: the modules of a model that it may be put on, by name or by architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from dream.errors import DreamError

# A class of this name is attention and nothing else: Jamba's AttentionDecoderLayer has a feed-forward part too.
ATTENTION = re.compile(r"Attention(?!.*(?:Layer|Block|Model|Encoder|MLP))")


def attention_projections(model: nn.Module, reference: str = "") -> list[str]:
    """The linear modules of a model's attention, whatever its architecture: the default targets of a LoRA.

    Returns:
        The shortest ends of names that stand for these modules and for no other: ``q_proj`` of Llama and Qwen,
        ``attention.output.dense`` of BERT, whose ``output.dense`` is another's too.

    Raises:
        DreamError: none is found.
    """
    blocks = tuple(f"{name}." for name, module in model.named_modules() if ATTENTION.search(type(module).__name__))
    inside = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n.startswith(blocks)]
    others = [f".{name}" for name, _ in model.named_modules() if name not in set(inside)]
    if not inside:
        raise DreamError(f"no attention projections are found in {reference or 'the model'}", "Name lora_targets in its record")
    return list(dict.fromkeys(_shortest_end(name, others) for name in inside))


def _shortest_end(name: str, others: Sequence[str]) -> str:
    """The least of a module's name, from its end, that is the end of none of the others' (each with a dot before it)."""
    parts = name.split(".")
    ends = (".".join(parts[-n:]) for n in range(1, len(parts)))
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), name)


def check_targets(model: nn.Module, targets: Sequence[str], reference: str) -> None:
    """Stop unless every target of a new LoRA is a module with a weight matrix.

    Raises:
        DreamError: names the target that is none, and the modules there are.
    """
    modules = [name for name, m in model.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in modules)]
    if missing or not targets:
        there = sorted({name.rpartition(".")[2] for name in modules})
        raise DreamError(
            f"lora_targets {list(targets)} do not fit {reference}: "
            + (f"it has no module {missing[0]!r}" if missing else "there must be one"),
            f"Its modules are {', '.join(there)}",
        )
