"""Every architecture that can be the trained encoder: a LoRA on its attention alone, gradients through every pooling and head,
adapters that plain peft reads, and one set of rules for training and evaluation. Tiny random models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from test_encoder import KINDS, LORA, TEXTS, TOLERANCE, make_model
from test_models_of_others import library, write_folder
from torch import nn

from dream import assets, models
from dream.config import Model
from dream.encoder import Encoder, attention_projections, quiet
from dream.errors import DreamError

SHORT = TEXTS[:8]
PER_LAYER = {  # what the attention of one layer multiplies with
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    "bert": ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    "mpnet": ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
    "modernbert": ["attn.Wqkv", "attn.Wo"],
}
PER_LAYER |= {"qwen2": PER_LAYER["llama"], "qwen3": PER_LAYER["llama"], "xlm-roberta": PER_LAYER["bert"]}
LAYERS = {"bert": "encoder.layer", "xlm-roberta": "encoder.layer", "mpnet": "encoder.layer"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    with quiet():
        return {kind: make_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def rules(folder, **more):
    return models.rules(Model(model=str(folder), **more), "models.mine")


def step(encoder, texts=SHORT):
    """One step of AdamW that draws the texts' vectors towards the first one's; the names of what had a gradient."""
    trained = [p for p in encoder.parameters() if p.requires_grad]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    vectors = encoder.embed(texts)
    (vectors[0] @ vectors[1:].T).sum().neg().backward()
    graded = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    optimizer.step()
    return graded


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_put_on_the_attention_projections_and_nothing_else(folders, kind):
    encoder = Encoder.load(rules(folders[kind], pooling="mean"), trainable=True, lora=LORA)
    wrapped = {name for name, m in encoder.backbone.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert wrapped == {f"{LAYERS.get(kind, 'layers')}.{i}.{name}" for i in range(3) for name in PER_LAYER[kind]}


def test_the_order_of_decoders_is_the_papers(folders):
    """What the packaged run always named by hand."""
    assert attention_projections(Encoder.from_pretrained(folders["llama"]).backbone) == ["q_proj", "k_proj", "v_proj", "o_proj"]


class TwinAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.out, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)


class TwinAttentionDecoderLayer(nn.Module):
    """Jamba's and Zamba's kind of name: a layer with attention in it, not attention itself."""

    def __init__(self):
        super().__init__()
        self.attn, self.mlp, self.q = TwinAttention(), nn.ModuleDict({"out": nn.Linear(4, 4), "up": nn.Linear(4, 4)}), nn.LayerNorm(4)


def test_names_that_others_bear_too_are_given_with_more_of_the_name():
    model = nn.ModuleList([TwinAttentionDecoderLayer(), TwinAttentionDecoderLayer()])
    targets = attention_projections(model)
    assert targets == ["attn.q", "attn.out"], "q is a norm's name too, which peft would try to wrap"
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets))
    found = [name for name, m in wrapped.base_model.model.named_modules() if hasattr(m, "lora_A")]
    assert found == ["0.attn.q", "0.attn.out", "1.attn.q", "1.attn.out"]
    with pytest.raises(DreamError, match=r"no attention projections are found in owner/name. Name lora_targets in its record"):
        attention_projections(nn.Sequential(nn.Linear(4, 4)), "owner/name")


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"lora_targets": ["query", "nonsense"]}, "lora_targets .* do not fit .*no module 'nonsense'"),
        ({"adapter": "x"}, "models.mine has an adapter: it can be evaluated, not trained on"),
        ({}, r"encoder.max_length 129 is more than .* has positions for \(128 tokens\)"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_a_weight_is_read(folders, monkeypatch, record, line):
    monkeypatch.setattr(models, "check_adapter", lambda *_: None)
    found = rules(folders["bert"], pooling="cls", **record)
    monkeypatch.setattr(Encoder, "from_pretrained", None)
    with pytest.raises(DreamError, match=line) as caught:
        models.check_trainable(found, 128 if record else 129)
    assert "\n" not in str(caught.value)
    models.check_trainable(rules(folders["bert"], pooling="cls", lora_targets=["query"]), 128)


def test_a_record_with_an_adapter_is_not_trained(folders, monkeypatch):
    monkeypatch.setattr(models, "check_adapter", lambda *_: None)
    with pytest.raises(DreamError, match="models.mine has an adapter"):
        Encoder.load(rules(folders["bert"], pooling="cls", adapter="x"), trainable=True, lora=LORA)


# ------------------------------------------------------------------------------------------------------------ training

CASES = [(kind, pooling, False) for kind in KINDS for pooling in ("last", "mean", "cls")]
CASES += [(kind, "mean", True) for kind in KINDS] + [("bert", "cls", True), ("llama", "last", True)]


def by_hand(folder, adapter, encoder, head):
    """Unit vectors of texts, each alone, by plain calls of transformers, peft and the library's head."""
    from transformers import AutoModel

    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(folder, dtype=torch.float32), adapter).eval()
    found = []
    with torch.no_grad():
        for ids in encoder.tokenize(SHORT, 20):
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
            pooled = {"last": hidden[-1], "mean": hidden.mean(0), "cls": hidden[0]}[encoder.pooling][None]
            found.append(nn.functional.normalize(head({"sentence_embedding": pooled})["sentence_embedding"], dim=-1)[0])
    return torch.stack(found).numpy()


