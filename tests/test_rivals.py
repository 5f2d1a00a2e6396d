"""The rival objectives equal slow readings of their definitions; a loss of the whole batch has the gradient of one big batch."""

import dataclasses
import inspect
import math
import pathlib

import pandas as pd
import pytest
import torch
import toy_project as toy
from pydantic import ValidationError
from safetensors.torch import load_file
from test_controls import run  # noqa: F401
from test_objectives import Table, build, compare
from test_teachers import model  # noqa: F401
from test_training import config, cut, encoder_folder, make_config, make_sets  # noqa: F401

from dream import config as configs
from dream import objectives, training
from dream.config import check, stages
from dream.errors import DreamError
from dream.files import read_json
from dream.knobs import Tuned
from dream.objectives import Given
from dream.objectives.adist import ADist
from dream.objectives.emdr2 import EMDR2
from dream.objectives.infonce import InfoNCE
from dream.objectives.loop import Loop
from dream.objectives.simcse import SimCSE
from dream.objectives.taught import Taught
from stages import given as given_stage
from stages import teacher as teacher_stage
from stages import train as train_stage


def teacher_of(sets, scale=0.3, shift=-2.0):
    """K numbers for every question, no two alike."""
    return {q.id: [scale * ((5 * i + 3 * n + len(q.text)) % 7) + shift + 0.01 * i for i in range(len(s.passages))]
            for s in sets for n, q in enumerate(s.questions)}  # fmt: skip


def student(encoder, s, q, tau, kept=None):
    """p over the kept candidates, one at a time."""
    kept = range(len(s.passages)) if kept is None else kept
    exps = [(encoder.vector(q.text) @ encoder.vector(s.passages[j]) / tau).exp() for j in kept]
    return [x / sum(exps) for x in exps]


def softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [x / sum(exps) for x in exps]


def kl(teacher, p):
    return sum(t * (math.log(t) - x.log()) for t, x in zip(teacher, p, strict=True))


@pytest.mark.parametrize("standardise", ["none", "question"])
@pytest.mark.parametrize("tau_a", [0.1, 2.0])
def test_adist_equals_its_definition_in_loss_and_gradients(standardise, tau_a):
    sets, encoder = make_sets(2, questions=2), Table()
    teacher = teacher_of(sets, scale=0.03, shift=-0.02)
    objective = ADist(teacher, 0.2, tau_a=tau_a, standardise=standardise).double()
    loss, _ = objective.loss(sets, encoder)
    slow, tau = [], objective.tau.log_tau.exp()
    for s in sets:
        for q in s.questions:
            r = teacher[q.id]
            if standardise == "question":
                mean = sum(r) / 4
                spread = (sum((x - mean) ** 2 for x in r) / 4) ** 0.5
                r = [(x - mean) / spread for x in r]
            slow.append(kl(softmax([x / tau_a for x in r]), student(encoder, s, q, tau)))
    compare(loss, sum(slow) / len(slow), [encoder.weight, objective.tau.log_tau])


