"""Controls and wiring: what makes a control a control, on values, and the stages heads and train as a user runs them."""

import pandas as pd
import pytest
import reference
import torch
import toy_project as toy
from reference import HEADS, both, candidate_set, copying_judge, distinct_set
from safetensors.torch import load_file
from test_objectives import Table
from test_training import encoder_folder, make_config  # noqa: F401

from dream import config as configs
from dream import manifest, training
from dream.files import read_json, write_json
from dream.instances import load_sets
from dream.judge import Injection, Judge, diagnostics, flops, heads
from dream.objectives.dream import Dream
from stages import heads as heads_stage
from stages import teacher as teacher_stage
from stages import train as train_stage

LORA = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
COPYING = tuple((0, h) for h in range(4))


def dream(folder, judge, selected=HEADS, **more):
    return Dream(make_config(folder, **more), judge, selected).double()


# --------------------------------------------------------------------------------------------------------- the gap


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_the_gap_of_training_is_the_loss_on_wrong_minus_the_loss_on_gold(encoder_folder, gold):  # noqa: F811
    """A judge that copies what it attends to prefers the gold passage: the gap is above zero, and it is this difference."""
    judge, candidates = copying_judge(), distinct_set(gold)
    objective = dream(encoder_folder, judge, COPYING)
    _, logs = objective.loss([candidates], Table())
    wrong = (gold + 1) % 3
    layout = judge.prompt.layout(candidates)
    one_hot, gate = torch.eye(3, dtype=torch.float64), objective.gamma.sigmoid().detach()
    slow = {j: reference.target_loss(judge.model, layout, one_hot[j], gate, COPYING, "all").item() for j in (gold, wrong)}
    assert logs["gap"] == pytest.approx(slow[wrong] - slow[gold], abs=1e-9) and logs["gap"] > 0.05


def test_the_gap_before_training_is_above_zero_for_a_judge_that_copies_and_below_for_one_that_avoids():
    sets = [distinct_set(gold, id=str(gold)) for gold in (0, 1, 2)]
    for sign in (1, -1):
        judge = copying_judge()
        judge.model.model.layers[0].self_attn.o_proj.weight.data.mul_(sign)
        found = diagnostics.measure(judge, sets, Injection(COPYING, "all"), 0.5)
        query, *others = found["rows"]
        assert query["gap"] == 0 and query["gold"] == query["none"], "one layer: the question's rows reach no target"
        for row in others:
            assert sign * row["gap"] > 0.01 and row["gap"] == pytest.approx(row["wrong"] - row["gold"], abs=2e-6)
            assert row["gap_low"] <= row["gap"] <= row["gap_high"] and row["gold"] != row["uniform"] != row["none"]
        assert [(row["rows"], row["used"]) for row in found["rows"]] == [("query", False), ("query+label", False), ("all", True)]
        assert all(sign * (p["wrong"] - p["gold"]) > 0 for p in found["positions"])


# ------------------------------------------------------------------------------------------------------ the controls


@pytest.mark.parametrize("gate_init", [0.2, 0.9])
def test_without_injection_the_loss_is_the_plain_judges_whatever_the_scores(encoder_folder, gate_init):  # noqa: F811
    judge, model = both()
    objective = dream(encoder_folder, judge, **{"injection.gate": "off", "injection.gate_init": gate_init})
    sets, encoder = [candidate_set(questions=2, seed=s) for s in (0, 1)], Table()
    loss, logs = objective.loss(sets, encoder)
    with torch.no_grad():
        encoder.weight.mul_(torch.randn_like(encoder.weight))
    other, _ = objective.loss(sets, encoder)
    plain = [reference.target_loss(model, judge.prompt.layout(s, i)).item() for s in sets for i in range(2)]
    assert loss.item() == pytest.approx(sum(plain) / 4, rel=1e-9) and other.item() == loss.item()
    assert not loss.requires_grad and not objective.expects_gradient
    assert not [p for p in objective.parameters() if p.requires_grad]
    assert logs["gate"] == objective.state()["gate"] == 0 and "gap" not in logs
    injected, _ = dream(encoder_folder, judge, **{"injection.gate_init": gate_init}).loss(sets, encoder)
    assert abs(injected.item() - loss.item()) > 1e-3, "injection would be seen"


