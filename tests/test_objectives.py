"""Each objective equals a slow reading of its definition; docs/objectives.md shows a working one."""

import dataclasses
import json
import math
import pathlib
import re

import pytest
import reference
import torch
from safetensors.torch import load_file
from test_training import config, encoder_folder, make_config, make_sets, run, same, weights  # noqa: F401

from dream import objectives
from dream.encoder import Encoder
from dream.errors import DreamError


def test_a_new_objective_is_one_file(config, tmp_path, monkeypatch):  # noqa: F811
    source = re.search(r"```python\n(.*?)```", pathlib.Path("docs/objectives.md").read_text(encoding="utf-8"), re.S)[1]
    (tmp_path / "margin.py").write_text(source)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    result = run(config, "margin", key="margin")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert not same(weights(result), weights(run(config, "infonce", key="other")))


def test_objectives_are_found_by_name_and_a_mistyped_one_is_one_line():
    for name in ("dream", "infonce", "replug", "revela"):
        assert objectives.find(name).__name__.lower() == name and objectives.own_section(name) == (name,)
    assert objectives.own_section("margin") == ()
    with pytest.raises(DreamError, match=r"^objectives: 'inforce' is unknown. Did you mean infonce\?"):
        objectives.find("inforce")
    with pytest.raises(DreamError, match=r"^objectives: 'zzz' is unknown. Choose from .*dream, .*infonce, .*replug, revela"):
        objectives.find("zzz")


def test_what_an_objective_is_before_it_says_otherwise(config):  # noqa: F811
    plain = objectives.Objective(config)
    assert (plain.needs_judge, plain.needs_teacher, plain.expects_gradient) == (False, False, True)
    assert (plain.flops, plain.step, plain.state(), plain.config) == (0, 0, {}, config) and plain.no_gradient.startswith("Its loss")
    with pytest.raises(NotImplementedError):
        plain.loss([], None)
    needs = {name: (objectives.find(name).needs_judge, objectives.find(name).needs_teacher) for name in ("dream", "replug", "revela")}
    assert needs == {"dream": (True, False), "replug": (False, True), "revela": (False, False)}
    assert objectives.find("dream").no_gradient.startswith("Its loss does not depend on the scores: check heads")


def test_tau_is_a_parameter_only_where_it_is_learned(encoder_folder):  # noqa: F811
    for learned in (True, False):
        tau = objectives.Temperature(make_config(encoder_folder, **{"temperature.learned": learned, "temperature.init": 0.3}))
        assert tau().item() == pytest.approx(0.3) and tau().dtype == torch.float32
        assert [n for n, _ in tau.named_parameters()] == ["log_tau"] * learned and list(tau.state_dict()) == ["log_tau"]


def test_the_curves_show_the_golds_rank_and_the_entropy_of_p():
    sets = make_sets(2, k=3, questions=2)  # golds: 0 and 1, then 1 and 2
    scores = [torch.tensor([[0.3, 0.2, 0.1], [0.5, 0.5, 0.6]]), torch.tensor([[0.4, 0.1, 0.2], [0.0, 0.0, 0.9]])]
    logs = objectives.ranking_logs(scores, sets, torch.tensor(0.5))
    entropies = []
    for row in torch.cat(scores).tolist():
        p = [math.exp(s / 0.5) for s in row]
        entropies.append(-sum(x / sum(p) * math.log(x / sum(p)) for x in p))
    assert logs == {"gold_rank": (1 + 2 + 3 + 1) / 4, "entropy": pytest.approx(sum(entropies) / 4, abs=1e-6)}


@pytest.mark.parametrize(("name", "more"), [("dream", {}), ("infonce", {}), ("infonce", {"infonce.in_batch_negatives": True}), ("replug", {})])
def test_every_objective_logs_its_scalars(encoder_folder, name, more):  # noqa: F811
    objective = make(name, encoder_folder, **{"temperature.init": 0.3, f"{name}.temperature": 0.3, **more})
    sets = make_sets(2)
    _, logs = objective.loss(sets, Table())
    gate = {"gate": pytest.approx(0.5), "gap": logs.get("gap")} if name == "dream" else {}
    ranks = objectives.ranking_logs(objectives.similarities(sets, Table()), sets, objective.tau())
    tau = objective.tau().item()
    assert logs == {"tau": tau, **ranks, **gate} and objective.state() == {"tau": tau, **({"gate": gate["gate"]} if gate else {})}


