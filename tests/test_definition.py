"""Which models may be a judge: every decoder whose injected heads equal edited attention matrices, and no other."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from reference import VOCABULARY, Letters, candidate_set, random_model, target_loss

from dream.errors import DreamError
from dream.judge import Injection, Judge, attention, definition

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
ABLE = {
    "Llama": {}, "Qwen2": {}, "Qwen3": {}, "Mistral": {"sliding_window": None}, "Olmo": {}, "Olmo2": {}, "Phi3": {}, "SmolLM3": {},
    "Granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2}, "Gemma": {}, "Cohere": {"logit_scale": 0.3}, "Glm": {},
    "StableLm": {}, "Helium": {}, "Nemotron": {}, "Ernie4_5": {}, "Starcoder2": {"sliding_window": None},
}  # fmt: skip
LOCAL = {
    "Gemma2": "sliding_attention", "Gemma3Text": "sliding_attention", "Olmo3": "sliding_attention", "GptOss": "sliding_attention",
    "Llama4Text": "chunked_attention", "Jamba": "linear_attention",
}  # fmt: skip


def model(kind, **more):
    """A random model of an architecture, in float64, with weights that make its attention sharp."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **ABLE.get(kind, {}), **more})
    found = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(0, 0.4) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) * 0.3)
    return found.eval()


def judge(kind="Llama", **more):
    return Judge(model(kind, **more), Letters(), reference=f"a {kind}")


@pytest.mark.parametrize("kind", ABLE)
def test_an_architecture_with_plain_attention_is_a_judge(kind):
    definition.check(judge(kind))


@pytest.mark.parametrize("kind", ["Olmo2", "Phi3", "Granite", "Gemma", "Cohere"])
def test_losses_and_gradients_of_new_architectures_equal_the_slow_reference(kind):
    plain, candidates = model(kind), candidate_set()
    fast = Judge(copy.deepcopy(plain), Letters())
    p = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.4, 0.2, 0.2, 0.2]], dtype=torch.float64, requires_grad=True)
    gate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    heads = ((0, 1), (2, 3))
    losses = fast.target_losses(candidates, p, gate, Injection(heads, "all"))
    mine = torch.autograd.grad(losses.sum(), (p, gate))
    slow = [target_loss(plain, fast.prompt.layout(candidates, i), p[i], gate, heads, "all") for i in range(2)]
    theirs = torch.autograd.grad(sum(slow), (p, gate))
    # norms of some architectures compute in float32
    torch.testing.assert_close(losses, torch.stack(slow), rtol=1e-5, atol=1e-6)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", LOCAL)
def test_layers_that_do_not_see_everything_are_refused_by_name(kind):
    config = getattr(transformers, f"{kind}Config")()
    for config.name_or_path in ("", "owner/judge"):
        name = config.name_or_path or config.model_type
        with pytest.raises(
            DreamError, match=rf"^judge {name} uses local attention \({LOCAL[kind]}\): its heads cannot see all cand"
        ):
            definition.refuse(config)


def test_every_kind_of_local_attention_is_named():
    config = transformers.LlamaConfig(
        layer_types=["sliding_attention", "full_attention", "chunked_attention"], num_hidden_layers=3
    )
    with pytest.raises(DreamError, match=r"\(chunked_attention, sliding_attention\)"):
        definition.refuse(config)


def test_a_window_counts_where_it_is_in_use():
    qwen, mistral = transformers.Qwen2Config, transformers.MistralConfig
    definition.refuse(qwen(sliding_window=16))  # named, but not in use
    old = SimpleNamespace(name_or_path="old", sliding_window=16, use_sliding_window=False)  # says nothing of its layers
    definition.refuse(old)
    old.use_sliding_window = True
    with pytest.raises(DreamError, match=r"judge old uses local attention \(sliding_attention\)"):
        definition.refuse(old)
    windows = [qwen(sliding_window=16, use_sliding_window=True, max_window_layers=1), mistral(sliding_window=16)]
    for config, kind in (*((one, "sliding") for one in windows), (transformers.LlamaConfig(attention_chunk_size=16), "chunked")):
        with pytest.raises(DreamError, match=rf"local attention \({kind}_attention\)"):
            definition.refuse(config)


@pytest.mark.parametrize("key", definition.CAPPED)
def test_soft_caps_are_refused_by_name(key):
    config = transformers.Gemma2Config(
        num_hidden_layers=1, layer_types=["full_attention"], **{**dict.fromkeys(definition.CAPPED), key: 30.0}
    )
    with pytest.raises(DreamError, match=rf"soft-capped .* logits \({key}\)"):
        definition.refuse(config)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Bloom", "GPTNeoX"])
