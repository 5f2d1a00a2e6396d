"""Each objective equals a slow reading of its definition; docs/objectives.md shows a working one."""

import math
import pathlib
import re

import pytest
import torch
from test_training import config, encoder_folder, make_config, make_sets, run, same, weights  # noqa: F401

from dream import objectives
from dream.encoder import Encoder
from dream.errors import DreamError


def test_a_new_objective_is_one_file(config, tmp_path, monkeypatch):  # noqa: F811
    source = re.search(r"```python\n(.*?)```", pathlib.Path("docs/objectives.md").read_text(), re.S)[1]
    (tmp_path / "margin.py").write_text(source)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    result = run(config, "margin", key="margin")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert not same(weights(result), weights(run(config, "infonce", key="other")))


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
    moved = {name for name, p in result.step.trained().items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("encoder.") for n in moved) and any(n.startswith("objective.lm.") for n in moved)
    similarity = result.step.objective.similarity([[5, 6, 7], [8, 9], [10, 11, 12, 13]], ["the a", "cat dog", "sat on"], result.step.encoder)
    assert torch.allclose(similarity.sum(-1), torch.ones(3)) and similarity.diagonal().abs().max() == 0
