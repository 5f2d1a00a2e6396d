"""The loop: order, micro-batches, resume to the byte, guards. Objectives register by one file."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_encoder import WORDS, make_model

from dream import config as configs
from dream import objectives, training
from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.objectives import Objective, Temperature, register, similarities


def make_sets(n=12, k=4, questions=1):
    """Sets whose passages share one rare word with their question: something to learn."""
    sets = []
    for i in range(n):
        passages = tuple(" ".join(WORDS[(i * 3 + j * 5 + w) % len(WORDS)] for w in range(3 + j)) for j in range(k))
        asked = tuple(Question(f"q{i}.{m}", passages[(i + m) % k].split()[0], (i + m) % k) for m in range(questions))
        sets.append(CandidateSet(f"s{i}", "toy", tuple(f"p{i}.{j}" for j in range(k)), passages, asked))
    return sets


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def config(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return make_config(encoder_folder)


def make_config(folder, **more):
    size = {"encoder": str(folder), "encoder_layers": None, "judge": str(folder), "recipe": "smoke"}
    return configs.load(
        overrides={
            "sizes.toy": size, "model.size": "toy", "training.steps": 6, "training.batch": 4, "training.micro_batch": 2,
            "training.checkpoint_every": 1, "training.learning_rate": 5e-3, "encoder.dtype": "float32",
            "training.threads": 1, **more,
        }
    )  # fmt: skip


def run(config, name="infonce", seed=0, key="k", sets=None):
    return training.train(config, name, seed, sets or make_sets(), None, [], key)


def weights(result):
    return {k: v.detach().clone() for k, v in result.step.trained().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@given(n=st.integers(1, 30), batch=st.integers(1, 8), seed=st.integers(0, 5))
def test_every_epoch_sees_every_set_once(n, batch, seed):
    steps = math.ceil(2 * n / batch)
    seen = [i for step in range(steps) for i in training.order(n, batch, step, seed)]
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == list(range(n))


def test_training_lowers_the_loss_and_repeats_to_the_byte(config):
    first, second = run(config, key="a"), run(config, key="b")
    assert same(weights(first), weights(second)) and first.history == second.history
    assert not same(weights(first), weights(run(config, seed=1, key="c")))
    assert first.pairs == 24 and len(first.history) == 6
    assert first.history[-1]["loss"] < first.history[0]["loss"]


def test_the_micro_batch_does_not_change_the_gradient(encoder_folder, config):
    one, four = (run(make_config(encoder_folder, **{"training.micro_batch": m, "training.steps": 1}), key=f"m{m}") for m in (1, 4))
    gradients = [{k: p.grad for k, p in r.step.trained().items()} for r in (one, four)]
    assert gradients[0].keys() == gradients[1].keys()
    assert sum(g.abs().sum() for g in gradients[0].values()) > 0
    for name, g in gradients[0].items():
        torch.testing.assert_close(g, gradients[1][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_bytes(config, monkeypatch, stop_after):
    whole = run(config, key="whole")
    saved = training.Checkpoints.save

    def save_then_die(self, *state):
        saved(self, *state)
        if state[-1].steps == stop_after:
            raise SystemExit(137)

    monkeypatch.setattr(training.Checkpoints, "save", save_then_die)
    with pytest.raises(SystemExit):
        run(config, key="cut")
    monkeypatch.setattr(training.Checkpoints, "save", saved)
    resumed = run(config, key="cut")
    assert same(weights(whole), weights(resumed)) and whole.history == resumed.history and whole.pairs == resumed.pairs


def test_a_broken_checkpoint_is_skipped_for_the_one_before(config, tmp_path):
    whole = run(config, key="x")
    folder = tmp_path / ".dream" / "checkpoints" / "x"
    kept = sorted(folder.glob("*.pt"))
    assert [p.name for p in kept] == ["step-0000004.pt", "step-0000005.pt"]
    kept[-1].write_bytes(kept[-1].read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step-0000005\.pt cannot be read"):
        resumed = run(config, key="x")
    assert same(weights(whole), weights(resumed))
    training.Checkpoints("x", 1).clear()
    assert not list(folder.glob("*.pt"))


def fake(name, loss):
    @register(name)
    class Fake(Objective):
        def __init__(self, config, judge=None, heads=()):
            super().__init__(config)
            self.tau = Temperature(config)

        def loss(self, sets, encoder):
            return loss(torch.cat([s.flatten() for s in similarities(sets, encoder)]), self.tau()), {"gate": 1e-5}


@pytest.mark.parametrize(
    ("name", "loss", "line"),
    [
        ("nan", lambda s, t: (s / t).sum() * math.nan, "not both finite"),
        ("flat", lambda s, t: s.detach().sum() * t, "gets no gradient in step 1"),
        ("gate", lambda s, t: (s / t).sum(), "the gate closed"),
    ],
)
def test_a_bad_run_stops_with_one_line(config, name, loss, line):
    fake(name, loss)
    with pytest.raises(DreamError, match=line):
        run(config, name, key=name)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(config, monkeypatch, capsys):
    whole, backward, asked = run(config, key="big"), training._backward, []

    def small_machine(wrapped, batch, micro, accelerator):
        asked.append(micro)
        if micro > 1:
            raise torch.OutOfMemoryError("pretend")
        return backward(wrapped, batch, micro, accelerator)

    monkeypatch.setattr(training, "_backward", small_machine)
    small = run(config, key="small")
    assert asked[:2] == [2, 1] and len(small.history) == len(whole.history)
    assert small.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], abs=1e-3)
    assert "micro-batch halved to 1, global batch stays 4" in "".join(capsys.readouterr())


def test_too_few_sets_for_a_batch(config):
    with pytest.raises(DreamError, match=r"training.batch is 4, but only 2 candidate sets"):
        run(config, sets=make_sets(2))


def test_an_unknown_objective_is_named():
    with pytest.raises(DreamError, match=r"objectives: 'infonec' is unknown. Did you mean infonce\?"):
        objectives.find("infonec")


def test_the_saved_adapter_loads_with_plain_peft(config, encoder_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    result = run(config)
    training.save(result, tmp_path / "model", {"config": {}})
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(encoder_folder, dtype=torch.float32), tmp_path / "model" / "adapter").eval()
    encoder = result.step.encoder.eval()
    ids = torch.tensor(encoder.tokenize(["cat dog river"], 16))
    plain = torch.nn.functional.normalize(model(ids).last_hidden_state[:, -1], dim=-1)
    ours = torch.from_numpy(encoder.encode(["cat dog river"]))
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=0)
    untrained = AutoModel.from_pretrained(encoder_folder, dtype=torch.float32)(ids).last_hidden_state[:, -1]
    assert (torch.nn.functional.normalize(untrained, dim=-1) - ours).abs().max() > 1e-3


def test_infonce_is_its_definition(config):
    """− log exp(s_gold / tau) / sum_j exp(s_j / tau), written out."""
    from dream.encoder import Encoder

    sets, encoder = make_sets(3, questions=2), Encoder.load(config, trainable=True)
    objective = objectives.find("infonce")(config)
    loss, logs = objective.loss(sets, encoder)
    by_hand = []
    for s in sets:
        vectors = encoder.encode([*(q.text for q in s.questions), *s.passages])
        scores = vectors[: len(s.questions)] @ vectors[len(s.questions) :].T
        exps = torch.from_numpy(scores / 0.05).double().exp()
        by_hand += [-(exps[i, q.gold] / exps[i].sum()).log().item() for i, q in enumerate(s.questions)]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    assert logs["tau"] == pytest.approx(0.05) and 1 <= logs["gold_rank"] <= 4


def test_in_batch_negatives_add_the_other_sets_passages_but_not_the_positives_twin(encoder_folder, config):
    from dream.encoder import Encoder

    wide = make_config(encoder_folder, **{"infonce.in_batch_negatives": True})
    encoder, a = Encoder.load(wide, trainable=True), make_sets(2)
    twin = CandidateSet("t", "toy", a[0].passage_ids, a[0].passages, a[1].questions)
    narrow, both = (objectives.find("infonce")(c).loss(a, encoder)[0].item() for c in (config, wide))
    assert both > narrow
    loss = objectives.find("infonce")(wide).loss([a[0], twin], encoder)[0]
    vectors = encoder.encode([a[0].questions[0].text, *a[0].passages])
    s = torch.from_numpy(vectors[1:] @ vectors[0]).double() / 0.05
    others = torch.cat([s, s[torch.arange(4) != a[0].questions[0].gold]])
    first = torch.logsumexp(others, 0) - s[a[0].questions[0].gold]
    alone = objectives.find("infonce")(wide).loss([twin, a[0]], encoder)[0]
    assert loss.item() == pytest.approx(alone.item(), rel=1e-4) and loss.item() > 0 and first > 0


def test_warnings_are_not_needed_for_a_clean_run(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(config, key="clean")
