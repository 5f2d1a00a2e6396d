"""Footnotes: every setting on which a number depends, in one place and in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dream.config import Config, stages
from dream.objectives import find
from dream.report import stats
from dream.report.results.agreement import later
from dream.report.results.cells import Results


def footnotes(results: Results) -> list[str]:
    """The footnotes of the main table, most important first."""
    config = results.config
    made = [
        _encoder(results),
        *_published(results),
        _training(results),
        _own_settings(results),
        _bm25(results),
        _qrhead(results),
        _tasks(results),
        _search(results),
        _versions(results),
    ]
    trained = [_sources(results), _judge(results), _open(results)] if config.objectives or config.rerankers else []
    return [note for note in [*made, *trained, _later(results)] if note]


def untested(trained: dict[str, int]) -> list[str]:
    """The note on trained systems (by their number of seeds) that have too few seeds for a test.

    >>> untested({"one": 2, "other": 2, "third": 3})
    ['one, other: two seeds: not tested (a test needs three); their intervals are over queries only.']
    """
    words = {1: "one seed", 2: "two seeds"}
    few = {count: [name for name, seeds in trained.items() if seeds == count] for count in words if count < stats.MIN_SEEDS}
    return [
        f"{_list(names)}: {words[count]}: not tested (a test needs three); their intervals are over queries only."
        for count, names in few.items()
        if names
    ]


def _encoder(results: Results) -> str:
    record = results.config.roles["encoder"]
    layers = f", first {record.layers} layers" if record.layers else ""
    used = _used(results)
    prompts = [f"{kind} {used[f'{kind}_prompt']!r}" for kind in ("query", "document") if used.get(f"{kind}_prompt")]
    pooling = used.get("pooling") or record.pooling or "its own"
    return (
        f"Untrained and trained encoder {record.model}{layers}: {pooling}-token pooling"
        f"{', end-of-text token appended' if record.append_eos else ''}, at most "
        f"{used.get('max_length') or record.max_length} tokens per "
        f"query or document, weights {record.dtype}, scores float32; prompts: {', '.join(prompts) or 'none'}."
    ).replace("mean-token pooling", "mean pooling")


def _used(results: Results) -> dict[str, Any]:
    """The rules by which the encoder was evaluated, from the record of a system that has it."""
    names = [name for name in results.systems if name == "untrained" or name in results.config.objectives]
    return results.record(names[0], results.tasks[0][1])["settings"] if names else {}


def _published(results: Results) -> list[str]:
    """A note for every system that others trained: it was run by its own rules, not by those of `evaluate`."""
    notes = []
    for name in results.systems:
        if name in results.config.models:
            used = results.record(name, results.tasks[0][1])["settings"]
            adapter = f" with adapter {used['adapter']}" if used.get("adapter") else ""
            adapter += f" (its base: {used['adapter_base']})" if used.get("adapter_base") else ""
            head = "".join(f", then {module['module']}" for module in used.get("head") or ())
            eos = ", end-of-text token appended" if used.get("append_eos") else ""
            prompts = [f"{kind} {used[f'{kind}_prompt']!r}" for kind in ("query", "document") if used.get(f"{kind}_prompt")]
            notes.append(
                f"{name}: {used['model']}{adapter}, trained by others: {used['pooling']} pooling{head}{eos}, at most "
                f"{used['max_length']} tokens, weights {used['dtype']}; prompts: {', '.join(prompts) or 'none'}."
            )
    return notes


def _training(results: Results) -> str:
    config = results.config
    if not config.objectives:
        return ""
    pairs = ", ".join(f"{name} {results.pairs_trained(name):,}" for name in config.objectives)
    training = config.training
    seeds = f"seed{'s' * (len(config.seeds) > 1)} {', '.join(map(str, config.seeds))}"
    return (
        f"Trained {_times(len(config.seeds))} each ({seeds}) on (query, target) pairs per run: {pairs}; "
        f"{training.steps} steps of {training.batch} candidate sets, K = {config.candidates.count} "
        f"({config.candidates.source}), LoRA r {training.lora.r}, "
        f"learning rate {_each(results, lambda c: c.training.learning_rate)}, {config.encoder.max_length} tokens."
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _each(results: Results, value: Callable[[Config], float], objectives: list[str] | None = None) -> str:
    """A setting that every objective may have of its own: one number if all share it, else each with its objectives."""
    found: dict[str, list[str]] = {}
    for name in results.config.objectives if objectives is None else objectives:
        found.setdefault(f"{value(stages.read(results.wanted[f'train-{name}'])):g}", []).append(name)
    if len(found) <= 1:
        return next(iter(found), f"{value(results.config):g}")
    return ", ".join(f"{number} ({_list(names)})" for number, names in found.items())


def _own_settings(results: Results) -> str:
    """What stands in an objective's own section, but what :func:`_each` says."""
    said = []
    for name in results.config.objectives:
        own = results.config.knobs[name].model_dump(exclude={"learning_rate", "temperature"})
        words = ", ".join(f"{key.replace('_', ' ')} {_word(value)}" for key, value in own.items())
        said += [f"{name}: {words}"] if words else []
    return f"Settings of an objective's own: {'; '.join(said)}." if said else ""


