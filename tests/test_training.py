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
from dream.config import stages
from dream.errors import DreamError
from dream.files import read_json
from dream.instances import CandidateSet, Question, used
from dream.judge import Judge
from dream.knobs import Knobs
from dream.objectives import Given, Objective, Temperature, register, similarities


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
    """The smoke recipe with the model of a folder as encoder and judge, all objectives, and ``more`` dotted settings."""
    return configs.load(
        overrides={
            "models.toy": {"model": str(folder), "pooling": "last", "append_eos": True, "max_length": 64},
            "sizes.toy": {"encoder": "toy", "judge": "toy", "recipe": "smoke"}, "model.size": "toy",
            "objectives": ["dream", "infonce", "replug", "revela"], "training.steps": 6, "training.batch": 4,
            "training.micro_batch": 2, "training.checkpoint_every": 1, "training.learning_rate": 5e-3, "training.threads": 1,
            **more,
        }
    )  # fmt: skip


def cut(config, name):
    """What the stage ``train`` of an objective may read; one that no file defines reads what infonce reads."""
    part = stages.cut(config, f"train-{name if name in config.objectives else 'infonce'}")
    part.knobs.setdefault(name, Knobs())
    return part


def run(config, name="infonce", seed=0, key="k", sets=None, given=Given()):  # noqa: B008
    return training.train(cut(config, name), name, seed, sets or make_sets(), given, key)


