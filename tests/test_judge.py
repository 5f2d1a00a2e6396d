"""The judge's fast path equals a slow reading of the equations in loss and gradients; see ``tests/reference.py``."""

import copy
import dataclasses
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import CONFIGS, HEADS, Letters, both, candidate_set, random_model
from test_encoder import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from dream import assets
from dream import config as configs
from dream.errors import DreamError
from dream.instances import CandidateSet, Question
from dream.judge import Injection, Judge, Limits, Prompt, attention, definition, questions
from dream.judge.attention import NAME, Scores, Spans, folded
from dream.judge.loss import target_losses
from dream.judge.model import attention_layers, pick_dtype

# The fast path rearranges sums of a few hundred float64 terms; the largest difference seen is below 1e-14.
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def toy_scores(candidates, seed=1):
    """A toy encoder's embeddings, log tau and gamma as leaves, and p and g made of them."""
    torch.manual_seed(seed)
    q, k = len(candidates.questions), len(candidates.passages)
    leaves = [torch.randn(q + k, 6, dtype=torch.float64), torch.tensor(-1.0), torch.tensor(0.3)]
    leaves = [x.double().requires_grad_() for x in leaves]
    e = torch.nn.functional.normalize(leaves[0], dim=-1)
    p = (e[:q] @ e[q:].T / leaves[1].exp()).softmax(-1)
    return leaves, p, leaves[2].sigmoid()


def losses_and_gradients(losses, leaves):
    weights = torch.arange(1.0, len(losses) + 1, dtype=torch.float64)
    return [losses, *torch.autograd.grad((losses * weights).sum(), leaves)]


def compare(judge, model, candidates, injection):
    leaves, p, gate = toy_scores(candidates)
    fast = losses_and_gradients(judge.target_losses(candidates, p, gate, injection), leaves)
    leaves, p, gate = toy_scores(candidates)
    slow = [
        reference.target_loss(model, judge.prompt.layout(candidates, i), p[i], gate, *dataclasses.astuple(injection))
        for i in range(len(candidates.questions))
    ]
    slow = losses_and_gradients(torch.stack(slow), leaves)
    for name, a, b in zip(("loss", "encoder", "tau", "gamma"), fast, slow, strict=True):
        assert b.abs().max() > 1e-6, f"{name} is zero: nothing is compared"
        torch.testing.assert_close(a.detach(), b.detach(), **EXACT, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rows", ["query", "query+label", "all"])
@pytest.mark.parametrize("budget", ["paper", "preserve"])
def test_loss_and_gradients_equal_the_reference(kind, rows, budget):
    judge, model = both(kind)
    compare(judge, model, candidate_set(), Injection(HEADS, rows, budget))


@pytest.mark.parametrize(
    ("lengths", "questions", "layers", "injection"),
    [
        ((1, 1), 1, 1, Injection(((0, 0),), "all")),  # one layer, one-token documents
        ((12, 2, 7), 3, 3, Injection(((0, 1), (1, 1), (2, 1)))),
        ((3, 4, 5, 6, 7, 8, 9, 1), 1, 3, Injection(tuple((2, h) for h in range(4)), "all", "preserve")),  # a layer
    ],
)
def test_equality_holds_for_other_shapes(lengths, questions, layers, injection):
    judge, model = both(layers=layers)
    compare(judge, model, candidate_set(lengths, questions), injection)


LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def with_lora(judge, model):
    """The same random LoRA, B not zero, in the judge and in the reference's model; their weights by name."""
    from peft import LoraConfig, get_peft_model

    reference.exact_norms(judge.model)
    reference.exact_norms(model)
    judge.add_lora(4, 8, LORA_TARGETS)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=LORA_TARGETS))
    found = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in (judge.model, model)]
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2 * len(LORA_TARGETS) * judge.layers
    torch.manual_seed(3)
    for name, p in found[0].items():
        with torch.no_grad():
            p.normal_(0, 0.3)
            found[1][name].copy_(p)
    return found


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("rows", "budget", "chunk"), [("query", "paper", None), ("all", "preserve", 7)])
def test_a_judge_with_lora_equals_the_reference_in_loss_and_all_gradients(kind, rows, budget, chunk):
    """The documents' keys and values carry the gradient of the LoRA too, read whole or in pieces."""
    judge, model = both(kind)
    ours, theirs = with_lora(judge, model)
    judge.chunk = chunk
    candidates, injection = candidate_set(), Injection(HEADS, rows, budget)
    leaves, p, gate = toy_scores(candidates)
    fast = losses_and_gradients(judge.target_losses(candidates, p, gate, injection), [*leaves, *ours.values()])
    leaves, p, gate = toy_scores(candidates)
    slow = [
        reference.target_loss(model, judge.prompt.layout(candidates, i), p[i], gate, *dataclasses.astuple(injection))
        for i in range(2)
    ]
    slow = losses_and_gradients(torch.stack(slow), [*leaves, *theirs.values()])
    for name, a, b in zip(("loss", "encoder", "tau", "gamma", *ours), fast, slow, strict=True):
        assert b.abs().max() > 1e-6, f"{name} is zero: nothing is compared"
        torch.testing.assert_close(a.detach(), b.detach(), **EXACT, msg=lambda m, name=name: f"{name}: {m}")