@pytest.mark.parametrize(("kind", "pooling", "dense"), CASES)
def test_a_step_trains_the_lora_alone_and_plain_peft_reads_it(folders, tmp_path, kind, pooling, dense):
    folder, head = folders[kind], nn.Identity()
    if dense:
        folder = write_folder(tmp_path / "folder", folder, pooling="lasttoken" if pooling == "last" else pooling, dense=[{}])
        head = nn.Sequential(*list(library(folder))[2:])
    ours = rules(folder) if dense else rules(folder, pooling=pooling)
    encoder = Encoder.load(ours, trainable=True, lora=LORA, max_length=20)
    encoder.tokenizer = Encoder.from_pretrained(folders["llama" if "q_proj" in attention_projections(encoder.backbone) else "bert"]).tokenizer
    untrained = Encoder.load(ours, max_length=20)
    untrained.tokenizer = encoder.tokenizer
    before = untrained.encode(SHORT)
    np.testing.assert_allclose(encoder.encode(SHORT), before, atol=TOLERANCE)
    graded = step(encoder)
    assert graded == {n for n, p in encoder.named_parameters() if "lora_B" in n}, "A has none while B is 0"
    after = encoder.encode(SHORT)
    assert np.abs(after - before).max() > 1e-3 and after.shape[1] == (24 if dense else 32)
    encoder.save_adapter(tmp_path / "adapter")
    np.testing.assert_allclose(by_hand(folder, tmp_path / "adapter", encoder, head), after, atol=TOLERANCE)
    again = Encoder.load(ours, adapter=tmp_path / "adapter", max_length=20)
    again.tokenizer = encoder.tokenizer
    np.testing.assert_allclose(again.encode(SHORT), after, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "mpnet", "modernbert", "qwen3"])
def test_embeddings_do_not_depend_on_the_rest_of_a_batch(folders, kind):
    """Bidirectional attention sees every column: one that is padding must weigh nothing."""
    for pooling in ("last", "mean", "cls"):
        encoder = Encoder.load(rules(folders[kind], pooling=pooling))
        alone = encoder.encode(TEXTS, token_budget=1)
        assert np.std(alone @ alone.T) > 0.01
        np.testing.assert_allclose(encoder.encode(TEXTS, token_budget=10_000), alone, atol=TOLERANCE)