def weights(result):
    return {k: v.detach().clone() for k, v in result.step.trained().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@given(n=st.integers(1, 30), batch=st.integers(1, 8), seed=st.integers(0, 5), block=st.integers(1, 40))
def test_every_epoch_sees_every_set_once_block_by_block(n, batch, seed, block):
    steps = math.ceil(2 * n / batch)
    seen = [i for step in range(steps) for i in training.order(n, batch, step, seed, block)]
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == list(range(n))
    assert sorted(seen[:block]) == list(range(min(n, block))) or block > n
    assert [i // block for i in seen[:n]] == sorted(i // block for i in seen[:n])


@given(steps=st.integers(1, 9), more=st.integers(0, 9), batch=st.integers(1, 4), block=st.integers(1, 9))
def test_a_longer_run_begins_as_a_shorter_one(steps, more, batch, block):
    sets, taken = make_sets(20), []
    for count in (steps, steps + more):
        drawn = used(sets, count, batch, block)
        taken.append([drawn[i].id for step in range(steps) for i in training.order(len(drawn), batch, step, 3, block)])
    assert taken[0] == taken[1]


def test_training_lowers_the_loss_and_repeats_to_the_byte(config):
    first, second = run(config, key="a"), run(config, key="b")
    assert same(weights(first), weights(second)) and first.history == second.history
    assert not same(weights(first), weights(run(config, seed=1, key="c")))
    assert first.pairs == 24 and len(first.history) == 6
    assert first.history[-1]["loss"] < first.history[0]["loss"]


def test_the_micro_batch_does_not_change_the_gradient(encoder_folder, config):
    one, four = (
        run(make_config(encoder_folder, **{"training.micro_batch": m, "training.steps": 1}), key=f"m{m}") for m in (1, 4)
    )
    gradients = [{k: p.grad for k, p in r.step.trained().items()} for r in (one, four)]
    assert gradients[0].keys() == gradients[1].keys()
    assert sum(g.abs().sum() for g in gradients[0].values()) > 0
    for name, g in gradients[0].items():
        torch.testing.assert_close(g, gradients[1][name], atol=1e-6, rtol=1e-4)


def killed_and_resumed(monkeypatch, stop_after, start):
    """Start a run that dies right after the checkpoint of a step is written, start it again; what the second one leaves."""
    saved = training.Checkpoints.save

    def save_then_die(self, *state):
        saved(self, *state)
        if state[-1].steps == stop_after:
            raise SystemExit(137)

    monkeypatch.setattr(training.Checkpoints, "save", save_then_die)
    with pytest.raises(SystemExit):
        start()
    monkeypatch.setattr(training.Checkpoints, "save", saved)
    return start()


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_bytes(config, monkeypatch, stop_after):
    whole = run(config, key="whole")
    resumed = killed_and_resumed(monkeypatch, stop_after, lambda: run(config, key="cut"))
    assert same(weights(whole), weights(resumed)) and whole.history == resumed.history and whole.pairs == resumed.pairs


def test_a_finished_run_leaves_its_last_checkpoint_or_none(config, tmp_path):
    run(config, key="x")
    folder = tmp_path / ".dream" / "checkpoints" / "x"
    assert [p.name for p in sorted(folder.iterdir())] == ["step-0000005.pt", "step-0000006.pt"]
    (folder / ".step-0000006.pt.half.pt").write_bytes(b"left by a kill")
    (folder / ".pairs-8.half").mkdir()
    training.Checkpoints("x", 1).finish(6, keep=True)
    assert [p.name for p in folder.iterdir()] == ["step-0000006.pt"], "what a longer run goes on from"
    training.Checkpoints("x", 1).finish(6, keep=False)
    assert not folder.exists()


def fake(name, loss, gate=0.5):
    @register(name)
    class Fake(Objective):
        def __init__(self):
            super().__init__()
            self.tau = Temperature(0.05)

        @classmethod
        def build(cls, knobs, config, given):
            return cls()

        def from_vectors(self, queries, passages, sets):
            return loss(torch.cat([s.flatten() for s in similarities(queries, passages)]), self.tau()), {"gate": gate}


def good(s, t):
    return (s / t).mean()


@pytest.mark.parametrize(
    ("name", "loss", "gate", "line"),
    [
        ("nan", lambda s, t: good(s, t) * math.nan, 0.5, r"loss nan .* step 1 are not both finite. Lower training.learning_rate"),
        ("inf", lambda s, t: good(s, t) + math.inf, 0.5, r"loss inf .* step 1 are not both finite"),
        # the loss is finite, its gradient is not: d sqrt(0) / ds = inf, times 0
        ("root", lambda s, t: (s - s.detach()).sum().sqrt() + t, 0.5, r"gradient norm nan at step 1 are not both finite"),
        ("tau", lambda s, t: good(s, t) + (t - t.detach()).sqrt(), 0.5, r"gradient norm (inf|nan) at step 1 are not both finite"),
        ("flat", lambda s, t: s.detach().sum() * t, 0.5, r"gets no gradient in step 1. .* check the objective and its settings"),
        ("gate", good, 1e-5, r"the gate closed to 1.0e-05 at step 1: .* Set injection.gate=fixed"),
        ("shut", good, 0.0, r"the gate closed to 0.0e\+00 at step 1"),
    ],
)
def test_a_bad_run_stops_with_one_line(config, name, loss, gate, line):
    fake(name, loss, gate)
    with pytest.raises(DreamError, match=line) as caught:
        run(config, name, key=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "remedy"), [("dream", "check heads, injection.rows and injection.gate"), ("revela", "raise revela.tau")]
)
def test_an_objective_without_a_gradient_names_its_own_remedy(name, remedy):
    with pytest.raises(DreamError, match=rf"gets no gradient in step 1. .* {remedy}"):
        training._guard(name, 0, {"loss": 1.0}, 0.0, 1.0, objectives.find(name))


def test_a_loss_that_turns_bad_later_is_stopped_at_its_step(config):
    calls = []
    fake("later", lambda s, t: good(s, t) * (calls.append(1) or (math.nan if len(calls) == 5 else 1.0)))
    with pytest.raises(DreamError, match="at step 3 are not both finite"):  # two micro-batches a step
        run(config, "later", key="later")


CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines"),
        RuntimeError(CPU_ALLOCATOR),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "linux", "windows", "python"],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(encoder_folder, config, monkeypatch, capsys, error):
    """A machine on which no more than one set fits: the fake fails after a part of the gradient is there."""
    whole, forward, asked = run(config, key="big"), training.Step.forward, []

    def small_machine(step, sets):
        asked.append(len(sets))
        if len(sets) > 1 and len(asked) > 1:
            raise error
        return forward(step, sets)

    monkeypatch.setattr(training.Step, "forward", small_machine)
    small = run(config, key="small")
    assert asked == [2, 2] + [1] * 24 and small.micro == 1
    assert [row["loss"] for row in small.history] == pytest.approx([row["loss"] for row in whole.history], abs=1e-3)
    assert "micro-batch halved to 1, global batch stays 4" in "".join(capsys.readouterr())
    monkeypatch.setattr(training.Step, "forward", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(DreamError, match=r"one candidate set does not fit into memory \(.+\). Lower candidates.count") as caught:
        run(config, key="tiny machine")
    assert "\n" not in str(caught.value)


def test_a_resumed_run_keeps_the_micro_batch_that_fitted(config, monkeypatch):
    forward = training.Step.forward

    def small_machine(step, sets):
        if len(sets) > 1:
            raise torch.OutOfMemoryError("pretend")
        return forward(step, sets)

    with monkeypatch.context() as patched:
        patched.setattr(training.Step, "forward", small_machine)
        whole = run(config, key="small")
    assert same(weights(whole), weights(run(config, key="small")))  # the last step again, on a machine where two would fit


def test_another_error_is_not_taken_for_memory(config, monkeypatch):
    monkeypatch.setattr(training.Step, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(config, key="other")


def gradients(folder, key, **more):
    """Gradients of the first step, without clipping and at a rate that moves nothing, and the step module."""
    still = {"training.steps": 1, "training.clip": 0.0, "training.learning_rate": 1e-30, "training.scalar_learning_rate": 1e-30}
    result = run(make_config(folder, **{**still, **more}), key=key)
    return {k: p.grad.clone() for k, p in result.step.trained().items()}, result.step


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 5, 6])
def test_any_split_of_the_batch_gives_the_gradient_of_the_mean_loss(encoder_folder, config, micro, monkeypatch):
    """Against one backward pass of the mean over the whole batch, written out; uneven splits as after a halving."""
    dealt = training.dealt
    monkeypatch.setattr(training, "dealt", lambda batch, _, *process: dealt(batch, micro, *process))
    found, step = gradients(encoder_folder, f"m{micro}", **{"training.batch": 6, "training.micro_batch": 6})
    step.zero_grad()
    batch = make_sets()[:6]  # one step takes the first sets, all of them
    torch.stack([step.objective.loss([s], step.encoder)[0] for s in batch]).mean().backward()
    assert sum(g.abs().sum() for g in found.values()) > 0
    for name, p in step.trained().items():
        torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-4)