def test_lora_changes_nothing_at_first_leaves_the_output_matrix_alone_and_is_added_once():
    judge, _ = both()
    candidates = candidate_set()
    before = judge.target_losses(candidates)
    assert not before.requires_grad and not judge.read(candidates).layers[0][0].requires_grad
    adapter = judge.add_lora(4, 6, [*LORA_TARGETS, "lm_head"])
    made = adapter.peft_config["default"]
    assert (made.r, made.lora_alpha, made.task_type) == (4, 6, "CAUSAL_LM")
    torch.testing.assert_close(judge.target_losses(candidates), before, rtol=0, atol=0)
    assert not any("lm_head" in n for n, p in adapter.named_parameters() if p.requires_grad)
    assert judge.read(candidates).layers[-1][0].requires_grad
    with pytest.raises(DreamError, match="already has a LoRA"):
        judge.add_lora(4, 8, LORA_TARGETS)
    other, _ = both()
    other.reference = "owner/judge"
    with pytest.raises(DreamError, match=r"^lora_targets \['nothing'\] do not fit owner/judge"):
        other.add_lora(4, 8, ["nothing"])


@pytest.mark.parametrize("budget", ["paper", "preserve"])
def test_the_models_own_scale_of_logits_is_used(budget):
    """Every supported architecture scales by the root of the head's width; the judge takes what the layer says."""
    judge, model = both()
    for layer in (*attention_layers(judge.model), *attention_layers(model)):
        layer.scaling = 0.2
    for judge.chunk in (None, 7):
        compare(judge, model, candidate_set(), Injection(HEADS, "all", budget))


@pytest.mark.parametrize("budget", ["paper", "preserve"])
def test_a_full_sequence_without_a_mask_is_corrected_in_the_same_way(budget):
    """What the benchmarks' plain side runs: one causal sequence, the correction in its selected rows."""
    judge, model = both()
    candidates = candidate_set(questions=1)
    _, p, gate = toy_scores(candidates)
    layout = judge.prompt.layout(candidates)
    rows = torch.arange(layout.query[0], layout.target[1])
    by_layer, spans = Injection(HEADS).by_layer(), Spans.of(layout.documents.spans)
    scores = Scores(by_layer, rows, spans, p.expand(len(rows), -1), gate, budget)
    ids = torch.tensor([layout.ids])
    with torch.no_grad():
        log_p = judge.model(input_ids=ids, use_cache=False, dream=scores).logits[0].log_softmax(-1)
        slow = reference.target_loss(model, layout, p[0], gate, HEADS, "all", budget)
    targets = range(*layout.target)
    found = -sum(log_p[t - 1, ids[0, t]] for t in targets) / len(targets)
    torch.testing.assert_close(found, slow, **EXACT)


def test_the_comparison_can_fail():
    """A gate that is off by a thousandth is seen."""
    judge, model = both()
    candidates, injection = candidate_set(questions=1), Injection(HEADS, "all")
    _, p, gate = toy_scores(candidates)
    fast = judge.target_losses(candidates, p, gate + 1e-3, injection)[0]
    slow = reference.target_loss(model, judge.prompt.layout(candidates), p[0], gate, *dataclasses.astuple(injection))
    assert (fast - slow).abs() > 1e-6


def test_documents_read_in_pieces_are_the_same():
    candidates, injection = candidate_set(), Injection(HEADS, "all", "preserve")
    judge, _ = both()
    _, p, gate = toy_scores(candidates)
    judge.chunk = None
    whole = judge.target_losses(candidates, p, gate, injection)
    read = []
    judge.model.base_model.register_forward_pre_hook(lambda module, _, given: read.append(given["input_ids"]), with_kwargs=True)
    for judge.chunk in (1, 7, 10**6):
        torch.testing.assert_close(judge.target_losses(candidates, p, gate, injection), whole, **EXACT)
        *pieces, asked = read
        read.clear()
        assert len(asked) == 1
        assert torch.cat(pieces, 1)[0].tolist() == list(judge.prompt.documents(candidates).ids)
        assert [piece.shape[1] for piece in pieces[:-1]] == [judge.chunk] * (len(pieces) - 1) and pieces[-1].shape[
            1
        ] <= judge.chunk


