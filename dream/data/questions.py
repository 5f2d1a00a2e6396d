"""Generated questions for sources that have passages but no questions: one chunk of an article, one question.

The prompt, the model and the greedy decoding are fixed by the config. Every answer is appended to a journal outside
the pipeline's outputs, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from dream import assets
from dream.data import sources
from dream.data.tables import rng
from dream.files import Journal, value_hash

if TYPE_CHECKING:
    from dream.config import Config, Model
    from dream.config.sections import Questions

COLUMNS = ["source", "target_id", "query"]
PATH = Path("work/questions/questions.parquet")  # what stage questions writes


def needed(config: Config) -> list[str]:
    """Sources of the config that have no questions of their own."""
    return [name for name in sources.of(config) if sources.get(name, config).needs_questions]


def targets(config: Config) -> pd.DataFrame:
    """The passages to ask about: ``questions.per_set`` of every group, ``questions.limit`` of a source, drawn with ``data.seed``.

    Returns:
        Rows of passages (passage_id, source, group, title, text), the same on every run.
    """
    tables = []
    for name in needed(config):
        passages = sources.get(name, config).passages(config)
        generator = rng(config.data.seed, "questions", name)
        order = passages.iloc[generator.permutation(len(passages))]
        chosen = order.groupby("group", sort=True).head(config.questions.per_set).iloc[: config.questions.limit]
        tables.append(chosen.sort_values(["group", "passage_id"]))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def generate(config: Config, passages: pd.DataFrame, journal: Path | None = None) -> pd.DataFrame:
    """Write one question for every passage.

    Args:
        config: ``questions`` holds the prompt and the limits, and the endpoint that writes, if any; else
            ``roles["generator"]`` is the instruct model.
        passages: rows with passage_id, source, title, text.
        journal: JSON-lines file of answers already written; by default under ``.dream`` in the project's root.

    Returns:
        source, target_id, query: in the order of ``passages``; answers without a word are left out.
    """
    kept = Journal(journal or _journal(config))
    # sorted by length: a batch is padded to its longest prompt
    todo = passages[~passages["passage_id"].isin(list(kept.done))]
    todo = todo.iloc[todo["text"].str.len().argsort(kind="stable")]
    if len(todo):
        write = writer(config)
        with tqdm(total=len(todo), desc="questions", unit="question") as bar:
            for start in range(0, len(todo), config.questions.batch):
                batch = todo.iloc[start : start + config.questions.batch]
                for name, question in zip(batch["passage_id"], write(list(batch["text"])), strict=True):
                    kept.add(name, question)
                bar.update(len(batch))
    rows = [
        (source, name, kept.done[name])
        for source, name in zip(passages["source"], passages["passage_id"], strict=True)
        if re.search(r"\w", kept.done[name])
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def writer(config: Config) -> Callable[[list[str]], list[str]]:
    """What turns passages into questions: a model in this process, or one behind ``questions.endpoint``."""
    asked = config.questions
    if not asked.endpoint:
        return Writer(config.roles["generator"], asked)
    from dream.data.endpoint import Endpoint

    server = Endpoint(asked)
    return lambda texts: [clean(a) for a in server.answers([asked.prompt.replace("{passage}", text) for text in texts])]


class Writer:
    """An instruct model that turns passages into questions: left-padded batches, greedy decoding."""

    def __init__(self, record: Model, settings: Questions) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, remote = assets.model_path(record.model, record.layers), record.trust_remote_code
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=remote)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, record.dtype), use_safetensors=True, trust_remote_code=remote
        ).eval()
        if record.adapter:
            self.model.load_adapter(str(assets.model_path(record.adapter)))
        if torch.cuda.is_available():
            self.model = self.model.cuda()

    def __call__(self, texts: list[str]) -> list[str]:
        """One question a text: the first line that the model writes."""
        import torch

        prompts = [self._prompt(text) for text in texts]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.model.device)
        with torch.inference_mode():
            out = self.model.generate(
                **inputs,
                max_new_tokens=self.settings.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        answers = self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [clean(answer) for answer in answers]

    def _prompt(self, text: str) -> str:
        prompt = self.settings.prompt.replace("{passage}", text)
        if not self.tokenizer.chat_template:
            return (self.tokenizer.bos_token or "") + prompt
        turn = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def clean(answer: str) -> str:
    """The question in a model's answer: thoughts, labels and quotes removed, first line, up to its question mark.

    >>> clean('<think>hm</think> Question: "What is an atom?" It asks …')
    'What is an atom?'
    """
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.S).strip()
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    line = re.sub(r"^(question|q)\s*:\s*", "", line, flags=re.I).strip(" \"'“”*")
    return line[: line.index("?") + 1] if "?" in line else line


def _journal(config: Config) -> Path:
    """Answers by passage: what else they depend on is in the folder's name."""
    asked = config.questions
    if asked.endpoint:
        model: list[Any] = [asked.endpoint, asked.endpoint_model]
    else:
        local = config.roles["generator"]
        model = [local.model, local.adapter, local.layers, local.dtype, asked.batch]
    key = value_hash([*model, asked.prompt, asked.max_new_tokens])[:16]
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dream" / f"questions-{key}" / "journal.jsonl"
