"""The settings that params.yaml gives an objective of its own are the best points of its committed search."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dream import config as configs
from dream.config import check
from dream.files import read_json
from dream.report.commands import sweeps
from dream.report.tables.render import number

ROOT = Path(__file__).resolve().parent.parent
SEARCHES = {
    name.removeprefix("search-"): sweep for name, sweep in sweeps.load(ROOT / "sweeps.yaml").items() if name.startswith("search-")
}


def found(objective):
    return pd.read_csv(ROOT / f"reports/sweeps/search-{objective}/search-{objective}.csv", keep_default_na=False)


def test_every_objective_has_the_same_search():
    assert set(SEARCHES) == {"dream", "infonce", "replug", "revela"}
    assert len({len(sweep.points) for sweep in SEARCHES.values()}) == 1
    # Revela's cost is cut (docs/search.md says so): its precision and number of candidates are its own.
    cheaper = ("++models.", "candidates.count")
    bases = {
        tuple(o for o in sweep.points[0].overrides if not o.startswith(("objectives", f"++{name}.", *cheaper)))
        for name, sweep in SEARCHES.items()
    }
    assert len(bases) == 1 and "tasks=[development]" in bases.pop()


@pytest.mark.parametrize("objective", ["dream", "infonce", "replug", "revela"])
def test_params_hold_the_best_point_of_the_search(objective):
    table = found(objective).set_index("point")
    assert list(table.index) == [point.label for point in SEARCHES[objective].points]
    best = table.loc[table.ndcg_at_10.idxmax(), "overrides"]
    chosen = {key: yaml.safe_load(value) for key, value in re.findall(rf"{objective}\.(\w+)=(\S+)", best)}
    assert "training.steps" not in best, "fewer steps were better: the common number is wrong"
    own = check.carrier(objective).Knobs.resolve("packaged").model_dump()
    common = {"learning_rate": None} | ({"tau": 1e-4} if objective == "revela" else {"temperature": None})
    assert {key: own[key] for key in common} == common | chosen


def lines_of_table(head):
    """The lines of the table of docs/search.md whose first begins with ``head``."""
    _, start, rest = (ROOT / "docs/search.md").read_text(encoding="utf-8").partition(head)
    return (start + rest.partition("\n\n")[0]).splitlines()


def test_the_document_shows_the_scores_of_the_committed_search():
    shown = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines_of_table("| point")]
    assert {name.lower() for name in shown[0][1:]} == set(SEARCHES)
    for column, name in enumerate(shown[0][1:], 1):
        scores = [f"{value:.3f}".removeprefix("0") for value in found(name.lower()).ndcg_at_10]
        assert [row[column] for row in shown[2:]] == scores


def test_params_hold_the_best_rate_of_the_scalars():
    table = pd.read_csv(ROOT / "reports/sweeps/scalars/scalars.csv")
    best = set(table.loc[table.groupby("system").ndcg_at_10.idxmax(), "overrides"].str.extract(r"scalar_learning_rate=(\S+)")[0])
    assert {float(rate) for rate in best} == {configs.load(ROOT / "params.yaml").training.scalar_learning_rate}


def test_the_papers_scalars_can_move_as_far_as_ours():
    """The sum of the rates over the steps; the paper's schedule is linear after a warm-up, so half of them."""
    ours, paper = (configs.load(ROOT / "params.yaml", {"recipe": recipe}).training for recipe in ("packaged", "paper"))
    assert ours.schedule == "constant" and paper.schedule == "linear"
    assert ours.steps * ours.scalar_learning_rate == pytest.approx(paper.steps * paper.scalar_learning_rate / 2, rel=0.05)


def test_the_rankings_in_the_docs_are_those_that_were_measured():
    found = read_json(ROOT / "reports/bench/rankings-drop.json")["rankings"]
    rows = {row.split(" | ")[0].strip("| ").replace(" ", ""): row for row in lines_of_table("| ranked by |")[2:]}
    assert rows.keys() == found.keys()
    for name, one in found.items():
        shown = [number(one[key]) for key in ("ndcg_at_10", "low", "high")] if name != "encoder" else [number(one["ndcg_at_10"])]
        assert all(value in rows[name] for value in shown)