def test_training_reads_the_records_own_rules(folders, tmp_path):
    """Small letters, pooling, head, prompts and length are the folder's, in training as in evaluation."""
    own = {"dense": [{}], "length": 9, "prompts": {"query": "the ", "document": "a "}, "lower": True, "pooling": "cls"}
    found = rules(write_folder(tmp_path / "folder", folders["bert"], **own))
    encoder = Encoder.load(found, trainable=True, lora=LORA).eval()
    assert (encoder.query_prompt, encoder.document_prompt, encoder.max_length, encoder.pooling) == ("the ", "a ", 9, "cls")
    asked = [encoder.query_prompt + text for text in ("The CAT sat", *SHORT)]
    theirs = library(tmp_path / "folder").encode_query(["The CAT sat", *SHORT], normalize_embeddings=True)
    np.testing.assert_allclose(encoder.embed(asked).detach(), theirs, atol=TOLERANCE)
    assert Encoder.load(found, max_length=5).max_length == 5


# -------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_cut_to_its_first_layers_is_those_layers(folders, tmp_path, monkeypatch, kind):
    from safetensors.torch import load_file
    from transformers import AutoModel

    monkeypatch.setenv("DREAM_CACHE", str(tmp_path))
    short = assets.model_path(str(folders[kind]), layers=2)
    assert not any(".2." in name for path in short.glob("*.safetensors") for name in load_file(path) if "layer" in name)
    whole = AutoModel.from_pretrained(folders[kind], dtype=torch.float32).eval()
    layers = whole.get_submodule(LAYERS.get(kind, "layers"))
    del layers[2]
    whole.config.num_hidden_layers = 2
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        found = AutoModel.from_pretrained(short, dtype=torch.float32).eval()(ids).last_hidden_state
        torch.testing.assert_close(found, whole(ids).last_hidden_state)


def test_a_folder_of_sentence_transformers_stays_one_when_it_is_cut(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "folder", folders["bert"], dense=[{}], length=9, prompts={"query": "the "})
    theirs = library(folder)
    del theirs[0].model.encoder.layer[2]
    found = rules(folder, layers=2)
    assert (found.pooling, found.query_prompt, found.max_length) == ("mean", "the ", 9)
    ours = Encoder.load(found).encode(TEXTS)
    np.testing.assert_allclose(ours, theirs.encode_document(TEXTS, normalize_embeddings=True), atol=TOLERANCE)


def test_weights_whose_names_tell_no_layer_are_not_cut(folders, tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2Model

    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    GPT2Model(GPT2Config(vocab_size=23, n_positions=20, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path / "gpt")
    settings = (tmp_path / "gpt/config.json").read_text().replace('"n_layer"', '"num_hidden_layers": 2, "n_layer"')
    (tmp_path / "gpt/config.json").write_text(settings)
    with pytest.raises(DreamError, match="the layers of gpt cannot be told by the names of its weights"):
        assets.model_path(str(tmp_path / "gpt"), layers=1)


@pytest.mark.slow
def test_minilm_is_trained_by_its_own_rules(tmp_path):
    """The packaged all-MiniLM-L6-v2: mean pooling, no end token, 256 tokens, and the library's vectors before training."""
    from dream.config import load

    record = load(overrides={"model.size": "minilm"}).roles["encoder"]
    found = models.rules(record, "models.minilm")
    assert (found.pooling, found.append_eos, found.max_length, found.query_prompt) == ("mean", False, 256, "")
    encoder = Encoder.load(found, trainable=True, lora=SimpleNamespace(r=8, alpha=16, dropout=0.0), max_length=64)
    texts = ["who wrote hamlet", "Shakespeare wrote Hamlet.", "def f(x): return x", "word " * 400]
    before = library(assets.model_path("packaged/minilm")).encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(texts, max_length=256), before, atol=TOLERANCE)
    assert len(step(encoder, texts)) == 6 * 4
    assert np.abs(encoder.encode(texts, max_length=256) - before).max() > 1e-3
