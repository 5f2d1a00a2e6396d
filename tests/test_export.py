"""Exported models: plain peft, plain sentence-transformers and our encoder give the same vectors; cards are true."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from report_fixture import OVERRIDES, make_cells, write_params
from test_encoder import KINDS, TEXTS, TOLERANCE, WORDS, make_model, make_tokenizer
from test_models_of_others import RELU, write_folder
from typer.testing import CliRunner

from dream import cli, export, systems
from dream import config as configs
from dream.config import stages
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.files import read_json, write_json
from dream.manifest import ROOT
from dream.report.commands import card
from dream.systems.encoder import TRAINED

LONG = " ".join(WORDS * 5)
SPECIAL = ["", " ", "unseenword", LONG]
RULES = {"pooling": "last", "append_eos": True, "max_length": 16}


def settings(folder, more=(), **record):
    """The packaged recipe on a tiny local encoder with these rules (None: what its folder says)."""
    rules = {key: value for key, value in {"model": str(folder), **RULES, **record}.items() if value is not None}
    tiny = {"encoder": "mine", "judge": "mine", "recipe": "packaged"}
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    mine = {"model.size": "tiny", "models.mine": rules, "sizes.tiny": tiny, "training.lora": lora, "encoder.max_length": 12}
    return configs.load(ROOT / "params.yaml", mine | dict(more))


def train(config, system="dream", seed=0):
    """What the stage train leaves, with LoRA weights that change every vector."""
    lora = config.training.lora
    encoder = Encoder.load(export.encoder_rules(config), trainable=True, lora=lora, seed=seed, device="cpu")
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    folder = TRAINED / f"{system}-{seed}"
    encoder.save_adapter(folder / "adapter")
    write_json(folder / "state.json", {"tau": 0.05, "gate": 0.5, "steps": 48, "pairs": 384})
    made_with = {"settings": stages.files(config)[f"train-{system}"], "objective": system, "seed": seed}
    write_json(folder / "made_with.json", made_with)


def ours(config, texts, prompt=""):
    rules = export.encoder_rules(config)
    encoder = Encoder.load(rules, adapter=TRAINED / "dream-0" / "adapter", device="cpu")
    return encoder.encode(texts, prompt, rules.max_length)


def theirs(folder, texts, prompt_name=None):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name=prompt_name, batch_size=7)


def from_card(folder, texts):
    """Run the snippet of a PEFT folder's card as it stands, then its ``encode``."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    vectors = names["encode"](texts).numpy()
    assert names["queries"].shape == names["documents"].shape == (1, vectors.shape[1])
    return vectors


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def check_vectors(config, texts):
    folders = export.export(config, "dream", 0, "out")
    expected = ours(config, texts)
    assert np.std(expected @ expected.T) > 0.01, "embeddings differ, or the comparison means nothing"
    np.testing.assert_allclose(theirs(folders["sentence-transformers"], texts), expected, atol=TOLERANCE)
    np.testing.assert_allclose(from_card(folders["peft"], texts), expected, atol=TOLERANCE)
    return folders