def test_activation_checkpointing_is_not_reentrant_and_changes_no_gradient(encoder_folder, config, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, real = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *given: (calls.append(1), real(*given))[1])
    plain, _ = gradients(encoder_folder, "plain")
    once = len(calls)
    saved, step = gradients(encoder_folder, "saved", **{"training.gradient_checkpointing": True})
    assert once > 0 and len(calls) == 3 * once, "every layer is computed again in the backward pass"
    layers = [m for m in step.encoder.backbone.modules() if getattr(m, "gradient_checkpointing", False)]
    assert layers and all(m._gradient_checkpointing_func.keywords["use_reentrant"] is False for m in layers)
    for name, g in plain.items():
        torch.testing.assert_close(saved[name], g, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rest"),
    [
        ("constant", [1.0] * 6),
        ("linear", [1 - n / 6 for n in range(6)]),
        ("cosine", [(1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)]),
    ],
)
def test_schedules_warm_up_and_reach_the_values_expected(encoder_folder, config, schedule, rest):
    """Two warm-up steps of eight rise by halves of the rate, then the schedule runs over the other six."""
    knobs = {"training.steps": 8, "training.warmup": 0.25, "training.schedule": schedule}
    rates = [row["learning_rate"] / 5e-3 for row in run(make_config(encoder_folder, **knobs), key=schedule).history]
    assert rates == pytest.approx([0.0, 0.5, *rest], abs=1e-9)


