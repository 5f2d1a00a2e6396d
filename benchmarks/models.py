"""The models of the benchmarks: packaged ones, random ones of the paper's shapes, tiny ones for the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import common
from dream import config as configs
from dream.encoder import Encoder
from dream.files import read_json
from dream.judge import Judge, Limits
from dream.manifest import ROOT

LLAMA_HEADS = tuple(map(tuple, read_json(ROOT / "dream/report/reference/heads.json")["dream_top16"]))  # the paper's


def shipped(name: str, rms_norm_eps: float = 1e-5) -> dict[str, Any]:
    """Shape of one of the paper's models, from the configurations that ``dream-report plan`` reads."""
    found = read_json(ROOT / f"dream/planning/models/{name}.json")
    return {k: v for k, v in found.items() if k not in ("name", "qk_norm")} | {
        "max_position_embeddings": 8192, "rms_norm_eps": rms_norm_eps,
    }  # fmt: skip


LLAMA_8B = shipped("llama-3.1-8b")  # the paper's judge, and its largest encoder
TINY = LLAMA_8B | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
SHAPES = {
    "0.5b": shipped("qwen2.5-0.5b", 1e-6), "1b": shipped("llama-3.2-1b"), "3b": shipped("llama-3.2-3b"), "8b": LLAMA_8B,
    "tiny": TINY,
}  # fmt: skip
JUDGES = ("packaged", "llama-8b", "tiny")
ENCODERS = ("packaged", *SHAPES)


def shape(settings: dict[str, Any]) -> SimpleNamespace:
    """A shape as the FLOP model reads it."""
    return SimpleNamespace(**settings)


def random_judge(settings: dict[str, Any], dtype: torch.dtype, device: torch.device, limits: Limits) -> Judge:
    """A randomly initialised Llama, made on the device in its dtype."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=dtype)
    return Judge(model, common.Numbers(settings["vocab_size"]), limits, "random")


def judge(name: str, dtype: torch.dtype, device: torch.device, passage: int):
    """A judge over number tokens, and its heads: (Judge, heads)."""
    limits = Limits(passage, 64, passage)
    if name == "packaged":
        found = Judge.load("packaged/smollm2-135m", str(dtype).removeprefix("torch."), device, limits)
        found.prompt = type(found.prompt)(common.Numbers(found.model.config.vocab_size), limits)
        return found, common.PACKAGED_HEADS
    if name == "llama-8b":
        return random_judge(LLAMA_8B, dtype, device, limits), LLAMA_HEADS
    return random_judge(TINY, dtype, device, limits), ((1, 0), (2, 3))


def encoder(name: str, layers: int | None, dtype: torch.dtype, device: torch.device, passage: int) -> Encoder:
    """A trainable encoder with a new LoRA over number tokens; ``layers`` keeps the first ones of the packaged model."""
    from transformers import AutoModel, LlamaConfig, Qwen2Config

    knobs = configs.load()
    words = str(dtype).removeprefix("torch.")
    rules = {"max_length": passage, "token_budget": 1 << 17 if device.type == "cuda" else 2048}
    if name == "packaged":
        from dream.assets import model_path

        found = Encoder.from_pretrained(model_path("packaged/smollm2-135m", layers), dtype=words, device=device, **rules)
        found.tokenizer = common.BatchNumbers(found.backbone.config.vocab_size)
    else:
        kind = Qwen2Config if name == "0.5b" else LlamaConfig
        torch.manual_seed(0)
        with device:
            model = AutoModel.from_config(kind(**SHAPES[name]), dtype=dtype, attn_implementation="sdpa")
        model.requires_grad_(False)
        found = Encoder(model, common.BatchNumbers(SHAPES[name]["vocab_size"]), reference=f"random/{name}", **rules)
    found.add_lora(knobs.training.lora, 0)
    return found.to(device).train()
