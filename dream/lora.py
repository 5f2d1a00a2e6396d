"""Where a new LoRA goes: the modules of a model that it may be put on, by name or by architecture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dream.errors import DreamError


def attention_projections(model: nn.Module, reference: str = "") -> list[str]:
    """The linear modules of a model's attention, whatever its architecture: the default targets of a LoRA.

    Returns:
        The shortest ends of names that stand for these modules and for no other: ``q_proj`` of Llama and Qwen,
        ``attention.output.dense`` of BERT, whose ``output.dense`` is another's too.

    Raises:
        DreamError: none is found.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    blocks = [name for name, module in model.named_modules() if "attention" in type(module).__name__.lower()]
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    inside = {name for name in linear if any(name.startswith(f"{block}.") for block in outer)}
    found: dict[str, None] = {}
    for name in (name for name in linear if name in inside):
        parts = name.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        found[next(end for end in ends if all(other in inside for other in linear if f".{other}".endswith(f".{end}")))] = None
    if not found:
        raise DreamError(f"no attention projections are found in {reference or 'the model'}", "Name lora_targets in its record")
    return list(found)


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