def test_bfloat16_weights_train_and_the_adapter_stays_float32(encoder_folder, config):
    result = run(make_config(encoder_folder, **{"models.toy.dtype": "bfloat16", "training.steps": 12}), key="bf16")
    assert result.step.encoder.dtype == "bfloat16"
    assert {p.dtype for p in result.step.trained().values()} == {torch.float32}
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_rows_of_the_curve_are_not_the_steps(encoder_folder, config, tmp_path):
    result = run(make_config(encoder_folder, **{"training.log_every": 4}), key="rare")
    training.save(result, tmp_path / "model", {})
    assert [row["step"] for row in result.history] == [1, 5, 6]
    assert read_json(tmp_path / "model" / "state.json")["steps"] == 6


def test_dropout_resumes_to_the_same_bytes(encoder_folder, config):
    """The random numbers of a step depend on seed and step alone, not on what was drawn before."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.3}
    wet = make_config(encoder_folder, **{"training.lora": lora})
    whole = run(wet, key="wet")
    assert same(weights(whole), weights(run(wet, key="wet")))  # from the checkpoint of step 5
    assert not same(
        weights(whole), weights(run(make_config(encoder_folder, **{"training.lora": {**lora, "dropout": 0.0}}), key="dry"))
    )


def test_too_few_sets_for_a_batch(config):
    with pytest.raises(DreamError, match=r"training.batch is 4, but only 2 candidate sets"):
        run(config, sets=make_sets(2))


def test_the_saved_adapter_loads_with_plain_peft(config, encoder_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    result = run(config)
    training.save(result, tmp_path / "model", {"config": {}})
    model = PeftModel.from_pretrained(
        AutoModel.from_pretrained(encoder_folder, dtype=torch.float32), tmp_path / "model" / "adapter"
    ).eval()
    encoder = result.step.encoder.eval()
    ids = torch.tensor(encoder.tokenize(["cat dog river"], 16))
    plain = torch.nn.functional.normalize(model(ids).last_hidden_state[:, -1], dim=-1)
    ours = torch.from_numpy(encoder.encode(["cat dog river"]))
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=0)
    untrained = AutoModel.from_pretrained(encoder_folder, dtype=torch.float32)(ids).last_hidden_state[:, -1]
    assert (torch.nn.functional.normalize(untrained, dim=-1) - ours).abs().max() > 1e-3


HEADS = [(0, 0), (1, 1)]


def run_dream(folder, key, **more):
    """DREAM with a fresh judge, which a run with a LoRA changes in place."""
    limits = {"judge.passage_tokens": 6, "judge.query_tokens": 6, "judge.target_tokens": 6}
    settings = make_config(folder, **limits, **{"dream.r": 4, "dream.alpha": 8, "training.steps": 4, **more})
    return run(settings, "dream", key=key, given=Given(Judge.build(settings, "cpu"), HEADS))


def test_the_judges_lora_trains_with_the_encoder_and_is_saved_in_its_own_folder(encoder_folder, config, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    frozen, lora = run_dream(encoder_folder, "frozen"), run_dream(encoder_folder, "lora", **{"dream.judge": "lora"})
    of_judge = {n: p for n, p in lora.step.trained().items() if n.startswith("objective.adapter.")}
    assert not any("adapter" in n for n in frozen.step.trained() if n.startswith("objective."))
    assert of_judge.keys() == lora.step.trained().keys() - frozen.step.trained().keys() and of_judge
    assert all(p.detach().abs().max() > 0 for n, p in of_judge.items() if "lora_B" in n), "B starts at 0 and moved"
    assert lora.history[0]["loss"] == frozen.history[0]["loss"], "an untrained LoRA is the frozen judge"
    assert lora.history[-1]["loss"] < frozen.history[-1]["loss"] and lora.flops > frozen.flops

    training.save(frozen, tmp_path / "frozen", {})
    training.save(lora, tmp_path / "lora", {})
    held = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("frozen", "lora", "lora/judge_adapter")]
    assert held[0] == ["adapter", "made_with.json", "state.json"]
    assert held[1] == ["adapter", "judge_adapter", "made_with.json", "state.json"]
    assert held[2] == ["adapter_config.json", "adapter_model.safetensors"]
    model = AutoModelForCausalLM.from_pretrained(encoder_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = model(ids).logits
    loaded = PeftModel.from_pretrained(model, tmp_path / "lora" / "judge_adapter")(ids).logits
    torch.testing.assert_close(loaded, lora.step.objective.judge.model.eval()(ids).logits, atol=1e-5, rtol=0)
    assert (loaded - plain).abs().max() > 1e-3


def test_a_killed_run_with_the_judges_lora_goes_on_to_the_same_bytes(encoder_folder, config, monkeypatch):
    lora = {"dream.judge": "lora"}
    whole = run_dream(encoder_folder, "whole", **lora)
    resumed = killed_and_resumed(monkeypatch, 2, lambda: run_dream(encoder_folder, "cut", **lora))
    assert same(weights(whole), weights(resumed)) and whole.history == resumed.history


def test_warnings_are_not_needed_for_a_clean_run(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(config, key="clean")


def test_an_objectives_own_settings_take_the_common_ones_place(encoder_folder, config):
    own = {"infonce.learning_rate": 2e-3, "infonce.temperature": 0.2, "training.steps": 1, "temperature.learned": False,
           "dream.temperature": None}  # fmt: skip
    settings = make_config(encoder_folder, **own)
    found = run(settings, key="own")
    assert found.history[0]["learning_rate"] == 2e-3
    assert found.step.objective.state()["tau"] == pytest.approx(0.2)
    for other, tau in (("dream", 0.05), ("replug", 0.02), ("revela", 0.05)):  # none of its own, the recipe's, no such knob
        part = stages.cut(settings, f"train-{other}")
        assert (part.training.learning_rate, part.temperature.init) == (5e-3, tau)


def test_training_reads_the_encoder_as_its_record_says(encoder_folder, config):
    """Pooling, end-of-text token, prompts and LoRA targets are the record's; the length is that of training."""
    own = {"pooling": "mean", "append_eos": False, "query_prompt": "the ", "lora_targets": ["up_proj"]}
    settings = make_config(encoder_folder, **{f"models.toy.{key}": value for key, value in own.items()}, **{"training.steps": 1})
    encoder = run(settings, key="record").step.encoder
    assert (encoder.pooling, encoder.append_eos, encoder.query_prompt, encoder.document_prompt) == ("mean", False, "the ", "")
    assert encoder.max_length == settings.encoder.max_length == 48 and encoder.token_budget == settings.encoder.token_budget
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 3 and all("up_proj" in name for name in trained)


