"""What adapting to own documents stands on: fused rankings, an adapter's strength, what needs no target."""

import dataclasses

import numpy as np
import pytest
import torch
import toy_project as toy
import yaml
from test_objectives import Table, compare
from test_rivals import kl, softmax, student, teacher_of
from test_training import make_config, make_sets

from dream import config as configs
from dream import manifest
from dream.config import stages
from dream.config.sections import Lora
from dream.encoder import Encoder
from dream.encoder.adapters import scale
from dream.errors import DreamError
from dream.objectives import Given
from dream.objectives.art import ART
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


def test_fused_is_taught_by_what_its_knob_names_at_the_common_temperature():
    assert Fused.taught_by(Fused.Knobs()) == "bm25+attention"
    assert Fused.taught_by(Fused.Knobs(teachers=["encoder", "bm25", "question_likelihood"])) == "encoder+bm25+question_likelihood"
    assert Fused({}).tau.log_tau.exp().item() == pytest.approx(0.05) and Fused({}).tau.log_tau.requires_grad
    for wrong, line in {
        "[]": "at least one entry",
        "[bm25, bm25]": "stands there twice",
        "[bm52]": "'bm25', 'attention'",
    }.items():
        with pytest.raises(DreamError, match=line):
            configs.load(manifest.ROOT / "params.yaml", {"fused": {"teachers": yaml.safe_load(wrong)}})


def test_fused_depends_on_heads_and_on_its_encoder_only_where_they_teach():
    load = lambda *named: stages.files(  # noqa: E731
        configs.load(manifest.ROOT / "params.yaml", {"objectives": ["fused"], "fused": {"teachers": list(named)}})
    )["teacher-fused"]
    assert set(load("bm25", "attention")["roles"]) == {"judge"} and "encoder" not in load("bm25", "attention")
    assert set(load("bm25", "encoder")["roles"]) == {"encoder"} and "judge" not in load("bm25", "encoder")
    assert set(load("encoder", "question_likelihood")["roles"]) == {"encoder", "judge"}
    assert "bm25" not in load("encoder", "question_likelihood") and load("bm25")["bm25"]["k1"] == 0.9


@pytest.mark.parametrize(("kind", "knob"), [(Fused, "tau_t"), (ART, "tau_u")])
def test_distillation_equals_its_definition_in_loss_and_gradients(kind, knob):
    sets, encoder = make_sets(2, questions=2), Table()
    teacher = teacher_of(sets, shift=0.5)
    objective = kind(teacher, 0.2, **{knob: 0.7}).double()
    loss, _ = objective.loss(sets, encoder)
    tau = objective.tau.log_tau.exp()
    slow = [kl(softmax([t / 0.7 for t in teacher[q.id]]), student(encoder, s, q, tau)) for s in sets for q in s.questions]
    compare(loss, sum(slow) / len(slow), [encoder.weight, objective.tau.log_tau])
    moved = [
        dataclasses.replace(s, questions=tuple(dataclasses.replace(q, gold=(q.gold + 1) % 4) for q in s.questions)) for s in sets
    ]
    assert objective.loss(moved, encoder)[0] == loss, "it does not know the target"
    assert ART.taught_by(ART.Knobs()) == "question_likelihood"


def test_fused_sums_in_the_recipe_adapt_what_was_searched_for_it():
    assert Fused.Knobs.resolve("adapt").teachers == ["encoder", "bm25", "question_likelihood"]
    assert Fused.Knobs.resolve("packaged").teachers == Fused.Knobs.resolve("paper").teachers == ["bm25", "attention"]


def test_fused_is_built_from_its_temperature_and_the_settings():
    config = make_config("x", **{"temperature.init": 0.3, "temperature.learned": False})
    found = Fused.build(Fused.Knobs(tau_t=0.7, teachers=["bm25"]), config, Given(teacher={"q": [1.0]}))
    assert (found.knobs.tau_t, found.teacher, found.tau().item()) == (0.7, {"q": [1.0]}, pytest.approx(0.3))
    assert not found.tau.log_tau.requires_grad and Fused.build(Fused.Knobs(), config, Given()).teacher == {}
    assert Fused.build(Fused.Knobs(), make_config("x"), Given()).tau.log_tau.requires_grad
