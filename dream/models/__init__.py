"""Records of models: what ``models:`` in params.yaml leaves open is read from the model's own folder. Reads no weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dream.assets import model_path
from dream.encoder import LENGTH, check_adapter, fits, folder_room, room, skeleton
from dream.errors import DreamError
from dream.lora import attention_projections, check_targets
from dream.models import folders

if TYPE_CHECKING:
    from dream.config import Model


@dataclass(frozen=True)
class Rules:
    """How a model is loaded and read: its record, with every open point filled in.

    Attributes:
        key: where the record stands, for messages.
        path: its folder, or a hub id; with the first ``layers`` layers.
        folder: what only the folder says: small letters, modules behind pooling.
    """

    key: str
    model: str
    path: Path | str
    adapter: str | None
    layers: int | None
    pooling: str
    query_prompt: str
    document_prompt: str
    append_eos: bool
    max_length: int
    dtype: str
    lora_targets: list[str] | None
    trust_remote_code: bool
    folder: folders.Folder

    def require_trainable(self) -> None:
        """Stop if the record has an adapter of its own."""
        if self.adapter:
            raise DreamError(f"{self.key} has an adapter: it can be evaluated, not trained on", "Name a record without one")


def rules(record: Model, key: str) -> Rules:
    """A record's rules, completed from the model's own folder (sentence-transformers' files, where there are any).

    A prompt or a length that the record gives stands in the folder's place; a pooling or a length that the model does not
    have is refused, since its scores would not be the model's.

    Args:
        record: an entry of ``models``.
        key: its place in params.yaml, such as ``models.minilm``.

    Raises:
        DreamError: the folder asks for something that we do not do (:mod:`dream.models.folders`), record and folder
            contradict each other, neither says how to pool, or the adapter belongs to another model.
    """
    path = model_path(record.model, record.layers)
    asked = folders.read(Path(path))
    pooling = record.pooling or asked.pooling
    if pooling is None:
        raise DreamError(f"{record.model} does not say how it pools (no modules.json)", f"Set {key}.pooling: last, mean or cls")
    if asked.pooling not in (None, pooling):
        raise DreamError(f"{key}.pooling is {pooling}, the model's own is {asked.pooling}", f"Leave {key}.pooling out")
    given = {"query": record.query_prompt, "document": record.document_prompt}
    prompts = {kind: asked.prompt(kind, key) if text is None else text for kind, text in given.items()}
    if any(prompts.values()) and not asked.include_prompt:
        raise DreamError(
            f"{record.model} leaves its prompts out of the pooling (include_prompt: false), which is not supported",
            f'Set {key}.query_prompt and document_prompt to ""',
        )
    limits = (asked.max_length, folder_room(asked.path, record.trust_remote_code))
    longest = min((limit for limit in limits if limit), default=record.max_length or LENGTH)
    if record.max_length and record.max_length > longest:
        raise DreamError(
            f"{key}.max_length {record.max_length} is more than {record.model} reads ({longest} tokens)",
            f"Set it to at most {longest}, or leave it out",
        )
    if record.adapter:
        check_adapter(record.adapter, record.model)
    return Rules(
        key=key,
        model=record.model,
        path=path,
        adapter=record.adapter,
        layers=record.layers,
        pooling=pooling,
        query_prompt=prompts["query"],
        document_prompt=prompts["document"],
        append_eos=record.append_eos,
        max_length=record.max_length or min(longest, LENGTH),
        dtype=record.dtype,
        lora_targets=record.lora_targets,
        trust_remote_code=record.trust_remote_code,
        folder=asked,
    )


def check_trainable(rules: Rules, length: int) -> None:
    """Stop if a LoRA cannot be trained on a model with texts of ``length`` tokens; no weight is read.

    Raises:
        DreamError: it has an adapter already, fewer positions, or no module that a LoRA would be put on.
    """
    rules.require_trainable()
    body = skeleton(rules.path, rules.trust_remote_code)
    fits(length, room(body), "encoder.max_length", rules.model)
    check_targets(body, rules.lora_targets or attention_projections(body, rules.model), rules.model)