# ------------------------------------------------------------------------------------------------------ RePlug


def test_replug_is_its_definition_in_both_directions_and_with_the_target_masked(encoder_folder, config):  # noqa: F811
    """KL written out term by term, from the encoder's own cosines and a made-up teacher."""
    encoder, sets = Encoder.load(config, trainable=True), make_sets(2, questions=2)
    teacher = {q.id: [0.3 * ((i + len(q.id)) % 3) - 2.0 for i in range(4)] for s in sets for q in s.questions}
    found = set()
    for direction in ("teacher_student", "student_teacher"):
        for mask in (False, True):
            settings = make_config(encoder_folder, **{"replug.direction": direction, "replug.mask_target": mask})
            loss, _ = objectives.find("replug")(settings, teacher=teacher).loss(sets, encoder)
            by_hand = []
            for s in sets:
                vectors = encoder.encode([*(q.text for q in s.questions), *s.passages]).astype(float)
                for row, q in enumerate(s.questions):
                    kept = [j for j in range(4) if not (mask and j == q.gold)]
                    student = [math.exp(vectors[row] @ vectors[len(s.questions) + j] / 0.05) for j in kept]
                    taught = [math.exp(teacher[q.id][j] / settings.replug.tau_lm) for j in kept]
                    p, t = ([x / sum(xs) for x in xs] for xs in (student, taught))
                    a, b = (t, p) if direction == "teacher_student" else (p, t)
                    by_hand.append(sum(x * math.log(x / y) for x, y in zip(a, b, strict=True)))
            assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-3)
            assert loss.item() > 0
            found.add(round(loss.item(), 6))
    assert len(found) == 4


def test_replug_pulls_the_student_to_the_teacher(config):  # noqa: F811
    sets = make_sets()
    teacher = {q.id: [0.0 if j == q.gold else -1.0 for j in range(4)] for s in sets for q in s.questions}
    original = objectives.find("replug").__init__.__defaults__
    objectives.find("replug").__init__.__defaults__ = (None, (), teacher)
    try:
        history = run(config, "replug", key="replug", sets=sets).history
    finally:
        objectives.find("replug").__init__.__defaults__ = original
    assert history[-1]["loss"] < history[0]["loss"]


def test_replug_without_teacher_scores_says_what_to_run(config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DreamError, match="teacher.parquet is missing. Run `dvc repro teacher`"):
        objectives.find("replug")(config)
    objective = objectives.find("replug")(config, teacher={})
    with pytest.raises(DreamError, match=r"no teacher scores for question q0\.0"):
        objective.loss(make_sets(1), Encoder.load(config))


# ------------------------------------------------------------------------------------------------------ Revela