@pytest.mark.parametrize("gate", ["learned", "fixed"])
def test_uniform_scores_are_one_over_k_whatever_the_encoder(encoder_folder, gate):  # noqa: F811
    judge, model = both()
    objective = dream(encoder_folder, judge, **{"injection.scores": "uniform", "injection.gate": gate})
    sets, encoder = [candidate_set(questions=2, seed=s) for s in (0, 1)], Table()
    loss, logs = objective.loss(sets, encoder)
    p, g = torch.full((4,), 0.25, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    rows = objective.injection.rows
    slow = [reference.target_loss(model, judge.prompt.layout(s, i), p, g, HEADS, rows).item() for s in sets for i in range(2)]
    assert loss.item() == pytest.approx(sum(slow) / 4, rel=1e-9)
    with torch.no_grad():
        encoder.weight.mul_(torch.randn_like(encoder.weight))
    assert objective.loss(sets, encoder)[0].item() == loss.item()
    assert not objective.expects_gradient and not loss.requires_grad and logs["gate"] == pytest.approx(0.5)
    learned, _ = dream(encoder_folder, judge).loss(sets, encoder)
    assert abs(learned.item() - loss.item()) > 1e-3, "the encoder's scores would be seen"


# -------------------------------------------------------------------------------------------------------- operations


MODES = {
    "learned": {}, "fixed": {"injection.gate": "fixed"}, "off": {"injection.gate": "off"},
    "uniform": {"injection.scores": "uniform"},
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [0, 1])
def test_dreams_operations_equal_what_the_counter_of_torch_counts(encoder_folder, mode, step):  # noqa: F811
    """Products with weights, exactly: reading, questions, gap and the backward pass from the lowest selected layer, or none."""
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both()
    objective, encoder = dream(encoder_folder, judge, **{"injection.gap_every": 2, **MODES[mode]}), Table()
    sets, objective.step = [candidate_set(questions=2, seed=s) for s in (0, 1)], step
    with FlopCounterMode(display=False) as counter:
        loss, logs = objective.loss(sets, encoder)
        if loss.requires_grad:
            loss.backward()
    backward, gap = mode in ("learned", "fixed"), "gap" in logs
    assert loss.requires_grad == backward and gap == (step == 0 and mode != "off")
    cosines = 2 * 2 * (2 * 4 * 8) * (1 + 2 * backward)  # of two sets: not the judge's
    products = reference.counted(counter, ".mm", ".addmm") - cosines
    layers, shapes = judge.model.model.layers, judge.model.config
    attention, apart = 0, 0
    for s in sets:
        documents, suffixes = len(judge.prompt.documents(s).ids), judge.prompt.suffixes(s)
        rows = [len(x.ids) - 1 for x in suffixes]
        seen = sum(flops.pairs(n, documents) for n in rows)
        pairs = 4 * (flops.pairs(documents) + seen) + backward * 2 * 3 * seen  # the lowest selected layer is 1
        if gap and s is sets[0]:
            pairs += 4 * 2 * flops.pairs(rows[0], documents)
        attention += flops.attention_flops(shapes, pairs)
        unread = [p.numel() for n, p in layers[3].named_parameters() if "o_proj" in n or "mlp" in n]
        apart += 2 * documents * sum(unread)  # reading stops at the last layer's keys and values; the count does not
        into = [getattr(layers[1].self_attn, f"{x}_proj").weight.numel() for x in "qkv"]
        apart += backward * 2 * sum(rows) * sum(into)  # the graph begins behind them
    assert objective.flops == products + attention + apart


def test_the_gap_of_a_trained_judge_counts_its_adapter(encoder_folder):  # noqa: F811
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both()
    objective, candidates = dream(encoder_folder, judge, **{"dream.judge": "lora", "dream.r": 2}), candidate_set(questions=2)
    reading, gate = judge.read(candidates), torch.tensor(0.5, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        objective._gap(candidates, gate, reading)
    row = len(judge.prompt.suffixes(candidates)[0].ids) - 1
    attention = 4 * flops.attention_flops(judge.model.config, 2 * flops.pairs(row, reading.length))
    assert objective.flops == reference.counted(counter, ".mm", ".addmm") + attention


# ---------------------------------------------------------------------------------------------- the stages, as they are run


model = pytest.fixture(scope="module")(toy.model)


@pytest.fixture
def project(model, tmp_path):
    """``project(name, **parameters)`` makes a toy project and returns its folder."""
    return lambda name="toy", **more: toy.make(tmp_path / name, model, **{"training.steps": 3, **more})


@pytest.fixture
def run(monkeypatch):
    """``run(stage, folder)`` runs a stage in this process as a user would."""

    def run(stage, folder, objective="dream", seed=0):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_ROOT", str(folder))
        given = ["--objective", objective, "--seed", str(seed)] if stage is train_stage else []
        monkeypatch.setattr("sys.argv", ["stage", "--size", "toy", *given])
        stage.main()

    return run


def spy(monkeypatch, owner, name, see):
    """Call ``see`` with the arguments of every call of ``owner.name``."""
    real = getattr(owner, name)

    def watched(*given, **more):
        see(*given, **more)
        return real(*given, **more)

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize(("probes", "diagnostic"), [(4, 3), (2, 6)])
def test_no_probe_of_the_heads_or_of_the_gap_is_trained_on(project, run, monkeypatch, probes, diagnostic):
    """Which sets the two stages really use: no probe is trained on, every other set is."""
    detected, measured, trained = set(), set(), set()
    spy(monkeypatch, heads, "detect", lambda judge, sets, *_: detected.update(s.id for s in sets))
    spy(monkeypatch, diagnostics, "measure", lambda judge, sets, *_: measured.update(s.id for s in sets))
    spy(monkeypatch, Dream, "loss", lambda self, sets, encoder: trained.update(s.id for s in sets))
    more = {"heads.probes": probes, "injection.diagnostic": diagnostic, "injection.force": True, "training.steps": 12}
    folder = project(**more)
    run(heads_stage, folder)
    run(train_stage, folder)
    assert len(detected) == probes and len(measured) == diagnostic
    assert not trained & (detected | measured)
    assert len(trained) == 12 - max(probes, diagnostic)
    assert read_json(folder / "work/heads/heads.json")["probes"] == 2 * probes, "two questions a set"
    assert read_json(folder / "work/heads/diagnostic.json")["rows"][0]["instances"] == diagnostic


def test_the_heads_that_stage_heads_found_are_those_that_training_injects_into(project, run, monkeypatch):
    injected, gates = [], []
    spy(monkeypatch, diagnostics, "measure", lambda judge, sets, injection, gate, seed: gates.append((injection, gate, seed)))
    more = {"heads.count": 3, "heads.seed": 5, "injection.rows": "query+label", "injection.budget": "preserve"}
    folder = project(**more, **{"injection.gate_init": 0.3, "injection.force": True, "training.scalar_learning_rate": 1e-3})
    run(heads_stage, folder)
    described = read_json(folder / "work/heads/heads.json")
    every = [(layer, head) for layer in range(3) for head in range(4)]
    best = sorted(every, key=lambda h: (-described["scores"][h[0]][h[1]], h))[:3]
    expected = Injection(tuple(best), "query+label", "preserve")
    assert described["selected"] == [list(h) for h in best] and gates == [(expected, 0.3, 5)]
    cells = read_json(folder / "reports/results/heads.json")
    assert {(c["layer"], c["head"]) for c in cells if c["selected"]} == set(best) and len(cells) == 12
    assert all(c["score"] == described["scores"][c["layer"]][c["head"]] for c in cells)
    assert read_json(folder / "reports/results/diagnostic.json") == read_json(folder / "work/heads/diagnostic.json")["rows"]
    spy(monkeypatch, Judge, "target_losses", lambda self, s, p, gate, injection, **_: injected.append((p, injection)))
    run(train_stage, folder)
    assert injected and all(p is not None and injection == expected for p, injection in injected)
    assert read_json(folder / "work/models/dream-0/state.json")["gate"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(("objective", "force", "stops"), [("dream", False, True), ("dream", True, False), ("infonce", False, False)])
def test_training_stops_without_a_signal_unless_forced(project, run, objective, force, stops):
    folder = project(**{"injection.force": force})
    found = read_json(folder / "work/heads/diagnostic.json")
    found["rows"][0]["gap_low"] = -0.1
    write_json(folder / "work/heads/diagnostic.json", found)
    if stops:
        with pytest.raises(SystemExit, match="does not tell the right candidate from a wrong one"):
            run(train_stage, folder, objective)
    else:
        run(train_stage, folder, objective)
    assert (folder / f"work/models/{objective}-0/adapter").exists() == (not stops)
    assert (folder / f"reports/results/train/{objective}-0.csv").exists() == (not stops)


def adapter(folder, name="adapter"):
    return load_file(folder / "work/models/dream-0" / name / "adapter_model.safetensors")


@pytest.mark.parametrize(("control", "gate"), [({"injection.gate": "off"}, 0.0), ({"injection.scores": "uniform"}, 0.5)])
def test_a_control_leaves_the_encoder_as_it_was(project, run, control, gate):
    """B of every LoRA pair is 0, as at the start, tau and gate stay; the curve is the loss of the plain judge, or of p = 1/K."""
    folder = project(**control)
    run(train_stage, folder)
    trained = {name: w for name, w in adapter(folder).items() if "lora_B" in name}
    assert trained and not any(w.any() for w in trained.values())
    curve, state = pd.read_csv(folder / "reports/results/train/dream-0.csv"), read_json(folder / "work/models/dream-0/state.json")
    assert state["tau"] == pytest.approx(0.02) and state["gate"] == gate and (curve["gate"] == gate).all()
    config = configs.load(folder / "params.yaml")
    judge, p = Judge.from_config(config), torch.full((2, 4), 0.25) if gate else None
    injection = Injection(((1, 0), (2, 3)), config.injection.rows)
    losses = [judge.target_losses(s, p, torch.tensor(gate), injection).mean().item() for s in load_sets()[:8]]
    batches = [sum(losses[i] for i in training.order(8, 4, step, 0)) / 4 for step in range(3)]
    assert curve["loss"].tolist() == pytest.approx(batches, abs=2e-6)


def test_lora_is_on_every_target_of_every_layer_and_all_of_it_trains(project, run):
    """Of the encoder, and of the judge where that is trained too."""
    folder = project(**{"dream.judge": "lora", "dream.r": 2, "dream.alpha": 4, "training.lora": LORA})
    run(train_stage, folder)
    for name in ("adapter", "judge_adapter"):
        weights = adapter(folder, name)
        for layer in range(3):
            for target in LORA["targets"]:
                of_target = [w for key, w in weights.items() if f"layers.{layer}." in key and f".{target}.lora_B" in key]
                # the last layer of the judge's documents gives keys and values; every B starts at 0
                assert len(of_target) == 1 and of_target[0].abs().max() > 0, (name, layer, target)
        assert len(weights) == 2 * 3 * len(LORA["targets"])
        assert read_json(folder / f"work/models/dream-0/{name}/adapter_config.json")["target_modules"] == sorted(LORA["targets"])


def change(path, values):
    stored = read_json(path)
    write_json(path, {**stored, **values})


CHANGES = {
    "nothing": lambda folder: None,
    "heads": lambda folder: change(folder / "work/heads/heads.json", {"selected": [[1, 0], [2, 2]]}),
    "gap": lambda folder: change(folder / "work/heads/diagnostic.json", {"positions": []}),
    "data": lambda folder: (folder / "work/data/more").write_text("x", encoding="utf-8"),
    "candidates": lambda folder: (folder / "work/candidates/more").write_text("x", encoding="utf-8"),
}
SETTINGS = {
    "rate": {"training.learning_rate": 1e-3}, "scores": {"injection.scores": "uniform"}, "tau": {"dream.temperature": 0.5},
    "judge": {"judge.passage_tokens": 7}, "k1": {"bm25.k1": 1.0}, "pooling": {"encoder.pooling": "mean"},
}  # fmt: skip


def test_a_run_goes_on_only_where_everything_that_can_change_it_is_the_same(project, run, monkeypatch):
    """The folder of the resume points, which stage train names: one for every change, the same one without."""
    keys, real = [], manifest.code_hash

    class Named(Exception):
        pass

    def train(config, name, seed, sets, judge, heads, key):
        keys.append(key)
        raise Named

    monkeypatch.setattr(training, "train", train)

    def key(name, prepare=CHANGES["nothing"], objective="dream", seed=0, **more):
        folder = project(name, **more)
        prepare(folder)
        with pytest.raises(Named):
            run(train_stage, folder, objective, seed)
        return keys[-1]

    first = key("first")
    assert len(first) == 24 and key("again") == first
    others = [key(name, prepare) for name, prepare in CHANGES.items() if name != "nothing"]
    others += [key(name, **more) for name, more in SETTINGS.items()]
    others += [key("seed", seed=1), key("objective", objective="infonce")]
    assert key("of another objective", **{"infonce.temperature": 0.5}) == first
    monkeypatch.setattr(manifest, "code_hash", lambda: real()[::-1])
    others.append(key("code"))
    assert len({first, *others}) == 1 + len(others)


INPUTS = [(heads_stage, "data"), (heads_stage, "candidates"), (teacher_stage, "data"), (teacher_stage, "candidates")]
INPUTS += [(train_stage, part) for part in ("data", "candidates", "heads")]


@pytest.mark.parametrize(("stage", "part"), INPUTS)
def test_a_stage_refuses_what_was_made_with_other_settings(project, run, stage, part):
    folder = project(**{"objectives": ["replug"]})
    path = folder / f"work/{part}/made_with.json"
    stored = read_json(path)
    stored["config"][part]["seed"] += 1
    write_json(path, stored)
    with pytest.raises(SystemExit, match=rf"work/{part}/made_with.json was made with {part}.seed = 1, params says 0"):
        run(stage, folder)
    assert sorted(p.name for p in (folder / "work").iterdir()) == ["candidates", "data", "heads"]
    assert not (folder / "reports").exists() and "seed" not in (folder / "work/heads/heads.json").read_text(encoding="utf-8")


def test_stage_heads_records_what_it_did(project, run, monkeypatch, capsys):
    filters = []
    spy(monkeypatch, heads, "detect", lambda judge, sets, drop: filters.append(drop))
    folder = project(**{"heads.drop_low_tokens": True})
    run(heads_stage, folder)
    described, config = read_json(folder / "work/heads/heads.json"), configs.load(folder / "params.yaml")
    made_with = manifest.made_with(config, "judge", "heads", "injection", "candidates", "data")
    assert filters == [True] and read_json(folder / "work/heads/made_with.json") == made_with
    (record,) = read_json(folder / "reports/results/runs/heads.json")
    assert (record["stage"], record["cell"], set(record["inputs"])) == ("heads", "", {"work/data", "work/candidates"})
    assert record["notes"] == {key: described[key] for key in ("judge", "strategy", "probes", "stability", "best", "mean")}
    out = capsys.readouterr().out
    assert f"best {described['best']:.3f}, mean of all {described['mean']:.3f}, chance {heads.chance(4):.3f}" in out
    assert diagnostics.table(read_json(folder / "work/heads/diagnostic.json")) in out


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"heads.count": 13}, r"heads.count is 13, but query_focused can choose from 12 heads"),
        ({"heads.count": 9, "heads.strategy": "random_middle"}, r"heads.count is 9, but random_middle can choose from"),
        ({"heads.strategy": "explicit", "heads.explicit": [[1, 1], [3, 0]]}, r"head \(3, 0\) does not exist"),
    ],
)
def test_stage_heads_stops_before_the_detection_where_the_judge_has_too_few_heads(project, run, monkeypatch, more, line):
    monkeypatch.setattr(heads, "detect", lambda *_: pytest.fail("detected"))
    with pytest.raises(SystemExit, match=line):
        run(heads_stage, project(**more))


