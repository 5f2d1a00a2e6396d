"""The encoder: invariance of embeddings, gradients, LoRA, adapters that plain peft reads, bad input."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dream import models
from dream.config import Model
from dream.encoder import (
    POOLINGS,
    Encoder,
    batches,
    pool,
    split_revision,
    unique,
)
from dream.encoder import (
    encoder as module,
)
from dream.errors import DreamError
from dream.lora import attention_projections, check_targets

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "city",
    "river",
    "large",
    "small",
    "runs",
    "in",
    "of",
    "is",
    "was",
    "blue",
    "red",
    "green",
]
TEXTS = [" ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(1 + (i * 5) % 23)) for i in range(64)]
TOLERANCE = 1e-5  # of a component, float32
LORA = SimpleNamespace(r=4, alpha=8, dropout=0.0)
CAUSAL = ("llama", "qwen2", "qwen3")
# Kind of model → the names of its attention's linear modules.
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
BERT = ["query", "key", "value", "attention.output.dense"]
KINDS = {
    **dict.fromkeys(CAUSAL, QKVO), "bert": BERT, "xlm-roberta": BERT, "mpnet": ["q", "k", "v", "o"],
    "modernbert": ["Wqkv", "attn.Wo"], "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin"],
}  # fmt: skip


def make_tokenizer(folder, special=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "<cls>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="<cls> $A <eos>", special_tokens=[("<cls>", 3), ("<eos>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def make_model(folder, kind="llama", seed=0, hidden=32):
    """Write a tiny random model with its tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    vocabulary = make_tokenizer(folder, special=kind not in CAUSAL)
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    if kind in CAUSAL:
        shape |= {"num_key_value_heads": 2, **({"head_dim": hidden // 4} if kind == "qwen3" else {})}
    elif kind == "modernbert":
        shape |= {"initializer_cutoff_factor": 2.0, "local_attention": 8, "global_attn_every_n_layers": 2}
    elif kind == "distilbert":
        shape |= {"hidden_dim": shape.pop("intermediate_size")}
    tokens = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1, "cls_token_id": 3, "sep_token_id": 1}
    config = AutoConfig.for_model(kind, **shape, **({} if kind in CAUSAL else tokens))
    model = (AutoModelForCausalLM if kind in CAUSAL else AutoModel).from_config(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def any_model(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_embeddings_do_not_depend_on_batch_size_order_or_padding_side(any_model, pooling):
    encoder = Encoder.from_pretrained(any_model, pooling=pooling, max_length=20)
    reference = encoder.encode(TEXTS, token_budget=1)
    assert reference.shape == (64, 32) and reference.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(reference, axis=1), 1, atol=1e-6)
    assert np.std(reference @ reference.T) > 0.01, "embeddings differ, or the comparison means nothing"
    np.testing.assert_allclose(encoder.encode(TEXTS, token_budget=64 * 20), reference, atol=TOLERANCE)
    backwards = encoder.encode(TEXTS[::-1], token_budget=100)[::-1]
    assert (backwards == encoder.encode(TEXTS, token_budget=100)).all(), "order changes no byte"
    if any(kind in any_model.name for kind in CAUSAL):  # absolute positions: BERT is padded on the right, always
        encoder.padding_side = "left"
        np.testing.assert_allclose(encoder.encode(TEXTS, token_budget=64 * 20), reference, atol=TOLERANCE)


def test_bfloat16_stays_within_its_stated_tolerance(llama):
    exact = Encoder.from_pretrained(llama).encode(TEXTS)
    encoder = Encoder.from_pretrained(llama, dtype="bfloat16")
    one, many = encoder.encode(TEXTS, token_budget=1), encoder.encode(TEXTS, token_budget=10_000)
    assert one.dtype == np.float32 and encoder.dtype == "bfloat16"
    assert (one * many).sum(1).min() > 1 - 1e-2 and (exact * many).sum(1).min() > 0.97


def test_matches_a_plain_forward_pass_of_one_text(llama):
    from transformers import AutoModel

    encoder = Encoder.from_pretrained(llama, pooling="last")
    plain = AutoModel.from_pretrained(llama, dtype=torch.float32, attn_implementation="eager").eval()
    for text, ours in zip(TEXTS[:5], encoder.encode(TEXTS)[:5], strict=True):
        hidden = plain(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].detach().numpy()
        np.testing.assert_allclose(ours, hidden / np.linalg.norm(hidden), atol=TOLERANCE)


def test_right_padding_would_show_if_the_wrong_token_were_pooled(llama, monkeypatch):
    """The invariance test can fail: pooling the last column instead of the last real token changes embeddings."""
    encoder = Encoder.from_pretrained(llama)
    reference = encoder.encode(TEXTS, token_budget=1)
    monkeypatch.setattr(module, "pool", lambda hidden, mask, how: hidden[:, -1].float())
    assert np.abs(encoder.encode(TEXTS, token_budget=10_000) - reference).max() > 0.1


def test_embed_has_the_gradients_of_one_batch_per_text(llama):
    gradients = []
    for budget in (1, 60, 10_000):
        encoder = Encoder.from_pretrained(llama, max_length=12, token_budget=budget)
        encoder.add_lora(LORA, seed=3)
        _make_lora_visible(encoder)
        embeddings = encoder.embed(TEXTS[:10])
        assert embeddings.shape == (10, 32) and embeddings.dtype == torch.float32
        weights = torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
        (embeddings * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.requires_grad]))
        np.testing.assert_allclose(embeddings.detach(), encoder.encode(TEXTS[:10]), atol=TOLERANCE)
    assert gradients[0].norm() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-4)


