"""Reading a model's folder: what it is, what its files say, and one line for whatever is wrong with them."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dream.errors import DreamError


def split_revision(reference: str) -> tuple[str, str | None]:
    """Split ``owner/name@revision``; a folder keeps its name whole.

    >>> split_revision("owner/name@v1"), split_revision("owner/name")
    (('owner/name', 'v1'), ('owner/name', None))
    """
    if "@" not in reference or Path(reference).exists():
        return reference, None
    name, _, revision = reference.rpartition("@")
    return name, revision


def is_causal(backbone: nn.Module) -> bool:
    """Whether every attention layer looks only to the left, as its own code says."""
    flags = [module.is_causal for module in backbone.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(flags) and all(flags)


def is_peft(backbone: nn.Module) -> bool:
    """Whether the backbone carries an adapter."""
    return hasattr(backbone, "peft_config")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the screen; what matters in them is checked by the caller."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def room(backbone: nn.Module) -> int | None:
    """Tokens that a model's table of positions has room for; None for a model without one (rotary, relative).

    A table with a padding row (RoBERTa, MPNet) starts behind it; OPT's says how many rows it keeps free.
    """
    for name, module in backbone.named_modules():
        table = re.search(r"(^|\.)(position_embeddings|embed_positions|wpe)(\.|$)", name)
        if table and isinstance(module, nn.Embedding):
            free = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", free)
    return None


def folder_room(folder: Path | str, trust_remote_code: bool = False) -> int | None:
    """:func:`room` of a model folder by its configuration alone: no weight is read."""
    return room(skeleton(folder, trust_remote_code))


def skeleton(folder: Path | str, trust_remote_code: bool = False) -> nn.Module:
    """A folder's model by its configuration alone: modules with shapes and without weights."""
    from transformers import AutoModel

    with readable(folder), torch.device("meta"), quiet():
        config = settings(folder, trust_remote_code=trust_remote_code)
        return AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def fits(length: int, room: int | None, what: str, reference: str) -> int:
    """Return ``length`` if a model with ``room`` positions (None: no limit) can read that many tokens.

    Raises:
        DreamError: it cannot; the line has setting, model and both numbers.
    """
    if room is not None and length > room:
        raise DreamError(
            f"{what} {length} is more than {reference or 'the model'} has positions for ({room} tokens)",
            f"Set it to at most {room}",
        )
    return length


@contextlib.contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Whatever is wrong with a model's files is one line that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise DreamError(
            f"model {path} cannot be loaded ({first_line(error)})",
            "Give a local folder with safetensors weights, or a hub id while the hub can be reached",
        ) from error


def settings(name: Path | str, **remote: Any) -> Any:
    """A model's configuration, a copy: it is shared by every model built from it, with their choice of attention."""
    from transformers import AutoConfig

    if (Path(name) / "adapter_config.json").exists():
        raise DreamError(f"{name} is an adapter, not a model", "Name it as `adapter`, and its base as `model`")
    config = copy.deepcopy(AutoConfig.from_pretrained(name, **remote))
    if config.is_encoder_decoder:
        raise DreamError(f"{name} has an encoder and a decoder", "Choose a model with one body")
    return config


def lower_case(tokenizer: Any) -> None:
    """Small letters before the tokenizer's own steps, as sentence-transformers does for ``dolower_case``."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
