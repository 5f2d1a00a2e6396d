"""The judge's fast path equals the definition: full sequence, attention matrices edited as equations 7 to 9 say, fp64.

The reference knows nothing of shared documents, packed suffixes or the identity that the fast path uses: it runs every
question's whole prompt through the model and edits alpha itself. Loss and the gradients to the scores (through p), tau
and gamma agree within 1e-9.
"""

import copy
import dataclasses

import pytest
import torch
from test_encoder import WORDS, make_tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.judge import Injection, Judge, Limits, diagnostics, heads
from dream.judge.model import refuse_unsupported

TOLERANCE = 1e-9
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
HEADS = ((1, 0), (1, 3), (2, 1), (3, 2))
EDIT = {}


def reference_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Ordinary attention with the whole matrix at hand; selected heads and rows are rewritten."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(-1, -2) * scaling
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    alpha = logits.masked_fill(later, float("-inf")).softmax(-1)
    if EDIT:
        rewritten = [
            [edited(alpha[0, h, a]) if (module.layer_idx, h) in EDIT["heads"] and a in EDIT["rows"] else alpha[0, h, a]
             for a in range(alpha.shape[2])]
            for h in range(alpha.shape[1])
        ]  # fmt: skip
        alpha = torch.stack([torch.stack(rows) for rows in rewritten])[None]
        torch.testing.assert_close(alpha.sum(-1), torch.ones_like(alpha.sum(-1)))
    return (alpha @ value).transpose(1, 2).contiguous(), None


def edited(row):
    """alpha' of one row: equation 9, or the budget-preserving variant."""
    p, g, inside = EDIT["p"], EDIT["gate"], torch.zeros_like(row)
    total = sum(row[start:end].sum() for start, end in EDIT["documents"])
    for j, (start, end) in enumerate(EDIT["documents"]):
        within = row[start:end] / row[start:end].sum()
        share = p[j] if EDIT["budget"] == "paper" else total * p[j]
        inside = inside + torch.nn.functional.pad(share * within, (start, len(row) - end))
    if EDIT["budget"] == "paper":
        return (1 - g) * row + g * inside
    outside = row.clone()
    for start, end in EDIT["documents"]:
        outside = outside * torch.nn.functional.pad(torch.zeros(end - start), (start, len(row) - end), value=1.0)
    return (1 - g) * row + g * (outside + inside)


AttentionInterface.register("reference_dream", reference_attention)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_judge(kind, tokenizer):
    settings, model = KINDS[kind]
    torch.manual_seed(1)
    config = settings(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    return Judge(model(config).double().eval(), tokenizer, Limits(12, 6, 9))


@pytest.fixture(scope="module", params=list(KINDS))
def judge(request, tokenizer):
    return make_judge(request.param, tokenizer)


def make_set(k=3, questions=2):
    passages = tuple(" ".join(WORDS[(5 * j + w * (j + 2)) % len(WORDS)] for w in range(3 + 2 * j)) for j in range(k))
    asked = tuple(Question(f"q{m}", " ".join(WORDS[m + 3 : m + 6 + m]), (m + 1) % k) for m in range(questions))
    return CandidateSet("s", "toy", tuple(map(str, range(k))), passages, asked)


def reference_losses(judge, candidates, p, gate, injection):
    """Every question on its own: whole prompt, all logits."""
    model = copy.deepcopy(judge.model)
    model.config = copy.deepcopy(model.config)
    model.set_attn_implementation("reference_dream")
    losses = []
    for m in range(len(candidates.questions)):
        layout = judge.prompt.layout(candidates, m)
        first = len(layout.documents.ids)
        if injection is not None:
            rows = {first + r for r in layout.suffix.rows(injection.rows)}
            EDIT.update(heads=set(injection.heads), rows=rows, documents=layout.documents.spans, p=p[m], gate=gate, budget=injection.budget)
        logits = model(input_ids=torch.tensor([layout.ids]), use_cache=False).logits[0]
        EDIT.clear()
        start, end = layout.target
        losses.append(cross_entropy(logits[start - 1 : end - 1], torch.tensor(layout.ids[start:end])))
    return torch.stack(losses)


def both(judge, candidates, injection, g=0.3):
    """Loss and gradients of the fast path and of the reference."""
    results = []
    for compute in (judge.target_losses, lambda *a: reference_losses(judge, *a)):
        torch.manual_seed(0)
        scores = torch.randn(len(candidates.questions), len(candidates.passages), dtype=torch.float64, requires_grad=True)
        log_tau = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        gamma = torch.logit(torch.tensor(g, dtype=torch.float64)).requires_grad_()
        losses = compute(candidates, (scores / log_tau.exp()).softmax(-1), gamma.sigmoid(), injection)
        losses.sum().backward()
        results.append((losses.detach(), scores.grad, log_tau.grad, gamma.grad))
    return results


@pytest.mark.parametrize("budget", ["paper", "preserve"])
@pytest.mark.parametrize("rows", ["query", "query+label", "all"])
def test_the_fast_path_equals_the_definition(judge, rows, budget):
    fast, slow = both(judge, make_set(), Injection(HEADS, rows, budget))
    for name, a, b in zip(("loss", "scores", "tau", "gamma"), fast, slow, strict=True):
        assert b.abs().max() > 1e-7, f"{name} is zero: the comparison means nothing"
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("k", "questions"), [(2, 1), (5, 1), (4, 4)])
def test_it_holds_for_other_set_shapes(judge, k, questions):
    fast, slow = both(judge, make_set(k, questions), Injection(HEADS, "all"))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=1e-7)