def test_lora_is_float32_seeded_and_starts_as_the_backbone(llama):
    plain = Encoder.from_pretrained(llama, dtype="bfloat16")
    before = plain.encode(TEXTS[:4])
    first = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        encoder = Encoder.from_pretrained(llama, dtype="bfloat16")
        encoder.add_lora(LORA, seed)
        trained = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
        assert all(p.dtype == torch.float32 and "lora" in n for n, p in trained.items()) and trained
        np.testing.assert_array_equal(encoder.encode(TEXTS[:4]), before)
        first[name] = next(iter(trained.values())).detach().clone()
    assert (first["a"] == first["b"]).all() and not (first["a"] == first["c"]).all()


def test_gradient_checkpointing_changes_no_gradient(llama):
    results = []
    for checkpointing in (False, True):
        encoder = Encoder.from_pretrained(llama)
        encoder.add_lora(LORA, 0)
        _make_lora_visible(encoder)
        if checkpointing:
            encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
        encoder.train()
        encoder.embed(TEXTS[:6])[:, 0].sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.requires_grad]))
    assert results[0].norm() > 0
    torch.testing.assert_close(results[0], results[1])


def test_adapter_loads_with_plain_peft_and_transformers(llama, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    encoder = Encoder.from_pretrained(llama, reference="owner/tiny")
    encoder.add_lora(LORA, 0)
    _make_lora_visible(encoder)
    encoder.save_adapter(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "owner/tiny"

    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(llama, dtype=torch.float32), tmp_path / "adapter").eval()
    expected = encoder.encode(TEXTS[:6])
    for text, ours in zip(TEXTS[:6], expected, strict=True):
        hidden = plain(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].detach().numpy()
        np.testing.assert_allclose(ours, hidden / np.linalg.norm(hidden), atol=TOLERANCE)
    again = Encoder.from_pretrained(llama, adapter=tmp_path / "adapter")
    np.testing.assert_array_equal(again.encode(TEXTS[:6]), expected)
    assert np.abs(Encoder.from_pretrained(llama).encode(TEXTS[:6]) - expected).max() > 1e-3, "the adapter does something"
    encoder.save_adapter(tmp_path / "twice")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_load_follows_the_rules_in_training_and_evaluation(llama, tmp_path):
    record = Model(
        model=str(llama), pooling="mean", append_eos=True, max_length=11, dtype="bfloat16", query_prompt="the ",
        lora_targets=["k_proj"],
    )  # fmt: skip
    rules = models.rules(record, "models.mine")
    trained = Encoder.load(
        rules, trainable=True, lora=LORA, max_length=9, token_budget=55, gradient_checkpointing=True, device="cpu"
    )
    assert trained.training and trained.dtype == "bfloat16" and trained.pooling == "mean" and trained.append_eos
    assert (trained.max_length, trained.token_budget) == (9, 55)
    assert (trained.query_prompt, trained.document_prompt) == ("the ", "")
    assert trained.backbone.is_activation_checkpointing
    assert trained.backbone.config._attn_implementation == "sdpa"
    assert {n.split(".")[-4] for n, p in trained.named_parameters() if p.requires_grad} == {"k_proj"}
    trained.save_adapter(tmp_path / "adapter")
    loaded = Encoder.load(rules, adapter=tmp_path / "adapter", device="cpu")
    assert loaded.dtype == "bfloat16" and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.max_length == 11 and (loaded.pooling, loaded.query_prompt) == ("mean", "the ")
    adapted = models.rules(record.model_copy(update={"adapter": str(tmp_path / "adapter")}), "models.mine")
    assert Encoder.load(adapted, device="cpu").fingerprint() == loaded.fingerprint()
    with pytest.raises(DreamError, match=r"models\.mine has an adapter: it can be evaluated, not trained on"):
        Encoder.load(adapted, trainable=True, lora=LORA, device="cpu")


# ---------------------------------------------------------------------------------------- a LoRA on any architecture


def in_attention(name):
    """Whether a module's place is inside attention, by the names that the architectures give it."""
    return any(part in ("self_attn", "attention", "attn") for part in name.split(".")[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_targets_are_exactly_the_attentions_linear_modules(kind, tmp_path):
    backbone = Encoder.from_pretrained(make_model(tmp_path, kind)).backbone
    targets = attention_projections(backbone)
    assert targets == KINDS[kind]
    check_targets(backbone, targets, kind)
    linear = [name for name, m in backbone.named_modules() if isinstance(m, torch.nn.Linear)]
    chosen = {name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)}
    assert chosen == {name for name in linear if in_attention(name)} and len(chosen) == 3 * len(targets)
    assert len(chosen) < len(linear), "or the choice means nothing"
    encoder = Encoder.from_pretrained(tmp_path)
    encoder.add_lora(LORA, 0)
    adapted = {n.removeprefix("base_model.model.") for n, m in encoder.backbone.named_modules() if hasattr(m, "lora_A")}
    assert adapted == chosen


def test_a_model_without_attention_is_one_line():
    with pytest.raises(DreamError, match="no attention projections are found in mine. Name lora_targets in its record"):
        attention_projections(torch.nn.Sequential(torch.nn.Linear(2, 2)), "mine")


def make_head():
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(0)
    return torch.nn.Sequential(Dense(32, 24)).requires_grad_(False)


def pooled(hidden, how):
    """Of one text alone: the definition."""
    return {"last": hidden[-1], "mean": hidden.mean(0), "cls": hidden[0]}[how]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pooling", "head"), [*((how, None) for how in POOLINGS), ("mean", make_head)])
def test_a_lora_trains_on_every_architecture_and_plain_peft_reads_it(kind, pooling, head, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel, PreTrainedTokenizerFast

    make_model(tmp_path, kind)
    encoder = Encoder.from_pretrained(tmp_path, pooling=pooling, head=head and head(), max_length=16)
    encoder.tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # transformers reads a qwen2 folder's as BPE
    encoder.add_lora(LORA, 0)
    before = encoder.encode(TEXTS[:8])
    vectors = encoder.embed(TEXTS[:8])
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            # the first token of a causal model sees itself alone: queries and keys cannot matter to it
            blind = kind in CAUSAL and pooling == "cls" and any(end in name for end in ("q_proj", "k_proj"))
            assert (parameter.grad.abs().sum() < 1e-4) == blind, name
        else:
            assert not parameter.requires_grad or "lora_A" in name
    _make_lora_visible(encoder)
    found = encoder.encode(TEXTS[:8])
    assert np.abs(found - before).max() > 1e-3 and found.shape == (8, 24 if head else 32)
    encoder.save_adapter(tmp_path / "adapter")
    body = AutoModel.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    plain = PeftModel.from_pretrained(body, tmp_path / "adapter").eval()
    for ids, ours in zip(encoder.tokenize(TEXTS[:8], 16), found, strict=True):
        vector = pooled(plain(torch.tensor([ids])).last_hidden_state[0].detach(), pooling)
        vector = encoder.head({"sentence_embedding": vector})["sentence_embedding"] if head else vector
        np.testing.assert_allclose(ours, torch.nn.functional.normalize(vector, dim=-1), atol=TOLERANCE)


@pytest.mark.parametrize("special", [False, True])
def test_eos_is_appended_once_and_survives_truncation(tmp_path, special):
    make_model(tmp_path, "bert" if special else "llama")
    encoder = Encoder.from_pretrained(tmp_path, append_eos=True)
    for text in ("cat", "cat dog " * 50, ""):
        (ids,) = encoder.tokenize([text], 8)
        assert ids[-1] == 1 and ids.count(1) == 1 and len(ids) <= 8


def test_an_empty_text_has_a_defined_embedding(llama):
    encoder = Encoder.from_pretrained(llama)
    assert encoder.tokenize(["", "   ", "\n"], 8) == [[1]] * 3
    embeddings = encoder.encode(["", "cat", "  "])
    assert np.isfinite(embeddings).all() and (embeddings[0] == embeddings[2]).all()
    assert encoder.encode([]).shape == (0, 32)


def test_a_prompt_is_part_of_the_text(llama):
    encoder = Encoder.from_pretrained(llama)
    assert (encoder.encode(["cat", "dog"], prompt="the ") == encoder.encode(["the cat", "the dog"])).all()


def test_nan_is_refused_with_the_text_id(llama):
    encoder = Encoder.from_pretrained(llama)
    with torch.no_grad():
        encoder.backbone.embed_tokens.weight[encoder.tokenizer.convert_tokens_to_ids("river")] = float("nan")
    with pytest.raises(DreamError, match=r"text doc-2 by .* not finite \(1 of 3"):
        encoder.encode(["cat", "dog", "river"], ids=["doc-0", "doc-1", "doc-2"])


def test_fingerprint_follows_weights_and_rules(llama, tmp_path):
    base = Encoder.from_pretrained(llama)
    assert base.fingerprint() == Encoder.from_pretrained(llama).fingerprint()
    prints = {base.fingerprint()}
    base.encode(TEXTS[:3], max_length=5)
    assert base.fingerprint() in prints, "use leaves no trace"
    prints.add(Encoder.from_pretrained(llama, pooling="mean").fingerprint())
    prints.add(Encoder.from_pretrained(llama, dtype="bfloat16").fingerprint())
    prints.add(Encoder.from_pretrained(llama, append_eos=True).fingerprint())
    with torch.no_grad():
        base.backbone.layers[1].mlp.up_proj.weight[3, 4] += 1e-4
    prints.add(base.fingerprint())
    base.add_lora(LORA, 0)
    prints.add(base.fingerprint())
    assert len(prints) == 6


def test_user_errors_are_one_line(llama, tmp_path):
    with pytest.raises(DreamError, match="cannot be loaded"):
        Encoder.from_pretrained(tmp_path / "nothing")
    with pytest.raises(DreamError, match="pooling 'max' is not known"):
        Encoder.from_pretrained(llama, pooling="max")
    with pytest.raises(DreamError, match=r"lora_targets .* do not fit"):
        Encoder.from_pretrained(llama).add_lora(LORA, 0, ["nope"])
    encoder = Encoder.from_pretrained(llama, reference="owner/tiny")
    encoder.add_lora(LORA, 0)
    encoder.save_adapter(tmp_path / "adapter")
    other = make_model(tmp_path / "wide", hidden=64)
    with pytest.raises(DreamError, match=r"adapter .* cannot be loaded onto its encoder"):
        Encoder.from_pretrained(other, adapter=tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DreamError, match=r"adapter .* cannot be loaded"):
        Encoder.from_pretrained(llama, adapter=tmp_path / "adapter")


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_cover_all_within_the_budget(lengths, budget):
    given_sequences = [[i % 7] * n for i, n in enumerate(lengths)]
    sequences, where = unique(given_sequences)
    assert [sequences[i] for i in where] == given_sequences
    parts = [sequences[rows] for rows in batches(sequences, budget)]
    assert [s for part in parts for s in part] == sequences
    for part in parts:
        assert len(part) == 1 or len(part) * max(map(len, part)) <= budget


def test_pool_ignores_padding_on_either_side():
    hidden = torch.randn(2, 5, 3)
    right = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    for how in POOLINGS:
        shifted = torch.roll(hidden[0], 2, 0)
        left = pool(torch.stack([shifted, hidden[1]]), torch.stack([right[0].flip(0), right[1]]), how)
        torch.testing.assert_close(left, pool(hidden, right, how))


def test_an_adapter_that_was_saved_around_a_causal_lm_is_the_same_on_the_encoder(llama, tmp_path):
    """The released DREAM adapters: their weights are named from the causal LM, whose last hidden state is pooled."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    lm = get_peft_model(lm, settings).eval()
    lm.save_pretrained(tmp_path / "adapter")
    encoder = Encoder.from_pretrained(llama, adapter=tmp_path / "adapter", pooling="last")
    ids = torch.tensor(encoder.tokenize(["cat dog river"], 16))
    hidden = lm(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    ours = torch.from_numpy(encoder.encode(["cat dog river"])[0])
    torch.testing.assert_close(ours, torch.nn.functional.normalize(hidden, dim=-1), atol=TOLERANCE, rtol=0)
    plain = Encoder.from_pretrained(llama, pooling="last").encode(["cat dog river"])[0]
    assert np.abs(plain - ours.numpy()).max() > 1e-2


def test_split_revision_leaves_folders_alone(tmp_path):
    folder = tmp_path / "name@v1"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)
    assert split_revision("a/b@c") == ("a/b", "c")


def _make_lora_visible(encoder):
    """LoRA's B starts at zero: give it values, so that the adapter changes embeddings."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
