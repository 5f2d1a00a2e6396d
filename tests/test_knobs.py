"""``dream-report knobs``: every setting has a sentence, its values and what it may be."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dream import cli, config
from dream.config import check
from dream.errors import DreamError
from dream.knobs import RECIPES
from dream.report.commands.knobs import comments, named, settings
from dream.report.results.agreement import flat

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("sizes", "models", "task_lists", "own")


@pytest.fixture(scope="module")
def found():
    return {setting.name: setting for setting in settings(ROOT / "params.yaml")}


def test_every_setting_has_a_sentence(found):
    assert [name for name, setting in found.items() if not setting.meaning] == []


def test_every_setting_of_params_and_of_every_file_is_there_once(found):
    whole = config.load(ROOT / "params.yaml", {"own": {"mine": "x"}})
    values = whole.model_dump(mode="json", exclude={*NAMED, "roles", "knobs", "probes", "mirror"})
    expected = {name for key, value in values.items() for name in flat(value, key)}
    expected |= {f"{section}.NAME" for section in ("task_lists", "own")} | {"judge.cache_gib"}  # in no stage's file
    expected |= {f"models.NAME.{key}" for key in whole.models["smollm2"].model_dump()}
    expected |= {f"sizes.NAME.{key}" for key in whole.size.model_dump()}
    for name in check.carriers():
        kind = check.carrier(name).Knobs
        expected |= {f"{name}.{key}" for key in kind.model_fields} if kind else set()
    assert set(found) == expected and len(found) == len(settings(ROOT / "params.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_values_are_those_that_a_recipe_resolves_to(found, recipe, tmp_path):
    whole = config.load(ROOT / "params.yaml", {"recipe": recipe, "own": {"mine": str(tmp_path)}})
    values = flat(whole.model_dump(mode="json", exclude={*NAMED, "roles", "knobs", "probes", "mirror", "recipe"}), "")
    for name, value in values.items():
        assert found[name.removeprefix(".")].values[recipe] == value, name
    for name, knobs in whole.knobs.items():
        assert {f"{name}.{key}": value for key, value in knobs.model_dump(mode="json").items()} == {
            key: setting.values[recipe] for key, setting in found.items() if key.startswith(f"{name}.")
        }


def test_what_a_setting_may_be_is_said_in_words(found):
    allowed = {
        "recipe": "auto | packaged | smoke | paper | adapt",
        "injection.rows": "query | query+label | all",
        "candidates.count": "whole number, at least 2",
        "training.accelerate": "text | null",
        "report.confidence": "number, above 0, below 1",
        "data.development": "number, at least 0, below 1",
        "training.threads": "whole number, at least 1, at most 1024",
        "heads.explicit": "list of: list of: whole number, at least 0",
        "models.NAME.pooling": "last | mean | cls | null",
        "infonce.negatives": "candidates | batch",
        "replug.mask_target": "true | false",
    }
    assert {name: found[name].allowed for name in allowed} == allowed


def test_a_name_is_a_section_a_setting_or_the_end_of_several(found):
    names = lambda name: [setting.name for setting in named(list(found.values()), name)]  # noqa: E731
    assert names("heads.count") == ["heads.count"] and names("judge")[0] == "judge.passage_tokens"
    assert set(names("count")) == {"candidates.count", "heads.count"} and len(names(None)) == len(found)
    assert {"training.learning_rate", "infonce.learning_rate"} <= set(names("learning_rate"))
    with pytest.raises(DreamError, match="setting 'heads.cuont' is unknown. Did you mean 'heads.count'?"):
        names("heads.cuont")


def test_text_and_json_say_the_same(monkeypatch):
    monkeypatch.chdir(ROOT)
    text, as_json = (CliRunner().invoke(cli.app, ["knobs", "heads.count", *more]).stdout for more in ([], ["--json"]))
    (one,) = json.loads(as_json)
    assert text.splitlines()[:3] == ["heads.count: 16 (smoke: 8)", "    M, heads", "    whole number, at least 1"]
    assert one == {"name": "heads.count", "meaning": "M, heads", "allowed": "whole number, at least 1",
                   "values": {"packaged": 16, "smoke": 8, "paper": 16, "adapt": 16}}  # fmt: skip


def test_a_comment_belongs_to_its_line_else_to_the_key_below_it():
    text = 'a:\n  b: 1\n  # above\n  c: {x: 2}  # behind\n  # above d\n  d: "x#y"\n\n# far\n\ne: 1\n'
    assert comments(text) == {"a.c": "behind", "a.d": "above d"}
