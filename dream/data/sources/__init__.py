"""Training sources: one file each, registered here. A source gives passages and instances, its own ids, no sampling.

A new source is a file with a :class:`Source` named ``SOURCE`` and one line in ``_ALL``. The names under ``own`` in
params that are documents or have ``qrels/train.tsv`` are sources too.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import pandas as pd

from dream.data.sources import boolq, code, own, qasper, squad, wikipedia
from dream.data.sources.base import Source
from dream.data.tables import INSTANCES, text_id
from dream.errors import DreamError

if TYPE_CHECKING:
    from dream.config import Config

_ALL = (boolq.SOURCE, squad.SOURCE, squad.GENERATED, qasper.SOURCE, code.SOURCE, wikipedia.SOURCE)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def of(config: Config) -> list[str]:
    """Names of the sources that the config trains on: ``data.sources``, own documents and own sets with training judgements."""
    trained = [name for name in config.own if own.has_training(config.own[name])]
    return list(dict.fromkeys([*config.data.sources, *trained]))


def reads(config: Config) -> list[str]:
    """Settings that :func:`of` and :func:`load` read for the config's sources, as ``section.knob``; a stage needs no others."""
    return list(dict.fromkeys(["data.sources", "own", *(knob for name in of(config) for knob in get(name, config).reads)]))


def get(name: str, config: Config) -> Source:
    """The source of this name.

    Raises:
        DreamError: no such source (with the nearest name).
    """
    if name in config.own:
        return own.source(name, config.own[name])
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(SOURCES)} or name a set under `own`"
        raise DreamError(f"data.sources: {name!r} is unknown", hint)
    return SOURCES[name]


def load(name: str, config: Config, questions: pd.DataFrame | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Passages (passage_id, source, group, title, text) and instances (instance_id, source, group, query, target_id).

    Args:
        name: a registered source or an own set.
        questions: generated questions (target_id, query); required by sources that have none of their own.

    Raises:
        DreamError: unknown name, data that is missing or malformed, or no questions for a source that needs them.
    """
    source = get(name, config)
    if source.load:
        return source.load(config)
    passages = source.passages(config)
    written = pd.DataFrame({"target_id": [], "query": []}) if questions is None else questions
    instances = asked(name, passages, written)
    instances.attrs["notes"] = passages.attrs.pop("notes", [])
    return passages, instances


def asked(name: str, passages: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Instances from generated questions; passages without one give none."""
    groups = dict(zip(passages["passage_id"], passages["group"], strict=True))
    rows = [
        (text_id(f"{name}-q", query, target), name, groups[target], query, target)
        for target, query in zip(questions["target_id"], questions["query"], strict=True)
        if target in groups
    ]
    if not rows:
        raise DreamError(f"source {name} has no questions", "Run the stage `questions` first (`dvc repro`)")
    return pd.DataFrame(rows, columns=INSTANCES).drop_duplicates("instance_id").reset_index(drop=True)
