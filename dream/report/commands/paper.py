"""The paper's printed numbers beside ours, row by row, with an honest word for every row that has not been run.

``reference/paper_ndcg10.csv`` holds what was printed. A row is reproduced only where the task has the same name, the
system
the same method and the size the same name, and the recipe is ``paper``: a tiny model on packaged tasks reproduces
nothing, and then this table says so instead of comparing what does not compare.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from dream.report.results import collected
from dream.report.results.cells import Results
from dream.report.tables import measures
from dream.report.tables.render import Field, Table, fields, number, signed

KEYS = ["suite", "task", "size", "method", "printed", "reproduced", "ci_low", "ci_high", "seed_low", "seed_high", "difference",
        "inside", "state"]  # fmt: skip
SIZELESS = ("bm25",)
METHODS = json.loads(resources.files("dream.report").joinpath("reference/methods.json").read_text(encoding="utf-8"))


def printed(name: str = "paper_ndcg10") -> pd.DataFrame:
    """A reference file; an empty size stays an empty string."""
    with resources.files("dream.report").joinpath(f"reference/{name}.csv").open() as stream:
        return pd.read_csv(stream, dtype={"size": str}, keep_default_na=False, na_values={"ndcg_at_10": [""]})


def rows(results: Results | None) -> list[dict[str, Any]]:
    """Every printed row with what this report has for it. ``state`` says why nothing stands there."""
    reference = printed()
    if "table" in reference.columns:
        reference = reference.drop(columns="table")
    return [_row(results, r._asdict()) for r in reference.itertuples(index=False)]


def _row(results: Results | None, row: dict[str, Any]) -> dict[str, Any]:
    found = dict(zip(KEYS, (row["suite"], row["task"], row["size"], row["method"], row["ndcg_at_10"]), strict=False))
    found |= dict.fromkeys(KEYS[5:])
    found["state"] = _why_not(results, row)
    if results is None or found["state"]:
        return found
    ours = measures.measured(results, row["method"], [row["task"]])
    low, high = measures.seed_range(results, row["method"], [row["task"]])
    found |= {
        "reproduced": ours.value, "ci_low": ours.low, "ci_high": ours.high, "seed_low": low, "seed_high": high,
        "difference": ours.value - row["ndcg_at_10"], "inside": bool(ours.low <= row["ndcg_at_10"] <= ours.high), "state": "run",
    }  # fmt: skip
    return found


def _why_not(results: Results | None, row: dict[str, Any]) -> str:
    """Why a row has nothing to compare with; empty when it has."""
    if results is None:
        return "not run"
    config = results.config
    if row["method"] not in SIZELESS and row["size"] != config.model.size:
        return f"not run (here: size {config.model.size})"
    if config.recipe != "paper" and row["method"] not in SIZELESS:
        return f"not run (recipe {config.recipe})"
    if row["method"] not in results.systems:
        return "method not run"
    tasks = {task: results.record(row["method"], task) for _, task in results.tasks}
    if row["task"] not in tasks:
        return "task not run"
    return ""


def table(results: Results | None, every_row: bool = False) -> Table:
    """Means per suite, size and method; with ``every_row`` each printed number."""
    found = rows(results)
    frame = pd.DataFrame(found, columns=KEYS)
    ran = int((frame["state"] == "run").sum())
    over = measures.over(*([results] if results else []))
    notes = [
        f"{ran} of {len(frame)} printed numbers have been run here. A mean is compared only where all its tasks were.",
        f"Inside: the printed number lies in our interval over {over}. It is one run of the paper's: how far its seeds lie apart "
        "it does not say.",
        *_cautions(),
    ]
    if ran == 0:
        notes.insert(
            0,
            "Nothing here can be compared with the paper yet: `dvc exp run -S model.size=0.5b` runs its smallest row.",
        )
    body = _every(found) if every_row else _means(frame, results)
    head = [
        "Suite",
        "Task" if every_row else "Tasks",
        "Size",
        "Method",
        "Printed",
        "Reproduced",
        "Difference",
        "Inside",
        "State",
    ]
    return Table("paper", "The paper's nDCG@10 against ours", frame, head, body, notes)


def _every(found: list[dict[str, Any]]) -> list[list]:
    return [
        fields(
            r["suite"], r["task"], r["size"] or "–", r["method"], number(r["printed"], 4), number(r["reproduced"], 4),
            "–" if r["difference"] is None else signed(r["difference"]), _yes(r["inside"]), r["state"],
        )
        for r in found
    ]  # fmt: skip


def _means(frame: pd.DataFrame, results: Results | None) -> list[list]:
    body = []
    for (suite, size, method), part in frame.groupby(["suite", "size", "method"], sort=False):
        ran = part[part["state"] == "run"]
        complete = len(ran) == len(part)
        state = "run" if complete else f"{len(ran)} of {len(part)} tasks" if len(ran) else part["state"].iloc[0]
        value = low = high = None
        if complete and results is not None:
            value, low, high = measures.measured(results, method, list(part["task"]))
        mean = part["printed"].mean()
        body.append(
            fields(
                suite, len(part), size or "–", method, number(mean), _ours(results, method, list(part["task"]), value),
                "–" if value is None else signed(value - mean), _yes(None if value is None else low <= mean <= high),
                state,
            )
        )  # fmt: skip
    return body


def _ours(results: Results | None, method: str, tasks: list[str], value: float | None) -> Field:
    return Field(number(value), source="" if value is None or results is None else measures.source(results, method, tasks))


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"


def _cautions() -> list[str]:
    """What a reader must know about the printed numbers themselves, computed from the reference files."""
    reference, rival, collapsed = printed(), METHODS["rival_paper"], METHODS["collapsed"]
    theirs = printed(rival["file"])
    beir = reference[reference["suite"] == "BEIR"]
    same = (theirs["task_set"] == rival["task_set"]) & (theirs["method"] == rival["method"])
    shared = theirs[same].set_index("size")["mean_ndcg_at_10"]
    without = beir[beir["task"] != "CQADupstackRetrieval"]
    means = without.groupby(["size", "method"])["ndcg_at_10"].mean()
    gains = "; ".join(
        f"{size}: {signed(means[size, METHODS['own']] - means[size, METHODS['rival']])} as printed, "
        f"{signed(means[size, METHODS['own']] - value)} "
        f"against {rival['method']}'s own paper"
        for size, value in shared.items()
    )
    small = reference[reference["size"] == "0.5b"].set_index(["task", "method"])["ndcg_at_10"]
    lexical = reference[reference["method"] == "bm25"].set_index("task")["ndcg_at_10"]
    behind = sum(small[task, METHODS["own"]] < value for task, value in lexical.items())
    low = small[collapsed["task"], collapsed["method"]]
    return [
        f"The paper's baselines are lower than their own papers report. DREAM's gain over {rival['method']} on the eight shared "
        f"BEIR tasks, {gains}.",
        f"The paper's {collapsed['title']} looks collapsed ({collapsed['task']} {number(low)} at 0.5b). At 0.5b DREAM trails "
        f"BM25 on {behind} of {len(lexical)} tasks.",
        "The paper reports no seeds, no intervals, no control without injection, and one judge.",
    ]


# Our sweeps that ask what an ablation of the paper asks: (ablation, heads, judge) → sweep and point.
ASKED_HERE = {
    ("heads", "random_all", "frozen"): ("strategies", "random"),
    ("heads", "random_middle", "frozen"): ("strategies", "random_middle"),
    ("heads", "query_focused", "frozen"): ("strategies", "query_focused"),
    ("judge_lora", "query_focused", "lora"): ("judge", "LoRA"),
}


def ablations(folder: Path | str = collected.FOLDER) -> Table:
    """The paper's ablations as printed, with what the same question gave here on the packaged models."""
    rows, data = [], []
    for row in printed("paper_ablations").to_dict("records"):
        sweep, point = ASKED_HERE[row["ablation"], row["heads"], row["judge"]]
        ours = _collected(sweep, point, folder)
        setting, value = f"{row['heads']}, judge {row['judge']}", number(row["mean_ndcg_at_10"])
        data.append({**row, "sweep": sweep, "point": point, "here": ours})
        rows.append(fields(row["ablation"], setting, row["size"], row["suite"], value, number(ours), sweep))
    notes = [
        "Here: mean nDCG@10 over the packaged tasks with the packaged models, other data than the paper's: the order can be "
        "compared, the height cannot. A dash: `dream-report sweep NAME --run --collect` has not been run.",
        "The paper's judge-LoRA rows compare with its frozen judge in the main table.",
    ]
    head = ["Ablation", "Setting", "Size", "Suite", "Printed", "Here", "Sweep"]
    return Table("paper-ablations", "The paper's ablations", pd.DataFrame(data), head, rows, notes)


def _collected(sweep: str, point: str, folder: Path | str) -> float | None:
    """The paper's method at a point of a collected sweep."""
    file = Path(folder) / sweep / f"{sweep}.csv"
    if not file.exists():
        return None
    frame = collected.read(file)
    found = frame[(frame.point == point) & (frame.system == METHODS["own"])].ndcg_at_10
    return float(found.iloc[0]) if len(found) else None


def scaling() -> Table:
    """The paper's comparison with larger public models, as printed; nothing of it can be run without a GPU and the hub."""
    frame = printed("paper_scaling")
    printed_means = ["beir_mean_ndcg_at_10", "rteb_mean_ndcg_at_10"]
    rows = [fields(r["system"], *(number(r[key]) for key in printed_means)) for r in frame.to_dict("records")]
    notes = ["As printed; not run here. `dream-report plan --size 8b` says what DREAM-8B would cost; BGE-large, E5-mistral and "
             "Qwen3-Embedding-0.6B are entries of `published` in params.yaml."]  # fmt: skip
    return Table("paper-scaling", "The paper's DREAM-8B beside public models", frame, ["System", "BEIR", "RTEB"], rows, notes)
