"""params.yaml resolves for every size and recipe, and what it does not know is refused in one line."""

import copy
import itertools
import math
import pathlib
import re
import shlex
import shutil
import typing

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import dumps_yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dream import config, knobs, names
from dream.config import check, stages
from dream.errors import DreamError
from dream.files import read_yaml

RAW = read_yaml("params.yaml")


def refused(overrides: dict) -> str:
    """The line with which these values are refused."""
    with pytest.raises(DreamError) as caught:
        config.load(overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leaves(section: type[BaseModel], prefix: str = "") -> typing.Iterator[tuple[str, typing.Any]]:
    """Dotted key and type of every single setting."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


def holds(kind: type, annotation: typing.Any) -> bool:
    return annotation is kind or any(holds(kind, part) for part in typing.get_args(annotation))


LEAVES, BASE = dict(leaves(config.Config)), config.load()


@pytest.mark.parametrize("size", list(RAW["sizes"]))
@pytest.mark.parametrize("recipe", ["auto", *knobs.RECIPES])
def test_every_size_resolves_with_every_recipe(size, recipe, tmp_path):
    own = {"own": {"mine": str(tmp_path)}} if recipe == "adapt" else {}  # it needs documents
    found = config.load(overrides={"model.size": size, "recipe": recipe, **own})
    assert found.model.size == size
    assert found.recipe == (RAW["sizes"][size]["recipe"] if recipe == "auto" else recipe)


def test_a_size_alone_means_the_papers_setting():
    found = config.load(overrides={"model.size": "3b"})
    encoder, judge = found.roles["encoder"], found.roles["judge"]
    assert [r.model.partition("@")[0] for r in (encoder, judge)] == [
        "meta-llama/Llama-3.2-3B",
        "meta-llama/Llama-3.1-8B-Instruct",
    ]
    assert {r.dtype for r in (encoder, judge)} == {"bfloat16"} and (encoder.pooling, encoder.append_eos, encoder.layers) == (
        "last",
        False,
        None,
    )
    assert (found.candidates.count, found.heads.count, found.injection.rows) == (16, 16, "query")
    training = found.training
    assert (training.steps, training.batch, training.micro_batch, training.learning_rate) == (1500, 32, 1, 1e-4)
    assert (training.lora.r, training.lora.alpha, encoder.max_length) == (32, 64, 512)
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
        ("heads.explicit", [[1, -1]], "heads.explicit.0.1: Input should be greater than or equal to 0"),
        ("heads.explicit", [[1, 2], [1, 2]], "[1, 2] stands there twice"),
        ("heads.strategy", "explicit", "strategy is explicit, but explicit is empty"),
        ("model", "tiny", "model.size None is not defined"),
        ("model.size", ["tiny"], "model.size ['tiny'] is not defined"),
        ("sizes", None, "model.size 'tiny' is not defined"),
        ("recipe", ["paper"], "recipe ['paper'] is not defined"),
        ("models.minilm.poolng", "mean", "models.minilm.poolng is not a known setting. Did you mean 'pooling'?"),
        ("sizes.tiny.encodr", "x", "sizes.tiny.encodr is not a known setting. Did you mean 'encoder'?"),
        ("training.lora.rank", 3, "training.lora.rank is not a known setting. Remove it"),
        ("training.threads", 1_000_000, "training.threads: Input should be less than or equal to 1024"),
        ("evaluate.workers", 1_000_000, "evaluate.workers: Input should be less than or equal to 1024"),
        ("training.steps", 10**30, "training.steps: Input should be less than"),
        ("training.clip", 10**400, "training.clip"),
        ("evaluate.depth", 50, "evaluate.depth: Input should be greater than or equal to 100"),
        ("questions.prompt", "Write a question.", "questions.prompt"),
        ("models.minilm.model", "owner/name@", "models.minilm.model: is no model"),
        ("models.minilm.model", "", "models.minilm.model: is no model"),
        ("models.minilm.adapter", "owner/na\nme", "models.minilm.adapter: is no model"),
        ("sizes.tiny.encoder", "minilmm", "sizes: 'minilmm' is no entry of models. Did you mean 'minilm'?"),
        ("questions.generator", "minilmm", "questions.generator: 'minilmm' is no entry of models. Did you mean 'minilm'?"),
        ("tasks", [], "tasks: at least one entry is needed here"),
        ("task_lists.mine", [], "task_lists.mine: at least one entry is needed here"),
        ("seeds", [], "seeds: at least one entry is needed here"),
        ("models.minilm.lora_targets", [], "models.minilm.lora_targets: at least one entry is needed here"),
        ("data.sources", [], "data.sources is empty and there is no own set"),
        ("references", ["bm52"], "references: 'bm52' is unknown. Did you mean 'bm25'?"),
        ("references", ["qrhead"], "references: 'qrhead' belongs to `rerankers`"),
        ("references", ["dream"], "references: 'dream' belongs to `objectives`"),
        ("objectives", ["draem"], "objectives: 'draem' is unknown. Did you mean 'dream'?"),
        ("objectives", ["minilm"], "objectives: 'minilm' belongs to `references`"),
        ("rerankers", ["qrhaed"], "rerankers: 'qrhaed' is unknown. Did you mean 'qrhead'?"),
        ("data.sources", ["bolq"], "data.sources: 'bolq' is unknown. Did you mean 'boolq'?"),
        ("report.reference_system", "draem", "report.reference_system: 'draem' is unknown. Did you mean 'dream'?"),
        ("task_lists.ring", ["boolq", "ring"], "task_lists: ring → ring never ends"),
        ("task_lists", {"a": ["b"], "b": ["c"], "c": ["boolq", "a"]}, "task_lists: a → b → c → a never ends"),
        ("evaluate.depth", {"smoke": 100, "paper": 100}, "evaluate.depth has no value for recipe 'packaged'"),
        ("evaluate.depth", {"packaged": 100, "smok": 100}, "evaluate.depth: 'smok' is no recipe. Did you mean 'smoke'?"),
        ("training.bach", 4, "training.bach is not a known setting. Did you mean 'batch'?"),
        ("infonce.negative", "batch", "infonce.negative is not a known setting. Did you mean 'negatives'?"),
        ("replug.tau_lm", 0.0, "replug.tau_lm: Input should be greater than 0"),
        ("replug", 3, "replug: settings are needed here"),
        ("roles", {}, "roles is not a known setting"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(key, value, line):
    assert line in refused({key: value})


def test_a_missing_key_is_named():
    raw = copy.deepcopy(RAW)
    del raw["bm25"]["k1"]
    with pytest.raises(DreamError, match=r"bm25\.k1 is missing"):
        config.resolve(raw)


def test_in_batch_negatives_of_a_batch_of_one_are_refused():
    own = {"infonce.negatives": "batch", "training.micro_batch": 1}
    assert config.load(overrides=own).knobs["infonce"].negatives == "batch"
    line = "infonce.negatives is batch, but training.batch is 1: no other set is at hand to take negatives from. Raise"
    assert line in refused(own | {"training.batch": 1})


@pytest.mark.parametrize("key", [key for key, kind in LEAVES.items() if holds(float, kind)])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_may_be_infinite_or_no_number(key, value):
    one = typing.get_origin(LEAVES[key]) is list
    assert f"{key}{'.0' * one}: Input should be a finite number" in refused({key: [value] if one else value})


@pytest.mark.parametrize("key", [key for key in LEAVES if key.split(".")[-1] == "seed"])
def test_seeds_are_what_every_generator_takes(key):
    for wrong in (-1, 2**32, 0.5, True, "0", None):
        assert f"{key}: Input should be" in refused({key: wrong})
    assert config.load(overrides={key: 2**32 - 1})
    assert "seeds.0: Input should be greater than or equal to 0" in refused({"seeds": [-1]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", [0, 0]), ("objectives", ["dream", "dream"]), ("references", ["bm25", "bm25"]), ("rerankers", ["qrhead", "qrhead"]),
        ("tasks", ["all", "all"]), ("task_lists.mine", ["boolq", "boolq"]), ("data.sources", ["squad", "squad"]),
        ("models.minilm.lora_targets", ["q_proj", "q_proj"]),
    ],
)  # fmt: skip
def test_a_list_names_each_thing_once(key, value):
    """`seeds=[0,0]` printed a spread over seeds of one run."""
    assert f"{key}: {value[0]!r} stands there twice" in refused({key: value})


def test_the_judge_has_the_heads_that_are_asked_for():
    def heads(**knobs):
        return config.load(overrides={f"heads.{key}": value for key, value in knobs.items()}).heads

    for strategy in ("query_focused", "random", "random_middle"):
        heads(strategy=strategy, count=270).require(30, 9)
        with pytest.raises(DreamError, match=r"heads.count is 271, but the judge has 270 heads \(30 layers of 9\). Lower it"):
            heads(strategy=strategy, count=271).require(30, 9)
    heads(strategy="all", count=271).require(30, 9)
    heads(strategy="explicit", explicit=[[29, 8]], count=271).require(30, 9)
    for pair in ([30, 0], [0, 9]):
        with pytest.raises(DreamError, match=f"{re.escape(str(pair))} is no head of the judge. It has 30 layers of 9 heads"):
            heads(strategy="explicit", explicit=[[0, 0], pair]).require(30, 9)


def test_a_range_of_layers_holds_layers_of_the_judge():
    for wrong in ([3, 2], [1], [1, 2, 3], [-1, 2], 3):
        assert refused({"heads.layers": wrong}).startswith("params.yaml with the settings given: heads")
    assert "explicit: [1, 0] lies outside of layers [2, 3]" in refused(
        {"heads.layers": [2, 3], "heads.strategy": "explicit", "heads.explicit": [[2, 0], [1, 0]]}
    )

    def heads(count, layers):
        return config.load(overrides={"heads.count": count, "heads.layers": layers}).heads

    heads(18, [28, 29]).require(30, 9)
    with pytest.raises(DreamError, match=r"heads.layers \[28, 29\] hold 18 heads \(2 layers of 9\)"):
        heads(19, [28, 29]).require(30, 9)
    with pytest.raises(DreamError, match="heads.layers: the judge has no layer 30. It has 30 layers, from 0"):
        heads(3, [2, 30]).require(30, 9)


@pytest.mark.parametrize(
    ("able", "dtype"), [({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"), ({}, "float32")]
)
def test_auto_is_what_the_machine_computes_in_and_is_written_down(monkeypatch, able, dtype):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    found = config.load(overrides={"models.smollm2.dtype": "auto"})
    assert found.roles["judge"].dtype == dtype and found.roles["encoder"].dtype == "float32"
    assert stages.files(found)["train-dream"]["roles"]["judge"]["dtype"] == dtype
    assert "auto" not in str(stages.files(found)["heads"])


def test_the_room_for_readings_is_in_no_stages_file():
    """It changes no result, so nothing is run again for it, and no resume point is lost."""
    before, after = (stages.files(config.load(overrides={"judge.cache_gib": gib})) for gib in (0.0, 3.5))
    assert {name for name in before if before[name] != after[name]} == {"readings", "report"}
    assert stages.read(after["readings"]).judge.cache_gib == 3.5
    assert config.load(overrides={"recipe": "paper"}).judge.cache_gib == 0
    assert "cache_gib: Input should be greater than or equal to 0" in refused({"judge.cache_gib": -1})


@pytest.mark.parametrize(
    ("overrides", "off"),
    [
        ({}, ""),
        ({"judge.cache_gib": 0}, "judge.cache_gib is 0"),
        ({"judge.cache_gib": 1}, "they would take more than judge.cache_gib (1)"),
        ({"models.smollm2.quantization": "4bit"}, "a judge in 4bit promises no stable bytes"),
        ({"dream.judge": "lora"}, "dream.judge=lora trains the judge"),
        ({"model.size": "8b"}, "judge.cache_gib is 0"),
        ({"model.size": "8b", "judge.cache_gib": 1000}, "they would take more than judge.cache_gib (1000)"),
    ],
)
def test_the_plan_says_what_the_judges_readings_take_and_whether_they_are_kept(overrides, off):
    from dream.planning import plan

    found = plan.estimate(config.load(overrides=overrides), 100)
    kept, paper = found["readings"], "model.size" in overrides
    assert kept["off"] == off and (found["disk_gib"]["judge's readings"] > 0) == (not off)
    assert kept["sets"] == (48_000 + 5_000 if paper else 144 + 24)
    token = 32 * 2 * 8 * 128 * 2 if paper else 30 * 2 * 3 * 64 * 4
    assert kept["gib"] == pytest.approx(kept["sets"] * (16 * 193 + 16 if paper else 8 * 49 + 16) * token / 2**30)
    (line,) = [note for table in plan.tables(found, 80, "x") for note in table.notes if "readings" in note]
    assert (f"off ({off})" in line) if off else ("the store is on" in line)


# YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-5), ("1e-5", 1e-5), ("1E+3", 1000.0), (".5", 0.5), ("5.0e-4", 5e-4), (".inf", math.inf), ("-.inf", -math.inf),
        ("off", "off"), ("on", "on"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("true", True), ("False", False), ("~", None), ("", None),
        ("0o17", 15), ("017", 17), ("0x1f", 31), ("1:30", "1:30"), ("inf", "inf"), ("nan", "nan"), ("'1e5'", "1e5"),
    ],
)  # fmt: skip
def test_a_word_of_yaml_is_what_version_1_2_says(text, value, tmp_path):
    (tmp_path / "x.yaml").write_text(f"a: {text}\n", encoding="utf-8")
    found = read_yaml(tmp_path / "x.yaml")["a"]
    assert found == value and type(found) is type(value)


def test_merges_comments_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfb: &b {c: 1, e: x} # text\na:\n  <<: *b\n  c: 2\n")
    assert read_yaml(tmp_path / "x.yaml") == {"b": {"c": 1, "e": "x"}, "a": {"c": 2, "e": "x"}}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]))
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abc.-", min_size=1), SCALARS | st.lists(SCALARS), max_size=4))
@example({"a": 1e-05, "b": ["off", "yes", "1e5", "0o7", "null", "", "~", "=", "<<"]})
def test_what_dvc_writes_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(dumps_yaml(value), encoding="utf-8")
    assert read_yaml(path) == value


BROKEN = {
    "a: 1\na: 2": r"line 2 is not valid YAML .the key \"a\" stands twice in one mapping.\. Correct it", "a:\n\t- b": "line 2 is not valid YAML .found character",
    "a: &a {b: *a}": "Circular reference", "a: [": "line 1", "a: 1\n---\nb: 2": "another document", "a: \x00": "unacceptable character",
    "a: !!python/object:os.system x": "could not determine a constructor", "a: " + "9" * 5000: "integer", "a: " + "[" * 40: "line 1",
    "? [a]\n: 1": "keys must be", "a: \"\\ud800\"": "surrogates not allowed", "a: !!int abc": "invalid literal", "a: *b": "undefined alias", "a: =": "constructor", "a: !!bool maybe": "maybe",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_one_line_that_names_the_place(text, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DreamError, match=BROKEN[text]) as caught:
        config.load(path)
    line = str(caught.value)
    assert str(path) in line and "is not valid YAML" in line and line.isprintable() and len(line) < 500


@settings(deadline=None)
@given(st.text("ab01:-[]{}&*!|>'\"%@`#, \n\t\r\x00\x1b\ufeff\u2028é", max_size=60) | st.binary(max_size=30))
def test_any_bytes_are_a_value_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        read_yaml(path)
    except DreamError as error:
        line = str(error)
    else:
        return
    assert line.isprintable()


def test_a_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "latin").write_bytes(b"a: caf\xe9\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "list").write_text("- 1")
    for name, line in {
        "missing": "is missing", ".": "cannot be read .Is a directory", "latin": "cannot be read .it is not UTF-8",
        "empty": "holds no settings", "list": "holds no settings",
    }.items():  # fmt: skip
        with pytest.raises(DreamError, match=line) as caught:
            config.load(tmp_path / name)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=1e-5", 1e-5), ("++knobs.revela.tau=1e-5", 1e-5), ("report.confidence=9.5e-1", 0.95), ("injection.gate=off", "off"),
        ("models.bge-small.query_prompt=yes", "yes"), ("models.bge-small.query_prompt='1e5'", "1e5"), ("models.bge-small.query_prompt='null'", "null"),
        ("data.seed=4294967295", 2**32 - 1), ("tasks=[boolq,'1e5']", ["boolq", "1e5"]), ("++knobs.dream.learning_rate=null", None),
    ],
)  # fmt: skip
def test_what_dvc_exp_run_puts_in_is_what_is_read(override, value, tmp_path):
    params = pathlib.Path(shutil.copy("params.yaml", tmp_path))
    apply_overrides(params, [override.replace("knobs.", "")])
    found = config.load(params)
    for name in override.split("=")[0].strip("+").split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "override", ["training.clip=inf", "training.clip=nan", "training.clip='.inf'", "seeds=[0,0]", "tasks=['odd; touch x']"]
)
def test_what_dvc_exp_run_must_not_put_in_is_refused(override, tmp_path):
    params = pathlib.Path(shutil.copy("params.yaml", tmp_path))
    apply_overrides(params, [override])
    with pytest.raises(DreamError, match=override.split("=")[0]):
        config.load(params)


# names


@given(st.text(max_size=70) | st.from_regex(names.RULE, fullmatch=True))
@example("a.").via("Windows drops a dot at the end")
@example("-x").via("a flag")
@example("..")
@example("a\n").via("`$` would take it")
@example("ａ").via("a letter, but not of ASCII")
def test_a_name_that_is_accepted_is_one_word_and_one_file(name):
    try:
        names.require(name)
    except ValueError:
        assert not names.RULE.fullmatch(name)
        return
    assert shlex.split(f"run --tasks {name}") == ["run", "--tasks", name] and shlex.quote(name) == name
    assert (
        pathlib.PurePath(name).parts == (name,)
        and name.isascii()
        and len(name) <= 64
        and not name.startswith(("-", "."))
        and name[-1] != "."
    )


@pytest.mark.parametrize("name", ["odd; touch x", "a/b", "", ".", "..", "a b", "-x", "x.", "x" * 65, "é", "a\x1b[31m", "$(x)"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("own", "x"), ("task_lists", ["boolq"]), ("models", RAW["models"]["minilm"]), ("sizes", RAW["sizes"]["tiny"])],
)
def test_names_follow_one_rule_everywhere(key, value, name):
    raw = copy.deepcopy(RAW)
    raw[key][name] = value
    with pytest.raises(DreamError, match=f"params.yaml: {key}.*it cannot be a name. Use at most 64") as caught:
        config.resolve(raw)
    assert str(caught.value).isprintable()
    for listed in ("tasks", "references", "objectives", "data.sources"):
        assert "it cannot be a name" in refused({listed: [name]})


@pytest.mark.parametrize(
    ("key", "name", "other"),
    [
        ("own", "boolq", "a packaged task"), ("own", "BoolQ", "a packaged task"), ("own", "SciFact", "an mteb task"),
        ("own", "beir", "a list of mteb tasks"), ("own", "bm25", "a system"), ("own", "hybrid", "a system"), ("own", "dream", "an objective"),
        ("own", "general", "a task list"), ("own", "minilm", None), ("own", "code", "a packaged training source"), ("models", "smoke", "a recipe"),
        ("own", "entry.json", "a file beside the tasks"), ("own", "scifact", None), ("own", "mine", None),
        ("task_lists", "mbpp", "a packaged task"), ("task_lists", "rteb", "a list of mteb tasks"), ("task_lists", "infonce", "an objective"),
        ("models", "infonce", "an objective"), ("models", "InfoNCE", "an objective"), ("models", "qrhead", "a system"),
        ("models", "general", "a task list"), ("models", "ArguAna", "an mteb task"), ("models", "mine", None),
    ],
)  # fmt: skip
def test_a_name_stands_for_one_thing(key, name, other):
    """A record that was called infonce gave its scores to the trained system."""
    raw = copy.deepcopy(RAW)
    raw[key][name] = {"own": "x", "task_lists": ["boolq"], "models": RAW["models"]["minilm"]}[key]
    if key == "own" and name == "minilm":
        key, other = "models", "an own set"
    if other is None:
        assert name in getattr(config.resolve(raw), key)
        return
    with pytest.raises(DreamError, match=f"params.yaml: {key}: '{name}' is already the name of {other}"):
        config.resolve(raw)


@pytest.mark.parametrize("key", ["own", "task_lists", "models"])
def test_names_that_differ_in_case_alone_are_one_name(key):
    raw = copy.deepcopy(RAW)
    for name in ("mine", "Mine"):
        raw[key][name] = {"own": "x", "task_lists": ["boolq"], "models": RAW["models"]["minilm"]}[key]
    with pytest.raises(DreamError, match=rf"{key}: 'Mine' is already the name of an? .*\(mine\)"):
        config.resolve(raw)


WORDS = st.sampled_from(["a", "A", "a-0", "0-a", "0", "dream-0", "dream", "0-a-0", "bm25-a", "a-a", "x-0", "0-0"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(WORDS, max_size=3, unique=True), st.lists(WORDS, max_size=3, unique=True), st.lists(WORDS, max_size=3, unique=True),
    st.lists(WORDS, max_size=3, unique=True), st.lists(st.sampled_from([0, 1, 10]), min_size=1, unique=True),
)  # fmt: skip
@example(["dream-0"], ["0-a"], [], ["a"], [0])
@example(["bm25-a"], ["a-a"], [], ["a"], [0])
@example([], [], ["scifact"], ["SciFact"], [0])
def test_two_cells_never_share_a_file(models, lists, own, tasks, seeds):
    """Whatever names are accepted, every system on every entry of tasks has files of its own, on any file system."""
    base = BASE
    found = base.model_copy(
        update={
            "models": dict.fromkeys(models, base.models["minilm"]), "task_lists": {name: ["boolq"] for name in lists},
            "own": dict.fromkeys(own, "x"), "tasks": tasks or ["all"], "seeds": seeds, "references": ["bm25"],
        }
    )  # fmt: skip
    try:
        check.names(found)
    except DreamError:
        return
    entries = {*found.tasks, *lists, *own}
    cells = [(s, None, e) for s in ("bm25", "untrained", "qrhead", *models) for e in entries]
    cells += [(o, seed, e) for o in check.trained() for seed in seeds for e in entries]
    assert len({names.cell(*cell).casefold() for cell in cells}) == len(cells)


def test_the_ambiguous_cell_is_named():
    raw = copy.deepcopy(RAW)
    raw["models"]["dream-0"], raw["task_lists"]["0-mine"] = RAW["models"]["minilm"], ["boolq"]
    with pytest.raises(
        DreamError, match="dream-0 on general and dream with seed 0 on general would share the file dream-0-general"
    ):
        config.resolve(raw)
    raw["seeds"] = [1]
    assert config.resolve(raw).models["dream-0"]


def test_names_that_the_code_gives_are_those_it_knows():
    from dream import objectives, systems
    from dream.report.results.cells import Cell

    for room, found in ((objectives, check.trained()), (systems, {**check.built_in(), **check.rerankers()})):
        for name in found:
            assert room.find(name).__module__ == f"{room.__name__}.{found[name]}" and names.require(name)
        ours = {name for name, kind in room.REGISTRY.items() if kind.__module__.startswith(room.__name__)}
        assert set(found) == ours
    assert set(check.built_in()) == {"bm25", "hybrid", "hyde", "untrained"} and set(check.rerankers()) == {"qrhead"}
    for cell in (("dream", 0, "general"), ("bm25", None, "boolq")):
        assert names.cell(*cell) == Cell(*cell).name


def test_unknown_names_are_refused_without_loading_torch():
    import subprocess
    import sys

    code = (
        "import sys; from dream import config\n"
        "try: config.load(overrides={'objectives': ['draem']})\n"
        "except Exception as error: assert 'draem' in str(error)\n"
        "sys.exit('torch' in sys.modules or 'mteb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# pins

UNPINNED = {"yixuantt/DREAM-0.5B", "yixuantt/DREAM-1B", "yixuantt/DREAM-3B", "trumancai/Revela-500M", "trumancai/Revela-1b"}


def hub_references(value) -> set[str]:
    """Hub models anywhere in params.yaml."""
    if isinstance(value, dict):
        return set().union(
            *(hub_references(v) for k, v in value.items() if k not in ("own", "accelerate", "query_prompt", "document_prompt"))
        )
    found = isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+(@\S+)?", value)
    return {value} if found and not value.startswith("packaged/") else set()


def test_every_hub_model_is_pinned_to_one_commit_or_listed_here():
    found = hub_references(RAW)
    pins: dict[str, set[str]] = {}
    for reference in found:
        name, _, revision = reference.partition("@")
        pins.setdefault(name, set()).add(revision)
    assert len(pins) == 16 and {name for name, revisions in pins.items() if "" in revisions} == UNPINNED
    for name, revisions in pins.items():
        assert len(revisions) == 1 and (name in UNPINNED or re.fullmatch("[0-9a-f]{40}", *revisions)), name


def test_pins_of_embedding_models_are_those_of_mteb():
    """mteb's registry is where they come from; read as text, since importing it takes seconds."""
    import importlib.util

    folder = pathlib.Path(importlib.util.find_spec("mteb").origin).parent / "models" / "model_implementations"
    text = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in ("bge_models", "e5_instruct", "qwen3_models"))
    for entry in ("bge-large", "e5-mistral", "qwen3-0.6b"):
        name, revision = RAW["models"][entry]["model"].split("@")
        assert re.search(rf'name="{re.escape(name)}",\n(?:(?!name=).*\n)*? *revision="{revision}"', text), name


