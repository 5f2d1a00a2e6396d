"""The verdict's rules on synthetic results: each outcome is reached, by seeds, interval and direction."""

import html
import json
import re

import pandas as pd
import pytest
from report_fixture import make_cells, make_config
from typer.testing import CliRunner

from dream import cli
from dream.errors import DreamError
from dream.report import page, verdict
from dream.report.commands import sweeps
from dream.report.results import cells, collected
from dream.report.verdict import HOLDS, NOT, OPEN, UNTESTED, Comparison

CURVE = next(claim["curve"] for claim in verdict.CLAIMS if "curve" in claim)
BEYOND = next(claim["beyond"] for claim in verdict.CLAIMS if "beyond" in claim)
RIGHT = {"difference": 0.2, "low": 0.1, "high": 0.3, "p": 0.001, "seeds": 3}


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, HOLDS),
        ({"difference": -0.2, "low": -0.3, "high": -0.1}, NOT),
        ({"low": -0.01}, OPEN),
        ({"difference": -0.2, "low": -0.3, "high": 0.01}, OPEN),
        ({"p": 0.05}, OPEN),
        ({"p": None}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_one_comparison(change, outcome):
    found = Comparison("a .3, b .1", **(RIGHT | change), tasks=5)
    assert found.outcome == outcome
    assert ("too few to decide" in found.text()) == (found.seeds < 3)
    assert ("p =" in found.text()) == (found.p is not None and found.seeds >= 3)
    corrected = Comparison("a .3, b .1", **(RIGHT | change), tasks=5, corrected="the curve")
    assert corrected.outcome == outcome and (" by Holm over the curve, " in corrected.text()) == ("p =" in found.text())
    assert " by " not in found.text()


def sweep(folder, name, base, points, **row):
    """A collected sweep of one system: point → (score, difference to the base)."""
    rows = []
    for point, (score, difference) in {base: (0.3, None), **points}.items():
        shown = {"sweep": name, "point": point, "system": "dream", "seeds": 3, "pairs": 144, "tasks": 5, "queries": 9}
        shown |= {"ndcg_at_10": score, "ci_low": score - 0.01, "ci_high": score + 0.01, "over": collected.BOTH}
        shown |= {"seed_low": score, "seed_high": score, "overrides": "", "experiment": "e", "commit": "c"}
        if difference is not None:
            shown |= {
                "against": base,
                "difference": difference,
                "diff_low": difference - 0.01,
                "diff_high": difference + 0.01,
                "p": 0.0001,
                "p_holm": 0.001,
            }
        rows.append(shown | row)
    (folder / name).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=collected.COLUMNS).to_csv(folder / name / f"{name}.csv", index=False)


