"""The models of the training benchmarks: packaged ones, random ones of the paper's shapes, tiny ones for the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import common
from benchmarks.judge_step import LLAMA_8B, LLAMA_HEADS, TINY, random_judge
from dream import config as configs
from dream.encoder import Encoder
from dream.judge import Judge, Limits

# Shapes of the paper's encoders (their published configurations); LLAMA_8B is its judge and its largest encoder.
LLAMA_1B = LLAMA_8B | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
LLAMA_3B = LLAMA_8B | {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128,
}  # fmt: skip
QWEN_05B = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
}  # fmt: skip
SHAPES = {"0.5b": QWEN_05B, "1b": LLAMA_1B, "3b": LLAMA_3B, "8b": LLAMA_8B, "tiny": TINY}
JUDGES = ("packaged", "llama-8b", "tiny")
ENCODERS = ("packaged", *SHAPES)


def shape(settings: dict[str, Any]) -> SimpleNamespace:
    """A shape as the FLOP model reads it."""
    return SimpleNamespace(**({"head_dim": None} | settings))


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
