"""One query under the lens: what the judge was shown, p over the candidates, and the loss of every target token.

The query is a training instance (``work/candidates``) or one of an evaluation task; for the latter the candidates are
its relevant document and the system's best other hits, so that the judge is asked about exactly what the retriever
confused. This is the one subcommand that loads models; everything else of the package reads small files.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dream import names
from dream.config import Config, stages
from dream.data.tasks import written
from dream.errors import DreamError, visible
from dream.files import read_json
from dream.report.commands import compare
from dream.report.commands.compare import clip
from dream.report.tables.render import Line

WORK = Path("work")


@dataclass(frozen=True)
class Explanation:
    """Everything that the text and the page show."""

    query_id: str
    query: str
    system: str
    candidates: list[dict[str, Any]]  # id, text, gold, similarity, p
    tau: float
    gate: float
    heads: list[tuple[int, int]]
    prompt: str
    tokens: list[dict[str, Any]]  # token, plain, injected, gold
    losses: dict[str, float]  # mean over the target: plain, injected, gold, uniform


def find(query_id: str, config: Config, system: str, work: Path = WORK):
    """The candidate set of a training instance or an evaluation query.

    Raises:
        DreamError: neither the candidates nor any task knows the id.
    """
    from dream.instances import CandidateSet, Question, load_sets

    if (work / "candidates" / "candidates.parquet").exists():
        for candidates in load_sets(work / "data", work / "candidates"):
            for question in candidates.questions:
                if question.id == query_id:
                    return replace(candidates, questions=(question,))
    for task in sorted(written(work / "tasks")):
        texts = compare.task_texts(task, work)
        if texts is None or query_id not in texts["queries"]:
            continue
        gold = sorted(texts["relevant"].get(query_id, ()))[:1]
        if not gold:
            raise DreamError(f"query {query_id} of {task} has no relevant document", "Choose another query")
        ids = (gold + _hits(task, query_id, config, system, work, set(gold)))[: config.candidates.count]
        if len(ids) < 2:
            raise DreamError(f"no hits of {system} for query {query_id} are at hand", "Run `dvc repro` or `dvc pull`")
        passages = tuple(texts["documents"][i] for i in ids)
        return CandidateSet(query_id, task, tuple(ids), passages, (Question(query_id, texts["queries"][query_id], 0),))
    raise DreamError(
        f"query {query_id!r} is in no training set and no task under {work}",
        "`dream-report compare A B` prints ids of evaluation queries; run `dvc repro` first if work/ is empty",
    )


def _hits(task: str, query_id: str, config: Config, system: str, work: Path, without: set[str]) -> list[str]:
    for entry in config.tasks:
        for seed in config.seeds:
            path = work / "evaluate" / names.cell(system, seed, entry) / "queries.parquet"
            if path.exists() and (task, query_id) in compare._hits(path):
                return [i for i in compare._hits(path)[task, query_id] if i not in without]
    return []


def explain(query_id: str, config: Config, system: str, seed: int = 0, work: Path = WORK) -> Explanation:
    """Load encoder and judge and look at one query.

    Args:
        query_id: id of a training instance or of an evaluation query.
        config: the resolved config.
        system: a trained objective whose adapter is in ``work/models``.
        seed: which of its training runs.
    """
    if system not in config.objectives:
        trained = ", ".join(config.objectives) or "none: params lists no objective"
        raise DreamError(f"{system!r} is no trained system of this report", f"Choose one of {trained}")
    candidates = find(query_id, config, system, work)
    folder = work / "models" / f"{system}-{seed}"
    if not (folder / "adapter").is_dir():
        raise DreamError(f"{folder / 'adapter'} is missing", f"Run `dvc repro train@{system}-{seed}` to make it")
    state, selected = read_json(folder / "state.json"), read_json(work / "heads" / "heads.json")["selected"]
    import torch

    from dream.encoder import Encoder
    from dream.judge import Injection, Judge
    from dream.models import rules

    torch.set_num_threads(config.training.threads)
    question, k = candidates.questions[0], len(candidates.passages)
    with torch.no_grad():
        encoder = Encoder.load(
            rules(config.roles["encoder"], "models.encoder"), adapter=folder / "adapter", max_length=config.encoder.max_length
        )
        texts = [encoder.query_prompt + question.text, *(encoder.document_prompt + p for p in candidates.passages)]
        vectors = encoder.embed(texts).float()
        similarities = vectors[1:] @ vectors[0]
        tau, gate = (
            float(state.get("tau", stages.cut(config, f"train-{system}").temperature.init)),
            float(state.get("gate", config.injection.gate_init)),
        )
        judge = Judge.build(config)
        device = judge.device  # the encoder's may be another one
        p = (similarities / tau).softmax(0).to(device)
        heads = [tuple(head) for head in selected]
        injection = Injection(tuple(heads), config.injection.rows, config.injection.budget)
        reading = judge.read(candidates)
        plain = judge.target_losses(candidates, reading=reading, per_token=True)[0]
        asked = torch.stack([p, torch.eye(k, device=device)[question.gold], torch.full((k,), 1 / k, device=device)])
        thrice = replace(candidates, questions=(question,) * 3)
        injected = judge.target_losses(
            thrice, asked, torch.tensor(gate, device=device), injection, reading=reading, per_token=True
        )
    layout = judge.prompt.layout(candidates)
    decode = judge.prompt.tokenizer.decode
    target = layout.ids[slice(*layout.target)]
    return Explanation(
        query_id=query_id, query=question.text, system=f"{system}-{seed}",
        candidates=[
            {"id": i, "text": text, "gold": n == question.gold, "similarity": float(similarities[n]), "p": float(p[n])}
            for n, (i, text) in enumerate(zip(candidates.passage_ids, candidates.passages, strict=True))
        ],
        tau=tau, gate=gate, heads=heads, prompt=decode(list(layout.ids)),
        tokens=[
            {"token": decode([token]), "plain": float(plain[n]), "injected": float(injected[0][n]), "gold":
            float(injected[1][n])} for n, token in enumerate(target)
        ],
        losses={
            "plain": float(plain.mean()),
            **{name: float(x.mean()) for name, x in zip(("injected", "gold", "uniform"), injected, strict=True)},
        },
    )  # fmt: skip


def lines(found: Explanation, width: int, shown_tokens: int = 32) -> Iterator[Line]:
    """The explanation for a terminal or a pipe; blue tokens are easier with the scores injected, yellow ones harder."""
    yield f"{found.query_id}: {clip(found.query, width - len(found.query_id) - 2)}", "bold"
    yield f"{found.system}: tau {found.tau:.4f}, gate {found.gate:.3f}, {len(found.heads)} heads", ""
    yield from [("", ""), ("     p   similarity   candidate (→ gold)", "bold")]
    for row in sorted(found.candidates, key=lambda r: -r["p"]):
        mark, style = ("→", "green") if row["gold"] else (" ", "")
        yield f"  {row['p']:.3f}   {row['similarity']:+.3f}    {mark} {clip(row['text'], width - 24)}", style
    losses = ", ".join(f"{name} {value:.3f}" for name, value in found.losses.items())
    yield from [("", ""), (f"Loss of the target, nats per token: {losses}", "bold"), ("", "")]
    yield "  plain  injected  change  token", "bold"
    for row in found.tokens[:shown_tokens]:
        change = row["injected"] - row["plain"]
        style = "" if abs(change) < 0.05 else "blue" if change < 0 else "yellow"
        yield f"  {row['plain']:5.2f}     {row['injected']:5.2f}  {change:+6.2f}  {row['token']!r}", style
    if len(found.tokens) > shown_tokens:
        yield f"  … {len(found.tokens) - shown_tokens} more tokens (--json has all)", "dim"
    yield from [("", ""), ("What the judge was shown:", "bold"), ("", "")]
    yield from ((f"  {clip(line, 100_000)}", "") for line in found.prompt.splitlines())


def page(found: Explanation) -> str:
    """A small self-contained page: tokens coloured by what injection changed."""
    e = lambda text: html.escape(visible(text, keep="\n"))  # noqa: E731
    rows = "".join(
        f"<tr{' class=gold' if r['gold'] else ''}><td>{r['p']:.3f}</td><td>{r['similarity']:.3f}</td><td>{e(r['text'])}</td></tr>"
        for r in sorted(found.candidates, key=lambda r: -r["p"])
    )
    tokens = "".join(
        f'<span style="background:{_shade(r["injected"] - r["plain"])}" title="plain {r["plain"]:.2f}, injected '
        f'{r["injected"]:.2f}">'
        f"{e(r['token'])}</span>"
        for r in found.tokens
    )
    losses = ", ".join(f"{name} {value:.3f}" for name, value in found.losses.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{e(found.query_id)}</title><style>body{{font:15px/1.5 sans-serif;max-width:60em;margin:1em "
        f"auto;padding:0 1em}}"
        "td{vertical-align:top;padding:.3em .6em;border-top:1px solid "
        "#ddd;overflow-wrap:anywhere}td:nth-child(-n+2){overflow-wrap:normal}.gold{background:#e8f3ec}"
        "pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f5f5;padding:1em}</style>"
        f"<h1>{e(found.query)}</h1><p>{e(found.query_id)}, {e(found.system)}: tau {found.tau:.4f}, gate "
        f"{found.gate:.3f}, "
        f"{len(found.heads)} heads</p><h2>p over the candidates</h2><table><tr><th>p<th>similarity<th>candidate "
        f"(gold shaded)"
        f"{rows}</table><h2>The target, token by token</h2><p>{tokens}</p><p>Blue: easier with the scores injected; "
        f"orange: harder. "
        f"Nats per token: {e(losses)}.</p><h2>What the judge was shown</h2><pre>{e(found.prompt)}</pre></html>"
    )


def _shade(change: float) -> str:
    """Blue where the loss fell, orange where it rose; full colour at one nat."""
    colour = "0,114,178" if change < 0 else "230,159,0"
    return f"rgba({colour},{min(1.0, abs(change)) * 0.6:.2f})"