def outcomes(results, folder):
    return [one["outcome"] for one in verdict.verdict(results, folder)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    config = make_config()
    return cells.load(config, make_cells(tmp_path_factory.mktemp("report"), config))


def test_systems_are_compared_as_the_tables_do(results, tmp_path):
    first, second, *others = verdict.verdict(results, tmp_path)
    assert first["outcome"] == HOLDS and re.match(
        r"dream \.\d{3}, untrained \.\d{3}: \+\.\d{3} \[\.\d{3}, ", first["evidence"][0]
    )
    assert second["evidence"][0].startswith("dream ") and ", infonce " in second["evidence"][0]
    assert [one["outcome"] for one in others] == [UNTESTED] * 4 and not any(one["evidence"] for one in others)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, None),
        ({"difference": -0.2, "diff_low": -0.3, "diff_high": -0.1}, NOT),
        ({"p_holm": None}, OPEN),
        ({"p_holm": 0.06}, OPEN),
    ],
)
def test_the_last_point_of_a_collected_curve_is_evidence_too(results, tmp_path, change, outcome):
    """Only the rival's last point at equal pairs; the claim holds if this and the report's comparison both do."""
    right = {"equal": "pairs", "system": "dream", "pairs": 576, "rival": "infonce", "rival_pairs": 576, "share": 1.0, "ndcg_at_10": 0.4,
             "difference": 0.1, "diff_low": 0.05, "diff_high": 0.2, "p": 0.001, "p_holm": 0.001, "seeds": 3,
             "tasks": 5, "within": False} | change  # fmt: skip
    right["rival_ndcg_at_10"] = 0.4 - right["difference"]
    last = {**right, "pairs": 144, "difference": 0.0, "rival_ndcg_at_10": 0.4}
    others = [last, {**right, "equal": "flops"}, {**right, "rival": "adist"}]
    (tmp_path / CURVE).mkdir()
    pd.DataFrame([*others, right]).to_csv(tmp_path / CURVE / "curves-equal.csv", index=False)
    alone, both = verdict.verdict(results, tmp_path / "none")[1], verdict.verdict(results, tmp_path)[1]
    assert both["evidence"][:-1] == alone["evidence"] and len(alone["evidence"]) == 1
    assert both["evidence"][1].startswith(f"After 576 pairs dream .400, infonce .{400 - 1000 * right['difference']:.0f}: ")
    assert (" by Holm over the curve" in both["evidence"][1]) == (change.get("p_holm", 0.001) is not None)
    assert " by Holm" not in alone["evidence"][0] and both["outcome"] == (outcome or alone["outcome"])


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        ({}, None, "+.200 [.100, .300], p = .001, 3 seeds, 2 tasks"),
        ({"difference": 0.1, "ci_low": 0.05, "ci_high": 0.2}, NOT, "−.100 [−.200, −.050], p = .001, 3 seeds, 2 tasks"),
        ({"p": 0.06}, OPEN, "+.200 [.100, .300], p = .060, 3 seeds, 2 tasks"),
        ({"p": None}, OPEN, "+.200 [.100, .300], 3 seeds, not tested over them, 2 tasks"),
        ({"reference_seed_low": 0.15}, None, "+.200 [.100, .300], p = .001, 3 seeds, 2 tasks; seeds alone can make it"),
    ],
)
def test_the_same_two_systems_on_other_tasks_are_evidence_too(results, tmp_path, change, outcome, words):
    """The overall mean of a collected report, the last of its means; the sign is turned, the table is that of the other system."""
    right = {"suite": "all", "task": "mean", "system": "untrained", "reference": "dream", "difference": -0.2, "ci_low": -0.3,
             "ci_high": -0.1, "p": 0.001, "p_holm": 0.002, "queries": 9, "seed_low": None, "seed_high": None,
             "reference_seed_low": 0.38, "reference_seed_high": 0.42} | change  # fmt: skip
    others = [{**right, "suite": "BEIR", "difference": 0.5}, {**right, "task": "SciFact"}, {**right, "system": "minilm"}]
    ours = 0.2 - right["difference"]
    rows = [
        ("SciFact", "dream", ours - 0.1),
        ("MBPP", "dream", ours + 0.1),
        ("SciFact", "untrained", 0.1),
        ("MBPP", "untrained", 0.3),
    ]
    main = [{"task": task, "system": name, "ndcg_at_10": score, "seeds": 3 if name == "dream" else 1,
             "pairs_trained": 144 * (name == "dream")} for task, name, score in rows]  # fmt: skip
    (tmp_path / BEYOND).mkdir()
    pd.DataFrame([*others, right]).to_csv(tmp_path / BEYOND / "significance.csv", index=False)
    pd.DataFrame([*main, {**main[0], "task": "mean", "ndcg_at_10": 0.9}]).to_csv(tmp_path / BEYOND / "main.csv", index=False)
    alone, both = verdict.verdict(results, tmp_path / "none")[0], verdict.verdict(results, tmp_path)[0]
    assert both["evidence"] == [
        *alone["evidence"],
        f"After 144 pairs, on SciFact, MBPP: dream .{1000 * ours:.0f}, untrained .200: {words}",
    ]
    assert both["outcome"] == (outcome or alone["outcome"])
    edited = [*others, {**right, "difference": right["difference"] + 0.01}]
    pd.DataFrame(edited).to_csv(tmp_path / BEYOND / "significance.csv", index=False)
    with pytest.raises(DreamError, match=rf"significance.csv, untrained and dream: .*`git checkout \S+/{BEYOND}` brings it back"):
        verdict.verdict(results, tmp_path)


