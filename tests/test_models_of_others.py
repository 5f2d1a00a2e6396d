"""Models that others trained: vectors equal those of peft and sentence-transformers on the same folder, or one line.

Tiny random models; every adapter and every folder of the grids is written by its own library.
"""

from __future__ import annotations

import functools
import json
import warnings

import hypothesis
import numpy as np
import peft
import pytest
import torch
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from test_encoder import LORA, TEXTS, TOLERANCE, _make_lora_visible, make_model, make_tokenizer
from test_training import make_sets

from dream import config as configs
from dream import encoder as module
from dream import models as records
from dream import objectives, systems
from dream.candidates.dense import DenseIndex
from dream.config import Model, stages
from dream.data.tasks import base
from dream.encoder import Encoder, adapters, compare_base, folder_room, reading
from dream.errors import DreamError
from dream.evaluation.wrapper import MtebEncoder
from dream.judge.model import Judge
from dream.lora import check_targets
from dream.manifest import ROOT
from dream.models import folders

TARGETS = ["q_proj", "v_proj"]
FIRST = "layers.0.self_attn.q_proj"  # behind the name of the body, where there is one


def lora(**more):
    return lambda body: peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **_named(more, body)})


def _named(value, body):
    """Put the body's name in every pattern: ``@`` stands for it."""
    if isinstance(value, dict):
        return {_named(k, body): _named(v, body) for k, v in value.items()}
    if isinstance(value, list):
        return [_named(v, body) for v in value]
    return value.replace("@", body) if isinstance(value, str) else value


def other(kind, **settings):
    return lambda body: kind(**settings)


ADAPTERS = {
    "plain": lora(),
    "rank": lora(rank_pattern={f"@{FIRST}": 2}),
    "alpha": lora(alpha_pattern={f"@{FIRST}": 64}),
    "anchored": lora(rank_pattern={f"^@{FIRST}": 2}, alpha_pattern={f"^@{FIRST}": 64}),
    "full names": lora(target_modules=[f"@{FIRST}"]),
    "regex": lora(target_modules=r"@layers\.[01]\.self_attn\.(q|v)_proj"),
    "layers": lora(layers_to_transform=[0, 2], layers_pattern="layers"),
    "excluded": lora(exclude_modules=[f"@{FIRST}"]),
    "all linear": lora(target_modules="all-linear"),
    "saved embeddings": lora(modules_to_save=["embed_tokens"]),
    "saved norm": lora(modules_to_save=["norm"]),
    "adapted embeddings": lora(target_modules=[*TARGETS, "embed_tokens"]),
    "bias all": lora(bias="all"),
    "bias of targets": lora(bias="lora_only"),
    "bias of B": lora(lora_bias=True),
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True),
    "parameters": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "tokens": lora(trainable_token_indices=[5, 6]),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "ADALORA": other(peft.AdaLoraConfig, target_r=4, init_r=4, total_step=10, target_modules=TARGETS),
    "BOFT": other(peft.BOFTConfig, boft_block_size=8, target_modules=TARGETS),
    "FOURIERFT": other(peft.FourierFTConfig, n_frequency=10, target_modules=TARGETS),
    "HRA": other(peft.HRAConfig, r=4, target_modules=TARGETS),
    "IA3": other(peft.IA3Config, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LN_TUNING": other(peft.LNTuningConfig, target_modules=["norm"]),
    "LOHA": other(peft.LoHaConfig, r=4, target_modules=TARGETS),
    "LOKR": other(peft.LoKrConfig, r=4, target_modules=TARGETS),
    "MISS": other(peft.MissConfig, r=4, target_modules=TARGETS),
    "OFT": other(peft.OFTConfig, r=0, oft_block_size=8, target_modules=TARGETS),
    "RANDLORA": other(peft.RandLoraConfig, r=4, target_modules=TARGETS),
    "TRAINABLE_TOKENS": other(peft.TrainableTokensConfig, token_indices=[5, 6], target_modules=["embed_tokens"]),
    "VBLORA": other(peft.VBLoRAConfig, r=4, target_modules=TARGETS, vector_length=8, num_vectors=16, topk=2),
    "VERA": other(peft.VeraConfig, r=4, target_modules=["q_proj"]),
}
LM_ONLY = {  # what only a model with a head can have
    "layers without pattern": lora(layers_to_transform=[0, 2]),
    "adapted head": lora(target_modules=[*TARGETS, "lm_head"]),
    "saved head": lora(modules_to_save=["lm_head"]),
}
GRID = [(kind, "body", name) for kind in ("llama", "qwen2") for name in ADAPTERS]
GRID += [(kind, "lm", name) for kind in ("llama", "qwen2") for name in ADAPTERS | LM_ONLY]
SHORT = TEXTS[:6]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: make_model(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "qwen2", "bert")}


