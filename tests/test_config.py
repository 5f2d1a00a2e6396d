"""params.yaml resolves for every size and recipe, and what it does not know is refused in one line."""

import copy
import itertools
import pathlib
import re

import pytest
import yaml

from dream import config
from dream.errors import DreamError

RAW = yaml.safe_load(pathlib.Path("params.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", list(RAW["sizes"]))
@pytest.mark.parametrize("recipe", ["auto", *config.RECIPES])
def test_every_size_resolves_with_every_recipe(size, recipe):
    found = config.load(overrides={"model.size": size, "recipe": recipe})
    assert found.model.size == size
    assert found.recipe == (RAW["sizes"][size]["recipe"] if recipe == "auto" else recipe)


def test_a_size_alone_means_the_papers_setting():
    found = config.load(overrides={"model.size": "3b"})
    encoder, judge = found.size.encoder.partition("@")[0], found.size.judge.partition("@")[0]
    assert (encoder, judge) == ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B-Instruct")
    assert (found.candidates.count, found.heads.count, found.injection.rows) == (16, 16, "query")
    knobs = found.training
    assert (knobs.steps, knobs.batch, knobs.micro_batch, knobs.learning_rate) == (1500, 32, 1, 1e-4)
    assert (knobs.lora.r, knobs.lora.alpha, found.evaluate.max_length) == (32, 64, 512)
    assert len(found.task_lists["general"]) == 9 and len(found.task_lists["domain"]) == 14


def test_an_override_replaces_the_values_of_all_recipes():
    assert config.load(overrides={"candidates.count": 4}).candidates.count == 4
    assert config.load(overrides={"candidates.count": 4, "model.size": "1b"}).candidates.count == 4


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("candidates.conut", 4, "candidates.conut is not a known setting. Did you mean 'count'?"),
        ("bogus", 1, "bogus is not a known setting"),
        ("candidates.count", "four", "candidates.count: Input should be a valid integer"),
        ("candidates.count", 1, "candidates.count: Input should be greater than or equal to 2"),
        ("training.learning_rate", -1.0, "training.learning_rate: Input should be greater than 0"),
        ("training.micro_batch", 3, "micro_batch 3 does not divide batch"),
        ("injection.rows", "documents", "injection.rows: Input should be 'query', 'query+label' or 'all'"),
        ("model.size", "7b", "model.size '7b' is not defined. Choose one of tiny"),
        ("recipe", "papre", "recipe 'papre' is not defined"),
        ("heads.explicit", [[1]], "heads.explicit.0"),
        ("evaluate.dtype", {"smoke": "bfloat16", "paper": "bfloat16"}, "evaluate.dtype has no value for recipe 'packaged'"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(key, value, line):
    with pytest.raises(DreamError) as caught:
        config.load(overrides={key: value})
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_key_is_named():
    raw = copy.deepcopy(RAW)
    del raw["bm25"]["k1"]
    with pytest.raises(DreamError, match=r"bm25\.k1 is missing"):
        config.resolve(raw)


def test_a_broken_or_missing_file_is_one_line(tmp_path):
    with pytest.raises(DreamError, match="is missing"):
        config.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("model: {size: tiny\n a: b")
    with pytest.raises(DreamError, match="not valid YAML") as caught:
        config.load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_every_knob_in_params_is_commented():
    """params.yaml reads as a manual: a knob stands with a comment on its line or in the lines above it."""
    lines = pathlib.Path("params.yaml").read_text(encoding="utf-8").splitlines()
    bare = []
    for before, line in itertools.pairwise(lines):
        is_knob = line.startswith("  ") and ":" in line and not line.strip().startswith("#")
        if is_knob and "#" not in line and "#" not in before and not before.strip().endswith((":", "}", ",")):
            bare.append(line.strip())
    assert len(bare) <= 12, bare


def test_the_stage_refuses_a_size_that_params_does_not_name():
    with pytest.raises(DreamError, match="--size 3b was asked for, but params.yaml says model.size: tiny"):
        config.load_for_stage("3b")


def test_the_hash_covers_what_an_artefact_depends_on():
    base = config.load()
    assert base.hash("heads") == config.load().hash("heads")
    assert base.hash("heads") == config.load(overrides={"candidates.count": 4}).hash("heads")
    assert base.hash("heads") != config.load(overrides={"heads.count": 4}).hash("heads")
    assert base.hash("heads") != config.load(overrides={"model.size": "tiny-4l"}).hash("heads")


def test_off_is_a_word_although_yaml_reads_it_as_false(tmp_path):
    text = pathlib.Path("params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(re.sub(r"gate: learned ", "gate: off ", text))
    assert config.load(tmp_path / "params.yaml").injection.gate == "off"