def test_attention_that_cannot_be_exchanged_is_one_line(kind):
    with pytest.raises(DreamError, match=r"cannot be exchanged: 0 of its 3 layers"):
        judge(kind)


def test_a_model_whose_forward_call_fails_is_one_line():
    with pytest.raises(DreamError, match=r"^judge a DeepseekV3 cannot be run as a judge \(.+\). Choose a judge with plain"):
        definition.check(judge("DeepseekV3"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n of a kind\nand more"), r"\(of a kind\)"),
        (KeyError(), r"\(KeyError\)"),
        (DreamError("another line", "Do it"), "^another line. Do it$"),
    ],
)
def test_what_a_judge_fails_with_is_said_in_one_line(error, line):
    broken = judge()
    broken.model.base_model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(DreamError, match=line):
        definition.check(broken)


def test_attention_that_is_not_a_function_of_its_module_is_one_line():
    with pytest.raises(DreamError, match="^Linear has no attention function of transformers' kind"):
        definition.edited_attention(torch.nn.Linear(1, 1), None, None, None, None)


LIMITS = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("part", "passes"), [(0.99, True), (-0.99, True), (1.01, False), (-1.01, False), (float("nan"), False)])
def test_one_tokens_loss_may_differ_by_so_much_of_itself_and_a_nat(dtype, part, passes, monkeypatch):
    """The last of three tokens, with a loss of 3 nats, is off by a part of what is allowed."""
    right = torch.tensor([0.5, 7.0, 3.0], dtype=torch.float64)
    found = right + torch.tensor([0.0, 0.0, 4.0 * part * LIMITS[dtype]])
    asked, low = [], Judge(random_model(dtype=dtype), Letters(), reference="low")
    monkeypatch.setattr(Judge, "target_losses", lambda *given, per_token: [found])
    monkeypatch.setattr(definition, "_by_definition", lambda judge, sets, p, gate: asked.append(p is None) or right)
    if passes:
        definition.check(low)
        assert asked == [True, False], "without scores and with them"
    else:
        with pytest.raises(
            DreamError, match=rf"^judge low: its loss is not the method's \(a token's differs by {abs(part * LIMITS[dtype]):.2g}"
        ):
            definition.check(low)


def test_a_judge_without_weights_is_not_asked():
    empty = Judge(random_model().to("meta"), Letters())
    definition.check(empty)


def test_the_check_leaves_the_judge_as_it_was(monkeypatch):
    right, error = judge(), RuntimeError("broken")
    before = right.target_losses(candidate_set())
    definition.check(right)
    assert right.model.config._attn_implementation == attention.NAME
    monkeypatch.setattr(right.model, "forward", lambda **_: (_ for _ in ()).throw(error))
    with pytest.raises(DreamError, match=r"\(broken\)"):
        definition.check(right)
    assert torch.equal(right.target_losses(candidate_set()), before)


BROKEN = {
    "scores are ignored": (
        attention,
        "_inject",
        lambda scores, selected, output, *_: output,
        "with scores in its heads its loss",
    ),
    "a sink takes part of the mass": (
        attention,
        "_stock",
        lambda *given, real=attention._stock, **more: 0.8 * real(*given, **more),
        "its loss",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_judge_that_does_not_follow_the_definition_is_refused_when_it_is_loaded(fault, monkeypatch, tmp_path):
    owner, name, wrong, line = BROKEN[fault]
    right = judge()
    definition.check(right)
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(DreamError, match=rf"^judge a Llama: {line} is not the method's \(a token's differs by .+\)"):
        definition.check(right)


def test_an_output_scale_that_is_not_honoured_is_noticed():
    scaled = judge("Granite")
    assert scaled.logit_scale == 0.25
    scaled.logit_scale = 1.0
    with pytest.raises(DreamError, match="its loss is not the method's"):
        definition.check(scaled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_passes_and_still_notices_ignored_scores(dtype, monkeypatch):
    low = Judge(random_model(dtype=dtype), Letters(), reference="low")
    definition.check(low)
    monkeypatch.setattr(attention, "_inject", lambda scores, selected, output, *_: output)
    with pytest.raises(DreamError, match="with scores in its heads"):
        definition.check(low)


def test_loading_a_judge_asks_the_definition(monkeypatch, tmp_path):
    from test_encoder import make_tokenizer

    model("Llama").float().save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    Judge.load(str(tmp_path), "float32", "cpu")
    monkeypatch.setattr(attention, "_inject", lambda scores, selected, output, *_: output)
    with pytest.raises(DreamError, match="with scores in its heads"):
        Judge.load(str(tmp_path), "float32", "cpu")
