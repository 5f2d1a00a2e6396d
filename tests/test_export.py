"""Exported models: plain peft, plain sentence-transformers and our encoder give the same vectors; cards are true."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from report_fixture import make_cells, make_config
from test_encoder import TEXTS, TOLERANCE, WORDS, make_model
from typer.testing import CliRunner

from dream import export, manifest
from dream.config import Published
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.evaluation import systems
from dream.files import read_json, write_json
from dream.report import cli

LONG = " ".join(WORDS * 5)
SPECIAL = ["", " ", "unseenword", LONG]
LORA = SimpleNamespace(r=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])


def settings(folder, layers=None, dtype="float32", **more):
    """The packaged recipe on a tiny local encoder."""
    size = {"encoder": str(folder), "encoder_layers": layers, "judge": str(folder), "recipe": "packaged"}
    lengths = {"evaluate.max_length": 16, "encoder.max_length": 12, "evaluate.dtype": dtype}
    return make_config(**{"sizes.tiny": size, **lengths, **more})


def train(config, system="dream", seed=0):
    """What the stage train leaves, with LoRA weights that change every vector."""
    encoder = Encoder.load(config, trainable=True, seed=seed)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    folder = systems.MODELS / f"{system}-{seed}"
    encoder.save_adapter(folder / "adapter")
    write_json(folder / "state.json", {"tau": 0.05, "gate": 0.5, "steps": 48, "pairs": 384})
    manifest.stamp(folder, config, "encoder", "training", "candidates", "data")


def ours(config, texts, prompt=""):
    encoder = Encoder.load(config, adapter=systems.MODELS / "dream-0" / "adapter", device="cpu")
    return encoder.encode(texts, prompt, config.evaluate.max_length)


def theirs(folder, texts, prompt_name=None):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name=prompt_name, batch_size=7)


def from_card(folder, texts):
    """Run the snippet of a PEFT folder's card as it stands, then its ``encode``."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["queries"].shape == names["documents"].shape == (1, 32)
    return names["encode"](texts).numpy()


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
        config = settings(model, **{"encoder.append_eos": append})
        train(config)
        folders = export.export(config, "dream", 0, "out", force=True)
        found = theirs(folders["sentence-transformers"], TEXTS + SPECIAL)
        np.testing.assert_allclose(found, ours(config, TEXTS + SPECIAL), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_both_folders_give_the_encoders_vectors(place, kind, pooling):
    config = settings(make_model(place / "model", kind), **{"encoder.append_eos": True, "encoder.pooling": pooling})
    train(config)
    check_vectors(config, TEXTS + SPECIAL)


def test_without_end_of_text_token(place):
    """An empty text is left out: this tokenizer adds nothing, so it has no token (see the module's docstring)."""
    config = settings(make_model(place / "model"), **{"encoder.append_eos": False})
    train(config)
    check_vectors(config, [*TEXTS, "unseenword", LONG])


def test_a_tokenizer_that_adds_its_own_end_of_text_token(place):
    from test_encoder import make_tokenizer

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
    config = settings(make_model(place / "model"), layers=2, **{"encoder.append_eos": True})
    train(config)
    folders = check_vectors(config, TEXTS[:20] + SPECIAL)
    assert read_json(folders["sentence-transformers"] / "config.json")["num_hidden_layers"] == 2
    assert read_json(folders["peft"] / "base" / "config.json")["num_hidden_layers"] == 2
    assert read_json(folders["peft"] / "adapter_config.json")["base_model_name_or_path"] == "base"


def test_prompts_and_length_travel(place):
    prompts = {"evaluate.query_prompt": "the blue ", "evaluate.document_prompt": "a river "}
    config = settings(make_model(place / "model"), **prompts, **{"encoder.append_eos": True})
    train(config)
    folder = export.export(config, "dream", 0, "out", ("sentence-transformers",))["sentence-transformers"]
    for name, prompt in (("query", "the blue "), ("document", "a river ")):
        found = theirs(folder, TEXTS[:8], prompt_name=name)
        np.testing.assert_allclose(found, ours(config, TEXTS[:8], prompt), atol=TOLERANCE)
    assert read_json(folder / "sentence_bert_config.json")["max_seq_length"] == 16
    entry = {"mine": Published(model=str(folder), dtype="float32")}
    mine = systems.load("mine", config.model_copy(update={"published": entry}), device="cpu")
    used = {key: mine.settings[key] for key in ("pooling", "max_length", "query_prompt", "document_prompt")}
    assert used == {"pooling": "last", "max_length": 16, "query_prompt": "the blue ", "document_prompt": "a river "}
    found = mine.encoder.encode(TEXTS, mine.rules.query_prompt, mine.rules.max_length)
    np.testing.assert_allclose(found, ours(config, TEXTS, "the blue "), atol=TOLERANCE)
    assert read_json(folder / "config_sentence_transformers.json")["similarity_fn_name"] == "cosine"


def test_bfloat16_is_stored_as_such_and_close(place):
    config = settings(make_model(place / "model"), dtype="bfloat16", **{"encoder.append_eos": True})
    train(config)
    folder = export.export(config, "dream", 0, "out", ("sentence-transformers",))["sentence-transformers"]
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"
    found = np.asarray(theirs(folder, TEXTS), np.float32)
    assert (found * ours(config, TEXTS)).sum(1).min() > 0.98


@pytest.fixture
def exported(place):
    """A trained system and cells of the same configuration."""
    config = settings(make_model(place / "model"), **{"encoder.append_eos": True, "data.sources": ["boolq", "squad"]})
    train(config)
    cells = make_cells(place, config)
    return SimpleNamespace(config=config, cells=cells)


@pytest.mark.parametrize("kind", export.FORMATS)
def test_the_card_parses_and_says_what_is_needed(exported, kind):
    folder = export.export(exported.config, "dream", 0, "out", (kind,), cells=exported.cells)[kind]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == kind and card.data.license == "other" and "dense-retrieval" in card.data.tags
    text = card.text
    for needed in ("CC BY-SA 3.0", "CC BY-SA 4.0", "learning_rate: 0.0005", "2606.24667", "@software{", "48 steps"):
        assert needed in text, needed
    score = json.loads((exported.cells / "evaluate" / "dream-0-general.json").read_text())[0]["ndcg_at_10"]
    row = next(line for line in text.splitlines() if line.startswith("| open") and "boolq" in line)
    assert f"{score:.3f}".lstrip("0") in row and "[" in row, "this run's own mean, with its interval"


def test_scores_of_another_configuration_or_model_are_left_out(exported):
    assert export.scores(exported.config, "dream", 0, exported.cells)[0]
    longer = exported.config.model_copy(
        update={"evaluate": exported.config.evaluate.model_copy(update={"max_length": 32})}
    )
    table, reason = export.scores(longer, "dream", 0, exported.cells)
    assert table is None and "evaluate.max_length" in reason
    path = exported.cells / "runs" / "evaluate-dream-0-general.json"
    record = json.loads(path.read_text())
    record[0]["inputs"]["work/models/dream-0"] = "0" * 64
    path.write_text(json.dumps(record))
    table, reason = export.scores(exported.config, "dream", 0, exported.cells)
    assert table is None and "another work/models/dream-0" in reason
    text = export.model_card("peft", exported.config, "dream", 0, {"config": {}}, "x", exported.cells)
    assert "None of this configuration are at hand: evaluate-dream-0-general" in text


def test_generated_questions_are_called_synthetic(place):
    config = settings(make_model(place / "model"), **{"data.sources": ["wikipedia"], "encoder.append_eos": True})
    train(config)
    text = export.model_card("peft", config, "dream", 0, {"config": {}}, "x", place / "none")
    assert "synthetic, not label-free" in text and ModelCard(text).data.datasets == ["Tevatron/wikipedia-nq-corpus"]


def test_a_hub_encoder_is_named_not_carried(place):
    size = {"encoder": "meta-llama/Llama-3.2-1B@v1", "encoder_layers": None, "judge": "x/y", "recipe": "packaged"}
    config = make_config(**{"sizes.tiny": size})
    write_json(systems.MODELS / "dream-0" / "state.json", {"tau": 0.05, "steps": 1, "pairs": 1})
    text = export.model_card("peft", config, "dream", 0, {"config": {}}, "owner/name", place / "none")
    assert 'AutoModel.from_pretrained("meta-llama/Llama-3.2-1B", revision="v1", dtype="' in text
    card = ModelCard(text)
    assert card.data.license == "llama3.2" and card.data.base_model == "meta-llama/Llama-3.2-1B"
    assert "Built with Llama" in text


def test_a_folder_that_is_taken_is_left_alone_and_a_failure_leaves_nothing(exported, monkeypatch):
    export.export(exported.config, "dream", 0, "out", ("peft",))
    with pytest.raises(DreamError, match=r"out/peft is not empty.*--force"):
        export.export(exported.config, "dream", 0, "out")
    before = (export.Path("out/peft/README.md")).read_text()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", fail)
    with pytest.raises(OSError, match="No space"):
        export.export(exported.config, "dream", 0, "out", force=True)
    assert export.Path("out/peft/README.md").read_text() == before
    assert [p.name for p in export.Path("out").iterdir()] == ["peft"]


def test_a_missing_or_other_model_is_one_line(exported):
    with pytest.raises(DreamError, match=r"there are dream-0.*dvc repro train@infonce-1.*dvc pull"):
        export.export(exported.config, "infonce", 1, "out")
    mean = exported.config.encoder.model_copy(update={"pooling": "mean"})
    other = exported.config.model_copy(update={"encoder": mean})
    with pytest.raises(DreamError, match=r"encoder\.pooling"):
        export.export(other, "dream", 0, "out")


def test_a_tokenizer_that_would_differ_is_refused(exported, monkeypatch):
    monkeypatch.setattr(Encoder, "tokenize", lambda self, texts, length: [[4, 5]] * len(texts))
    with pytest.raises(DreamError, match="gives other tokens"):
        export.export(exported.config, "dream", 0, "out")


def test_the_command_exports_and_pushes_only_when_asked(exported, monkeypatch):
    from report_fixture import write_params

    write_params(export.Path("."), exported.config)
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


def test_pushing_offline_is_one_line_and_keeps_the_folder(exported):
    folder = export.export(exported.config, "dream", 0, "out", ("peft",))["peft"]
    with pytest.raises(DreamError, match=r"owner/name could not be pushed .* is complete") as caught:
        export.push(folder, "owner/name")
    assert "\n" not in str(caught.value) and "hf upload" in str(caught.value) and folder.exists()


@pytest.mark.slow
def test_the_packaged_encoder_exports_too(tmp_path, monkeypatch):
    """The default size: six layers of the packaged model, its real tokenizer."""
    from dream import config as configs

    config = configs.load()
    monkeypatch.chdir(tmp_path)
    train(config)
    texts = ["who wrote hamlet", "def f(x):\n    return x + 1", "", " at both ends ", "naïve – 東京", "word " * 300]
    folders = export.export(config, "dream", 0, "out")
    np.testing.assert_allclose(theirs(folders["sentence-transformers"], texts), ours(config, texts), atol=TOLERANCE)
