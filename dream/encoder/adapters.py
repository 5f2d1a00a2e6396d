"""Adapters: a new LoRA's targets, and adapters of others, which act as peft itself has them act or are refused by name."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dream.encoder.reading import first_line, quiet, split_revision
from dream.errors import DreamError
from dream.files import read_json

# Where packaged weights come from, as the hub names it.
ORIGINS = {
    "packaged/smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "packaged/minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
# Kinds of adapters that change weights only, whatever the text: the tests compare each with peft's own vectors.
ADAPTERS = (
    "LORA", "ADALORA", "BOFT", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "RANDLORA",
    "TRAINABLE_TOKENS", "VBLORA", "VERA",
)  # fmt: skip
# Settings of a LoRA that act on some tokens only, at random, through other adapters, or in libraries that are not here.
REFUSED = ("alora_invocation_tokens", "arrow_config", "megatron_config", "monteclora_config", "use_qalora")


def with_adapter(
    backbone: nn.Module, adapter: str, trainable: bool, reference: str, trust_remote_code: bool
) -> tuple[nn.Module, str]:
    """Put an adapter onto a backbone; return it with what could not be told about the adapter's base (empty: nothing).

    An adapter that was saved around a model with a head (the released DREAM models: a causal LM) names modules, in its
    weights and in its patterns, from that model. So peft gets that model, its head without weights, and reads both as
    they are; the body is taken out again.
    """
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, settings, base = check_adapter(adapter, reference)
    settings.task_type = "FEATURE_EXTRACTION"
    try:
        weights = load_file(folder / "adapter_model.safetensors")
        prefix, whole = str(backbone.base_model_prefix), backbone
        outside: tuple[str, ...] = ()
        if any(name.startswith(f"base_model.model.{prefix}.") for name in weights):
            with torch.device("meta"), quiet():
                whole = AutoModelForCausalLM.from_config(copy.deepcopy(backbone.config), trust_remote_code=trust_remote_code)
            setattr(whole, prefix, backbone)
            whole.tie_weights()
            outside = tuple(f"base_model.model.{name}." for name, _ in whole.named_children() if name != prefix)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(whole, folder, is_trainable=trainable, config=settings)
        lost = sorted(_not_there(model, {n: w for n, w in weights.items() if not n.startswith(outside)}))
        if lost:
            raise ValueError(f"its weight {lost[0]} has no place there")
    except Exception as error:  # files of others: whatever peft and safetensors make of them
        raise DreamError(
            f"adapter {adapter} cannot be loaded onto its encoder ({first_line(error)})",
            "It is incomplete or was trained on another encoder: train it again",
        ) from error
    if whole is not backbone:
        if trainable:
            raise DreamError(f"adapter {adapter} was saved around another model", "It can be evaluated, not trained on")
        model.base_model.model = backbone
    return model, base


def scale(backbone: nn.Module, strength: float) -> None:
    """Let a LoRA act at a share of its strength: its change of the weights times ``strength``, from 0, the untouched model, to 1.

    A line between the two models' weights (Wortsman et al. 2022, WiSE-FT) that costs nothing.

    Raises:
        DreamError: the model has no LoRA.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in backbone.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise DreamError("an adapter's strength can be set where there is a LoRA, and there is none", "Leave it at 1")
    with torch.no_grad():  # in the weights, so that fingerprint, cache and export know of it
        for layer in layers:
            for name in layer.active_adapters:
                weight: Any = layer.lora_B[name].weight
                weight.mul_(strength)


def _not_there(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """The weights of an adapter's file that are not, with their values, in the model that was loaded from it."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = get_peft_model_state_dict(model, save_embedding_layers=True)
    return [n for n, w in weights.items() if n not in there or not torch.equal(there[n].cpu(), w.to(there[n].dtype))]


def check_adapter(adapter: str, reference: str) -> tuple[Path, Any, str]:
    """An adapter's folder, its settings as peft reads them, and :func:`compare_base`; no weight is read.

    Raises:
        DreamError: it is none with safetensors weights, of a kind that is not supported, has a setting that peft would
            not read or that we do not support, or belongs to another model than ``reference``.
    """
    from peft import PeftConfig

    from dream.assets import model_path

    folder = Path(model_path(adapter))
    if missing := [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (folder / n).is_file()]:
        raise DreamError(f"{adapter} is not an adapter with safetensors weights (no {missing[0]})")
    raw = read_json(folder / "adapter_config.json")
    if (kind := raw.get("peft_type")) not in ADAPTERS:
        raise DreamError(f"adapter {adapter} is of kind {kind}", f"Those that are read: {', '.join(ADAPTERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft: keys that it does not know; they are refused here
        settings = PeftConfig.from_pretrained(str(folder))
    known = {field.name for field in dataclasses.fields(settings)} - set(REFUSED)
    if strange := sorted(key for key, value in raw.items() if value and key not in known):
        raise DreamError(
            f"adapter {adapter} has a setting that is not supported: {strange[0]} = {raw[strange[0]]!r}",
            "Its vectors would not be its own: choose another adapter",
        )
    return folder, settings, compare_base(raw, folder, adapter, reference)


def compare_base(settings: dict[str, Any], folder: Path, adapter: str, reference: str) -> str:
    """Compare the base model that an adapter's settings name with the model it is put on.

    Args:
        settings: of adapter_config.json.
        folder: the adapter's; its base may lie inside.
        adapter: its name in messages.
        reference: the model.

    Returns:
        Nothing if they are the same, else why the two cannot be compared.

    Raises:
        DreamError: they are different models, or different revisions of one.
    """
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not base:
        return "not named by the adapter"
    if (folder / base).is_dir():
        base = str(folder / base)
    ours, theirs, wanted = _names(reference), _names(base), split_revision(reference)[1]
    if ours & theirs and (not (revision and wanted) or revision == wanted):
        return ""
    both_here = Path(base).is_dir() and Path(reference).expanduser().is_dir()
    if not (ours & theirs or both_here or all(any(map(_is_hub_id, names)) for names in (ours, theirs))):
        return f"not compared: the adapter names {base}"
    raise DreamError(
        f"adapter {adapter} was trained on {f'{base}@{revision}' if revision else base}, not on {reference}",
        "Name its base as `model`; if the two are the same, correct the base's name in adapter_config.json",
    )


def _names(reference: str) -> set[str]:
    """Every name that a model goes by: its reference, its origin, a folder's place and what the folder's config says."""
    name = split_revision(reference)[0]
    names, folder = {name, ORIGINS.get(name, name)}, Path(name).expanduser()
    if folder.is_dir():
        names.add(str(folder.resolve()))
        if (folder / "config.json").is_file():
            said = read_json(folder / "config.json").get("_name_or_path") or ""
            names |= {said} if _is_hub_id(said) else set()
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)", name):  # a folder of the hub's cache, here or elsewhere
        names.add("/".join(cached.groups()))
    return {name.lower() if _is_hub_id(name) else name for name in names}


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None and not Path(name).is_dir()
