"""``reports/adapt.json`` as a reader sees it: the verdict first, before and after, the queries that changed, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dream.adapt import verdict
from dream.adapt.verdict import Setting
from dream.errors import DreamError, visible
from dream.files import read_json, replacing
from dream.progress import duration
from dream.report.tables.render import Table, fields, markdown, number, plain, signed

PATH = Path("reports/adapt.json")
NOTHING = "Nothing is adapted here: `dvc exp run -S recipe=adapt -S +own.NAME=/path/to/documents` does it (docs/adapt.md).\n"


def load(path: Path = PATH) -> dict[str, Any]:
    """What stage ``adapt`` found.

    Raises:
        DreamError: nothing was adapted, or the file is another one.
    """
    if path != PATH and not path.is_file():
        raise DreamError(f"{path} is missing", f"Name {PATH} or copies of it")
    found: Any = read_json(path) if path.is_file() and path.suffix == PATH.suffix else {}
    if not isinstance(found, dict) or (path != PATH and not {"verdict", "why", "cost"} <= set(found)):
        raise DreamError(f"{path} is no outcome of an adaptation", f"Name {PATH} or copies of it")
    if not found:
        raise DreamError("nothing is adapted here", "Run `dvc exp run -S recipe=adapt -S +own.NAME=/path/to/documents`")
    return found


def write(path: Path = PATH) -> None:
    """Write the same as Markdown beside it; one line where nothing was adapted."""
    found = read_json(path) if path.exists() else {}
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines(found, markdown)) + "\n" if found else NOTHING, encoding="utf-8")


def lines(found: dict[str, Any], show: Any = plain) -> Iterator[str]:
    """All of it, a line at a time.

    Args:
        found: the content of ``reports/adapt.json``.
        show: how a table is written: :func:`plain` or :func:`markdown` of :mod:`dream.report.tables.render`.
    """
    bold = "**" if show is markdown else ""
    yield f"{bold}{found['verdict'].capitalize()}.{bold} {'. '.join(found['why'])}."
    yield from ("", f"{found['encoder']} on {', '.join(found['own'])}, {duration(sum(found['cost'].values()))}: " + _costs(found))
    yield from ("", *(f"- {visible(note)}" for note in found["notes"]))
    for table in tables(found):
        yield from ("", show(table).rstrip("\n"))
    for name, heading in (("better", "Queries that got better"), ("worse", "Queries that got worse")):
        if queries := found.get(name):
            shown = _setting(found["trained"]).said()
            yield from ("", f"{heading} with {shown} (nDCG@10, the passage that answers):", "")
            for one in queries:
                yield f"- {number(one['before'])} → {number(one['after'])}  {visible(one['query'])}"
                yield f"  {visible(' '.join(one['passage'].split()))}"
    yield from ("", "Next:", *(f"- {step}" for step in following(found)))


def tables(found: dict[str, Any]) -> list[Table]:
    """Held-out questions, own test queries and the control task: before and after."""
    if "held_out" not in found:
        return []
    tried = sum(row["strength"] is not None for row in found["held_out"])
    note = f"of {tried} trained settings the best of every objective; cosine: with the old vectors"
    shown = [("held-out", "Held-out questions", _best(found), [note])]
    if found["test"]["rows"]:
        tasks = ", ".join(f"{name} ({count} queries)" for name, count in found["test"]["tasks"].items())
        shown.append(("test", f"Own test queries: {tasks}", found["test"]["rows"], ["they took no part in the choice"]))
    control = found["control"]
    shown.append(("control", f"Control: {control['task']}, a task that is not yours", control["rows"], []))
    return [_table(*one) for one in shown]


def _best(found: dict[str, Any]) -> list[dict[str, Any]]:
    """On held-out questions: what trains nothing, and the best setting of every objective."""
    rows = {_setting(row): row for row in found["held_out"]}
    free, trained = ([one for one in rows if one.trained is kind] for kind in (False, True))
    trained.sort(key=lambda one: (one != _setting(found["trained"]), -rows[one]["ndcg_at_10"]))
    return [rows[one] for one in (*free, *verdict.first_of_each(trained))]


HEAD = ["System", "nDCG@10", "Change", "Seeds", "Cosine"]


def _table(name: str, title: str, rows: list[dict[str, Any]], notes: list[str]) -> Table:
    return Table(name, title, pd.DataFrame(rows), HEAD, [fields(*_said(row)) for row in rows], notes)


def _said(row: dict[str, Any]) -> list[str]:
    """A setting's line under :data:`HEAD`."""
    moved = "" if row["low"] is None else f"{signed(row['difference'])} [{number(row['low'])}, {number(row['high'])}]"
    cosine = "" if row["cosine"] is None else number(row["cosine"])
    return [_setting(row).said(), number(row["ndcg_at_10"]), moved, " ".join(map(number, row["seeds"])), cosine]


