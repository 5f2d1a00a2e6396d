"""Footnotes: every setting on which a number depends, in one place and in words."""

from __future__ import annotations

from dream.report.cells import Results


def footnotes(results: Results) -> list[str]:
    """The footnotes of the main table, most important first."""
    config = results.config
    made = [
        _encoder(results),
        *_published(results),
        _training(results),
        _bm25(results),
        _tasks(results),
        _search(results),
        _versions(results),
    ]
    trained = [_judge(results), _open(results)] if config.objectives else []
    return [note for note in made + trained if note]


def _encoder(results: Results) -> str:
    config, size = results.config, results.config.size
    layers = f", first {size.encoder_layers} layers" if size.encoder_layers else ""
    prompts = [f"{kind} {text!r}" for kind, text in _prompts(config) if text]
    return (
        f"Untrained and trained encoder {size.encoder}{layers}: {config.encoder.pooling}-token pooling"
        f"{', end-of-text token appended' if config.encoder.append_eos else ''}, at most "
        f"{config.evaluate.max_length} tokens per "
        f"query or document, weights {config.evaluate.dtype}, scores float32; prompts: {', '.join(prompts) or 'none'}."
    ).replace("mean-token pooling", "mean pooling")


def _published(results: Results) -> list[str]:
    """A note for every system that others trained: it was run by its own rules, not by those of `evaluate`."""
    notes = []
    for name in results.systems:
        if name in results.config.published:
            used = results.record(name, results.tasks[0][1])["settings"]
            adapter = f" with adapter {used['adapter']}" if used.get("adapter") else ""
            eos = ", end-of-text token appended" if used.get("append_eos") else ""
            prompts = [f"{kind} {used[f'{kind}_prompt']!r}" for kind in ("query", "document") if used.get(f"{kind}_prompt")]
            notes.append(
                f"{name}: {used['model']}{adapter}, trained by others: {used['pooling']} pooling{eos}, at most {used['max_length']} tokens, "
                f"weights {used['dtype']}; prompts: {', '.join(prompts) or 'none'}."
            )
    return notes


def _prompts(config) -> list[tuple[str, str]]:
    return [("query", config.evaluate.query_prompt), ("document", config.evaluate.document_prompt)]


def _training(results: Results) -> str:
    config = results.config
    if not config.objectives:
        return ""
    pairs = ", ".join(f"{name} {results.pairs_trained(name):,}" for name in config.objectives)
    training = config.training
    return (
        f"Trained {len(config.seeds)} times each (seeds {', '.join(map(str, config.seeds))}) on (query, target) "
        f"pairs per run: "
        f"{pairs}; {training.steps} steps of {training.batch} candidate sets, K = {config.candidates.count} "
        f"({config.candidates.source}), LoRA r {training.lora.r}, learning rate {training.learning_rate:g}, "
        f"{config.encoder.max_length} tokens."
    )


def _bm25(results: Results) -> str:
    if "bm25" not in results.systems:
        return ""
    bm25, settings = results.config.bm25, results.record("bm25", results.tasks[0][1])["settings"]
    said = f"k1 {bm25.k1:g}, b {bm25.b:g}, stemmer {bm25.stemmer}, stop words {bm25.stopwords}"
    return f"BM25: {settings.get('analyser', said)}."


def _tasks(results: Results) -> str:
    """What a task's record says about it (how it was drawn, say), one remark for the tasks that share it."""
    said: dict[str, list[str]] = {}
    for _, task in results.tasks:
        notes = results.record(results.systems[0], task).get("notes")
        for note in [notes] if isinstance(notes, str) else notes or [] if isinstance(notes, list) else []:
            said.setdefault(str(note).rstrip("."), []).append(task)
    return f"Tasks: {'; '.join(f'{_list(tasks)}: {note}' for note, tasks in said.items())}." if said else ""


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
    judge, heads = results.config.judge, results.config.heads
    if not set(results.config.objectives) - {"infonce"}:
        return ""
    return (
        f"Judge {results.config.size.judge} in {judge.dtype}: passages, questions and targets of at most "
        f"{judge.passage_tokens}, "
        f"{judge.query_tokens} and {judge.target_tokens} tokens; heads {heads.strategy}, {heads.count} of them."
    )


def _open(results: Results) -> str:
    """Our readings of what the paper leaves open."""
    config = results.config
    readings = [
        f"initial tau {config.temperature.init:g} ({'learned as log tau' if config.temperature.learned else 'fixed'})",
        f"gate {config.injection.gate}, g starts at {config.injection.gate_init:g}",
        f"judge rows injected: {config.injection.rows} (budget {config.injection.budget}, scores "
        f"{config.injection.scores})",
        f"schedule {config.training.schedule}, warm-up {config.training.warmup:g}",
        f"end-of-text token {'' if config.encoder.append_eos else 'not '}appended",
        "candidates shuffled, judge prompt plain text without chat template, loss a mean per sequence, no evaluation "
        "instruction"
        if not (config.evaluate.query_prompt or config.evaluate.document_prompt)
        else "candidates shuffled, judge prompt plain text without chat template, loss a mean per sequence",
    ]
    return f"What the paper leaves open, as read here: {'; '.join(readings)}."


def _list(names: list[str]) -> str:
    return ", ".join(names)