def test_adist_does_not_know_the_target():
    """Another target, the same loss and gradient; a question whose masses are all alike teaches evenness, not NaN."""
    sets, encoder = make_sets(2), Table()
    objective = ADist(teacher_of(sets), 0.2, standardise="question").double()
    others = [
        dataclasses.replace(s, questions=tuple(dataclasses.replace(q, gold=(q.gold + 1) % 4) for q in s.questions)) for s in sets
    ]
    (ours, seen), (theirs, told) = objective.loss(sets, encoder), objective.loss(others, encoder)
    assert torch.equal(ours, theirs) and seen["gold_rank"] != told["gold_rank"]
    flat = ADist({q.id: [0.5] * 4 for s in sets for q in s.questions}, 0.2, standardise="question").double()
    even = sum(kl([0.25] * 4, student(encoder, s, q, 0.2)) for s in sets for q in s.questions) / 2
    torch.testing.assert_close(flat.loss(sets, encoder)[0], even, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tau_l", [0.1, 2.0])
def test_loop_equals_its_definition_in_loss_and_gradients(tau_l):
    sets, encoder = make_sets(2, questions=2), Table()
    teacher = teacher_of(sets, shift=1.0)
    objective = Loop(teacher, 0.2, tau_l=tau_l).double()
    loss, _ = objective.loss(sets, encoder)
    tau = objective.tau.log_tau.exp()
    slow = [kl(softmax([c / tau_l for c in teacher[q.id]]), student(encoder, s, q, tau)) for s in sets for q in s.questions]
    compare(loss, sum(slow) / len(slow), [encoder.weight, objective.tau.log_tau])


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("per", ["sequence", "token"])
def test_emdr2_equals_its_definition_in_loss_and_gradients(per, mask):
    sets, encoder = make_sets(2, questions=2), Table()
    teacher, tokens = teacher_of(sets), {q.id: 2 + n for s in sets for n, q in enumerate(s.questions)}
    objective = EMDR2(teacher, 0.2, tokens=tokens, per=per, mask_target=mask).double()
    loss, _ = objective.loss(sets, encoder)
    slow, tau = [], objective.tau.log_tau.exp()
    for s in sets:
        for q in s.questions:
            kept = [j for j in range(4) if not (mask and j == q.gold)]
            p, times = student(encoder, s, q, tau, kept), tokens[q.id] if per == "sequence" else 1
            slow.append(-sum(x * math.exp(times * teacher[q.id][j]) for x, j in zip(p, kept, strict=True)).log())
    compare(loss, sum(slow) / len(slow), [encoder.weight, objective.tau.log_tau])


def test_emdr2_tends_to_infonce_where_only_the_target_is_likely_and_needs_lengths_per_sequence():
    sets, encoder = make_sets(2), Table()
    teacher = {q.id: [0.0 if j == q.gold else -1e3 for j in range(4)] for s in sets for q in s.questions}
    loss, _ = EMDR2(teacher, 0.2, per="token").double().loss(sets, encoder)
    torch.testing.assert_close(loss, InfoNCE(0.2).double().loss(sets, encoder)[0], rtol=1e-9, atol=0)
    with pytest.raises(DreamError, match=r"no length of the target of question q0.0. Run `dvc repro teacher`"):
        EMDR2(teacher, 0.2).double().loss(sets, encoder)


@pytest.mark.parametrize("negatives", ["candidates", "batch"])
@pytest.mark.parametrize(("margin", "confidence"), [(None, 0.5), (0.0, 0.0), (0.05, 0.0), (0.4, 0.3)])
def test_infonce_with_margin_and_confidence_equals_its_definition(negatives, margin, confidence):
    """Questions whose positive is above, below and at zero for the teacher; every negative of one is false."""
    sets, encoder = make_sets(3, questions=2), Table()
    theirs = {
        q.id: [0.5 - 0.3 * ((2 * j + i + n) % 4) for j in range(4)] for i, s in enumerate(sets) for n, q in enumerate(s.questions)
    }
    first = sets[0].questions[0]
    theirs[first.id] = [0.1 if j == first.gold else 0.9 for j in range(4)]
    theirs[sets[1].questions[0].id] = [0.5] * 4  # no better than the positive
    assert {theirs[q.id][q.gold] > 0 for s in sets for q in s.questions} == {True, False}
    objective = InfoNCE(0.2, negatives=negatives, margin=margin, confidence=confidence, teacher=theirs).double()
    loss, _ = objective.loss(sets, encoder)
    tau, per_set, dropped = objective.tau.log_tau.exp(), [], 0
    for s in sets:
        losses = []
        for q in s.questions:
            best, kept = theirs[q.id][q.gold], []
            for other in sets if negatives == "batch" else [s]:
                for j, text in enumerate(other.passages):
                    false = margin is not None and other is s and theirs[q.id][j] > best - margin * abs(best)
                    twin = other is not s and text == s.passages[q.gold]
                    dropped += false and j != q.gold
                    if (other is s and j == q.gold) or not (false or twin):
                        kept.append((text, other is s and j == q.gold))
            logits = torch.stack([encoder.vector(q.text) @ encoder.vector(text) / tau for text, _ in kept])
            log_p = logits - logits.exp().sum().log()
            positive = [gold for _, gold in kept].index(True)
            losses.append(-log_p[positive] + confidence * sum(log_p) / len(kept))
        per_set.append(sum(losses) / len(losses))
    assert bool(dropped) == (margin is not None)
    compare(loss, sum(per_set) / len(per_set), [encoder.weight, objective.tau.log_tau])


def test_simcse_equals_its_definition_in_loss_and_gradients():
    """Two tables stand for two draws of dropout; a text that stands twice in the batch counts once."""
    sets, one, two = make_sets(3, questions=2), Table(), Table()
    sets[2] = dataclasses.replace(sets[2], passages=(*sets[2].passages[:3], f" {sets[0].passages[1]}\n"))
    two.weight.data += 0.3 * torch.randn(two.weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    objective = SimCSE(0.2).double()
    views = [
        [torch.stack([table.vector(t.strip()) for t in (*(q.text for q in s.questions), *s.passages)]) for s in sets]
        for table in (one, two)
    ]
    loss, logs = objective.from_vectors(*views, sets)
    texts = sorted({t.strip() for s in sets for t in (*(q.text for q in s.questions), *s.passages)})
    assert len(texts) < sum(len(v) for v in views[0])
    tau, slow = objective.tau.log_tau.exp(), []
    for text in texts:
        exps = {other: (one.vector(text) @ two.vector(other) / tau).exp() for other in texts}
        slow.append(-(exps[text] / sum(exps.values())).log())
    compare(loss, sum(slow) / len(slow), [one.weight, two.weight, objective.tau.log_tau])
    assert logs["tau"] == pytest.approx(0.2) and objective.state() == {"tau": logs["tau"]}


def test_simcse_draws_dropout_twice(encoder_folder):  # noqa: F811
    settings = make_config(encoder_folder, **{"objectives": ["simcse"]})
    result = training.train(cut(settings, "simcse"), "simcse", 0, make_sets(), Given(), "k")
    encoder = result.step.encoder
    assert encoder.backbone.peft_config["default"].lora_dropout == 0.1, "its own knob, training.lora.dropout is 0"
    first, second = result.step.objective.embed(make_sets(2), encoder)
    assert [v.shape[0] for v in first] == [5, 5] and all((a - b).abs().max() > 1e-6 for a, b in zip(first, second, strict=True))
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"simcse.dropout": 0.0}, "simcse.dropout is 0: both views of a text would be the same. Raise it"),
        ({"simcse.dropout": None}, "training.lora.dropout is 0: both views"),
        ({"infonce.margin": 0.05, "infonce.teacher": "minlm"}, "infonce.teacher: 'minlm' is no entry of models. Did you mean 'minilm'?"),
        ({"infonce.negatives": "batch", "training.batch": 1, "training.micro_batch": 1}, "infonce.negatives is batch, but training.batch is 1"),
    ],
)  # fmt: skip
def test_knobs_that_cannot_work_are_one_line(encoder_folder, more, line):  # noqa: F811
    with pytest.raises(DreamError, match=line):
        make_config(encoder_folder, **{"objectives": ["simcse", "infonce"]}, **more)


