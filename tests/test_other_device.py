"""The tensor code of every stage on a device that is not the processor, without one: a tensor left behind fails the test.

Each test compares with the processor's numbers. What cannot be shown this way: docs/scale.md.
"""

import dataclasses

import accelerate
import numpy as np
import peft
import pytest
import reference
import torch
import toy_project as toy
from other_device import DEVICE, other_device
from test_rerank import HITS, First, letters_task, reranker
from test_training import cut, encoder_folder, make_config, make_sets  # noqa: F401

from dream import config as configs
from dream import models, teachers, training
from dream.data import questions
from dream.encoder import Encoder
from dream.evaluation import search
from dream.files import write_json
from dream.judge import Injection, Judge, Limits, definition, diagnostics, gain, heads
from dream.judge.store import Store
from dream.objectives import Given
from dream.report.commands import explain

SELECTED = ((0, 1), (1, 0), (2, 3))


@pytest.fixture
def there():
    with other_device() as device:
        yield device


def same(compute):
    """Compare what a judge on the processor and the same judge on the other device compute."""
    here, moved = (reference.both(limits=Limits(20, 20, 20), dtype=torch.float32)[0] for _ in range(2))
    wanted = compute(here)
    with other_device() as device:
        moved.model, moved.chunk = moved.model.to(device), None
        found = compute(moved)
        lists = [x if isinstance(x, (list, tuple)) else [x] for x in (found, wanted)]
        for a, b in zip(*lists, strict=True):
            assert not isinstance(a, torch.Tensor) or a.device == DEVICE
            values = [x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (a, b)]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


