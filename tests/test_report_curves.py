"""Learning curves in the report: points with their cost, and what is compared at equal pairs, time and operations."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from report_fixture import edit_json, make_cells, make_config

from dream.errors import DreamError
from dream.files import write_json
from dream.report import plots, stats
from dream.report.results import cells
from dream.report.tables import curves, measures, registry, render

SNAPSHOTS = {"training.snapshots": [96, 192]}


@pytest.fixture(scope="module")
def config():
    return make_config(**SNAPSHOTS)


@pytest.fixture
def folder(tmp_path, config):
    return make_cells(tmp_path, config)


@pytest.fixture
def results(config, folder):
    return cells.load(config, folder)


def test_a_point_is_the_report_at_that_moment(results):
    """Scores of the fixture grow with pairs / (pairs + 384), so each point's mean is known from the run's end."""
    tasks = measures.overall(results)[2]
    found = curves.points(results)
    assert list(found) == ["dream", "infonce"] and [p.pairs for p in found["dream"]] == [96, 192, 384]
    for system, points in found.items():
        end = measures.measured(results, system, tasks).value
        for point in points[:-1]:
            share = round(point.pairs / (point.pairs + 384), 3)
            assert measures.measured(point.results, system, tasks).value == pytest.approx(share * end, abs=1e-5)
        assert measures.measured(points[-1].results, system, tasks).value == end
    untouched = [measures.measured(p.results, "bm25", tasks) for p in found["dream"]]
    assert len(set(untouched)) == 1


def test_without_snapshots_there_is_no_curve(tmp_path):
    plain = make_config()
    loaded = cells.load(plain, make_cells(tmp_path, plain))
    assert curves.points(loaded) == {} and curves.rows(loaded) == []
    assert registry.TABLES["curves"](loaded) is registry.TABLES["curves-equal"](loaded) is plots.PLOTS["curves"](loaded) is None


def test_cost_is_that_of_training_and_the_teachers_share(config, folder):
    plain = curves.points(cells.load(config, folder))["infonce"]
    assert [p.seconds for p in plain] == [22.5, 45.0, 90.0] and [p.flops for p in plain] == [1e13, 2e13, 4e13]
    record = {"settings": "teacher-infonce", "config": {}, "wall_s": 40.0, "flops": 8e12, "notes": {"questions": 384}}
    write_json(folder / "runs" / "teacher-infonce.json", [record])
    taught = curves.points(cells.load(config, folder))["infonce"]
    assert [p.seconds for p in taught] == [32.5, 65.0, 130.0] and [p.flops for p in taught] == [1.2e13, 2.4e13, 4.8e13]


def test_pairs_are_equal_in_what_they_say(results):
    """infonce takes .35 of dream's time and .27 of its operations a pair: its whole run costs less than dream's end."""
    found = [(p.equal, p.ours.system, p.ours.pairs, p.theirs.system, p.theirs.pairs) for p in curves.pairs(results)]
    assert found == [
        ("pairs", "dream", 96, "infonce", 96), ("pairs", "dream", 192, "infonce", 192), ("pairs", "dream", 384, "infonce", 384),
        ("seconds", "dream", 384, "infonce", 384), ("flops", "dream", 384, "infonce", 384),
    ]  # fmt: skip
    turned = [(p.equal, p.theirs.pairs) for p in curves.pairs(results.against("infonce")) if p.equal != "pairs"]
    assert turned == [("seconds", 96), ("flops", 96)], "of dream, only the first point costs no more than infonce's end"


def test_rows_hold_the_paired_difference_and_say_who_is_ahead(results):
    tasks = measures.overall(results)[2]
    rows = curves.rows(results)
    assert rows[2]["p_holm"] == rows[3]["p_holm"] == rows[4]["p_holm"], "the same two points are one test"
    assert sorted(row["p_holm"] for row in rows[:3]) == sorted(stats.holm([row["p"] for row in rows[:3]]))
    for row in rows[:2]:
        at = results.snapshots[row["pairs"]]
        change = measures.difference(at, "dream", at, "infonce", tasks)
        assert (row["difference"], row["diff_low"], row["diff_high"], row["p"]) == change and row["p_holm"] >= row["p"]
        assert row["difference"] == pytest.approx(row["ndcg_at_10"] - row["rival_ndcg_at_10"], abs=1e-9)
    assert (
        rows[3]["share"] == pytest.approx(90 / 260) and rows[4]["share"] == pytest.approx(4e13 / 1.5e14) and rows[0]["share"] == 1
    )
    ahead = {"system": "a", "rival": "b", "p_holm": 0.01, "difference": 0.1, "diff_low": 0.05, "diff_high": 0.2, "within": False}
    assert curves.outcome(ahead) == "a ahead"
    assert curves.outcome({**ahead, "difference": -0.1, "diff_low": -0.2, "diff_high": -0.05}) == "b ahead"
    assert curves.outcome({**ahead, "diff_low": -0.01}) == curves.outcome({**ahead, "p_holm": 0.05}) == "not decided"
    assert curves.outcome({**ahead, "p_holm": None, "within": True}) == "not decided; seeds alone can make it"


def test_tables_and_figure_show_what_was_measured(results):
    table, equal = registry.build(results, ["curves", "curves-equal"])
    assert len(table.rows) == 6 and len(equal.rows) == 5 and "dream, 384 pairs" in render.markdown(equal)
    assert f"bm25 {measures.measured(results, 'bm25', measures.overall(results)[2]).value:.3f}".replace("0.", ".") in " ".join(
        table.notes
    )
    figure = plots.PLOTS["curves"](results)
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert [list(line.get_xdata()) for line in thick] == [[96, 192, 384]] * 2
    means = [measures.measured(p.results, "dream", measures.overall(results)[2]).value for p in curves.points(results)["dream"]]
    np.testing.assert_allclose(thick[0].get_ydata(), means)
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.6]
    assert len(thin) == 6, "one a seed"
    assert [list(line.get_xdata()) for line in figure.axes[1].lines if line.get_linewidth() == 2][1] == [22.5, 45.0, 90.0]
    plt.close(figure)


def test_a_missing_snapshot_is_one_line_with_its_command(config, folder):
    (folder / "evaluate" / "dream-1-96-general.csv").unlink()
    with pytest.raises(DreamError, match=r"dream-1-96-general.csv is missing.*dvc repro snapshot@dream-1-96-general"):
        cells.load(config, folder)


def test_snapshots_of_different_models_of_one_run_are_refused(config, folder):
    edit_json(folder / "evaluate" / "dream-1-96-domain.json", lambda rows: rows[0]["settings"].update(checkpoint="another"))
    with pytest.raises(DreamError, match="were made by different models"):
        cells.load(config, folder)