def test_simcse_takes_the_dropout_of_the_lora_where_it_has_none_of_its_own(encoder_folder):  # noqa: F811
    settings = make_config(encoder_folder, **{"objectives": ["simcse"], "simcse.dropout": None, "training.lora.dropout": 0.1})
    assert cut(settings, "simcse").training.lora.dropout == 0.1


def test_what_infonce_asks_for_depends_on_its_margin(encoder_folder):  # noqa: F811
    """Without one, no teacher; with one, the record and nothing of the judge, in the teacher's file and among the models."""
    files = [stages.files(make_config(encoder_folder, **{"references": [], "infonce.margin": margin})) for margin in (None, 0.05)]
    assert files[0]["teacher-infonce"] == {"teacher": None} and files[0]["given-infonce"] == {"needs": []}
    asked = files[1]["teacher-infonce"]
    assert asked["teacher"] == "models.minilm" and list(asked["roles"]) == ["minilm"] and "judge" not in asked
    assert files[1]["given-infonce"] == {"needs": ["teacher"]}
    assert "minilm" in files[1]["assets"]["roles"] and "minilm" not in files[0]["assets"]["roles"]
    assert [files[i]["train-infonce"]["training"]["lora"]["dropout"] for i in (0, 1)] == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------- the whole batch's gradient


def one_pass(step, batch, pieces):
    """Gradients and loss of one backward pass of the whole batch, its texts embedded piece by piece from the same seed."""
    torch.manual_seed(7)
    step.zero_grad(set_to_none=True)
    sides = [step.objective.embed(piece, step.encoder) for piece in pieces]
    queries, passages = ([v for side in part for v in side] for part in zip(*sides, strict=True))
    loss, logs = step.objective.from_vectors(queries, passages, batch)
    loss.backward()
    return {n: p.grad.clone() for n, p in step.trained().items()}, {"loss": loss.item(), **logs}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("name", ["infonce", "simcse"])