def test_a_difference_that_is_not_that_of_its_scores_is_refused(results, tmp_path):
    """A score that was edited by hand: the sentence would contradict itself."""
    sweep(tmp_path, "signal", "query-focused heads", {"random heads": (0.4, -0.1)})
    with pytest.raises(
        DreamError, match=r"signal\.csv, point 'random heads': difference -0\.100000 is not 0\.400000 − 0\.300000"
    ):
        verdict.verdict(results, tmp_path)
    (tmp_path / CURVE).mkdir()
    row = {"equal": "pairs", "system": "dream", "pairs": 576, "rival": "infonce", "ndcg_at_10": 0.5, "rival_ndcg_at_10": 0.3,
           "difference": 0.1, "diff_low": 0, "diff_high": 0.2, "p_holm": 0.5, "seeds": 3, "tasks": 5, "within": False}  # fmt: skip
    pd.DataFrame([row]).to_csv(tmp_path / CURVE / "curves-equal.csv", index=False)
    with pytest.raises(DreamError, match=rf"dream and infonce at 576 pairs: .*`git checkout \S+/{CURVE}` brings it back"):
        verdict.verdict(results, tmp_path)


def test_two_seeds_decide_nothing(tmp_path):
    config = make_config(seeds=[0, 1])
    found = verdict.verdict(cells.load(config, make_cells(tmp_path, config)), tmp_path / "none")
    assert [one["outcome"] for one in found[:2]] == [OPEN, OPEN] and "2 seeds, too few to decide" in found[0]["evidence"][0]


def test_a_system_that_was_not_run_is_not_tested(tmp_path):
    config = make_config(objectives=["infonce"], **{"report.reference_system": "infonce"})
    assert outcomes(cells.load(config, make_cells(tmp_path, config)), tmp_path / "none") == [UNTESTED] * 6


@pytest.mark.parametrize(
    ("points", "more", "outcome"),
    [
        ({"4": (0.2, -0.1), "16": (0.4, 0.1)}, {}, HOLDS),
        ({"4": (0.4, 0.1), "16": (0.4, 0.1)}, {}, NOT),
        ({"4": (0.2, -0.1), "16": (0.2, -0.1)}, {}, NOT),
        ({"4": (0.2, -0.1), "16": (0.305, 0.005)}, {}, OPEN),
        ({"4": (0.2, -0.1)}, {}, OPEN),  # one of two
        ({"4": (0.2, -0.1), "16": (0.4, 0.1)}, {"seeds": 2}, OPEN),
        ({"4": (0.2, -0.1), "16": (0.4, 0.1)}, {"over": "queries"}, OPEN),
        ({}, {}, UNTESTED),
    ],
)
def test_a_claim_of_several_comparisons(results, tmp_path, points, more, outcome):
    sweep(tmp_path, "candidates", "8", points, **more)
    assert outcomes(results, tmp_path)[4] == outcome


@pytest.mark.parametrize(("difference", "outcome"), [(-0.1, HOLDS), (0.1, NOT), (0.0, OPEN)])
def test_heads_that_teach_less_speak_for_the_claim(results, tmp_path, difference, outcome):
    sweep(tmp_path, "signal", "query-focused heads", {"random heads": (0.3 + difference, difference)})
    found = verdict.verdict(results, tmp_path)[2]
    assert found["outcome"] == outcome
    assert found["evidence"][0].startswith(f"random heads .{300 + round(1000 * difference)}, query-focused heads .300: ")
    assert "p = .001 by Holm over the sweep, 3 seeds" in found["evidence"][0], "the p of the table it comes from"


def test_every_sweep_that_a_claim_reads_has_its_points():
    known = sweeps.load()
    for claim in verdict.CLAIMS:
        if "sweep" in claim:
            points = [point.label for point in known[claim["sweep"]].points]
            assert set(claim.get("worse", []) + claim.get("better", [])) < set(points)


def test_file_page_and_terminal_say_the_same(results, tmp_path, monkeypatch):
    found = verdict.verdict(results, tmp_path / "none")
    verdict.write(found, tmp_path)
    assert json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8")) == found
    written = (tmp_path / "verdict.md").read_text(encoding="utf-8").replace("**", "")
    lines = verdict.lines(found)
    assert written == "".join(f"- {line}\n" for line in lines) and len(lines) == 6
    monkeypatch.setattr(verdict, "verdict", lambda *_: found)
    source = page.html(results, tmp_path / "none.json")
    shown = html.unescape(re.sub(r"<[^>]+>", "", source))
    assert all(line.replace("`", "") in shown for line in lines)
    assert "<code>dream-report sweep signal</code> measures it." in source
    monkeypatch.setattr(cli, "load", lambda *_: results)
    for command in ("tables", "verdict"):
        assert "\n".join(lines) in CliRunner().invoke(cli.app, [command], catch_exceptions=False).stdout