@pytest.mark.parametrize("objective", ["dream", "infonce"])
def test_stage_train_records_what_it_did(project, run, monkeypatch, objective):
    results, given, real = [], [], training.train
    monkeypatch.setattr(training, "train", lambda *args: given.append(args) or results.append(real(*args)) or results[-1])
    folder = project()
    run(train_stage, folder, objective, seed=3)
    (result,), (config, name, seed, sets, judge, selected, key), model = results, given[0], folder / f"work/models/{objective}-3"
    assert (name, seed, [s.id for s in sets]) == (objective, 3, [s.id for s in load_sets()[:8]])
    assert (judge is None, selected) == ((True, []) if objective == "infonce" else (False, [[1, 0], [2, 3]]))
    made_with = manifest.made_with(config, *train_stage.SECTIONS, objective, objective=objective, seed=3)
    assert read_json(model / "made_with.json") == made_with
    (record,) = read_json(folder / f"reports/results/runs/train-{objective}-3.json")
    assert (record["stage"], record["cell"]) == ("train", f"{objective}-3")
    assert set(record["inputs"]) == {"work/data", "work/candidates", "work/heads"}
    state = result.step.objective.state()
    assert record["flops"] == result.flops > 0
    assert record["notes"] == {"pairs_trained": 24, **state, "scalars": result.scalars} and result.scalars
    assert read_json(model / "state.json") == {**state, "steps": 3, "pairs": 24}
    curve = pd.read_csv(folder / f"reports/results/train/{objective}-3.csv")
    assert curve["loss"].tolist() == pytest.approx([row["loss"] for row in result.history], abs=1e-6)
    assert not (folder / ".dream/checkpoints" / key).exists()