def test_the_guide_downloads_what_is_pinned():
    lines = [
        line.split("#")[0].split()
        for line in pathlib.Path("docs/reproduce.md").read_text(encoding="utf-8").splitlines()
        if "hf download" in line
    ]
    assert len(lines) == 2 and {f"{line[2]}@{line[4]}" for line in lines} <= hub_references(RAW)


def test_the_size_of_a_pinned_model_is_known_offline():
    from dream.planning import plan

    for size in RAW["sizes"].values():
        for name in (size["encoder"], size["judge"]):
            assert plan.model(RAW["models"][name]["model"]).layers > 0


def test_every_knob_in_params_is_commented():
    """params.yaml reads as a manual: a knob stands with a comment on its line or in the lines above it."""
    lines = pathlib.Path("params.yaml").read_text(encoding="utf-8").splitlines()
    bare = []
    for before, line in itertools.pairwise(lines):
        is_knob = line.startswith("  ") and ":" in line and not line.strip().startswith("#")
        if is_knob and "#" not in line and "#" not in before and not before.strip().endswith((":", "}", ",")):
            bare.append(line.strip())
    assert len(bare) <= 12, bare


def test_a_path_of_own_data_that_is_empty_is_refused():
    """An unset shell variable is not the current folder."""
    for path in ("", "  "):
        with pytest.raises(DreamError, match=r"own\.manuals: is empty\. Name a folder, a file or a zip"):
            config.load(overrides={"own": {"manuals": path}})