@pytest.mark.parametrize("budget", ["paper", "preserve"])
def test_a_closed_gate_is_the_unmodified_judge(budget):
    judge, model = both()
    candidates = candidate_set()
    _, p, _ = toy_scores(candidates)
    closed = judge.target_losses(candidates, p, torch.tensor(0.0), Injection(HEADS, "all", budget))
    plain = judge.target_losses(candidates)
    model.set_attn_implementation("sdpa")
    for i in range(2):
        layout = judge.prompt.layout(candidates, i)
        ids = torch.tensor([layout.ids])
        labels = ids.clone()
        labels[:, : layout.target[0]] = -100
        library = model(input_ids=ids, labels=labels).loss.double()
        torch.testing.assert_close(plain[i], library, rtol=1e-6, atol=0)  # the library's loss is float32
        torch.testing.assert_close(closed[i], plain[i], **EXACT)


def test_one_hot_scores_and_an_open_gate_read_that_document_alone():
    """In the selected heads the output is the attention over one document's keys and values, and nothing else."""
    judge, model = both(layers=2)
    candidates = candidate_set(questions=1)
    layout, seen = judge.prompt.layout(candidates), {}

    def keep(module, args, kwargs, name):
        seen[name] = args[0].detach().view(*args[0].shape[:-1], 4, 8)

    for layer in attention_layers(judge.model):
        layer.o_proj.register_forward_pre_hook(lambda m, a, k=None, n=layer.layer_idx: keep(m, a, k, n))
    j = 2
    p = torch.eye(4, dtype=torch.float64)[[j]]
    judge.target_losses(candidates, p, torch.tensor(1.0), Injection(((0, 1), (0, 2)), "all"))
    model.set_attn_implementation("eager")
    qkv = {}
    layer = attention_layers(model)[0]
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(layer, name).register_forward_hook(lambda m, a, o, n=name: qkv.__setitem__(n, o[0]))
    ids = torch.tensor([layout.ids])
    model(input_ids=ids)
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cos, sin = model.model.rotary_emb(qkv["q_proj"][None], torch.arange(ids.shape[1])[None])
    q, k = (qkv[n].view(1, ids.shape[1], -1, 8).transpose(1, 2) for n in ("q_proj", "k_proj"))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    v = qkv["v_proj"].view(ids.shape[1], 2, 8).transpose(0, 1)
    start, end = layout.documents.spans[j]
    for head in (1, 2):
        alone = (q[0, head] @ k[0, head // 2, start:end].T / 8**0.5).softmax(-1) @ v[head // 2, start:end]
        rows = slice(layout.query[0], layout.target[1] - 1)
        shift = len(layout.documents.ids)
        found = seen[0][0, rows.start - shift : rows.stop - shift, head]
        assert alone[rows].abs().max() > 1e-3
        torch.testing.assert_close(found, alone[rows], **EXACT)


def test_no_graph_below_the_lowest_selected_layer_nor_for_documents():
    judge, _ = both()
    candidates = candidate_set()
    graph = {}
    for layer in attention_layers(judge.model):
        seen = graph.setdefault(layer.layer_idx, [])
        layer.o_proj.register_forward_hook(lambda m, a, o, seen=seen: seen.append(o.requires_grad))
    _, p, gate = toy_scores(candidates)
    judge.target_losses(candidates, p, gate, Injection(((2, 0),), "query")).sum().backward()
    # the documents' pass stops in the last layer before o_proj; the suffixes' pass has a graph from layer 2 on
    assert graph == {0: [False, False], 1: [False, False], 2: [False, True], 3: [True]}
    assert all(parameter.grad is None for parameter in judge.model.parameters())


def test_a_judge_whose_config_is_shared_stays_injected():
    config = random_model().config
    torch.manual_seed(0)
    judged, other = (AutoModelForCausalLM.from_config(config, dtype=torch.float64) for _ in range(2))
    assert judged.config is other.config
    rope = other.config.rope_parameters
    candidates = candidate_set()
    judge = Judge(judged, Letters())
    assert judge.model.config.rope_parameters == rope and judge.model.config.rope_parameters is not rope
    leaves, p, gate = toy_scores(candidates)
    before = losses_and_gradients(judge.target_losses(candidates, p, gate, Injection(HEADS, "all")), leaves)
    other.set_attn_implementation("sdpa")
    other.config._attn_implementation = "eager"
    leaves, p, gate = toy_scores(candidates)
    after = losses_and_gradients(judge.target_losses(candidates, p, gate, Injection(HEADS, "all")), leaves)
    for a, b in zip(before, after, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b)
    reading = judge.read(candidates)
    judge.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="scores would be ignored"):
        judge.target_losses(candidates, p, gate, Injection(HEADS, "all"), reading=reading)
    with pytest.raises(RuntimeError, match="scores would be ignored"):
        judge.read(candidates)
    with pytest.raises(RuntimeError, match="scores would be ignored"):
        judge.passage_log_likelihood(candidate_set(questions=1))
    assert NAME not in (other.config._attn_implementation,) and (judge.reference, judge.weights) == ("", "")


def test_questions_of_one_set_do_not_see_each_other():
    judge, _ = both()
    candidates = candidate_set(questions=3)
    _, p, gate = toy_scores(candidates)
    injection = Injection(HEADS, "all")
    together = judge.target_losses(candidates, p, gate, injection)
    reading = judge.read(candidates)
    for i, question in enumerate(candidates.questions):
        one = dataclasses.replace(candidates, questions=(question,))
        alone = judge.target_losses(one, p[i : i + 1], gate, injection, reading=reading)
        torch.testing.assert_close(alone[0], together[i], **EXACT)


def test_losses_per_token_average_to_the_loss():
    judge, _ = both()
    candidates = candidate_set()
    tokens = judge.target_losses(candidates, per_token=True)
    assert [len(t) for t in tokens] == [9, 5]
    torch.testing.assert_close(torch.stack([t.mean() for t in tokens]), judge.target_losses(candidates))


def test_the_teacher_reads_one_passage_at_a_time():
    judge, model = both()
    candidates = candidate_set()
    found = judge.passage_log_likelihood(candidates)
    for i, question in enumerate(candidates.questions):
        for j, passage in enumerate(candidates.passages):
            passages = (passage, candidates.passages[question.gold])  # only the first is read, the second is the target
            suffix = judge.prompt.suffixes(candidates)[i]
            alone = judge.prompt.documents(dataclasses.replace(candidates, passages=passages[:1], passage_ids=("x",)))
            layout = dataclasses.replace(judge.prompt.layout(candidates, i), documents=alone, suffix=suffix)
            torch.testing.assert_close(found[i, j], -reference.target_loss(model, layout), **EXACT)


def test_one_question_is_one_pass_as_wide_as_its_longest_line_that_keeps_nothing():
    judge, _ = both()
    candidates, seen = candidate_set(questions=1), []
    judge.model.base_model.register_forward_hook(
        lambda _, __, given, out: seen.append((given["input_ids"].shape, out)), with_kwargs=True
    )
    judge.passage_log_likelihood(candidates)
    ((shape, out),) = seen
    longest = max(len(one.ids) for one in judge.prompt.documents(candidates).alone())
    assert shape == (4, longest + len(judge.prompt.suffixes(candidates)[0].ids) - 1) and out.past_key_values is None


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("chunk", "questions"), [(None, 3), (3, 3), (None, 1)])
def test_the_likelihoods_are_those_of_one_passage_at_a_time(kind, chunk, questions):
    """Side by side, of ragged lengths, against every passage as a prompt of its own."""
    judge, slow = both(kind)
    judge.chunk = chunk
    candidates = candidate_set(questions=questions)
    found = judge.passage_log_likelihood(candidates)
    one_by_one = [-judge.target_losses(candidates, reading=judge.read(d)) for d in judge.prompt.documents(candidates).alone()]
    torch.testing.assert_close(found, torch.stack(one_by_one, dim=1), **EXACT)
    for i in range(questions):
        for j, alone in enumerate(judge.prompt.documents(candidates).alone()):
            layout = dataclasses.replace(judge.prompt.layout(candidates, i), documents=alone)
            torch.testing.assert_close(found[i, j], -reference.target_loss(slow, layout), **EXACT)


