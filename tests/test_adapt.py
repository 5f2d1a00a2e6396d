"""What adapting to own documents stands on: fused rankings, an adapter's strength, the fused teacher."""

import numpy as np
import pytest
import reference
import torch
import toy_project as toy
from test_objectives import Table, compare
from test_rivals import kl, softmax, student, teacher_of
from test_teachers import asked
from test_training import make_config, make_sets

from dream import teachers
from dream.config.sections import Lora
from dream.encoder import Encoder
from dream.encoder.adapters import scale
from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.objectives.fused import Fused
from dream.systems.hybrid import fuse

TEXTS = ["bees make honey", "a town in Norway", "x"]
model = pytest.fixture(scope="module")(toy.model)


def test_hybrid_is_reciprocal_rank_fusion():
    """By hand, k = 60: a 1/61 + 1/62, b 1/62 + 1/61 (a tie: by id), c 1/63, d 1/63 (by id)."""
    runs = [{"q": {"a": 9.0, "b": 5.0, "c": 1.0}}, {"q": {"b": 0.9, "a": 0.8, "d": 0.1}, "p": {"d": 0.5}}]
    found = fuse(runs, 60, 3)
    assert list(found["q"]) == ["a", "b", "c"] and found["p"] == {"d": 1 / 61}
    assert found["q"] == pytest.approx({"a": 1 / 61 + 1 / 62, "b": 1 / 61 + 1 / 62, "c": 1 / 63}, abs=1e-15)


def adapted(model, strength=None):
    encoder = Encoder.from_pretrained(model, pooling="last")
    encoder.add_lora(Lora(r=2, alpha=4, dropout=0.0), 0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3, generator=generator)
    if strength is not None:
        scale(encoder.backbone, strength)
    return encoder.eval()


def test_strength_is_a_line_from_the_untouched_to_the_trained_weights(model):
    plain = Encoder.from_pretrained(model, pooling="last").eval()
    old, new = plain.encode(TEXTS), adapted(model).encode(TEXTS)
    assert np.abs(old - new).max() > 1e-3
    assert np.array_equal(adapted(model, 0.0).encode(TEXTS), old) and np.array_equal(adapted(model, 1.0).encode(TEXTS), new)
    half, before, after = (e.backbone for e in (adapted(model, 0.5), plain, adapted(model)))
    half, after = half.merge_and_unload().state_dict(), after.merge_and_unload().state_dict()
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(half[name], (weight + after[name]) / 2, rtol=1e-5, atol=1e-6)
    assert adapted(model, 0.5).fingerprint() != adapted(model).fingerprint(), "the cache tells strengths apart"
    with pytest.raises(DreamError, match="there is none"):
        scale(plain.backbone, 0.5)


def test_fused_is_taught_by_bm25_and_attention_at_the_common_temperature():
    assert Fused.taught_by(Fused.Knobs()) == "lexical_attention"
    assert Fused({}).tau.log_tau.exp().item() == pytest.approx(0.05) and Fused({}).tau.log_tau.requires_grad


def test_fused_equals_its_definition_in_loss_and_gradients():
    sets, encoder = make_sets(2, questions=2), Table()
    teacher = teacher_of(sets, shift=0.5)
    objective = Fused(teacher, 0.2, tau_t=0.7).double()
    loss, _ = objective.loss(sets, encoder)
    tau = objective.tau.log_tau.exp()
    slow = [kl(softmax([t / 0.7 for t in teacher[q.id]]), student(encoder, s, q, tau)) for s in sets for q in s.questions]
    compare(loss, sum(slow) / len(slow), [encoder.weight, objective.tau.log_tau])


def test_the_fused_teacher_is_the_sum_of_standardised_bm25_and_attention(model):
    judge, _ = reference.both()
    passages = ("ab cd ef", "cd cd", "gh", "ab gh gh")
    questions = (Question("q0", "ab cd", 0), Question("q1", "gh", 2))
    config, candidates = make_config(model), CandidateSet("s", "test", tuple("0123"), passages, questions)
    heads = [(1, 0), (2, 1)]
    fused = asked(teachers.find("lexical_attention")(config, heads), judge)
    masses = asked(teachers.find("attention")(config, heads), judge).ask(candidates)[0]
    lexical = fused.lexical(candidates)
    assert lexical.shape == masses.shape and (lexical > 0).tolist() == [[True, True, False, True], [False, False, True, True]]

    def z(rows):
        return torch.tensor([[(x - np.mean(row)) / np.std(row) for x in row] for row in rows.double().numpy()])

    torch.testing.assert_close(fused.ask(candidates)[0].double(), z(lexical) + z(masses), rtol=1e-9, atol=1e-9)
    assert torch.equal(teachers.standardised(torch.ones(2, 3)), torch.zeros(2, 3))