@pytest.fixture(autouse=True)
def quiet_libraries():
    with module.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_adapter(model_folder, around, make, folder):
    """Wrap a model in a new adapter with random weights, save it; return the model that peft wraps."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if around == "lm" else AutoModel
    settings = make("model." if around == "lm" else "")
    settings.task_type = "CAUSAL_LM" if around == "lm" else "FEATURE_EXTRACTION"
    model = peft.get_peft_model(kind.from_pretrained(model_folder, dtype=torch.float32), settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return kind.from_pretrained(model_folder, dtype=torch.float32)


def vectors(model, encoder, texts):
    """Last hidden state of the last token of each text alone, unit length: by a plain call of a peft model."""
    found = []
    for ids in encoder.tokenize(texts, 64):
        out = model(torch.tensor([ids]), output_hidden_states=True)
        found.append(out.hidden_states[-1][0, -1].detach())
    return torch.nn.functional.normalize(torch.stack(found), dim=-1).numpy()


@pytest.mark.parametrize(("kind", "around", "name"), GRID, ids=[", ".join(case) for case in GRID])
def test_an_adapter_gives_what_peft_gives(models, tmp_path, kind, around, name):
    base = write_adapter(models[kind], around, (ADAPTERS | LM_ONLY)[name], tmp_path / "adapter")
    encoder, plain = (Encoder.from_pretrained(models[kind], adapter=a) for a in (tmp_path / "adapter", None))
    words = Encoder.from_pretrained(models["llama"]).tokenizer  # transformers reads a qwen2 folder's as BPE, whatever it is
    encoder.tokenizer = plain.tokenizer = words
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = encoder.encode(SHORT)
    np.testing.assert_allclose(ours, vectors(theirs, encoder, SHORT), atol=TOLERANCE)
    assert np.abs(ours - plain.encode(SHORT)).max() > 1e-3, "the adapter does something"
    assert encoder.fingerprint() != plain.fingerprint() and encoder.dimension == 32
    assert encoder.flops_per_token >= plain.flops_per_token and encoder.dtype == "float32"


def test_the_grid_has_every_kind_that_is_read():
    made = {make("").peft_type for make in ADAPTERS.values()}
    assert {kind.value for kind in made} == set(adapters.ADAPTERS)


def rewritten(folder, **settings):
    """Change an adapter's settings file."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.fixture
def adapter(models, tmp_path):
    write_adapter(models["llama"], "lm", ADAPTERS["plain"], tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "is of kind PREFIX_TUNING"),
        ({"peft_type": "XLORA"}, "is of kind XLORA"),
        ({"peft_type": None}, "is of kind None"),
        ({"alora_invocation_tokens": [3]}, r"not supported: alora_invocation_tokens = \[3\]"),
        ({"of_a_later_release": True}, "not supported: of_a_later_release = True"),
        ({"rank_pattern": {f"model.{FIRST}": 2}}, "cannot be loaded onto its encoder"),
        ({"target_modules": ["q_proj"]}, "has no place there"),
        ({"target_modules": [*TARGETS, "k_proj"]}, "cannot be loaded onto its encoder .*missing adapter keys"),
    ],
)
def test_an_adapter_that_would_not_be_itself_is_one_line(models, adapter, settings, message):
    with pytest.raises(DreamError, match=message) as caught:
        Encoder.from_pretrained(models["llama"], adapter=rewritten(adapter, **settings))
    assert "\n" not in str(caught.value)