def test_stage_teacher_writes_the_judges_likelihoods_of_the_training_sets(project, run):
    """One folder an objective; replug then trains on them, infonce has none."""
    folder = project(**{"objectives": ["replug", "infonce"], "training.steps": 1})
    run(teacher_stage, folder)
    config = configs.load(folder / "params.yaml")
    judge, sets = Judge.from_config(config), load_sets()[:4]
    table = pd.read_parquet(folder / "work/teacher/replug/teacher.parquet")
    expected = {q.id: scores for s in sets for q, scores in zip(s.questions, judge.passage_log_likelihood(s).tolist(), strict=True)}
    assert dict(zip(table.instance_id, map(list, table.log_likelihoods), strict=True)) == expected and len(expected) == 8
    assert read_json(folder / "work/teacher/replug/made_with.json") == manifest.made_with(config, "judge")
    assert [p.name for p in (folder / "work/teacher/infonce").iterdir()] == ["none.txt"]
    (record,) = read_json(folder / "reports/results/runs/teacher.json")
    prompts = [(judge.prompt.documents(s), judge.prompt.suffixes(s)) for s in sets]
    assert record["flops"] == sum(flops.likelihoods(judge.model.config, *prompt) for prompt in prompts)
    assert record["notes"] == {"questions": 8} and set(record["inputs"]) == {"work/data", "work/candidates"}
    run(train_stage, folder, "replug")
    assert (folder / "work/models/replug-0/adapter").exists()


def test_stage_teacher_has_nothing_to_do_without_an_objective_that_has_one(project, run, capsys):
    folder = project(**{"objectives": ["infonce"]})
    run(teacher_stage, folder)
    assert "nothing to compute" in capsys.readouterr().out
    assert [p.name for p in (folder / "work/teacher").rglob("*")] == ["infonce", "none.txt"]
    assert read_json(folder / "reports/results/runs/teacher.json")[0]["flops"] == 0


@pytest.mark.parametrize("stage", [heads_stage, teacher_stage, train_stage])
def test_a_stage_asks_for_the_size_that_params_names(project, run, stage, monkeypatch, capsys):
    folder = project()
    monkeypatch.chdir(folder)
    given = ["--objective", "infonce", "--seed", "0"] if stage is train_stage else []
    for size, line in ((["--size", "tiny"], "tiny"), ([], "required: --size")):
        monkeypatch.setattr("sys.argv", ["stage", *size, *given])
        with pytest.raises(SystemExit) as caught:
            stage.main()
        assert line in f"{caught.value}{capsys.readouterr().err}"