def test_a_closed_gate_is_the_unmodified_judge(judge):
    candidates, p = make_set(), torch.full((2, 3), 1 / 3, dtype=torch.float64)
    plain = reference_losses(judge, candidates, None, None, None)
    closed = judge.target_losses(candidates, p, torch.tensor(0.0, dtype=torch.float64), Injection(HEADS, "all"))
    torch.testing.assert_close(judge.target_losses(candidates), plain, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(closed, plain, atol=TOLERANCE, rtol=0)
    opened = judge.target_losses(candidates, p, torch.tensor(0.9, dtype=torch.float64), Injection(HEADS, "all"))
    assert (opened - plain).abs().min() > 1e-6


def test_questions_of_one_set_do_not_see_each_other(judge):
    candidates = make_set(questions=3)
    together = judge.target_losses(candidates)
    for m, question in enumerate(candidates.questions):
        alone = judge.target_losses(dataclasses.replace(candidates, questions=(question,)))
        torch.testing.assert_close(alone[0], together[m], atol=TOLERANCE, rtol=0)


def test_no_graph_reaches_the_documents_or_the_judge(judge):
    reading = judge.read(make_set())
    assert not any(t.requires_grad for layer in reading.layers for t in layer)
    assert not any(p.requires_grad for p in judge.model.parameters())


def test_a_config_shared_with_another_model_does_not_switch_the_judge_off(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    model, other = LlamaForCausalLM(config).double(), LlamaForCausalLM(config)
    judge, candidates = Judge(model, tokenizer), make_set()
    p = torch.eye(3, dtype=torch.float64)[[0, 1]]
    before = judge.target_losses(candidates, p, torch.tensor(0.9), Injection(HEADS, "all"))
    other.set_attn_implementation("sdpa")
    after = judge.target_losses(candidates, p, torch.tensor(0.9), Injection(HEADS, "all"))
    torch.testing.assert_close(before, after)
    assert (before - judge.target_losses(candidates)).abs().max() > 1e-6, "scores reach the judge"


def test_head_scores_equal_their_definition(judge):
    """r_h from whole attention matrices, minus the same for the empty query, per document."""
    candidates = make_set(4, 1)
    reading = judge.read(candidates)
    masses, empty = judge.document_masses(candidates, reading)
    spans = reading.documents.spans
    found = heads.score_documents(masses, empty, [b - a for a, b in spans])[0]
    model = copy.deepcopy(judge.model)
    model.config = copy.deepcopy(model.config)
    model.set_attn_implementation("eager")
    expected = []
    for text in (candidates.questions[0].text, "N/A"):
        suffix = judge.prompt.suffix(text)
        ids = torch.tensor([reading.documents.ids + suffix.ids])
        alphas = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
        rows = [len(reading.documents.ids) + r for r in range(*suffix.query)]
        expected.append(torch.stack([torch.stack([a[0][:, rows, s:e].sum(-1).mean(-1) for s, e in spans], -1) for a in alphas]))
    torch.testing.assert_close(found, expected[0] - expected[1], atol=1e-6, rtol=1e-4)  # eager softmax is float32
    assert found.abs().max() > 1e-4


def test_ties_share_the_mean_gain():
    flat = heads.ndcg(torch.zeros(1, 4), gold=2)
    assert flat.item() == pytest.approx(heads.chance(4))
    assert heads.ndcg(torch.tensor([[0.0, 2.0, 1.0]]), gold=1).item() == 1


def test_unknown_heads_and_local_attention_are_refused(judge):
    with pytest.raises(DreamError, match=r"head \(9, 0\) does not exist"):
        judge.target_losses(make_set(), torch.full((2, 3), 1 / 3).double(), torch.tensor(0.5), Injection(((9, 0),)))
    with pytest.raises(DreamError):
        refuse_unsupported(MistralConfig(sliding_window=16, num_hidden_layers=2))


def test_the_diagnostic_measures_what_it_says_and_stops_training(judge):
    candidates, injection = make_set(questions=1), Injection(HEADS, "all")
    found = diagnostics.measure(judge, [candidates] * 2, injection, gate=0.5)
    used = next(r for r in found["rows"] if r["used"])
    right = judge.target_losses(candidates, torch.eye(3).double()[[1]], torch.tensor(0.5), injection).item()
    assert used["gold"] == pytest.approx(right, abs=1e-5) and used["rows"] == "all" and used["gap"] != 0
    flat = {"rows": [{**used, "gap": 0.0, "gap_low": -0.1, "gap_high": 0.1}]}
    with pytest.raises(DreamError, match="does not tell the right candidate from a wrong one"):
        diagnostics.require_signal(flat)
    diagnostics.require_signal(flat, force=True)