def check_with_and_without_end_of_text(model):
    for append in (True, False):
        config = settings(model, append_eos=append)
        train(config)
        folders = export.export(config, "dream", 0, "out", force=True)
        found = theirs(folders["sentence-transformers"], TEXTS + SPECIAL)
        np.testing.assert_allclose(found, ours(config, TEXTS + SPECIAL), atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_both_folders_give_the_encoders_vectors(place, kind, pooling):
    """An empty text is left out where the tokenizer adds nothing: it has no token (see the module's docstring)."""
    config = settings(make_model(place / "model", kind), pooling=pooling, append_eos=kind in ("llama", "qwen2", "qwen3"))
    train(config)
    check_vectors(config, TEXTS + SPECIAL)


def test_without_end_of_text_token(place):
    config = settings(make_model(place / "model"), append_eos=False)
    train(config)
    check_vectors(config, [*TEXTS, "unseenword", LONG])


FOLDERS = {
    "dense": {"dense": [{}]},
    "two dense, cls": {"dense": [{}, RELU], "pooling": "cls"},
    "dense, not normalised": {"dense": [{"use_residual": True}], "normalize": False, "pooling": "lasttoken"},
    "small letters": {"lower": True, "length": 9},
    "prompts": {"prompts": {"query": "the blue ", "document": "a river ", "web": "red "}, "dense": [{}], "length": 11},
}


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_trained_sentence_transformers_folder_keeps_its_modules_prompts_and_length(place, kind, name):
    folder = write_folder(place / "model", make_model(place / "plain", kind), **FOLDERS[name])
    config = settings(folder, pooling=None, append_eos=None, max_length=None)
    train(config)
    rules, texts = export.encoder_rules(config), [*TEXTS, "The CAT sat", LONG]
    found = check_vectors(config, texts)["sentence-transformers"]
    kinds = [module["type"].rpartition(".")[2] for module in read_json(found / "modules.json")]
    assert kinds == ["Transformer", "Pooling", *["Dense"] * len(FOLDERS[name].get("dense", ())), "Normalize"]
    for prompt_name, prompt in (("query", rules.query_prompt), ("document", rules.document_prompt)):
        expected = ours(config, texts, prompt)
        np.testing.assert_allclose(theirs(found, texts, prompt_name), expected, atol=TOLERANCE)
    assert (
        rules.max_length == FOLDERS[name].get("length", 128) == read_json(found / "sentence_bert_config.json")["max_seq_length"]
    )
    prompts = {"query": "", "document": "", **FOLDERS[name].get("prompts", {})}
    assert read_json(found / "config_sentence_transformers.json")["prompts"] == prompts


@pytest.mark.parametrize("texts", [["", "one"], TEXTS])
def test_the_packaged_minilm_is_exported_with_its_own_rules(place, texts):
    """Mean over 256 tokens, no end-of-text token: as the model's own folder says."""
    tiny = {"encoder": "minilm", "judge": "smollm2", "recipe": "packaged"}
    config = settings(place, {"sizes.tiny": tiny, "models.mine": {"model": "packaged/minilm"}})
    train(config)
    folder = check_vectors(config, [*texts, "word " * 300])["sentence-transformers"]
    assert read_json(folder / "sentence_bert_config.json")["max_seq_length"] == 256


def test_a_tokenizer_that_adds_its_own_end_of_text_token(place):
    make_model(place / "model")
    make_tokenizer(place / "model", special=True)
    check_with_and_without_end_of_text(place / "model")


def test_a_tokenizer_with_a_beginning_of_text_token_like_llamas(place):
    from tokenizers import Tokenizer, processors

    make_model(place / "model")
    file = place / "model" / "tokenizer.json"
    backend = Tokenizer.from_file(str(file))
    template = processors.TemplateProcessing(single="<cls> $A", special_tokens=[("<cls>", 3)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    backend.save(str(file))
    check_with_and_without_end_of_text(place / "model")


def test_a_shortened_encoder_is_exported_short(place):
    config = settings(make_model(place / "model"), layers=2)
    train(config)
    folders = check_vectors(config, TEXTS[:20] + SPECIAL)
    assert read_json(folders["sentence-transformers"] / "config.json")["num_hidden_layers"] == 2
    assert read_json(folders["peft"] / "base" / "config.json")["num_hidden_layers"] == 2
    assert read_json(folders["peft"] / "adapter_config.json")["base_model_name_or_path"] == "base"


def test_an_export_is_a_record_like_any_other(place):
    config = settings(make_model(place / "model"), query_prompt="the blue ", document_prompt="a river ")
    train(config)
    folder = export.export(config, "dream", 0, "out", ("sentence-transformers",))["sentence-transformers"]
    for name, prompt in (("query", "the blue "), ("document", "a river ")):
        found = theirs(folder, TEXTS[:8], prompt_name=name)
        np.testing.assert_allclose(found, ours(config, TEXTS[:8], prompt), atol=TOLERANCE)
    mine = {"models.exported": {"model": str(folder)}, "references": ["exported"]}
    system = systems.load("exported", settings(place / "model", mine), device="cpu")
    used = {key: system.settings[key] for key in ("pooling", "max_length", "query_prompt", "document_prompt")}
    assert used == {"pooling": "last", "max_length": 16, "query_prompt": "the blue ", "document_prompt": "a river "}
    found = system.encoder.encode(TEXTS, system.rules.query_prompt, system.rules.max_length)
    np.testing.assert_allclose(found, ours(config, TEXTS, "the blue "), atol=TOLERANCE)
    assert read_json(folder / "config_sentence_transformers.json")["similarity_fn_name"] == "cosine"


@pytest.mark.parametrize("dense", [[], [{}]])
def test_bfloat16_is_stored_as_such_and_close(place, dense):
    model = write_folder(place / "model", make_model(place / "plain"), dense=dense, pooling="lasttoken")
    config = settings(model, dtype="bfloat16")
    train(config)
    folder = export.export(config, "dream", 0, "out", ("sentence-transformers",))["sentence-transformers"]
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"
    found = np.asarray(theirs(folder, TEXTS), np.float32)
    assert (found * ours(config, TEXTS)).sum(1).min() > 0.98


REPORTED = ("objectives", "seeds", "references", "tasks", "task_lists", "report")
OWN = {key: OVERRIDES[key] for key in REPORTED} | {"data.sources": ["boolq", "squad"]}


@pytest.fixture
def config(place):
    """Of a trained system."""
    found = settings(make_model(place / "model"), OWN, licence="Llama 3.2")
    train(found)
    return found


@pytest.fixture
def exported(place, config):
    """A trained system and cells of the same configuration."""
    return SimpleNamespace(config=config, cells=make_cells(place, config))


@pytest.mark.parametrize("kind", export.FORMATS)
def test_the_card_parses_and_says_what_is_needed(exported, kind):
    table = card.scores(exported.config, "dream", 0, exported.cells)
    folder = export.export(exported.config, "dream", 0, "out", (kind,), scores=table, cells=exported.cells)[kind]
    found = ModelCard.load(folder / "README.md")
    assert found.data.library_name == kind and found.data.license == "llama3.2" and "dense-retrieval" in found.data.tags
    text = found.text
    for needed in ("CC BY-SA 3.0", "CC BY-SA 4.0", "learning_rate: 0.0005", "2606.24667", "@software{", "48 steps"):
        assert needed in text, needed
    score = json.loads((exported.cells / "evaluate" / "dream-0-general.json").read_text())[0]["ndcg_at_10"]
    row = next(line for line in text.splitlines() if line.startswith("| open") and "boolq" in line)
    assert f"{score:.3f}".lstrip("0") in row and "[" in row, "this run's own mean, with its interval"


@pytest.mark.parametrize("kind", export.FORMATS)
def test_the_hub_reads_the_scores_of_every_task_from_the_card(exported, kind):
    train(exported.config, seed=1)
    found = card.scores(exported.config, "dream", 1, exported.cells)
    folder = export.export(exported.config, "dream", 1, "out", (kind,), scores=found, cells=exported.cells)[kind]
    data = ModelCard.load(folder / "README.md").data
    assert data.model_name == "dream-1"
    records = [r for e in ("general", "domain") for r in read_json(exported.cells / "evaluate" / f"dream-1-{e}.json")]
    assert {(r.dataset_type, r.metric_type): (r.metric_value, r.dataset_revision) for r in data.eval_results} == {
        (record["task"], metric): (record[metric], record["revision"]) for record in records for metric in card.METRICS
    }
    assert len(data.eval_results) == 3 * 3
    bare = described(exported.config)
    assert "model-index" not in bare.content


def test_scores_of_another_configuration_or_model_are_left_out(exported):
    assert card.scores(exported.config, "dream", 0, exported.cells)[1] == ""
    longer = settings(exported.config.models["mine"].model, OWN, licence="Llama 3.2", max_length=32)
    table, reason, index = card.scores(longer, "dream", 0, exported.cells)
    assert table is None and "max_length" in reason and index == []
    path = exported.cells / "runs" / "evaluate-dream-0-general.json"
    record = json.loads(path.read_text())
    record[0]["inputs"]["work/models/dream-0"] = "0" * 64
    path.write_text(json.dumps(record))
    found = card.scores(exported.config, "dream", 0, exported.cells)
    assert found[0] is None and "another work/models/dream-0" in found[1]
    folder = export.export(exported.config, "dream", 0, "out", ("peft",), scores=found)["peft"]
    assert "None of this configuration are at hand: evaluate-dream-0-general" in (folder / "README.md").read_text()


def described(config, name="x"):
    return ModelCard(export.model_card("peft", config, export.encoder_rules(config), "dream", 0, name))


def test_generated_questions_are_called_synthetic(place):
    config = settings(make_model(place / "model"), {"data.sources": ["wikipedia"]})
    train(config)
    found = described(config)
    assert "synthetic, not label-free" in found.text and found.data.datasets == ["Tevatron/wikipedia-nq-corpus"]
    assert found.data.license == "other", "the record states none"


def test_a_hub_encoder_is_named_not_carried(place, monkeypatch):
    config = settings(make_model(place / "model"))
    train(config)
    rules = dataclasses.replace(export.encoder_rules(config), model="meta-llama/Llama-3.2-1B@v1", dtype="bfloat16")
    text = export.model_card("peft", config, rules, "dream", 0, "owner/name")
    assert 'AutoModel.from_pretrained("meta-llama/Llama-3.2-1B", revision="v1", dtype="bfloat16")' in text
    assert ModelCard(text).data.base_model == "meta-llama/Llama-3.2-1B"
    assert "Built with Llama" in text and "Built with Llama" not in str(described(config))


def test_a_folder_that_is_taken_is_left_alone_and_a_failure_leaves_nothing(config, monkeypatch):
    export.export(config, "dream", 0, "out", ("peft",))
    with pytest.raises(DreamError, match=r"out/peft is not empty.*--force"):
        export.export(config, "dream", 0, "out")
    before = (export.Path("out/peft/README.md")).read_text()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", fail)
    with pytest.raises(OSError, match="No space"):
        export.export(config, "dream", 0, "out", force=True)
    assert export.Path("out/peft/README.md").read_text() == before
    assert [p.name for p in export.Path("out").iterdir()] == ["peft"]


def test_a_missing_or_other_model_is_one_line_with_a_remedy_that_works(config):
    """DVC knows a stage for every objective and seed that params.yaml lists, and for no other."""
    for system, seed, message in (
        ("infonce", 1, r"infonce-1 is missing \(there are dream-0\). Run `dvc repro train@infonce-1`, or `dvc pull"),
        (
            "dream",
            9,
            r"dream-9 is missing .*\. Choose one of the seeds 0, 1, 2, or add 9 to them in params\.yaml\. Run `dvc repro",
        ),
        ("bm25", 0, r"'bm25' is not among the objectives that are trained \(dream, infonce\)\. Choose from dream, infonce"),
        ("nope", 0, r"'nope' is not among .*\. Choose from dream, infonce"),
        ("dreem", 0, r"'dreem' is not among .*\. Did you mean 'dream'\?"),
        ("replug", 0, r"'replug' is not among .*\. Add it to objectives in params\.yaml, then run `dvc repro train@replug-0`"),
    ):
        with pytest.raises(DreamError, match=message) as caught:
            export.export(config, system, seed, "out")
        assert "\n" not in str(caught.value) and not export.Path("out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "mean"}, r"dream-0 was made with roles\.encoder\.pooling = 'last', params says 'mean'"),
        ({"more": OWN | {"training.steps": 5}}, r"training\.steps"),
        ({"more": OWN | {"dream.temperature": 0.3}}, r"temperature"),
    ],
)
def test_a_model_of_other_settings_is_refused(config, changed, message):
    with pytest.raises(DreamError, match=message):
        export.export(
            settings(config.models["mine"].model, **{"more": OWN, "licence": "Llama 3.2", **changed}), "dream", 0, "out"
        )


def test_a_tokenizer_that_would_differ_is_refused(config, monkeypatch):
    monkeypatch.setattr(Encoder, "tokenize", lambda self, texts, length: [[4, 5]] * len(texts))
    with pytest.raises(DreamError, match="gives other tokens"):
        export.export(config, "dream", 0, "out")


def test_the_command_exports_and_pushes_only_when_asked(config, monkeypatch):
    write_params(export.Path("."), config)
    calls = []
    monkeypatch.setattr(export, "push", lambda folder, name: calls.append((str(folder), name)) or f"hub/{name}")

    def run(*arguments):
        result = CliRunner().invoke(cli.app, ["export", "--out", "out", "--force", "--json", *arguments])
        if isinstance(result.exception, DreamError):
            raise result.exception
        return json.loads(result.stdout)

    assert run() == {"peft": "out/peft", "sentence-transformers": "out/sentence-transformers"} and not calls
    with pytest.raises(DreamError, match="--push uploads one format"):
        run("--push", "owner/name")
    assert run("--format", "peft", "--push", "owner/name")["pushed"] == "hub/owner/name"
    assert calls == [("out/peft", "owner/name")]
    assert 'path = "owner/name"' in export.Path("out/peft/README.md").read_text()
    with pytest.raises(DreamError, match="format 'onnx' is unknown"):
        run("--format", "onnx")


def test_pushing_offline_is_one_line_and_keeps_the_folder(config):
    folder = export.export(config, "dream", 0, "out", ("peft",))["peft"]
    with pytest.raises(DreamError, match=r"owner/name could not be pushed .* is complete") as caught:
        export.push(folder, "owner/name")
    assert "\n" not in str(caught.value) and "hf upload" in str(caught.value) and folder.exists()


@pytest.mark.slow
def test_the_packaged_encoder_exports_too(tmp_path, monkeypatch):
    """The default size: six layers of the packaged model, its real tokenizer."""
    config = configs.load()
    monkeypatch.chdir(tmp_path)
    train(config)
    texts = ["who wrote hamlet", "def f(x):\n    return x + 1", "", " at both ends ", "naïve – 東京", "word " * 300]
    folders = export.export(config, "dream", 0, "out")
    np.testing.assert_allclose(theirs(folders["sentence-transformers"], texts), ours(config, texts), atol=TOLERANCE)