def _word(value: object) -> str:
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _qrhead(results: Results) -> str:
    if "qrhead" not in results.systems:
        return ""
    qrhead = results.config.knobs["qrhead"]
    return (
        f"qrhead: BM25's best {qrhead.depth} documents in the order that the judge's selected heads give them, "
        f"{qrhead.per_prompt} passages in a prompt; nothing is trained."
    )


def _later(results: Results) -> str:
    """Knobs that params has and no cell knows: what these numbers would be with them is not known."""
    new = later(results.wanted, results.runs)
    return f"Made before params had {', '.join(f'{key} ({value})' for key, value in new.items())}." if new else ""


def _bm25(results: Results) -> str:
    if "bm25" not in results.systems:
        return ""
    bm25, settings = results.config.bm25, results.record("bm25", results.tasks[0][1])["settings"]
    said = f"k1 {bm25.k1:g}, b {bm25.b:g}, stemmer {bm25.stemmer}, stop words {bm25.stopwords}"
    return f"BM25: {settings.get('analyser', said)}."


def _tasks(results: Results) -> str:
    """What the records of tasks say about them (how one was drawn, queries that BM25 has no word of), each remark once."""
    said: dict[str, list[str]] = {}
    for _, task in results.tasks:
        for system in results.systems:
            notes = results.record(system, task).get("notes")
            for note in [notes] if isinstance(notes, str) else notes or [] if isinstance(notes, list) else []:
                said.setdefault(str(note).rstrip("."), []).append(task)
    remarks = [f"{_list(list(dict.fromkeys(tasks)))}: {note}" for note, tasks in said.items()]
    return f"Tasks: {'; '.join(remarks)}." if remarks else ""


def _sources(results: Results) -> str:
    """What the reader of a training source left out or counted."""
    records = [r for r in results.extras.get("prepare", []) if r.get("kind") == "source" and r.get("notes")]
    said = [f"{r['name']}: {r['notes']}" for r in records]
    return f"Training sources: {'; '.join(said)}." if said else ""


def _search(results: Results) -> str:
    evaluate = results.config.evaluate
    rule = "dropped" if evaluate.drop_identical_ids else "kept (mteb's tasks keep their own rule)"
    return f"Exact search, {evaluate.depth} hits kept per query; hits whose id is the query's own are {rule}."


def _versions(results: Results) -> str:
    record = next((run for name, run in results.runs.items() if name.startswith("evaluate")), {})
    versions = record.get("versions") or {}
    names = [name for name in ("mteb", "bm25s", "torch", "transformers", "peft") if name in versions]
    return f"Versions: {', '.join(f'{name} {versions[name]}' for name in names)}." if names else ""


def _judge(results: Results) -> str:
    judge, heads, record = results.config.judge, results.config.heads, results.config.roles["judge"]
    if not any(find(name).needs for name in results.config.objectives) and not results.config.rerankers:
        return ""
    return (
        f"Judge {record.model} in {record.dtype}: passages, questions and targets of at most "
        f"{judge.passage_tokens}, "
        f"{judge.query_tokens} and {judge.target_tokens} tokens; heads {heads.strategy}, {heads.count} of them."
    )


def _open(results: Results) -> str:
    """Our readings of what the paper leaves open."""
    config = results.config
    tempered = [name for name in config.objectives if hasattr(config.knobs[name], "temperature")]
    used = _used(results)
    readings = [
        f"initial tau {_each(results, lambda c: c.temperature.init, tempered)} "
        f"({'learned as log tau' if config.temperature.learned else 'fixed'})",
        f"gate {config.injection.gate}, g starts at {config.injection.gate_init:g}",
        f"judge rows injected: {config.injection.rows} (budget {config.injection.budget}, scores {config.injection.scores})",
        f"schedule {config.training.schedule}, warm-up {config.training.warmup:g}",
        f"end-of-text token {'' if config.roles['encoder'].append_eos else 'not '}appended",
        "candidates shuffled, judge prompt plain text without chat template, loss a mean per sequence, no evaluation instruction"
        if not (used.get("query_prompt") or used.get("document_prompt"))
        else "candidates shuffled, judge prompt plain text without chat template, loss a mean per sequence",
    ]
    return f"What the paper leaves open, as read here: {'; '.join(readings)}."


def _list(names: list[str]) -> str:
    return ", ".join(names)