def test_configure_refuses_a_size_that_params_does_not_name(monkeypatch):
    from stages import configure

    monkeypatch.setattr("sys.argv", ["configure", "--size", "3b"])
    with pytest.raises(SystemExit, match="--size 3b was asked for, but params.yaml says model.size: tiny"):
        configure.main()


# what each stage may read


def test_a_stage_cannot_read_a_knob_that_is_not_in_its_file():
    for name, file in stages.files(BASE).items():
        part = stages.cut(BASE, name)
        for section in config.Config.model_fields:
            if section in file:
                assert getattr(part, section) == getattr(BASE, section) or isinstance(file[section], dict | list)
            elif section not in ("roles", "knobs", "probes", "mirror"):
                with pytest.raises(AttributeError):
                    getattr(part, section)
        assert set(part.roles) == set(file.get("roles", {})) and set(part.knobs) == set(file.get("knobs", {}))
        for section in ("training", "heads", "injection", "data"):
            for key in type(getattr(BASE, section)).model_fields:
                if section in file and key not in file[section]:
                    with pytest.raises(AttributeError):
                        getattr(getattr(part, section), key)


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (
            {"model.size": "tiny-4l"},
            {"assets", "report", "train-*", "evaluate-dream-*", "evaluate-infonce-*", "evaluate-untrained-*"},
        ),
        ({"infonce.negatives": "batch"}, {"train-infonce", "report"}),
        ({"injection.gap_every": 2}, {"train-dream", "report"}),
        ({"injection.diagnostic": 20}, {"signal", "report"}),
        ({"heads.count": 8}, {"assets", "heads", "report"}),
        ({"report.resamples": 500}, {"report"}),
        ({"questions.max_new_tokens": 3}, {"report"}),
        ({"models.minilm.max_length": 128}, {"assets", "evaluate-minilm-*", "report"}),
        ({"models.bge-large.max_length": 128}, {"report"}),
    ],
)
def test_a_change_reaches_the_files_that_may_read_it_and_no_other(overrides, changed):
    before, after = stages.files(BASE), stages.files(config.load(overrides=overrides))
    differ = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert all(any(pathlib.PurePath(name).match(p) for p in changed) for name in differ), differ
    assert all(any(pathlib.PurePath(name).match(p) for name in differ) for p in changed), changed


def test_an_objectives_own_rate_and_temperature_stand_in_the_common_ones_place():
    found = config.load(overrides={"infonce.learning_rate": 1e-3})
    assert stages.cut(found, "train-infonce").training.learning_rate == 1e-3
    assert stages.cut(found, "train-dream").training.learning_rate == found.training.learning_rate == 5e-4
    assert stages.cut(found, "train-dream").temperature.init == 0.02 and found.temperature.init == 0.05
    paper = config.load(overrides={"model.size": "1b", "objectives": ["dream", "revela"]})
    assert stages.cut(paper, "train-dream").temperature.init == 0.05
    revela = stages.cut(paper, "train-revela").knobs["revela"]
    assert (revela.tau, revela.r, revela.alpha) == (1e-4, 256, 512)


def test_every_knob_of_an_objective_or_system_is_described():
    for name in sorted(check.carriers()):
        kind = check.carrier(name).Knobs
        described = dict(kind.described()) if kind else {}
        assert set(described) == set(kind.model_fields if kind else ()) and all(
            text.endswith(".") for text in described.values()
        ), name
