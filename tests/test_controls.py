"""Controls and wiring: what makes a control a control, on values, and the stages from heads to train as a user runs them."""

import shutil

import pandas as pd
import pytest
import reference
import torch
import toy_project as toy
from reference import HEADS, both, candidate_set, copying_judge, distinct_set
from safetensors.torch import load_file
from test_objectives import Table

from dream import config as configs
from dream import manifest, training
from dream.files import read_json, write_json
from dream.instances import load_sets, used
from dream.judge import Injection, Judge, definition, diagnostics, flops, heads
from dream.objectives.dream import Dream
from stages import given as given_stage
from stages import heads as heads_stage
from stages import signal as signal_stage
from stages import teacher as teacher_stage
from stages import train as train_stage

LORA, TARGETS = {"r": 2, "alpha": 4, "dropout": 0.0}, ["k_proj", "o_proj", "q_proj", "v_proj"]
COPYING = tuple((0, h) for h in range(4))


def dream(judge, selected=HEADS, **own):
    return Dream(judge, selected, **{"rows": "all", **own}).double()


# --------------------------------------------------------------------------------------------------------- the gap


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_the_gap_of_training_is_the_loss_on_wrong_minus_the_loss_on_gold(gold):
    """A judge that copies what it attends to prefers the gold passage: the gap is above zero, and it is this difference."""
    judge, candidates = copying_judge(), distinct_set(gold)
    objective = dream(judge, COPYING)
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
def test_without_injection_the_loss_is_the_plain_judges_whatever_the_scores(gate_init):
    judge, model = both()
    objective = dream(judge, gate="off", gate_init=gate_init)
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
    injected, _ = dream(judge, gate_init=gate_init).loss(sets, encoder)
    assert abs(injected.item() - loss.item()) > 1e-3, "injection would be seen"


@pytest.mark.parametrize("gate", ["learned", "fixed"])
def test_uniform_scores_are_one_over_k_whatever_the_encoder(gate):
    judge, model = both()
    objective = dream(judge, scores="uniform", gate=gate)
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
    learned, _ = dream(judge).loss(sets, encoder)
    assert abs(learned.item() - loss.item()) > 1e-3, "the encoder's scores would be seen"


# -------------------------------------------------------------------------------------------------------- operations


MODES = {"learned": {}, "fixed": {"gate": "fixed"}, "off": {"gate": "off"}, "uniform": {"scores": "uniform"}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [0, 1])
def test_dreams_operations_equal_what_the_counter_of_torch_counts(mode, step):
    """Products with weights, exactly: reading, questions, gap and the backward pass from the lowest selected layer, or none."""
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both()
    objective, encoder = dream(judge, gap_every=2, **MODES[mode]), Table()
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


def test_the_gap_of_a_trained_judge_counts_its_adapter():
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both()
    objective, candidates = dream(judge, lora=(2, 64, None)), candidate_set(questions=2)
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

    def run(stage, folder, objective="dream", seed=0, more=()):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_ROOT", str(folder))
        asked = ["--objective", objective] if stage in (given_stage, teacher_stage, train_stage) else []
        asked += ["--seed", str(seed)] if stage is train_stage else []
        monkeypatch.setattr("sys.argv", ["stage", *asked, *more])
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
    """Which sets the three stages really use: no probe is trained on, every other set is."""
    detected, measured, trained = set(), set(), set()
    spy(monkeypatch, heads, "detect", lambda judge, sets, *_: detected.update(s.id for s in sets))
    spy(monkeypatch, diagnostics, "measure", lambda judge, sets, *_: measured.update(s.id for s in sets))
    spy(monkeypatch, Dream, "loss", lambda self, sets, encoder: trained.update(s.id for s in sets))
    more = {"heads.probes": probes, "injection.diagnostic": diagnostic, "injection.force": True, "training.steps": 12}
    folder = project(**more)
    for stage in (heads_stage, signal_stage, given_stage, train_stage):
        run(stage, folder)
    assert len(detected) == probes and len(measured) == diagnostic
    assert not trained & (detected | measured)
    assert len(trained) == 12 - max(probes, diagnostic)
    assert read_json(folder / "work/heads/heads.json")["probes"] == 2 * probes, "two questions a set"
    assert read_json(folder / "work/signal/diagnostic.json")["rows"][0]["instances"] == diagnostic