def test_the_cached_gradient_is_that_of_one_big_batch(encoder_folder, config, name, micro, dropout):  # noqa: F811
    more = {"objectives": [name], "training.lora": {"r": 4, "alpha": 8, "dropout": dropout}, "training.steps": 2}
    more |= {"infonce.negatives": "batch"} if name == "infonce" else {"simcse.dropout": dropout or 0.1}
    step = training.train(cut(make_config(encoder_folder, **more), name), name, 0, make_sets(), Given(), f"{micro}").step
    batch = make_sets(6, questions=2)[:5]
    batch[4] = dataclasses.replace(batch[4], questions=batch[4].questions[:1])
    expected, logs = one_pass(step, batch, [batch[i : i + micro] for i in range(0, 5, micro)])
    torch.manual_seed(7)
    step.zero_grad(set_to_none=True)
    found = training._cached_backward(step, batch, micro)
    assert found == pytest.approx(logs, rel=1e-5) and found.keys() == logs.keys()
    assert any("log_tau" in n for n in expected) and max(g.abs().max() for g in expected.values()) > 1e-4
    for n, p in step.trained().items():
        torch.testing.assert_close(p.grad, expected[n], atol=1e-6, rtol=1e-4)


def test_the_loop_gives_the_whole_batch_whatever_the_micro_batch(encoder_folder, config):  # noqa: F811
    """Negatives of micro-batches alone would be another loss; a second forward pass is counted, and only that."""
    found = {}
    for micro in (1, 2, 4):
        more = {"objectives": ["infonce"], "infonce.negatives": "batch", "training.micro_batch": micro, "training.steps": 3}
        settings = make_config(encoder_folder, **more)
        found[micro] = training.train(cut(settings, "infonce"), "infonce", 0, make_sets(), Given(), f"m{micro}")
    losses = {micro: [row["loss"] for row in result.history] for micro, result in found.items()}
    assert losses[1] == pytest.approx(losses[4], rel=1e-3) and losses[2] == pytest.approx(losses[4], rel=1e-3)
    whole, cached = found[4].flops, found[1].flops
    tokens = {micro: result.step.encoder.trained_tokens for micro, result in found.items()}
    assert whole == 2 * found[4].step.encoder.flops_per_token * tokens[4] > 0
    assert cached == 3 * found[1].step.encoder.flops_per_token * tokens[1] and tokens[1] >= tokens[4]
    alone = training.train(cut(make_config(encoder_folder), "infonce"), "infonce", 0, make_sets(), Given(), "alone")
    assert alone.history[0]["loss"] < losses[4][0] - 1e-3, "fewer negatives"


def test_out_of_memory_halves_the_micro_batch_of_a_whole_batch_too(encoder_folder, config, monkeypatch):  # noqa: F811
    settings = make_config(encoder_folder, **{"objectives": ["infonce"], "infonce.negatives": "batch"})
    whole = training.train(cut(settings, "infonce"), "infonce", 0, make_sets(), Given(), "whole")
    real = InfoNCE.embed

    def small_machine(self, sets, encoder):
        if len(sets) > 1:
            raise torch.OutOfMemoryError("pretend")
        return real(self, sets, encoder)

    monkeypatch.setattr(InfoNCE, "embed", small_machine)
    small = training.train(cut(settings, "infonce"), "infonce", 0, make_sets(), Given(), "small")
    assert small.micro == 1
    assert [row["loss"] for row in small.history] == pytest.approx([row["loss"] for row in whole.history], rel=1e-3)


def test_a_whole_batch_in_several_processes_is_refused(encoder_folder, config, monkeypatch):  # noqa: F811
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    settings = make_config(encoder_folder, **{"objectives": ["infonce"], "infonce.negatives": "batch"})
    with pytest.raises(DreamError, match="infonce takes its negatives from the whole batch, which only one process holds. Leave"):
        training.train(cut(settings, "infonce"), "infonce", 0, make_sets(), Given(), "two")


# --------------------------------------------------------------------------------------------------------- the real stages


RIVALS = {"adist": {}, "loop": {}, "emdr2": {}, "simcse": {}, "infonce": {"infonce.negatives": "batch", "infonce.margin": 0.05}}


@pytest.mark.parametrize("name", RIVALS)
def test_two_steps_through_the_real_stages(model, tmp_path, run, name):  # noqa: F811
    """Teacher, given, train: a finite loss, and an encoder that has moved."""
    more = {"objectives": list(RIVALS), "training.steps": 2, "infonce.teacher": "toy", **RIVALS[name]}
    folder = toy.make(tmp_path / "toy", model, **more)
    for stage in (teacher_stage, given_stage, train_stage):
        run(stage, folder, name)
    curve = pd.read_csv(folder / f"reports/results/train/{name}-0.csv")
    assert len(curve) == 2 and curve.loss.map(math.isfinite).all() and (curve.grad_norm > 0).all()
    weights = load_file(folder / f"work/models/{name}-0/adapter/adapter_model.safetensors")
    moved = [w for n, w in weights.items() if "lora_B" in n]
    assert moved and all(w.abs().max() > 0 for w in moved), "B starts at 0"
    record = read_json(folder / f"reports/results/runs/train-{name}-0.json")[0]
    asks = name != "simcse"
    (told,) = read_json(folder / f"reports/results/runs/teacher-{name}.json")
    assert record["flops"] > 0 and (told["flops"] > 0) == asks == (told["notes"]["teacher"] is not None)
    assert (folder / f"work/given/{name}/teacher.parquet").exists() == asks