def revela_reference(lm, ids, similarity, normalise):
    """The definition, chunk by chunk and head by head, in the model's own weights: loops and no attention interface."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    body, scale = lm.model, lm.config.head_dim**-0.5
    heads, groups = lm.config.num_attention_heads, lm.config.num_attention_heads // lm.config.num_key_value_heads

    def split(x, n):
        return x.view(len(x), n, -1).transpose(0, 1)

    def forward(i, cached):
        hidden = body.embed_tokens(torch.tensor(ids[i]))
        cos, sin = body.rotary_emb(hidden[None], torch.arange(len(ids[i]))[None])
        kept = []
        for number, layer in enumerate(body.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            q = split(attention.q_proj(normed), heads)
            k, v = (split(p(normed), lm.config.num_key_value_heads) for p in (attention.k_proj, attention.v_proj))
            q, k = (x[0] for x in apply_rotary_pos_emb(q[None], k[None], cos, sin))
            kept.append((k.detach(), v.detach()))
            outs = []
            for h in range(heads):
                logits = q[h] @ k[h // groups].T * scale
                causal = torch.ones_like(logits, dtype=torch.bool).triu(1)
                out = logits.masked_fill(causal, float("-inf")).softmax(-1) @ v[h // groups]
                for j in range(len(ids)) if cached else ():
                    if j != i:
                        keys, values = (x[h // groups] for x in cached[j][number])
                        weights = (q[h] @ keys.T * scale).softmax(-1)
                        read = weights @ values
                        if normalise:
                            read = read / ((weights * values.norm(dim=-1)).sum(-1, keepdim=True) + 1e-6)
                        out = out + similarity[i, j] * read
                outs.append(out)
            hidden = hidden + attention.o_proj(torch.cat(outs, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return lm.lm_head(body.norm(hidden)), kept

    cached = [forward(i, None)[1] for i in range(len(ids))]
    losses = []
    for i in range(len(ids)):
        logits, _ = forward(i, cached)
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[i][1:])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("normalise", [True, False])
def test_revela_equals_its_definition_in_loss_and_gradient(encoder_folder, config, normalise):  # noqa: F811
    """fp64, ragged chunks, grouped-query attention: loss and the gradients to Sim and to the LM within 1e-9."""
    settings = make_config(encoder_folder, **{"revela.value_normalisation": normalise, "revela.lm": "frozen"})
    objective = objectives.find("revela")(settings).double()
    lm, ids = objective.lm.requires_grad_(True), [[5, 6, 7, 8, 9, 10], [11, 12, 13], [7, 7, 14, 15, 5]]
    logits = torch.tensor([[0.0, 0.3, 1.0], [0.5, 0.0, -0.2], [0.1, 0.9, 0.0]], dtype=torch.float64)
    similarity = logits.masked_fill(torch.eye(3, dtype=torch.bool), float("-inf")).softmax(-1)
    results = []
    for compute in (objective.modelling_loss, lambda i, s: revela_reference(lm, i, s, normalise)):
        s = similarity.clone().requires_grad_()
        lm.zero_grad()
        loss = compute(ids, s)
        loss.backward()
        results.append((loss.detach(), s.grad * (1 - torch.eye(3)), lm.model.layers[0].self_attn.q_proj.weight.grad.clone()))
    for fast, slow in zip(*results, strict=True):
        assert slow.abs().max() > 1e-6
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=1e-7)
    plain = objective.modelling_loss(ids, torch.zeros(3, 3, dtype=torch.float64))
    assert (plain - results[0][0]).abs() > 1e-6, "the other chunks matter"


def test_revela_trains_encoder_and_lm(encoder_folder, config):  # noqa: F811
    settings = make_config(encoder_folder, **{"revela.tau": 0.05, "revela.r": 4, "judge.dtype": "float32", "training.steps": 4})
    result = run(settings, "revela", key="revela")
    assert result.flops > run(settings, "infonce", key="plain").flops, "the LM's operations count"
    moved = {name for name, p in result.step.trained().items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("encoder.") for n in moved) and any(n.startswith("objective.lm.") for n in moved)
    similarity = result.step.objective.similarity([[5, 6, 7], [8, 9], [10, 11, 12, 13]], ["the a", "cat dog", "sat on"], result.step.encoder)
    assert torch.allclose(similarity.sum(-1), torch.ones(3)) and similarity.diagonal().abs().max() == 0


@pytest.mark.parametrize("lm", ["frozen", "lora"])
def test_revelas_operations_equal_what_the_counter_of_torch_counts(encoder_folder, lm):  # noqa: F811
    """Products with weights exactly, less the gradient of the token embeddings that nobody asks for; other chunks exactly."""
    from torch.utils.flop_counter import FlopCounterMode

    objective = objectives.find("revela")(make_config(encoder_folder, **{"revela.lm": lm, "revela.r": 4}))
    ids, shape = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [7, 7, 14, 15, 5]], objective.lm.config
    similarity = torch.full((3, 3), 0.5).fill_diagonal_(0).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        objective.modelling_loss(ids, similarity).backward()
    products = reference.counted(counter, ".mm", ".addmm")
    rows, layers, heads = 3 * 6, shape.num_hidden_layers, shape.num_attention_heads
    first = [(n, p) for n, p in objective.lm.named_parameters() if "layers.0." in n and p.ndim > 1]
    unasked = sum(p.numel() for n, p in first if any(x in n for x in ("q_proj", "k_proj", "v_proj")) and "lora_B" not in n)
    attention = layers * 4 * 4 * heads * shape.head_dim * 3 * 21  # forward twice, backward as much as two; 21 pairs a chunk
    other = layers * 2 * 4 * heads * shape.head_dim * rows**2
    assert objective.operations(3, 6) == products + 2 * rows * unasked + attention + other
    if lm == "frozen":  # nor, then, for that of the first layer's queries
        other -= 2 * heads * shape.head_dim * rows**2
    assert reference.counted(counter, ".bmm") == pytest.approx(other, rel=0.02)  # and the rotations


@pytest.mark.parametrize("lm", ["frozen", "lora"])
@pytest.mark.parametrize("normalise", [True, False])
def test_revelas_loss_of_a_batch_equals_its_definition_from_first_halves_to_the_lm(encoder_folder, lm, normalise):  # noqa: F811
    """fp64: first halves as queries, Sim, in-batch attention, mean over sets; gradients to encoder and to the LM's LoRA."""
    more = {"revela.value_normalisation": normalise, "revela.lm": lm, "revela.tau": 0.3, "revela.r": 4, "revela.alpha": 8}
    objective = objectives.find("revela")(make_config(encoder_folder, **more, **{"judge.passage_tokens": 6})).double()
    model = objective.lm.base_model.model if lm == "lora" else objective.lm
    reference.exact_norms(model)
    generator = torch.Generator().manual_seed(0)
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert bool(trained) == (lm == "lora") and not any("lm_head" in n for n in trained)
    for p in trained.values():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)
    sets, encoder = make_sets(2, k=3), Table()
    loss, _ = objective.loss(sets, encoder)
    slow = []
    for s in sets:
        ids = [objective.tokenizer(text)["input_ids"][:6] for text in s.passages]
        halves = [objective.tokenizer.decode(i[: max(1, len(i) // 2)], skip_special_tokens=True) for i in ids]
        assert all(len(half.split()) == max(1, len(i) // 2) for half, i in zip(halves, ids, strict=True))
        rows = []
        for i, half in enumerate(halves):
            weights = [(encoder.vector(half) @ encoder.vector(text) / 0.3).exp() * (j != i) for j, text in enumerate(s.passages)]
            rows.append(torch.stack(weights) / sum(weights))
        slow.append(revela_reference(model, ids, torch.stack(rows), normalise))
    compare(loss, sum(slow) / len(slow), [encoder.weight, *trained.values()])


# ------------------------------------------------------------------------- all objectives: references and wrong inputs


class Table(torch.nn.Module):
    """An encoder in float64 that looks its unit vectors up, one for every text: nothing but a leaf to differentiate."""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(97, 8, generator=generator, dtype=torch.float64) * scale)

    def vector(self, text):
        return torch.nn.functional.normalize(self.weight[sum(i * ord(c) for i, c in enumerate(text, 1)) % 97], dim=-1)

    def embed(self, texts):
        return torch.stack([self.vector(text) for text in texts])


def compare(fast, slow, leaves):
    """Loss and gradients in float64."""
    torch.testing.assert_close(fast.detach(), slow.detach(), rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(loss, leaves) for loss in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 1e-9, "a gradient is zero: nothing is compared"
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("in_batch", [False, True])
def test_infonce_equals_its_definition_in_loss_and_gradients(encoder_folder, in_batch):  # noqa: F811
    """− log exp(s_gold / tau) / Σ exp(s / tau), over the set or over the micro-batch without the positive's twins."""
    objective = objectives.find("infonce")(make_config(encoder_folder, **{"infonce.in_batch_negatives": in_batch})).double()
    sets, encoder = make_sets(3, questions=2), Table()
    sets.append(dataclasses.replace(sets[0], id="twin", questions=sets[0].questions[:1]))
    loss, _ = objective.loss(sets, encoder)
    tau, per_set = objective.tau.log_tau.exp(), []
    for s in sets:
        losses = []
        for q in s.questions:
            pool = [text for other in (sets if in_batch else [s]) for text in other.passages]
            positive = s.passages[q.gold]
            negatives = [text for text in pool if text != positive]
            exps = [(encoder.vector(q.text) @ encoder.vector(text) / tau).exp() for text in [positive, *negatives]]
            losses.append(-(exps[0] / sum(exps)).log())
        per_set.append(sum(losses) / len(losses))
    compare(loss, sum(per_set) / len(per_set), [encoder.weight, objective.tau.log_tau])


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("tau", "tau_lm"), [(0.05, 0.1), (0.7, 0.1), (0.05, 2.0)])
def test_replug_equals_its_definition_in_loss_and_gradients(encoder_folder, direction, mask, tau, tau_lm):  # noqa: F811
    more = {"replug.direction": direction, "replug.mask_target": mask, "temperature.init": tau, "replug.tau_lm": tau_lm}
    sets, encoder = make_sets(2, questions=2), Table()
    teacher = {q.id: [0.3 * ((5 * i + n) % 4) - 2.0 for i in range(4)] for s in sets for n, q in enumerate(s.questions)}
    objective = objectives.find("replug")(make_config(encoder_folder, **more), teacher=teacher).double()
    loss, _ = objective.loss(sets, encoder)
    slow, log_tau = [], objective.tau.log_tau
    for s in sets:
        for q in s.questions:
            kept = [j for j in range(4) if not (mask and j == q.gold)]
            student = [(encoder.vector(q.text) @ encoder.vector(s.passages[j]) / log_tau.exp()).exp() for j in kept]
            taught = [math.exp(teacher[q.id][j] / tau_lm) for j in kept]
            p, t = [x / sum(student) for x in student], [torch.tensor(x / sum(taught), dtype=torch.float64) for x in taught]
            a, b = (t, p) if direction == "teacher_student" else (p, t)
            slow.append(sum(x * (x.log() - y.log()) for x, y in zip(a, b, strict=True)))
    compare(loss, sum(slow) / len(slow), [encoder.weight, log_tau])


@pytest.mark.parametrize("lora", [False, True])
def test_dream_equals_its_definition_in_loss_and_gradients(encoder_folder, lora):  # noqa: F811
    """From the texts to the loss: similarities, tau, gate, injection and the mean over questions and sets."""
    judge, model = reference.both()
    reference.exact_norms(judge.model)
    reference.exact_norms(model)
    more = {"injection.rows": "query+label", "dream.judge": "lora" if lora else "frozen", "dream.r": 2, "dream.alpha": 4}
    objective = objectives.find("dream")(make_config(encoder_folder, **more), judge, reference.HEADS).double()
    sets, encoder = [reference.candidate_set(questions=2, seed=s) for s in (0, 1)], Table()
    leaves, theirs = [encoder.weight, objective.tau.log_tau, objective.gamma], []
    if lora:
        generator, theirs = torch.Generator().manual_seed(2), [p for p in judge.model.parameters() if p.requires_grad]
        for p in theirs:
            p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
        model = judge.model  # read by the reference after the judge is done: it switches the attention
    loss, logs = objective.loss(sets, encoder)
    fast = torch.autograd.grad(loss, [*leaves, *theirs])
    slow = []
    for s in sets:
        vectors = encoder.embed(s.passages)
        for i, q in enumerate(s.questions):
            p = (vectors @ encoder.vector(q.text) / objective.tau.log_tau.exp()).softmax(-1)
            layout = judge.prompt.layout(s, i)
            gate = objective.gamma.sigmoid()
            slow.append(reference.target_loss(model, layout, p, gate, reference.HEADS, "query+label"))
    slow = sum(slow) / len(slow)
    torch.testing.assert_close(loss.detach(), slow.detach(), rtol=1e-9, atol=1e-11)
    for a, b in zip(fast, torch.autograd.grad(slow, [*leaves, *theirs]), strict=True):
        assert b.abs().max() > 1e-9
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-11)
    assert logs["gate"] == pytest.approx(objective.gamma.sigmoid().item())


@pytest.mark.parametrize("control", [{"injection.gate": "off"}, {"injection.scores": "uniform"}])
def test_a_control_cannot_train_the_judge(encoder_folder, control):  # noqa: F811
    with pytest.raises(DreamError, match="dream.judge=lora trains the judge, but .* train nothing. Set dream.judge=frozen"):
        make("dream", encoder_folder, **{"dream.judge": "lora"}, **control)


def test_a_trained_judge_is_saved_as_an_adapter_that_names_its_base(encoder_folder, tmp_path):  # noqa: F811
    objective = make("dream", encoder_folder, **{"dream.judge": "lora", "dream.r": 2, "dream.alpha": 6})
    objective.judge.reference = "owner/judge"
    objective.save(tmp_path)
    folder = tmp_path / "judge_adapter"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    settings, targets = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")), make_config(encoder_folder).training.lora.targets
    assert settings["target_modules"] == sorted(targets) and settings["base_model_name_or_path"] == "owner/judge"
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (2, 6, "LORA")
    saved, trained = load_file(folder / "adapter_model.safetensors"), dict(objective.adapter.named_parameters())
    assert len(saved) == 2 * 4 * len(targets)
    for name, weight in saved.items():
        assert torch.equal(weight, trained[name.replace(".weight", ".default.weight")])
    frozen = make("dream", encoder_folder)
    frozen.save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_gap_is_measured_every_few_steps_and_changes_no_loss(encoder_folder):  # noqa: F811
    objective, encoder = make("dream", encoder_folder, **{"injection.gap_every": 3}), Table()
    sets, found = [reference.candidate_set(questions=2)], []
    for objective.step in range(4):
        loss, logs = objective.loss(sets, encoder)
        found.append((loss.item(), "gap" in logs))
    assert [measured for _, measured in found] == [True, False, False, True]
    assert len({loss for loss, _ in found}) == 1


def make(name, folder, **more):
    """An objective with what it needs: a tiny judge, heads, a teacher."""
    judge = reference.both()[0] if name == "dream" else None
    kwargs = {"teacher": {q.id: [-1.0] * 4 for s in make_sets() for q in s.questions}} if name == "replug" else {}
    return objectives.find(name)(make_config(folder, **more), judge, reference.HEADS, **kwargs).double()


CASES = [(name, {}) for name in ("dream", "infonce", "replug")]
CASES += [("infonce", {"infonce.in_batch_negatives": True}), ("revela", {"revela.r": 4})]


@pytest.mark.parametrize(("name", "more"), CASES)
def test_every_objective_refuses_wrong_inputs_in_one_line(encoder_folder, name, more):  # noqa: F811
    objective, good = make(name, encoder_folder, **more), make_sets(2)
    assert torch.isfinite(objective.loss(good, Table())[0])
    alone = dataclasses.replace(good[0], passages=good[0].passages[:1], passage_ids=good[0].passage_ids[:1])
    stray = dataclasses.replace(good[0], questions=(dataclasses.replace(good[0].questions[0], gold=4),))
    two = dataclasses.replace(good[0], passages=good[0].passages[:2], passage_ids=good[0].passage_ids[:2])
    if name != "replug":  # whose teacher knows four candidates
        assert torch.isfinite(objective.loss([two], Table())[0]), "two candidates are enough"
    copied = dataclasses.replace(good[0], passages=(*good[0].passages[:3], f"  {good[0].passages[0]}\n"))
    for sets, line in (
        ([copied], "candidate set s0 has a copy of a target among its negatives"),
        ([], "holds no candidate set"),
        ([good[1], alone], "candidate set s0 has 1 candidates, at least two are needed"),
        ([dataclasses.replace(good[0], questions=())], "candidate set s0 has no question"),
        ([stray], "candidate set s0 has a question whose target is not a candidate"),
    ):
        with pytest.raises(DreamError, match=line):
            objective.loss(sets, Table())
    with pytest.raises(DreamError, match="similarities are not finite"):
        objective.loss(good, Table(scale=math.nan))


def test_replug_refuses_a_teacher_of_another_k_or_with_nan(encoder_folder):  # noqa: F811
    sets = make_sets(1)
    for values, line in (([-1.0] * 3, "no teacher scores for question"), ([-1.0, math.nan, 0, 0], "is not finite")):
        objective = objectives.find("replug")(make_config(encoder_folder), teacher={sets[0].questions[0].id: values})
        with pytest.raises(DreamError, match=line):
            objective.loss(sets, Table())


def test_revela_refuses_an_empty_passage(encoder_folder):  # noqa: F811
    sets = make_sets(1)
    sets = [dataclasses.replace(sets[0], passages=("", *sets[0].passages[1:]))]
    with pytest.raises(DreamError, match="candidate set s0 has an empty passage"):
        make("revela", encoder_folder, **{"revela.r": 4}).loss(sets, Table())