def test_the_heads_that_stage_heads_found_are_those_that_training_injects_into(project, run, monkeypatch):
    injected, gates = [], []
    spy(monkeypatch, diagnostics, "measure", lambda judge, sets, injection, gate, seed: gates.append((injection, gate, seed)))
    more = {"heads.count": 3, "heads.seed": 5, "injection.rows": "query+label", "injection.budget": "preserve"}
    folder = project(**more, **{"injection.gate_init": 0.3, "injection.force": True, "training.scalar_learning_rate": 1e-3})
    run(heads_stage, folder)
    run(signal_stage, folder)
    described = read_json(folder / "work/heads/heads.json")
    every = [(layer, head) for layer in range(3) for head in range(4)]
    best = sorted(every, key=lambda h: (-described["scores"][h[0]][h[1]], h))[:3]
    expected = Injection(tuple(best), "query+label", "preserve")
    assert described["selected"] == [list(h) for h in best] and gates == [(expected, 0.3, 5)]
    cells = read_json(folder / "reports/results/heads.json")
    assert {(c["layer"], c["head"]) for c in cells if c["selected"]} == set(best) and len(cells) == 12
    assert all(c["score"] == described["scores"][c["layer"]][c["head"]] for c in cells)
    assert read_json(folder / "reports/results/diagnostic.json") == read_json(folder / "work/signal/diagnostic.json")["rows"]
    monkeypatch.setattr(definition, "check", lambda judge: None)  # it asks for losses too
    spy(monkeypatch, Judge, "target_losses", lambda self, s, p, gate, injection, **_: injected.append((p, injection)))
    run(given_stage, folder)
    run(train_stage, folder)
    assert injected and all(p is not None and injection == expected for p, injection in injected)
    assert read_json(folder / "work/models/dream-0/state.json")["gate"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("objective", "force", "needs", "stops"),
    [
        ("dream", False, ["heads", "judge"], True),
        ("dream", True, ["heads", "judge"], False),
        ("infonce", False, [], False),
        ("revela", False, ["lm"], False),
    ],
)
def test_an_objective_is_given_no_heads_without_a_signal_unless_forced(project, run, capsys, objective, force, needs, stops):
    folder = project(**{"injection.force": force, "objectives": ["dream", "infonce", "revela"]})
    shutil.rmtree(folder / "work/given")
    change(folder / "work/signal/diagnostic.json", lambda found: found["rows"][0].update(gap_low=-0.1))
    if stops:
        with pytest.raises(SystemExit, match="does not tell the right candidate from a wrong one"):
            run(given_stage, folder, objective)
        assert not (folder / "work/given").exists()
        return
    run(given_stage, folder, objective)
    assert capsys.readouterr().out.startswith(f"[given-{objective}] stage ")
    given = {p.name: p.read_bytes() for p in (folder / f"work/given/{objective}").iterdir()}
    assert read_json(folder / f"work/given/{objective}/needs.json") == needs
    places = {"heads": "work/heads/heads.json", "judge": "reports/assets/judge.json", "lm": "reports/assets/judge.json"}
    taken = {path.rpartition("/")[2]: path for path in map(places.get, needs)}
    assert given.keys() == {"needs.json", *taken}
    assert all(given[name] == (folder / path).read_bytes() for name, path in taken.items())


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
    judge, p = Judge.build(config), torch.full((2, 4), 0.25) if gate else None
    injection = Injection(((1, 0), (2, 3)), config.injection.rows)
    losses = [judge.target_losses(s, p, torch.tensor(gate), injection).mean().item() for s in load_sets()[:8]]
    batches = [sum(losses[i] for i in training.order(8, 4, step, 0, 6)) / 4 for step in range(3)]
    assert curve["loss"].tolist() == pytest.approx(batches, abs=2e-6)


def test_lora_is_on_every_target_of_every_layer_and_all_of_it_trains(project, run):
    """Of the encoder, and of the judge where that is trained too."""
    folder = project(**{"dream.judge": "lora", "dream.r": 2, "dream.alpha": 4, "training.lora": LORA})
    run(train_stage, folder)
    for name in ("adapter", "judge_adapter"):
        weights = adapter(folder, name)
        for layer in range(3):
            for target in TARGETS:
                of_target = [w for key, w in weights.items() if f"layers.{layer}." in key and f".{target}.lora_B" in key]
                # the last layer of the judge's documents gives keys and values; every B starts at 0
                assert len(of_target) == 1 and of_target[0].abs().max() > 0, (name, layer, target)
        assert len(weights) == 2 * 3 * len(TARGETS)
        assert read_json(folder / f"work/models/dream-0/{name}/adapter_config.json")["target_modules"] == TARGETS