def test_scalars_have_a_rate_of_their_own(config, encoder_folder):
    """One step of AdamW moves every parameter by its group's rate: tau by its own, the weights by theirs."""
    knobs = {"training.steps": 1, "training.learning_rate": 1e-3, "training.scalar_learning_rate": 0.25, "training.clip": 0.0}
    result = run(make_config(encoder_folder, **knobs), key="scalars")
    (moved,) = result.scalars.values()
    assert abs(moved["end"] - moved["start"]) == pytest.approx(0.25, rel=1e-3)
    assert moved["reach"] == 0.25 and moved["used"] == pytest.approx(1, abs=1e-3)
    changed = [p for name, p in result.step.trained().items() if name.endswith("lora_B.default.weight")]
    assert max(p.detach().abs().max() for p in changed) == pytest.approx(1e-3, rel=1e-3)


def test_the_scalars_reach_follows_the_schedule(config, encoder_folder):
    """Linear: 4 steps at rate × (1, 3/4, 2/4, 1/4); a restart reports the whole run's."""
    knobs = {"training.steps": 4, "training.schedule": "linear", "training.warmup": 0.0, "training.scalar_learning_rate": 0.1}
    whole = run(make_config(encoder_folder, **knobs), key="reach").scalars
    assert whole["log_tau"]["reach"] == pytest.approx(0.25)
    assert run(make_config(encoder_folder, **knobs), key="reach").scalars == whole