@pytest.mark.parametrize("kind", CONFIGS)
def test_leaving_one_out_hides_a_document_from_the_suffix_alone(kind):
    judge, slow = both(kind)
    candidates = candidate_set(questions=2)
    found = judge.leave_one_out(candidates)
    assert found.shape == (2, 4) and torch.equal(found, judge.leave_one_out(candidates, judge.read(candidates)))
    for i in range(2):
        for j in range(4):
            expected = reference.loss_without(slow, judge.prompt.layout(candidates, i), j)
            torch.testing.assert_close(found[i, j], expected, **EXACT)
    assert (found - judge.target_losses(candidates)[:, None]).abs().min() > 1e-6, "every document matters"


SETS = [candidate_set(questions=2, seed=s) for s in range(6)]


def rounded(dtype):
    """The judge with weights that ``dtype`` holds exactly, in ``dtype`` and in float64: what differs is the computation."""
    low = random_model()
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1)  # logits as flat as a trained model's: a sharp one is chaotic
    low = low.to(dtype)
    return low, copy.deepcopy(low).double()


def error(found, exact):
    """Relative error of many numbers together: the root of the squares' sums."""
    found, exact = (torch.cat([x.detach().double().flatten() for x in xs]) for xs in (found, exact))
    assert exact.norm() > 1e-6, "nothing is compared"
    return ((found - exact).norm() / exact.norm()).item()