def change(path, edit):
    edit(stored := read_json(path))
    write_json(path, stored)


CHANGES = {
    "nothing": lambda folder: None,
    "heads": lambda folder: change(folder / "work/given/dream/heads.json", lambda found: found.update(selected=[[1, 0], [2, 2]])),
    "data": lambda folder: (folder / "work/data/more").write_text("x", encoding="utf-8"),
    "candidates": lambda folder: (folder / "work/candidates/more").write_text("x", encoding="utf-8"),
}
SETTINGS = {
    "rate": {"training.learning_rate": 1e-3}, "scores": {"injection.scores": "uniform"}, "tau": {"dream.temperature": 0.5},
    "judge": {"judge.passage_tokens": 7}, "pooling": {"models.toy.pooling": "mean"}, "probes": {"injection.diagnostic": 5},
}  # fmt: skip
ELSEWHERE = {  # settings that reach the result through data, candidates or heads, or not at all
    "of another objective": {"infonce.temperature": 0.5}, "k1": {"bm25.k1": 1.0}, "count": {"heads.count": 3},
    "fewer": {"injection.diagnostic": 3}, "depth": {"evaluate.depth": 200},
}  # fmt: skip


def test_a_run_goes_on_only_where_everything_that_can_change_it_is_the_same(project, run, monkeypatch):
    """The folder of the resume points, which stage train names: one for every change, the same one without."""
    keys, real = [], manifest.code_hash

    class Named(Exception):
        pass

    def train(config, name, seed, sets, given, key):
        keys.append(key)
        raise Named

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(Judge, "build", lambda *_: None)  # takes time, and is in no key: work/given says which judge

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
    assert {key(name, **more) for name, more in ELSEWHERE.items()} == {first}
    monkeypatch.setattr(manifest, "code_hash", lambda: real()[::-1])
    others.append(key("code"))
    assert len({first, *others}) == 1 + len(others)


def test_a_teacher_that_says_something_else_starts_a_run_anew(project, run, monkeypatch):
    """The first set's answers name the run: a longer run's table begins with the same rows, and goes on."""
    folder, seen = project("taught", **{"objectives": ["adist", "dream"], "training.block": 1}), []
    for stage in (teacher_stage, given_stage):
        run(stage, folder, "adist")

    class Named(Exception):
        pass

    def train(config, name, seed, sets, given, key):
        seen.append((key, used(sets, 1, 1, config.training.block)))
        raise Named

    monkeypatch.setattr(training, "train", train)
    path = folder / "work/given/adist/teacher.parquet"
    table = pd.read_parquet(path)

    def key(changed=None):
        scores = [[s + (row == changed) for s in values] for row, values in enumerate(table["scores"])]
        path.unlink()  # the cache's own file
        table.assign(scores=scores).to_parquet(path)
        with pytest.raises(Named):
            run(train_stage, folder, "adist")
        return seen[-1][0]

    first = key()
    asked = {q.id for candidates in seen[0][1] for q in candidates.questions}
    assert len(asked) < len(table)
    assert {name for row, name in enumerate(table["instance_id"]) if key(row) != first} == asked


STAGES = (heads_stage, signal_stage, teacher_stage, train_stage)
MADE = {
    "data": ("prepare", "data"),
    "candidates": ("candidates", "candidates"),
    "heads": ("heads", "heads"),
    "signal": ("signal", "heads"),
}
INPUTS = [(stage, part) for stage in STAGES for part in ("data", "candidates")]
INPUTS += [(signal_stage, "heads"), (teacher_stage, "heads"), (given_stage, "heads"), (given_stage, "signal")]


@pytest.mark.parametrize(("stage", "part"), INPUTS)
def test_a_stage_refuses_what_was_made_with_other_settings(project, run, stage, part):
    teacher = "adist" if part == "heads" else "replug"
    folder = project(**{"objectives": [teacher, "dream"]})
    made, section = MADE[part]
    change(folder / manifest.RUNS / f"{made}.json", lambda record: record[0]["config"][section].update(seed=1))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=rf"work/{part} was made with {section}.seed = 1, params says 0"):
        run(stage, folder, teacher if stage is teacher_stage else "dream")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_no_argument_that_it_does_not_know(project, run, capsys, stage):
    with pytest.raises(SystemExit, match="2"):
        run(stage, project(), more=["--dream", "1"])
    assert "unrecognized arguments: --dream 1" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_with_the_threads_of_its_recipe(project, run, monkeypatch, stage):
    asked, folder = [], project(**{"objectives": ["replug", "dream"], "training.threads": 2, "training.steps": 1})
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(stage, folder, "replug" if stage is teacher_stage else "dream")
    assert asked == [2]


