"""An instruct model that writes: left-padded batches, greedily or sampled.

It writes the questions of own documents (:mod:`dream.data.questions`) and the passages of ``hyde`` (:mod:`dream.systems.hyde`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dream import assets

if TYPE_CHECKING:
    import torch

    from dream.config import Model


class Instruct:
    """A causal model with its tokenizer.

    Args:
        record: the model.
        device: by default CUDA if there is one, else CPU.

    Attributes:
        tokens: read and written so far, padding not counted.
    """

    def __init__(self, record: Model, device: torch.device | str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, remote = assets.model_path(record.model, record.layers), record.trust_remote_code
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens = 0
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=remote)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, record.dtype),
            use_safetensors=True,
            trust_remote_code=remote,
            device_map={"": device},
        ).eval()
        if record.adapter:
            self.model.load_adapter(str(assets.model_path(record.adapter)))

    def write(
        self, said: Sequence[list[str]], length: int, several: int = 1, temperature: float = 0.0, seed: int = 0
    ) -> list[list[str]]:
        """Answers to conversations.

        Args:
            said: of each conversation what was said, request and answer in turn, the last being the request.
            length: of an answer, in tokens, at most.
            several: answers to each request.
            temperature: of sampling; 0: the most likely token each time, and the same answer several times.
            seed: of sampling.

        Returns:
            For each conversation ``several`` answers.
        """
        import torch

        prompts = [self._prompt(one) for one in said]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.model.device)
        drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature:
            drawn = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            out = self.model.generate(
                **inputs,
                **drawn,
                max_new_tokens=length,
                num_return_sequences=several if temperature else 1,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        written = out[:, inputs["input_ids"].shape[1] :]
        self.tokens += int(inputs["attention_mask"].sum() + (written != self.tokenizer.pad_token_id).sum())
        answers = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        each = len(answers) // len(prompts)
        return [answers[i : i + each] * (several // each) for i in range(0, len(answers), each)]

    def _prompt(self, said: list[str]) -> str:
        if not self.tokenizer.chat_template:
            return (self.tokenizer.bos_token or "") + as_text(said)
        turns = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(said)]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def as_text(said: list[str]) -> str:
    r"""A conversation as one text, for a model without turns.

    >>> as_text(["Ask about ants:", "who?", "Ask about bees:"])
    'Ask about ants: who?\n\nAsk about bees:'
    """
    return "".join(text + ("\n\n" if place % 2 else " ") for place, text in enumerate(said[:-1])) + said[-1]