def beside(found: Mapping[str, dict[str, Any]]) -> Table:
    """Several outcomes in one table: the systems on own test queries, or on held-out questions where there are none.

    Args:
        found: the content of an ``adapt.json`` by the name of its documents.
    """
    shown, data, notes = [], [], []
    for name, one in found.items():
        rows = (one["test"]["rows"] or _best(one)) if "held_out" in one else []
        shown += [fields(name, *_said(row)) for row in rows]
        data += [{"documents": name, **row} for row in rows]
        told = ". ".join(one["why"])
        notes.append(f"{name}: {one['verdict']}. {told}. {duration(sum(one['cost'].values()))}")
    return Table("adapted", "Own documents, on test queries of people", pd.DataFrame(data), ["Documents", *HEAD], shown, notes)


def following(found: dict[str, Any]) -> list[str]:
    """What to do with the outcome."""
    if found["verdict"] == verdict.USE:
        one = found["trained"]
        pairs = "" if one["pairs"] is None else f" --pairs {one['pairs']}"
        command = f"dream-report export --system {one['system']} --seed {one['seed']}{pairs} --strength {one['strength']:g}"
        return [f"`{command} --format sentence-transformers --out exports/adapted` writes the model",
                "Encode all documents anew with it: its vectors and the old ones do not belong in one index"]  # fmt: skip
    if found["verdict"] == verdict.OPEN:
        return ["Keep your model until there is more: three seeds, more documents, a larger questions.limit or questions.per_set",
                "Queries of people with judgements, as a BEIR set under `own`, are worth more than any of it"]  # fmt: skip
    best = _setting(found["best"])
    if best in verdict.FREE and best != verdict.UNTOUCHED:
        words = verdict.WORDS[best]
        asked = {_setting(row): row["difference"] or 0.0 for row in found["test"]["rows"]}  # 0: the untouched encoder's
        if best not in asked:
            return [f"Keep your model. Ask people's queries, as a BEIR set under `own`, before {words} takes its place: "
                    "a model's questions share words with their passages, which favours it"]  # fmt: skip
        if (best := max(filter(asked.__contains__, verdict.FREE), key=asked.__getitem__)) == verdict.UNTOUCHED:
            return [f"Keep your model as it is: on your own test queries {words} does worse, whatever these questions say"]
    if best == verdict.FUSED:
        return ["Keep your model, and fuse its ranking with BM25's by reciprocal rank (dream/systems/hybrid.py)"]
    if best == verdict.LEXICAL:
        return ["Take BM25: your model adds nothing to it, neither alone nor fused with it"]
    return ["Keep your model. Other objectives may teach it more (docs/objectives.md)"]


def _costs(found: dict[str, Any]) -> str:
    return ", ".join(f"{part} {duration(seconds)}" for part, seconds in found["cost"].items())


def _setting(row: dict[str, Any]) -> Setting:
    return Setting(*(row[key] for key in Setting._fields))