def test_stage_teacher_keeps_what_the_judge_read(project, run):
    folder = project(**{"objectives": ["adist", "dream"]})
    shutil.rmtree(folder / ".dream" / "readings", ignore_errors=True)
    run(teacher_stage, folder, "adist")
    assert any(path.is_file() for path in (folder / ".dream" / "readings").rglob("*")), "other seeds and teachers read it again"


def test_stage_heads_records_what_it_did(project, run, monkeypatch, capsys):
    filters = []
    spy(monkeypatch, heads, "detect", lambda judge, sets, drop: filters.append(drop))
    folder = project(**{"heads.drop_low_tokens": True})
    run(heads_stage, folder)
    described = read_json(folder / "work/heads/heads.json")
    assert filters == [True] and [p.name for p in (folder / "work/heads").iterdir()] == ["heads.json"]
    (record,) = read_json(folder / "reports/results/runs/heads.json")
    assert record["config"] == read_json(folder / "reports/config/heads.json") and record["settings"] == "heads"
    assert (record["stage"], record["cell"], set(record["inputs"])) == ("heads", "", {"work/data", "work/candidates"})
    noted = {key: described[key] for key in ("judge", "strategy", "probes", "stability", "best", "mean")}
    assert record["notes"] == {**noted, "readings": {"found": 0, "made": 4}}
    out = capsys.readouterr().out
    assert f"best {described['best']:.3f}, mean of all {described['mean']:.3f}, chance {heads.chance(4):.3f}" in out


def test_stage_signal_records_what_it_measured(project, run, capsys):
    folder = project()
    run(signal_stage, folder)
    found = read_json(folder / "work/signal/diagnostic.json")
    (record,) = read_json(folder / "reports/results/runs/signal.json")
    assert record["config"] == read_json(folder / "reports/config/signal.json") and record["settings"] == "signal"
    assert (record["stage"], set(record["inputs"])) == ("signal", {"work/data", "work/candidates", "work/heads"})
    assert set(record["outputs"]) == {"reports/results/diagnostic.json"} and record["notes"]["readings"] == {
        "found": 0,
        "made": 4,
    }
    assert diagnostics.table(found) in capsys.readouterr().out


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
def test_stage_train_records_what_it_did(project, run, monkeypatch, capsys, objective):
    results, given, ended, real = [], [], [], training.train
    monkeypatch.setattr(training, "finish", lambda: ended.append(True))
    monkeypatch.setattr(training, "train", lambda *args: given.append(args) or results.append(real(*args)) or results[-1])
    folder = project()
    run(train_stage, folder, objective, seed=3)
    (result,), (_, name, seed, sets, asked, key), model = results, given[0], folder / f"work/models/{objective}-3"
    assert (name, seed, [s.id for s in sets]) == (objective, 3, [s.id for s in load_sets()[:8]])
    assert (asked.judge is None, asked.heads, asked.teacher) == (
        (True, [], None) if objective == "infonce" else (False, toy.HEADS, None)
    )
    settings = read_json(folder / f"reports/config/train-{objective}.json")
    assert read_json(model / "made_with.json") == {"settings": settings, "objective": objective, "seed": 3}
    (record,) = read_json(folder / f"reports/results/runs/train-{objective}-3.json")
    assert (record["stage"], record["cell"], record["settings"]) == ("train", f"{objective}-3", f"train-{objective}")
    assert record["config"] == settings and set(record["inputs"]) == {"work/data", "work/candidates", f"work/given/{objective}"}
    state = result.step.objective.state()
    assert record["flops"] == result.flops > 0
    snapshots = {"24": {"steps": 3, "pairs": 24, "flops": result.flops, "seconds": round(result.seconds, 2)}}
    notes = {"pairs_trained": 24, **state, "scalars": result.scalars, "snapshots": snapshots}
    notes |= {"readings": {"found": 4, "made": 8}} if objective == "dream" else {}
    assert record["notes"] == notes and result.scalars and 0 < result.seconds < record["wall_s"]
    assert read_json(model / "state.json") == {**state, "steps": 3, "pairs": 24}
    curve = pd.read_csv(folder / f"reports/results/train/{objective}-3.csv")
    assert curve["loss"].tolist() == pytest.approx([row["loss"] for row in result.history], abs=1e-6)
    assert [p.name for p in (folder / ".dream/checkpoints" / key).iterdir()] == ["step-0000003.pt"] and ended == [True]
    out = capsys.readouterr().out
    for name, moved in result.scalars.items():
        line = f"[train-{objective}-3] {name} {moved['start']:+.3f} → {moved['end']:+.3f}: {moved['used']:.0%} of the "
        assert f"{line}{moved['reach']:.3f}" in out