def test_an_adapter_in_pickles_or_in_the_models_place_is_one_line(models, adapter):
    with pytest.raises(DreamError, match="is an adapter, not a model"):
        Encoder.from_pretrained(adapter)
    with pytest.raises(DreamError, match=r"is not an adapter .*no adapter_config.json"):
        Encoder.from_pretrained(models["llama"], adapter=models["llama"])
    with pytest.raises(DreamError, match="saved around another model"):
        Encoder.from_pretrained(models["llama"], adapter=adapter, adapter_trainable=True)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(DreamError, match="no safetensors weights"):
        Encoder.from_pretrained(models["llama"], adapter=adapter)


NAMES = [
    # base of the adapter, its revision, the model, outcome
    ("owner/a", None, "owner/a", ""),
    ("owner/a", None, "owner/a@v1", ""),
    ("Owner/A", "v1", "owner/a@v1", ""),
    ("owner/a", "v1", "owner/a", ""),
    ("owner/a", "v1", "owner/a@v2", DreamError),
    ("owner/b", None, "owner/a", DreamError),
    ("gpt2", None, "owner/a", DreamError),
    ("packaged/smollm2-135m", None, "packaged/smollm2-135m", ""),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", None, "packaged/smollm2-135m", ""),
    ("sentence-transformers/all-MiniLM-L6-v2", None, "packaged/smollm2-135m", DreamError),
    ("/home/x/hub/models--owner--a/snapshots/12", None, "owner/a", ""),
    ("/home/x/hub/models--owner--b/snapshots/12", None, "owner/a", DreamError),
    ("/home/x/model", None, "owner/a", "not compared: the adapter names /home/x/model"),
    (None, None, "owner/a", "not named"),
    ("", None, "owner/a", "not named"),
    ("owner/a", None, "{here}", "not compared: the adapter names owner/a"),
    ("owner/a", None, "{named}", ""),
    ("owner/b", None, "{named}", DreamError),
    ("{here}", None, "{here}", ""),
    ("{named}", None, "{here}", DreamError),
    ("{named}", None, "owner/a", ""),
    ("inside", None, "{here}/inside", ""),
]