def plain_losses(judge, model, candidates, p, gate, injection):
    """One full sequence a question, by the slow reference, in the model's own dtype."""
    layouts, rest = [judge.prompt.layout(candidates, i) for i in range(len(p))], dataclasses.astuple(injection)
    return torch.stack([reference.target_loss(model, layout, p[i], gate, *rest) for i, layout in enumerate(layouts)])


@pytest.mark.parametrize("budget", ["paper", "preserve"])
@pytest.mark.parametrize(("dtype", "loss", "gradient"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 5e-3, 0.1)])
def test_losses_and_gradients_in_low_precision_err_no_more_than_the_plain_full_sequence(dtype, loss, gradient, budget):
    """Against float64 with the same weights: a stated error, and twice that of one plain sequence in the same dtype at most.

    Losses and gradients to p, embeddings, gate and log tau, of 12 questions together. The plain path rounds every attention
    matrix to the dtype; the fast one mixes selected rows in float32. In bfloat16 (8 bits, 0.4 %) a sum through four layers
    keeps the losses to .2 % and the gradients to 3 to 5 %, on both paths.
    """
    low, high = rounded(dtype)
    judge, injection = Judge(copy.deepcopy(low), Letters()), Injection(HEADS, "all", budget)
    found = {"exact": [], "plain": [], "fast": []}
    for s in SETS:
        for path, runs in found.items():
            leaves, p, gate = toy_scores(s)
            if path == "exact":
                losses = plain_losses(judge, high, s, p, gate, injection)
            elif path == "plain":
                losses = plain_losses(judge, low, s, p.float(), gate.float(), injection)
            else:
                losses = judge.target_losses(s, p.float(), gate.float(), injection)
                assert losses.dtype == torch.float32
            runs.append([losses, *torch.autograd.grad(losses.double().sum(), [p, *leaves])])
    errors = {path: [error(ours, exact) for ours, exact in zip(zip(*runs, strict=True), zip(*found["exact"], strict=True), strict=True)]
              for path, runs in found.items() if path != "exact"}  # fmt: skip
    for path, (losses, p, embeddings, log_tau, gamma) in errors.items():
        errors[path] = {"loss": losses, "p": p, "embeddings": embeddings, "scalars": (log_tau + gamma) / 2}
    assert errors["fast"]["loss"] < loss and max(errors["fast"].values()) < gradient, errors
    for name, plain in errors["plain"].items():
        assert errors["fast"][name] < 2 * plain, (name, errors)


@pytest.mark.parametrize("rows", ["query", "query+label", "all"])
def test_the_gap_keeps_its_sign_and_size_in_bfloat16(rows):
    """Wrong minus gold of twelve questions: its size (regressed on float64's) within a fifth, the sign of each that is clear.

    One question's gap errs no more than twice as much as the plain path's: some .004 nats here, whatever the gap.
    """
    low, high = rounded(torch.bfloat16)
    judge, injection, gate = Judge(copy.deepcopy(low), Letters()), Injection(HEADS, rows), torch.tensor(0.5)
    paths = {
        "exact": lambda s, p: plain_losses(judge, high, s, p, gate.double(), injection),
        "plain": lambda s, p: plain_losses(judge, low, s, p.float(), gate, injection),
        "fast": lambda s, p: judge.target_losses(s, p.float(), gate, injection),
    }
    gaps = dict.fromkeys(paths, torch.empty(0, dtype=torch.float64))
    for s in SETS:
        gold = torch.eye(4, dtype=torch.float64)[[q.gold for q in s.questions]]
        for path, losses in paths.items():
            with torch.no_grad():
                gaps[path] = torch.cat([gaps[path], losses(s, gold.roll(1, dims=1)).double() - losses(s, gold).double()])
    exact, plain, fast = gaps["exact"], gaps["plain"], gaps["fast"]
    typical = exact.square().mean().sqrt()
    assert (fast - exact).norm() < 2 * (plain - exact).norm()
    assert 0.8 < (fast @ exact) / (exact @ exact) < 1.2
    clear = exact.abs() > 0.4 * typical
    assert clear.sum() >= 5 and torch.equal(fast[clear].sign(), exact[clear].sign()), (fast, exact)