def test_several_processes_are_started_once_with_the_arguments_of_the_stage(project, run, monkeypatch):
    asked, folder = [], project(**{"training.accelerate": "two.yaml"})

    class Replaced(Exception):
        """The process is another program, or trains."""

    def replaced(*given):
        asked.append(given)
        raise Replaced

    monkeypatch.setattr(training, "launch", replaced)
    with pytest.raises(Replaced):
        run(train_stage, folder, seed=2)
    monkeypatch.setattr(training, "train", replaced)
    monkeypatch.setattr(training, "launched", lambda: True)
    with pytest.raises(Replaced):
        run(train_stage, folder)
    first, second = asked
    assert first == ("two.yaml", "stages.train", ["--objective", "dream", "--seed", "2"]) and second[1] == "dream"


def test_of_several_processes_one_writes(project, run, monkeypatch, capsys):
    folder = project(**{"training.steps": 1})

    def files():  # but what the judge read: it is the same, whoever writes it
        return {path for path in folder.rglob("*") if path.is_file() and "readings" not in path.parts}

    before = files()
    monkeypatch.setattr(training, "is_main_process", lambda: False)
    run(train_stage, folder)
    assert before == files() and "train-dream-0" not in capsys.readouterr().out


def test_stage_teacher_writes_the_judges_likelihoods_of_the_training_sets(project, run):
    """One folder an objective; replug then trains on them."""
    folder = project(**{"objectives": ["replug"], "training.steps": 1, "training.block": 4})
    run(teacher_stage, folder, "replug")
    judge, sets = Judge.build(configs.load(folder / "params.yaml")), load_sets()[:4]
    table = pd.read_parquet(folder / "work/teacher/replug/teacher.parquet")
    expected = {
        q.id: scores for s in sets for q, scores in zip(s.questions, judge.passage_log_likelihood(s).tolist(), strict=True)
    }
    assert dict(zip(table.instance_id, map(list, table.scores), strict=True)) == expected and len(expected) == 8
    assert table.tokens.tolist() == [
        len(judge.prompt.suffixes(s)[i].ids[slice(*judge.prompt.suffixes(s)[i].target)]) for s in sets for i in (0, 1)
    ]
    (record,) = read_json(folder / "reports/results/runs/teacher-replug.json")
    assert record["config"] == read_json(folder / "reports/config/teacher-replug.json")
    prompts = [(judge.prompt.documents(s), judge.prompt.suffixes(s)) for s in sets]
    assert record["flops"] == sum(flops.likelihoods(judge.model.config, *prompt) for prompt in prompts)
    assert record["notes"] == {"teacher": "likelihood", "questions": 8, "sets": 4, "asked_now": 4} and set(record["inputs"]) == {
        "work/data",
        "work/candidates",
    }
    run(given_stage, folder, "replug")
    assert {p.name for p in (folder / "work/given/replug").iterdir()} == {"needs.json", "teacher.parquet"}
    run(train_stage, folder, "replug")
    assert (folder / "work/models/replug-0/adapter").exists()


def test_stage_teacher_has_nothing_to_do_for_an_objective_that_has_none(project, run, capsys):
    folder = project()
    run(teacher_stage, folder, "infonce")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[teacher-infonce] stage ") and "nothing to compute" in second
    assert [p.name for p in (folder / "work/teacher").rglob("*")] == ["infonce", "none.txt"]
    assert (folder / "work/teacher/infonce/none.txt").read_text(encoding="utf-8") == "This objective has no teacher.\n"
    (record,) = read_json(folder / "reports/results/runs/teacher-infonce.json")
    assert record["notes"] == {"teacher": None}