@pytest.mark.parametrize("name", ["adist", "loop", "emdr2", "simcse", "infonce"])
def test_every_setting_of_a_rival_reaches_it(encoder_folder, monkeypatch, name):  # noqa: F811
    values = {"tau_a": 0.7, "standardise": "none", "tau_l": 0.6, "per": "token", "mask_target": True}
    own = {knob: values[knob] for knob in check.carrier(name).Knobs.model_fields if knob in values}
    settings = make_config(
        encoder_folder, **{"objectives": [name], f"{name}.temperature": 0.3, **{f"{name}.{k}": v for k, v in own.items()}}
    )
    found = build(name, settings, Given(teacher={"q": [1.0]}, tokens={"q": 3}))
    assert found.tau().item() == pytest.approx(0.3) and {k: getattr(getattr(found, "knobs", found), k) for k in own} == own
    assert getattr(found, "tokens", {"q": 3}) == {"q": 3}
    assert name in ("simcse", "infonce") or found.teacher == {"q": [1.0]}


OWN = {  # knobs that no other objective has, in every recipe
    "adist": {"tau_a": 0.1, "standardise": "question"}, "emdr2": {"per": "sequence", "mask_target": False}, "fused": {"teachers": ["bm25", "attention"], "tau_t": 0.5},
    "art": {"tau_u": 0.1}, "loop": {"tau_l": 0.1}, "simcse": {"dropout": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_the_knobs_of_a_rival_are_the_same_in_every_recipe_but_for_its_temperature(name):
    for recipe, temperature in {"paper": None, "packaged": None if name == "fused" else 0.02}.items():
        settings = configs.load(overrides={"recipe": recipe, "objectives": [name]})
        assert settings.knobs[name].model_dump() == {"learning_rate": None, "temperature": temperature, **OWN[name]}
    kind = objectives.find(name)
    given = {p.name: p.default for p in inspect.signature(kind.__init__).parameters.values() if p.default is not p.empty}
    start = {"temperature": configs.load(overrides={"recipe": "paper"}).temperature.init, "learn_temperature": True}
    if name == "simcse":
        assert given == start
        return
    taught = {p.name: p.default for p in inspect.signature(Taught.__init__).parameters.values() if p.default is not p.empty}
    assert taught == start and given in (start, {"tokens": None})
    assert kind({}).knobs == kind.Knobs() and kind.Knobs().model_dump(exclude=set(Tuned.model_fields)) == OWN[name]
    with pytest.raises(ValidationError, match="tau_x"):
        kind({}, tau_x=1.0)


def test_what_is_taught_reads_a_teacher_and_depends_on_what_teaching_shares():
    taught = {name for name in check.trained() if issubclass(objectives.find(name), Taught)}
    assert taught == {"adist", "art", "emdr2", "fused", "loop", "replug"}
    for name in (*taught, "infonce"):
        assert objectives.find(name).uses == (pathlib.Path(inspect.getfile(Taught)).relative_to(pathlib.Path.cwd()).as_posix(),)
        assert objectives.find(name).needs == ({"teacher"} if name in taught else set())
    with pytest.raises(NotImplementedError):
        Taught({}).losses(torch.zeros(1, 2), torch.zeros(1, 2), make_sets(1)[0])
    tau = Taught({}).tau.log_tau
    assert tau.exp().item() == pytest.approx(0.05) and tau.requires_grad, "as the recipe's"
    assert objectives.find("simcse").whole_batch


def test_docs_and_params_name_every_objective_and_no_other():
    """The rows of docs/objectives.md, with the teacher of each, and the comment in params.yaml."""
    rows = {
        row.split("`")[1]: row
        for row in pathlib.Path("docs/objectives.md").read_text(encoding="utf-8").split("# Adding")[0].splitlines()
        if row.startswith("| `")
    }
    assert rows.keys() == check.trained().keys()
    for name, row in rows.items():
        taught = objectives.find(name).teacher_name
        assert (f"teacher `{taught}`" in row) == bool(taught) and len(row.strip("|").replace("\\|", "").split(" | ")) == 5
    (line,) = [x for x in pathlib.Path("params.yaml").read_text(encoding="utf-8").splitlines() if x.startswith("objectives:")]
    assert f"trained systems: {', '.join(sorted(check.trained()))} (docs" in line