# ------------------------------------------------------------------------------------------------------- prompt


@given(
    st.lists(st.text("abc \n.", min_size=1, max_size=12), min_size=2, max_size=5),
    st.text("xyz", max_size=9),
    st.integers(1, 8),
)
@settings(max_examples=50, deadline=None)
def test_spans_are_exactly_the_tokens_of_the_texts(passages, query, limit):
    names = tuple(map(str, range(len(passages))))
    candidates = CandidateSet("s", "t", names, tuple(passages), (Question("q", query, 1),))
    prompt = Prompt(Letters(), Limits(limit, limit, limit))
    layout = prompt.layout(candidates)
    ids = layout.ids
    assert ids[0] == 1
    for (start, end), passage in zip(layout.documents.spans, passages, strict=True):
        assert ids[start:end] == prompt.tokens(passage)[:limit]
    assert ids[slice(*layout.query)] == prompt.tokens(f" {query or 'N/A'}")[:limit]
    assert ids[slice(*layout.label)] == prompt.tokens("\n\nTARGET PASSAGE:\n\n")
    assert ids[slice(*layout.target)] == prompt.tokens(passages[1])[:limit]
    assert layout.query[1] == layout.label[0] and layout.label[1] == layout.target[0] and layout.target[1] == len(ids)


def test_without_limits_the_pieces_spell_the_documented_text():
    candidates = CandidateSet("s", "t", ("0", "1"), ("First one.", "Second."), (Question("q", "which", 1),))
    text = "PASSAGES:\n\nFirst one.\n\nSecond.\n\nQUESTION: which\n\nTARGET PASSAGE:\n\nSecond."
    assert Prompt(Letters(bos=None)).layout(candidates).ids == Prompt(Letters()).tokens(text)


def test_nothing_is_added_to_a_text_and_nothing_in_it_is_a_special_token(tmp_path):
    make_tokenizer(tmp_path, special=True)  # adds <cls> and <eos> by itself
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    added, plain = tokenizer("the cat")["input_ids"], Prompt(tokenizer).tokens("the cat")
    assert added == [3, *plain, 1] and len(plain) == 2
    assert not {0, 1, 3} & set(Prompt(tokenizer).tokens("the <eos> cat <pad>"))


def test_a_suffix_without_a_target_ends_after_the_question():
    prompt = Prompt(Letters())
    suffix = prompt.suffix("which")
    assert suffix.ids == prompt.tokens("\n\nQUESTION: which") and suffix.query[1] == len(suffix.ids)
    assert suffix.label == suffix.target == (len(suffix.ids),) * 2


def test_lengths_are_the_papers_unless_the_config_says_otherwise():
    paper = configs.load(overrides={"recipe": "paper"}).judge
    assert Limits() == Limits(paper.passage_tokens, paper.query_tokens, paper.target_tokens)


def test_an_empty_passage_is_named():
    candidates = CandidateSet("s", "t", ("a", "b"), ("text", ""), (Question("q", "which", 0),))
    with pytest.raises(DreamError, match="passage b is empty"):
        Prompt(Letters()).documents(candidates)


# ----------------------------------------------------------------------------------------- what a user can get wrong


def test_injections_are_validated():
    with pytest.raises(DreamError, match="^injection.rows: 'queries' is not defined"):
        Injection(((0, 0),), "queries")
    with pytest.raises(DreamError, match="^injection.budget: 'all' is not defined"):
        Injection(((0, 0),), "query", "all")
    with pytest.raises(DreamError, match="twice"):
        Injection(((0, 0), (0, 0)))
    with pytest.raises(DreamError, match="none is selected"):
        Injection(())
    judge, _ = both()
    candidates = candidate_set()
    _, p, gate = toy_scores(candidates)
    for head in ((4, 0), (0, 4), (-1, 0)):
        with pytest.raises(DreamError, match="does not exist"):
            judge.target_losses(candidates, p, gate, Injection((head,)))
    with pytest.raises(ValueError, match="shape"):
        judge.target_losses(candidates, p[:1], gate, Injection(HEADS))
    with pytest.raises(ValueError, match="without an injection"):
        judge.target_losses(candidates, p, gate)
    for half in ({"p": p}, {"gate": gate}):
        assert torch.equal(judge.target_losses(candidates, injection=Injection(HEADS), **half), judge.target_losses(candidates))