def test_tensors_of_two_places_do_not_meet(there):
    a = torch.ones(2, 3).to(there)
    assert torch.equal(a[:, torch.tensor([0, 1], device=there)].cpu(), torch.ones(2, 2))
    number = torch.tensor(2.0)
    assert (a * number).device == there and (a * number).sum().item() == 12
    for mixed in (
        lambda: a @ torch.ones(3, 2),
        lambda: a.index_select(1, torch.arange(2)),
        lambda: torch.ones(3)[torch.arange(2, device=there)],
        lambda: a.index_put((torch.tensor([0]),), torch.ones(3)),
        lambda: a + torch.ones(3),
        lambda: torch.stack([a.sum(), number]),
        lambda: torch.ones(3).mul_(a[0]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    for read in (a.numpy, lambda: np.asarray(a)):
        with pytest.raises((TypeError, RuntimeError)):
            read()


OBJECTIVES = {
    "dream": {"injection.gap_every": 1},
    "dream, a trained judge": {"dream.judge": "lora"},
    "dream, mass kept": {"injection.budget": "preserve", "injection.rows": "all"},
    "infonce": {"infonce.margin": 0.1, "infonce.teacher": "toy"},
    "infonce, the batch's negatives": {"infonce.negatives": "batch"},
    "replug": {},
    "revela": {"revela.tau": 0.1},
    "adist": {},
    "art": {},
    "emdr2": {},
    "loop": {},
    "fused": {},
    "simcse": {"training.lora.dropout": 0.1},
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_training(case, encoder_folder, tmp_path, monkeypatch):  # noqa: F811
    """Two steps of the real loop with its optimiser and checkpoints, gone on with after the first; a step's loss and gradient."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    put = peft.get_peft_model  # a model that was loaded before it may have drawn numbers
    monkeypatch.setattr(peft, "get_peft_model", lambda *given, **more: torch.manual_seed(0) and put(*given, **more))
    name, sets = case.split(",")[0], make_sets(4, questions=2)
    more = {"objectives": [name], "training.batch": 2, "training.micro_batch": 1, **OBJECTIVES[case]}
    table = {q.id: torch.linspace(-1, 1, 4).roll(q.gold + 1).tolist() for s in sets for q in s.questions}

    def trained(key, device, steps):
        config = cut(make_config(encoder_folder, **{"training.steps": steps, **more}), name)
        given = Given(Judge.load(str(encoder_folder), "float32", device), SELECTED, table, dict.fromkeys(table, 3))
        run = training.train(config, name, 0, sets, given, key)
        assert run.steps == steps and all(p.device.type == torch.device(device).type for p in run.step.trained().values())
        return run.history[0], {name: p.grad.cpu() for name, p in run.step.trained().items() if p.grad is not None}

    logs, gradients = trained("here", "cpu", 1)
    with other_device() as device:
        monkeypatch.setattr(accelerate.Accelerator, "device", device)
        found_logs, found = trained("there", device, 1)
        trained("there", device, 2)
    assert found_logs == pytest.approx(logs, rel=1e-3, abs=1e-5) and found.keys() == gradients.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[key], rtol=1e-2, atol=1e-2 * gradients[key].abs().max().item())


@pytest.mark.parametrize("budget", ["paper", "preserve"])
def test_the_judges_losses_and_their_definition(budget):
    candidates, p, gate = reference.candidate_set(), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2), torch.tensor(0.5)
    injection = Injection(SELECTED, "all", budget)
    same(lambda judge: judge.target_losses(candidates, p.to(judge.device), gate.to(judge.device), injection))
    same(lambda judge: judge.target_losses(candidates, per_token=True))
    same(lambda judge: judge.leave_one_out(candidates))
    one = dataclasses.replace(candidates, questions=candidates.questions[:1])
    for asked in (candidates, one):
        same(lambda judge, asked=asked: judge.passage_log_likelihood(asked))
    same(lambda judge: definition._by_definition(judge, one, p[0:1].to(judge.device), gate.to(judge.device)))


def test_what_the_judge_read_is_kept(tmp_path):
    candidates, store = reference.candidate_set(), Store(2**30, folder=tmp_path)

    def again(judge):
        judge.store = store
        return [judge.target_losses(candidates).sum() for _ in range(2)]

    same(again)
    assert (store.made, store.found) == (2, 2)


def test_the_loss_gap():
    sets = [reference.candidate_set(seed=seed) for seed in (0, 1)]
    readings = ("none", "uniform", "gold", "wrong", "gap")
    same(lambda judge: [row[k] for row in diagnostics.measure(judge, sets, Injection(SELECTED), 0.5)["rows"] for k in readings])


@pytest.mark.parametrize("drop", [False, True])
def test_detection_of_heads(drop):
    sets = [reference.candidate_set(seed=seed) for seed in (0, 1)]
    same(lambda judge: heads.detect(judge, sets, drop).per_probe)
    same(lambda judge: heads.rerank(judge, sets[0], SELECTED, drop))


@pytest.mark.parametrize(
    "name", ["likelihood", "leave_one_out", "attention", "question_likelihood", "bm25+attention", "encoder", "models.toy"]
)
def test_a_teacher(name, encoder_folder, tmp_path):  # noqa: F811
    config = make_config(encoder_folder)
    if name == "models.toy":
        config = config.model_copy(update={"roles": {"toy": config.roles["encoder"]}})
    sets, found = make_sets(2, questions=2), {}
    for device in ("cpu", DEVICE):
        with other_device():
            built = teachers.build(name, config, SELECTED)
            for teacher in built:
                teacher.device = device
                if isinstance(teacher, teachers.OfJudge):
                    teacher.__dict__["judge"] = Judge.load(str(encoder_folder), "float32", device)
            rows, _, _, asked = teachers.table(built, sets, tmp_path / str(device))
            assert asked == 2 * len(built)
            found[device] = np.array([row["scores"] for row in rows])
    np.testing.assert_allclose(found[DEVICE], found["cpu"], rtol=1e-4, atol=1e-5)


def test_questions(encoder_folder):  # noqa: F811
    config, texts = make_config(encoder_folder), [s.passages[0] for s in make_sets(3)]
    wanted = questions.Writer(config.roles["judge"], config.questions)(texts, "question")
    with other_device() as device:
        assert questions.Writer(config.roles["judge"], config.questions, device)(texts, "question") == wanted


def test_the_gain_of_questions():
    same(lambda judge: gain.gains(judge, ["abc", "xy"], ["hello there", "nothing"]))


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_encoding(encoder_folder, pooling, side):  # noqa: F811
    texts, found = [p for s in make_sets(4) for p in s.passages], []
    for device in ("cpu", DEVICE):
        with other_device():
            encoder = Encoder.from_pretrained(encoder_folder, device=device, pooling=pooling, padding_side=side)
            assert encoder.device == torch.device(device)
            found.append(encoder.encode(texts, token_budget=64))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_search(there):
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(3, 8)).astype("f"), rng.normal(size=(40, 8)).astype("float16")
    ids = [f"d{i}" for i in range(40)]
    here, found = (search.exact(queries, documents, ids, 5, chunk=16, device=device) for device in ("cpu", there))
    assert (found.positions == here.positions).all() and (found.scores == here.scores).all()


def test_rerank():
    task = letters_task()
    same(lambda judge: [x for hits in reranker(judge, First(HITS)).search(task, 5).values() for x in hits.values()])


def test_explain(encoder_folder, tmp_path, monkeypatch):  # noqa: F811
    folder = toy.make(tmp_path, encoder_folder)
    config = configs.load(folder / "params.yaml")
    encoder = Encoder.load(models.rules(config.roles["encoder"], "encoder"), trainable=True, lora=config.training.lora)
    encoder.save_adapter(folder / "work" / "models" / "dream-0" / "adapter")
    write_json(folder / "work" / "models" / "dream-0" / "state.json", {"tau": 0.1, "gate": 0.6})
    wanted = explain.explain("q0.0", config, "dream", work=folder / "work")
    load, build = Encoder.load, Judge.build
    with other_device() as device:
        monkeypatch.setattr(Encoder, "load", lambda *given, **more: load(*given, **more, device="cpu").to(device))
        monkeypatch.setattr(Judge, "build", lambda config: build(config, device))
        found = explain.explain("q0.0", config, "dream", work=folder / "work")
    assert found.losses == pytest.approx(wanted.losses, rel=1e-4) and set(found.losses) == {
        "plain",
        "injected",
        "gold",
        "uniform",
    }
    assert [c["p"] for c in found.candidates] == pytest.approx([c["p"] for c in wanted.candidates], rel=1e-4)
    assert sum(c["p"] for c in found.candidates) == pytest.approx(1)
