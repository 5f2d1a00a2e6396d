"""Learning curves: what is kept on the way, and a run that is lengthened instead of repeated."""

import pytest
import toy_project
from test_training import config, encoder_folder, make_config, run, same, weights  # noqa: F401

from dream import training
from dream.config import stages
from dream.errors import DreamError
from dream.files import folder_hash, read_json

ROOM = {"training.schedule": "constant", "training.warmup": 0.0, "training.block": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_project.model(tmp_path_factory)


def trained(folder, **more):
    code, log = toy_project.run(folder, **more)
    assert code == 0, log
    return toy_project.outs(folder, f"{more.get('objective', 'infonce')}-0")


@pytest.mark.parametrize("objective", ["infonce", "dream"])
def test_a_lengthened_run_is_the_long_run_to_the_byte(tmp_path, model, objective):
    """With a snapshot in each half; the second run takes the steps that are missing, and no others."""
    long = {"objectives": [objective], "training.steps": 6, "training.snapshots": [7, 23]}
    whole = trained(toy_project.make(tmp_path / "whole", model, **ROOM, **long), objective=objective)
    folder = toy_project.make(tmp_path / "cut", model, **ROOM, **{**long, "training.steps": 2, "training.snapshots": [7]})
    trained(folder, objective=objective)
    assert toy_project.checkpoints(folder) == [2]
    toy_project.make(folder, model, **ROOM, **long)
    lengthened = trained(folder, objective=objective)
    assert lengthened == whole
    notes = [
        read_json(f / "reports/results/runs" / f"train-{objective}-0.json")[0]["notes"] for f in (folder, tmp_path / "whole")
    ]
    costs = [{k: {**v, "seconds": 0} for k, v in one["snapshots"].items()} for one in notes]
    assert costs[0] == costs[1] and sorted(costs[0], key=int) == ["7", "23", "48"]
    assert [costs[0][k]["steps"] for k in ("7", "23", "48")] == [1, 3, 6]
    assert costs[0]["7"]["flops"] < costs[0]["23"]["flops"] < costs[0]["48"]["flops"]


def test_the_second_run_takes_only_the_missing_steps(config, monkeypatch, encoder_folder):  # noqa: F811
    taken, gradient = [], training._gradient
    monkeypatch.setattr(training, "_gradient", lambda *a: taken.append(a[4][1]) or gradient(*a))
    short, long = ({**ROOM, "training.steps": steps} for steps in (3, 6))
    run(make_config(encoder_folder, **short))
    run(make_config(encoder_folder, **long))
    assert taken == [0, 1, 2, 3, 4, 5]
    taken.clear()
    run(make_config(encoder_folder, **short))
    assert taken == [0, 1, 2], "a shorter run does not start from a longer one's end"
    taken.clear()
    run(make_config(encoder_folder, **short))
    assert taken == [], "its own end is kept beside the longer one's"
    run(make_config(encoder_folder, **short, **{"training.snapshots": [4]}))
    assert taken == [0, 1, 2], "a snapshot that nobody kept needs the steps before it again"


def test_a_snapshot_is_the_run_of_that_length(config, encoder_folder, tmp_path):  # noqa: F811
    long = run(make_config(encoder_folder, **ROOM, **{"training.snapshots": [8, 12]}), key="long")
    for steps, pairs in ((2, 8), (3, 12)):
        short = run(make_config(encoder_folder, **ROOM, **{"training.steps": steps}), key=f"short{steps}")
        short.step.encoder.save_adapter(tmp_path / "short" / str(steps))
        assert folder_hash(tmp_path / "short" / str(steps)) == folder_hash(long.checkpoints.snapshot(pairs) / "adapter")
        assert long.snapshots[pairs]["steps"] == steps and not same(weights(short), weights(long))


def test_the_key_leaves_out_what_cannot_change_a_step(encoder_folder):  # noqa: F811
    def key(**more):
        whole = make_config(encoder_folder, **more)
        settings = stages.files(whole)["train-infonce"]
        return training.resume_key({"settings": settings, "objective": "infonce", "seed": 0}, whole.training, "code")

    constant = {"training.schedule": "constant", "training.warmup": 0.0}
    free = {"training.steps": 99, "training.snapshots": [4], "training.checkpoint_every": 7, "training.keep_checkpoints": 9}
    assert key(**constant) == key(**constant, **free)
    for changes in (
        {"training.block": 5},
        {"training.learning_rate": 0.1},
        {"training.schedule": "linear"},
        {"training.warmup": 0.1},
    ):
        assert key(**constant) != key(**{**constant, **changes}), changes
    for rate in ({"training.schedule": "linear"}, {"training.warmup": 0.1}):
        assert key(**{**constant, **rate}) != key(**{**constant, **rate}, **{"training.steps": 99}), rate


def test_a_snapshot_that_the_run_does_not_reach_is_one_line(encoder_folder):  # noqa: F811
    with pytest.raises(DreamError, match="training.snapshots: 24 is not less than the 24 pairs of a run"):
        make_config(encoder_folder, **{"training.snapshots": [8, 24]})


def test_a_snapshot_s_cell_shares_no_file_with_another(encoder_folder):  # noqa: F811
    clash = {"training.snapshots": [8], "task_lists.8-general": ["boolq"]}
    with pytest.raises(DreamError, match="would share the file"):
        make_config(encoder_folder, **clash)