@pytest.mark.parametrize(("base", "revision", "model", "outcome"), NAMES)
def test_the_base_that_an_adapter_names_is_compared_with_the_model(tmp_path, base, revision, model, outcome):
    for name, said in {"here": "", "named": "owner/a", "here/inside": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_name_or_path": said}))
    base, model = (v and v.format(here=tmp_path / "here", named=tmp_path / "named") for v in (base, model))
    settings = {"base_model_name_or_path": base, "revision": revision}
    if outcome is DreamError:
        with pytest.raises(DreamError) as caught:
            compare_base(settings, tmp_path / "here", "mine", model)
        assert base in str(caught.value) and model in str(caught.value) and "\n" not in str(caught.value)
    else:
        found = compare_base(settings, tmp_path / "here", "mine", model)
        assert found.startswith(outcome) and bool(found) == bool(outcome)


def record(**entry):
    """An entry of ``models``."""
    return Model(**{key: str(value) if key == "model" else value for key, value in entry.items()})


def rules(**entry):
    return records.rules(record(**entry), "models.mine")


def configured(entry, **overrides):
    """params.yaml with the entry as the trained encoder, and as a reference under its name ``mine``."""
    tiny = {"encoder": "mine", "judge": "smollm2", "recipe": "smoke"}
    mine = {"models.mine": entry.model_dump(exclude_unset=True), "sizes.tiny": tiny, "model.size": "tiny"}
    return configs.load(ROOT / "params.yaml", {**mine, "references": ["untrained", "mine"], **overrides})


def load(name="mine", **entry):
    """The entry as a system, read through the file that its stage reads."""
    return systems.load(name, stages.cut(configured(record(**entry)), f"evaluate-{name}-general"), device="cpu")


def test_what_cannot_be_told_about_a_base_travels_with_the_scores(models, adapter):
    rewritten(adapter, base_model_name_or_path="/elsewhere/base")
    system = load(model=models["llama"], adapter=str(adapter), pooling="last", max_length=64)
    assert system.settings["adapter_base"] == "not compared: the adapter names /elsewhere/base"
    rewritten(adapter, base_model_name_or_path=str(models["llama"]))
    system = load(model=models["llama"], adapter=str(adapter), pooling="last", max_length=64)
    assert "adapter_base" not in system.settings


def test_an_adapter_of_another_base_of_equal_shapes_is_one_line(models, tmp_path):
    make_model(tmp_path / "twin", seed=1)
    write_adapter(models["llama"], "lm", ADAPTERS["plain"], tmp_path / "adapter")
    with pytest.raises(DreamError, match="was trained on .*llama.*, not on .*twin"):
        rules(model=tmp_path / "twin", adapter=str(tmp_path / "adapter"), pooling="last")


# ----------------------------------------------------------------------------------------- sentence-transformers folders


def write_folder(folder, model, pooling="mean", dense=(), normalize=True, include_prompt=True, length=None, lower=False, **more):
    """A folder as the library writes it, with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(0)
    modules = [Transformer(str(model)), Pooling(32, pooling, include_prompt=include_prompt)]
    width = modules[1].get_embedding_dimension()
    for settings in dense:
        modules.append(Dense(width, 24, **settings))
        width = 24
    if normalize:
        modules.append(Normalize())
    built = SentenceTransformer(modules=modules, device="cpu", **more)
    if length:
        built.max_seq_length = length
    built.save(str(folder))
    if lower:
        change(folder / "sentence_bert_config.json", do_lower_case=True)
    return folder


def change(file, **settings):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | settings))


def library(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


RELU = {"activation_function": torch.nn.ReLU(), "bias": False}
FOLDERS = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "last": {"pooling": "lasttoken"},
    "not normalised": {"normalize": False},
    "dense": {"dense": [{}]},
    "dense, residual": {"dense": [{"use_residual": True}], "normalize": False},
    "two dense": {"dense": [{}, RELU], "pooling": "cls"},
    "short": {"length": 7},
    "prompts": {"prompts": {"query": "the blue ", "document": "a river "}},
    "query prompt": {"prompts": {"query": "the blue "}, "pooling": "lasttoken"},
    "small letters": {"lower": True},
    "dot": {"similarity_fn_name": "dot"},
    "prompts left out of nothing": {"include_prompt": False},
    "all": {"dense": [{}], "length": 9, "prompts": {"query": "the "}, "lower": True, "pooling": "lasttoken"},
}


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_what_the_library_gives(models, tmp_path, kind, name):
    folder = write_folder(tmp_path / "folder", models[kind], **FOLDERS[name])
    theirs, system = library(folder), load(model=folder)
    texts = [*TEXTS, "The CAT sat"]
    for encode, prompt in ((theirs.encode_query, "query_prompt"), (theirs.encode_document, "document_prompt")):
        ours = system.encoder.encode(texts, system.settings[prompt], system.settings["max_length"])
        np.testing.assert_allclose(ours, encode(texts, normalize_embeddings=True), atol=TOLERANCE)
    assert system.encoder.dimension == ours.shape[1] == (24 if "dense" in FOLDERS[name] else 32)
    assert system.settings["max_length"] == FOLDERS[name].get("length", 128)
    assert ("head" in system.settings) == ("dense" in FOLDERS[name])
    index = DenseIndex(texts, Model(model=str(folder)), [f"{i:03}" for i in range(len(texts))])
    np.testing.assert_allclose(index.embeddings, encode(texts, normalize_embeddings=True), atol=TOLERANCE)


def test_every_part_of_a_head_changes_the_fingerprint(models, tmp_path):
    prints = set()
    for number, dense in enumerate(([{}], [{"activation_function": torch.nn.ReLU()}], [{"bias": False}], [])):
        folder = write_folder(tmp_path / str(number), models["bert"], dense=dense)
        system = load(model=folder)
        prints.add(system.fingerprint)
        if dense:
            with torch.no_grad():
                system.encoder.head[0].linear.weight[0, 0] += 1e-4
            prints.add(system.encoder.fingerprint())
    assert len(prints) == 7
    plain = Encoder.from_pretrained(folder, pooling="mean", max_length=64)
    assert plain.fingerprint() in prints, "a folder that only normalises has the key it always had"


def test_a_length_of_the_old_kind_of_file_is_the_models_too(models, tmp_path):
    folder = write_folder(tmp_path / "folder", models["bert"])
    (folder / "sentence_bert_config.json").unlink()
    change(folder / "sentence_roberta_config.json", max_seq_length=6, do_lower_case=False)
    system = load(model=folder)
    assert system.settings["max_length"] == 6 == library(folder).max_seq_length


def test_an_entrys_own_prompts_and_lengths_stand_in_the_folders_place(models, tmp_path):
    folder = write_folder(tmp_path / "f", models["bert"], length=9, prompts={"query": "the blue ", "document": "a river "})
    used = rules(model=folder, query_prompt="", max_length=5)
    assert (used.query_prompt, used.document_prompt, used.max_length, used.pooling) == ("", "a river ", 5, "mean")
    with pytest.raises(DreamError, match=r"models\.mine\.max_length 10 is more than .* reads \(9 tokens\)"):
        rules(model=folder, max_length=10)
    with pytest.raises(DreamError, match=r"models\.mine\.pooling is cls, the model's own is mean"):
        rules(model=folder, pooling="cls")


CHANGES = [
    # file, settings, message
    ("1_Pooling/config.json", {"pooling_mode": "max"}, "pools in a way that is not supported: max"),
    ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "not supported: mean and cls"),
    ("1_Pooling/config.json", {"of_a_later_release": 1}, "of_a_later_release = 1"),
    ("2_Dense/config.json", {"activation_function": "mine.Act"}, "mine.Act of sentence_embedding"),
    ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "of token_embeddings"),
    ("2_Dense/config.json", {"of_a_later_release": 1}, "of_a_later_release = 1"),
    ("sentence_bert_config.json", {"query_length": 8}, "query_length = 8"),
    ("sentence_bert_config.json", {"model_args": {"attn": 1}}, "model_args"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
    ("sentence_bert_config.json", {"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config"),
    ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim = 8"),
    ("config_sentence_transformers.json", {"similarity_fn_name": "manhattan"}, "compares vectors by manhattan"),
    ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a SparseEncoder"),
    ("config_sentence_transformers.json", {"prompts": {"web": "w: "}}, r"has prompts \(web\) but none named query"),
    (
        "config_sentence_transformers.json",
        {"prompts": {"query": "q: ", "passage": "p: "}},
        r"prompts \(passage\) but none named document",
    ),
    (
        "config_sentence_transformers.json",
        {"prompts": {"query": "", "x": "p: "}, "default_prompt_name": "x"},
        r"prompts \(x\) but none named document",
    ),
    ("modules.json", [("base.modules.transformer.Transformer", ""), ("x.Normalize", "")], "chains its modules"),
    ("modules.json", [("x.Transformer", ""), ("x.Pooling", "1_Pooling"), ("x.Pooling", "1_Pooling")], "chains its modules"),
    ("modules.json", [("base.modules.router.Router", "")], "module that is not supported: Router"),
    ("modules.json", [("x.Transformer", "0_Transformer"), ("x.Pooling", "1_Pooling")], "chains its modules"),
    ("modules.json", [("!custom_st.Transformer", ""), ("x.Pooling", "1_Pooling")], "not supported: custom_st.Transformer"),
]


@pytest.mark.parametrize(("file", "settings", "message"), CHANGES)
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_what_a_folder_asks_for_and_we_do_not_do_is_one_line(models, tmp_path, file, settings, message, pooling):
    """Whether or not the entry says how to pool."""
    folder = write_folder(tmp_path / "folder", models["bert"], dense=[{}])
    if isinstance(settings, dict):
        for key in ("prompts", "similarity_fn_name"):
            settings = {key: {} if key == "prompts" else None, **settings} if "Transformers" in file else settings
        change(folder / file, **settings)
    else:
        types = [(kind[1:] if kind[0] == "!" else f"sentence_transformers.{kind}", path) for kind, path in settings]
        (folder / file).write_text(json.dumps([{"type": kind, "path": path} for kind, path in types]))
    with pytest.raises(DreamError, match=message) as caught:
        rules(model=folder, **({"pooling": pooling} if pooling else {}))
    assert "\n" not in str(caught.value)


def test_the_other_faults_of_a_folder_are_one_line_too(models, tmp_path):
    folder = write_folder(tmp_path / "dot", models["bert"], normalize=False, similarity_fn_name="dot")
    with pytest.raises(DreamError, match="compares vectors by dot"):
        rules(model=folder)
    with pytest.raises(DreamError, match="compares vectors by dot"):
        DenseIndex(["cat"], Model(model=str(folder)), ["0"])
    change(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    with pytest.raises(DreamError, match="is a CrossEncoder"):
        DenseIndex(["cat"], Model(model=str(folder)), ["0"])
    folder = write_folder(tmp_path / "out", models["bert"], include_prompt=False, prompts={"query": "the "})
    with pytest.raises(DreamError, match="include_prompt"):
        rules(model=folder)
    assert rules(model=folder, query_prompt="").query_prompt == ""
    folder = write_folder(tmp_path / "bin", models["bert"], dense=[{}])
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(DreamError, match=r"2_Dense holds no safetensors weights"):
        folders.read(folder)
    folder = write_folder(tmp_path / "half", models["bert"])
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(DreamError, match=r"1_Pooling/config.json is missing. The model's folder is damaged"):
        folders.read(folder)
    with pytest.raises(DreamError, match="does not say how it pools"):
        rules(model=models["bert"])


# ------------------------------------------------------------------------------------- any record is the trained encoder


def task(texts, asked):
    """A task that asks about these texts."""
    import pandas as pd

    return base.make(
        "tiny", "own",
        pd.DataFrame([(f"d{i:03}", "", text) for i, text in enumerate(texts)], columns=["id", "title", "text"]),
        pd.DataFrame([(f"q{i:03}", text) for i, text in enumerate(asked)], columns=["id", "text"]),
        pd.DataFrame([("q000", "d000", 1)], columns=["query_id", "doc_id", "relevance"]),
    )  # fmt: skip


ENCODERS = {
    "minilm": {"model": "packaged/minilm"},
    "cls, prompts and a Dense module": {
        "pooling": "cls",
        "prompts": {"query": "the blue ", "document": "a river "},
        "dense": [{}],
    },
    "last, prompts of the record": {"pooling": "lasttoken", "record": {"query_prompt": "small cat ", "append_eos": True}},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_any_record_is_trained_by_the_rules_it_is_evaluated_by(models, tmp_path, monkeypatch, name):
    """Queries and passages of training have, from the same adapter, the vectors that evaluation gives them."""
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache")) if name != "minilm" else monkeypatch.chdir(tmp_path)
    rest = dict(ENCODERS[name])
    more = rest.pop("record", {})
    kind = "llama" if more else "bert"
    entry = (
        record(model=rest["model"])
        if name == "minilm"
        else record(model=write_folder(tmp_path / "f", models[kind], **rest), **more)
    )
    found, sets = records.rules(entry, "models.mine"), make_sets(3, questions=2)
    encoder = Encoder.load(found, trainable=True, lora=LORA, max_length=64, device="cpu")
    assert encoder.training
    encoder.eval()  # BERT has dropout
    _make_lora_visible(encoder)
    queries, passages = (torch.cat(part) for part in objectives.vectors(sets, encoder))
    queries[:, 0].sum().backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for n, p in encoder.named_parameters() if "lora_B" in n)
    encoder.save_adapter(tmp_path / "adapter")
    system = systems.encoder.Dense(
        "mine", Encoder.load(found, adapter=tmp_path / "adapter", device="cpu"), found, configured(entry).evaluate
    )
    monkeypatch.setattr(systems.encoder.cache, "embeddings", lambda encoder, texts, *_, prompt, max_length, **__: encoder.encode(
        texts, prompt, max_length
    ))  # fmt: skip
    asked, read = [q.text for s in sets for q in s.questions], [p for s in sets for p in s.passages]
    theirs = system.vectors(task(read, asked))
    np.testing.assert_allclose(queries.detach(), theirs[0], atol=TOLERANCE)
    np.testing.assert_allclose(passages.detach(), theirs[1], atol=TOLERANCE)
    if name == "minilm":
        assert (found.pooling, found.max_length, found.append_eos, found.lora_targets) == ("mean", 256, False, None)
        return
    prompts = {"query": "", "document": "", **rest.get("prompts", {})}
    if more:
        prompts["query"] = more["query_prompt"]
    assert (found.query_prompt, found.document_prompt) == (prompts["query"], prompts["document"])
    for ours, kind_of, texts in ((queries, "query", asked), (passages, "document", read)):
        assert prompts[kind_of] == "" or np.abs(ours.detach().numpy() - encoder.encode(texts)).max() > 1e-3
        np.testing.assert_allclose(ours.detach(), encoder.encode([prompts[kind_of] + t for t in texts]), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bert folder", "minilm"])
def test_the_untrained_encoder_is_the_reference_of_its_record_but_for_the_name(models, tmp_path, name):
    """Issue: .574 against .491 for the same weights, one read at 256 tokens, the other at 96."""
    folder = write_folder(tmp_path / "f", models["bert"], dense=[{}], length=9, prompts={"query": "the ", "document": ""})
    entry = {"model": "packaged/minilm" if name == "minilm" else folder}
    first, second = (load(system, **entry) for system in ("untrained", "mine"))
    assert first.settings == second.settings and (first.name, second.name) == ("untrained", "mine")
    assert first.settings["checkpoint"] == first.encoder.fingerprint()
    long = task([*TEXTS[:5], "word " * 300], TEXTS[5:8])
    for one, other in zip(first.vectors(long), second.vectors(long), strict=True):
        assert one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------------------------------- lengths


def tables(folder):
    """Tiny models with a table of positions, and how many tokens each has room for."""
    from transformers import BertConfig, GPT2Config, MPNetConfig, OPTConfig, RobertaConfig

    vocabulary = make_tokenizer(folder)
    shape = {"vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = {**shape, "intermediate_size": 16, "max_position_embeddings": 20}
    return [
        (BertConfig(**bert), 20),
        (RobertaConfig(**bert, pad_token_id=1), 18),
        (MPNetConfig(**bert, pad_token_id=1), 18),
        (GPT2Config(vocab_size=vocabulary, n_positions=20, n_embd=16, n_layer=1, n_head=2), 20),
        (OPTConfig(**shape, ffn_dim=16, max_position_embeddings=20, word_embed_proj_dim=16), 20),
    ]


def test_a_length_above_the_positions_is_one_line_when_the_model_is_loaded(tmp_path):
    from transformers import AutoModel

    for number, (config, room) in enumerate(tables(tmp_path)):
        folder = tmp_path / str(number)
        AutoModel.from_config(config).save_pretrained(folder)
        make_tokenizer(folder)
        assert folder_room(folder) == room, config.model_type
        long = "cat " * 50
        assert np.isfinite(Encoder.from_pretrained(folder, max_length=room).encode([long])).all(), config.model_type
        with pytest.raises((IndexError, RuntimeError)):  # what it was: one token more does not fit
            encoder = Encoder.from_pretrained(folder)
            encoder.room = None
            encoder.encode([long], max_length=room + 1)
        message = rf"{room + 1} is more than .* has positions for \({room} tokens\)"
        with pytest.raises(DreamError, match=message):
            Encoder.from_pretrained(folder, max_length=room + 1)
        with pytest.raises(DreamError, match=message):
            Encoder.from_pretrained(folder).encode(["cat"], max_length=room + 1)
        with pytest.raises(DreamError, match=rf"models\.mine\.max_length {room + 1} is more than .* reads \({room} tokens\)"):
            rules(model=folder, pooling="mean", max_length=room + 1)
        assert rules(model=folder, pooling="mean").max_length == room


def test_rotary_models_have_no_table_and_no_such_limit(models):
    assert folder_room(models["llama"]) is None and folder_room(models["bert"]) == 128
    encoder = Encoder.from_pretrained(models["llama"])
    assert encoder.max_length == module.LENGTH and np.isfinite(encoder.encode(["cat " * 200])).all()


def test_the_trained_encoders_lengths_are_checked_before_any_weight_is_read(models):
    """In training by the section ``encoder``, in evaluation by the record; the library's wrapper too."""
    entry, line = record(model=models["bert"], pooling="mean", max_length=128), r"{} 129 is more than .*\(128 tokens\)"
    records.check_trainable(records.rules(entry, "models.mine"), 128)
    with pytest.raises(DreamError, match=line.format("encoder.max_length")):
        records.check_trainable(records.rules(entry, "models.mine"), 129)
    with pytest.raises(DreamError, match=line.format("max_length")):
        Encoder.load(records.rules(entry, "models.mine"), max_length=129)
    with pytest.raises(DreamError, match=line.format(r"models\.mine\.max_length")):
        rules(model=models["bert"], pooling="mean", max_length=129)
    with pytest.raises(DreamError, match=line.format("max_length")):
        MtebEncoder(Encoder.from_pretrained(models["bert"]), max_length=129)


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("targets", "missing"),
    [(["q_proj", "nonsense"], "no module 'nonsense'"), (["proj"], "no module 'proj'"), ([], "must be one")],
)
def test_every_target_of_a_new_lora_must_be_a_module(models, targets, missing):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    line = rf"lora_targets .*{missing}.*Its modules are .*down_proj.*q_proj"
    with pytest.raises(DreamError, match=line):
        check_targets(Encoder.from_pretrained(models["llama"]).backbone, targets, "tiny")
    if not targets:
        return  # none named: the attention projections
    encoder = Encoder.from_pretrained(models["llama"])
    with pytest.raises(DreamError, match=line):
        encoder.add_lora(LORA, 0, targets)
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    judge = Judge(AutoModelForCausalLM.from_pretrained(models["llama"]), tokenizer, reference="tiny")
    with pytest.raises(DreamError, match=line):
        judge.add_lora(4, 8, targets)
    encoder.add_lora(LORA, 0, ["self_attn.q_proj"])
    assert reading.is_peft(encoder.backbone), "a longer name is a name too"


@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.lists(st.text("abjloqrpx_.", max_size=8) | st.sampled_from(["q_proj", "mlp.up_proj", "norm", "mlp"]), max_size=4)
)
def test_targets_pass_exactly_where_peft_finds_a_matrix_for_each(models, targets):
    model = _backbone(models["llama"])
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    found = [
        any(check_target_module_exists(peft.LoraConfig(target_modules=[target]), name) and isinstance(m, kinds) for name, m in model.named_modules())
        for target in targets
    ]  # fmt: skip
    if targets and all(found):
        check_targets(model, targets, "tiny")
    else:
        with pytest.raises(DreamError, match="lora_targets"):
            check_targets(model, targets, "tiny")


@functools.cache
def _backbone(folder):
    return Encoder.from_pretrained(folder).backbone
