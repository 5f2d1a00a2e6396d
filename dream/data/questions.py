"""Generated questions for sources that have passages but no questions: one chunk of an article, one question of each kind.

The kinds (a full question, keywords, a claim) have a prompt each; own example queries may steer them
(:mod:`dream.data.examples`). Prompts, model and greedy decoding are fixed by the config. Every answer is appended to a journal
outside the pipeline's outputs, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from dream.data import examples, sources
from dream.data.instruct import Instruct, as_text
from dream.data.tables import rng
from dream.errors import DreamError, visible
from dream.files import Journal, lasting, value_hash

if TYPE_CHECKING:
    import torch

    from dream.config import Config, Model
    from dream.config.sections import Questions

COLUMNS = ["source", "target_id", "query", "kind"]
SHOWN = 3  # examples of dropped questions
_ABOUT = re.compile(  # what small models put before a claim or a topic
    r"^(the|this) (topic( of (the|this) passage)? is"
    r"|(passage|statement|text) (is about|(supports|states)( the (claim|idea|fact))?( that)?)):? ",
    re.IGNORECASE,
)
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
    """Write one query of every kind of ``questions.kinds`` for every passage.

    Args:
        config: ``questions`` holds the prompts and the limits, and the endpoint that writes, if any; else
            ``roles["generator"]`` is the instruct model.
        passages: rows with passage_id, source, title, text.
        journal: JSON-lines file of questions already written, other kinds beside it; by default under ``.dream`` in the
            project's root.

    Returns:
        source, target_id, query, kind: in the order of ``passages``; answers without a word are left out.
    """
    kept = {kind: Journal(_journal(config, kind, journal)) for kind in config.questions.kinds}
    # sorted by length: a batch is padded to its longest prompt
    ordered = passages.iloc[passages["text"].str.len().argsort(kind="stable")]
    todo = {kind: ordered[~ordered["passage_id"].isin(list(journal.done))] for kind, journal in kept.items()}
    if total := sum(map(len, todo.values())):
        write = writer(config)
        with tqdm(total=total, desc="questions", unit="question") as bar:
            for kind, rows in todo.items():
                for start in range(0, len(rows), config.questions.batch):
                    batch = rows.iloc[start : start + config.questions.batch]
                    for name, question in zip(batch["passage_id"], write(list(batch["text"]), kind), strict=True):
                        kept[kind].add(name, question)
                    bar.update(len(batch))
    found = [
        (source, name, kept[kind].done[name], kind)
        for source, name in zip(passages["source"], passages["passage_id"], strict=True)
        for kind in kept
        if re.search(r"\w", kept[kind].done[name])
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def dropped(why: str, before: pd.DataFrame, after: pd.DataFrame) -> str:
    """What a filter dropped, in a line: how many, which share, and the first three."""
    gone = before.merge(after, how="left_anti")
    shown = "; ".join(visible(query[:100]) for query in gone["query"].head(SHOWN))
    return (
        f"{why}: {len(gone)} of {len(before)} dropped ({len(gone) / max(1, len(before)):.0%}){', such as: ' * bool(shown)}{shown}"
    )


def require(kept: pd.DataFrame, written: pd.DataFrame, needed: list[str]) -> None:
    """Stop if the filters leave a source without a question.

    Raises:
        DreamError: names the source.
    """
    for name in needed:
        if name not in set(kept["source"]):
            raise DreamError(
                f"source {name}: the filters leave none of its {(written['source'] == name).sum()} questions",
                "Raise questions.round_trip (0: off), lower questions.gap_filter (null: off), or another generator",
            )


def writer(config: Config) -> Callable[[list[str], str], list[str]]:
    """What turns passages into queries of a kind: a model in this process, or one behind ``questions.endpoint``."""
    asked = config.questions
    if not asked.endpoint:
        return Writer(config.roles["generator"], asked)
    from dream.data.endpoint import Endpoint

    server, shown = Endpoint(asked), examples.read(asked.examples)

    def write(texts: list[str], kind: str) -> list[str]:
        prompts = [as_text(examples.turns(prompt(asked, kind), text, shown)) for text in texts]
        return [clean(answer) for answer in server.answers(prompts)]

    return write


class Writer:
    """A model in this process that turns passages into queries.

    Args:
        record: the model.
        settings: prompts and limits.
        device: by default CUDA if there is one, else CPU.
    """

    def __init__(self, record: Model, settings: Questions, device: torch.device | str | None = None) -> None:
        self.model, self.settings, self.shown = Instruct(record, device), settings, examples.read(settings.examples)

    def __call__(self, texts: list[str], kind: str) -> list[str]:
        """One query of a kind for every text: the first line that the model writes."""
        said = [examples.turns(prompt(self.settings, kind), text, self.shown) for text in texts]
        return [clean(answer) for (answer,) in self.model.write(said, self.settings.max_new_tokens)]


def prompt(settings: Questions, kind: str) -> str:
    """The request for a kind of query."""
    return str(getattr(settings, "prompt" if kind == "question" else f"{kind}_prompt"))


def clean(answer: str) -> str:
    """The query in a model's answer: thoughts, labels and quotes removed, first line, up to its question mark.

    >>> clean('<think>hm</think> Question: "What is an atom?" It asks …'), clean("The passage supports the claim that bees see.")
    ('What is an atom?', 'bees see.')
    """
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.S).strip()
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    line = re.sub(r"^(question|q|topic|keywords|statement|claim|query)\s*:\s*", "", line, flags=re.I).strip(" \"'“”*")
    line = _ABOUT.sub("", line).strip(" \"'“”*")
    return line[: line.index("?") + 1] if "?" in line else line


def _journal(config: Config, kind: str, given: Path | None) -> Path:
    """Answers by passage: what else they depend on is in the folder's name."""
    if given:
        return given if kind == "question" else given.with_stem(f"{given.stem}-{kind}")
    asked = config.questions
    if asked.endpoint:
        model: list[Any] = [asked.endpoint, asked.endpoint_model]
    else:
        local = config.roles["generator"]
        model = [local.model, local.adapter, local.layers, local.dtype, asked.batch]
    shown = examples.read(asked.examples)
    key = value_hash([*model, prompt(asked, kind), asked.max_new_tokens, *([shown] if shown else [])])[:16]
    return lasting(f"questions-{key}", "journal.jsonl")