def test_auto_dtype_is_bfloat16_only_where_it_is_faster(monkeypatch):
    intel, amd = {"cpu_name": "Intel Xeon"}, {"cpu_name": "AMD EPYC"}
    for able, dtype in (
        (amd | {"avx512_bf16": False}, torch.float32),
        (amd | {"avx512_bf16": True}, torch.bfloat16),
        (intel | {"avx512_bf16": True, "amx_bf16": False}, torch.float32),
        (intel | {"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert pick_dtype("auto") == dtype, able
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert (pick_dtype("auto"), pick_dtype("auto", "cuda")) == (torch.float32, torch.bfloat16)
    for name in ("float16", "bfloat16", "float32", "float64"):
        assert pick_dtype(name, "cuda") == getattr(torch, name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for able in (True, False):  # an old card emulates it
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able or including_emulation)
        assert pick_dtype("auto", "cuda") == (torch.bfloat16 if able else torch.float32)


def test_a_judge_is_loaded_as_its_record_says(tmp_path, monkeypatch):
    asked, load = [], AutoModelForCausalLM.from_pretrained
    random_model(dtype=torch.float32).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *given, **how: asked.append(how) or load(*given, **how))
    checked = []
    monkeypatch.setattr(definition, "check", checked.append)
    record = SimpleNamespace(model=str(tmp_path), dtype="float32", quantization="none")
    lengths = SimpleNamespace(passage_tokens=5, query_tokens=3, target_tokens=4)
    judge = Judge.build(SimpleNamespace(roles={"judge": record}, judge=lengths), "cpu")
    device = {"": torch.device("cpu")}
    assert asked == [{"dtype": torch.float32, "use_safetensors": True, "attn_implementation": "sdpa", "device_map": device}]
    assert checked == [judge], "a judge is tried before it is used"
    assert (judge.reference, judge.weights) == (str(tmp_path), assets.content_hash(str(tmp_path)))
    assert (judge.dtype, judge.device.type, judge.layers, judge.heads) == (torch.float32, "cpu", 4, 4)
    assert (judge.prompt.limits, len(judge.prompt.tokens("the cat"))) == (Limits(5, 3, 4), 2)
    assert judge.chunk == 512 and Judge.load(str(tmp_path), "bfloat16").chunk is None, "pieces pay in float32"
    assert Judge.load(str(tmp_path), "float32", "meta").device.type == "meta"
    assert judge.store is None and not judge.model.training and not any(p.requires_grad for p in judge.model.parameters())
    with pytest.raises(DreamError, match=r"Load the judge anew") as caught:
        [judge.add_lora(2, 4) for _ in range(2)]
    assert str(caught.value).startswith(f"judge {tmp_path} already has a LoRA")


def test_a_judge_with_local_attention_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    model = random_model("mistral")
    model.config.sliding_window = 8
    with pytest.raises(DreamError, match="local attention"):
        Judge(model, Letters())
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("its weights were read"))
    with pytest.raises(DreamError, match=rf"^judge {tmp_path} uses local attention"):
        Judge.load(str(tmp_path))


class Noting:
    """A store that keeps nothing and notes what it is asked."""

    def __init__(self):
        self.asked, self.closed = [], []
        self.close = self.closed.append

    def layers(self, judge, ids, depth, make):
        self.asked.append((judge, ids, depth))
        return make()


def test_what_is_read_goes_through_the_store_which_a_trained_or_quantized_judge_closes(monkeypatch):
    judge, _ = both()
    candidates, judge.store = candidate_set(), Noting()
    ids = judge.prompt.documents(candidates).ids
    assert [len(judge.read(candidates, depth).layers) for depth in (None, 2)] == [4, 2]
    assert judge.store.asked == [(judge, ids, 4), (judge, ids, 2)] and not judge.store.closed
    judge.add_lora(2, 4)
    assert judge.store.closed == ["the judge is trained"]
    monkeypatch.setattr(Judge, "load", lambda *_: both()[0])
    lengths = SimpleNamespace(passage_tokens=9, query_tokens=9, target_tokens=9)
    for quantization, closed in {"none": [], "8bit": ["a judge in 8bit promises no stable bytes"]}.items():
        record = SimpleNamespace(model="m", dtype="float32", quantization=quantization)
        store = Noting()
        assert Judge.build(SimpleNamespace(roles={"judge": record}, judge=lengths), store=store).store is store
        assert store.closed == closed
        Judge.build(SimpleNamespace(roles={"judge": record}, judge=lengths))


def test_the_output_scale_of_a_model_is_that_of_its_output_matrix():
    scaled, model = random_model("qwen2"), random_model("qwen2")
    scaled.config.logit_scale = 0.25
    with torch.no_grad():
        model.lm_head.weight.mul_(0.25)
    compare(Judge(scaled, Letters()), model, candidate_set(), Injection(HEADS, "all"))


def test_a_model_whose_attention_is_its_own_is_refused():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=3, n_head=2, n_embd=8, vocab_size=97))
    with pytest.raises(
        DreamError, match=r"^the attention of gpt2 cannot be exchanged: 0 of its 3 layers are of transformers' kind"
    ):
        Judge(model, Letters())


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantized_judge_is_made_by_bitsandbytes_on_its_device(tmp_path, monkeypatch, kind):
    """The library is not here: what transformers would be given, by default on CUDA, and that nothing is moved afterwards."""
    asked, model = [], random_model(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **how: asked.append(how) or model)
    monkeypatch.setattr(model, "to", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    for there in (None, True):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, *_, there=there: there if name == "bitsandbytes" else None)
        if not there:
            with pytest.raises(DreamError, match=f"the judge's quantization is {kind}, which needs bitsandbytes"):
                Judge.load(str(tmp_path), quantization=kind)
    Judge.load(str(tmp_path), quantization=kind)
    (how,) = asked
    settings = how.pop("quantization_config").to_dict()
    assert how == {
        "dtype": torch.bfloat16, "use_safetensors": True, "attn_implementation": "sdpa", "device_map": {"": torch.device("cuda")}
    }  # fmt: skip
    assert (settings["load_in_8bit"], settings["load_in_4bit"]) == (kind == "8bit", kind == "4bit")
    if kind == "4bit":
        assert (settings["bnb_4bit_quant_type"], settings["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")


# --------------------------------------------------------------------------------------------------------- pieces


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_span_index_holds_every_document_position_once(lengths, first):
    spans, start = [], first
    for n in lengths:
        spans.append((start, start + n))
        start += n + 2
    index = Spans.of(spans)
    assert index.index.shape == (len(lengths), max(lengths)) and not index.index[~index.valid].any()
    assert [i[v].tolist() for i, v in zip(index.index, index.valid, strict=True)] == [list(range(*s)) for s in spans]


def test_selected_rows_are_computed_in_float32_at_least():
    for narrow in (torch.float16, torch.bfloat16, torch.float32):
        assert attention.wide(torch.ones(2, dtype=narrow)).dtype == torch.float32
    assert attention.wide(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_the_judges_attention_is_registered_with_a_mask_of_its_own(monkeypatch):
    """transformers makes no mask for an implementation that registers none: a padded or packed call would see everything."""
    registered = []
    for interface in (attention.AttentionInterface, attention.AttentionMaskInterface):
        monkeypatch.setattr(interface, "register", lambda *what, interface=interface: registered.append((interface, *what)))
    spec = importlib.util.spec_from_file_location("fresh_attention", attention.__file__)
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, fresh)  # dataclasses look their module up
    spec.loader.exec_module(fresh)
    expected = [
        (attention.AttentionInterface, NAME, fresh.judge_attention),
        (attention.AttentionMaskInterface, NAME, fresh.sdpa_mask),
    ]
    assert registered == expected


@pytest.mark.parametrize("scale", [1, 2, 0.125])
def test_hidden_states_are_scaled_as_the_models_logits_are(scale):
    judge, _ = both()
    judge.logit_scale = scale
    hidden = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge._scaled(hidden), hidden * scale)


@pytest.mark.parametrize("groups", [1, 3])
def test_every_head_of_a_group_sees_the_same_rows(groups):
    mask = torch.arange(12.0).view(2, 1, 2, 3)
    assert torch.equal(folded(mask, groups), torch.cat([mask] * groups, dim=2))


def test_target_losses_equal_cross_entropy_and_its_gradient():
    torch.manual_seed(0)
    weight = torch.randn(30, 6, dtype=torch.float64)
    a = torch.randn(600, 6, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    labels, upstream = torch.randint(0, 30, (600,)), torch.randn(600, dtype=torch.float64)
    fast = target_losses(a, weight, labels)
    slow = torch.nn.functional.cross_entropy(b @ weight.T, labels, reduction="none")
    torch.testing.assert_close(fast, slow)
    fast.backward(upstream)
    slow.backward(upstream)
    assert b.grad.abs().max() > 0
    torch.testing.assert_close(a.grad, b.grad)


def test_a_question_that_is_asked_for_stands_in_the_targets_place_behind_the_request():
    prompt = Prompt(Letters(), Limits(query=5))
    request = prompt.tokens("\n\nPlease write a question based on this passage.\n\nQuestion:")
    suffix = questions.suffix(prompt, " who is it? ")
    n = len(request)
    assert suffix.ids == (*request, *prompt.tokens(" who is it?")[:5]) and suffix.target == (n, n + 5)
    assert (suffix.query, suffix.label) == ((n, n), (0, n)) and not suffix.rows("query")
    assert questions.suffix(prompt, " ") == questions.suffix(prompt, "N/A")
