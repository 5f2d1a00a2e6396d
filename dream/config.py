"""params.yaml → one resolved, typed, frozen :class:`Config` that refuses what it does not know.

A knob in params.yaml is one value or one value per recipe (``{packaged: 8, paper: 16}``). :func:`resolve`
picks the recipe's value, validates every key and type, and looks the model size up. Adding a knob is one
line in params.yaml and one field here; nothing else in the library reads params.yaml.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from dream.errors import DreamError
from dream.files import value_hash

RECIPES = ("packaged", "smoke", "paper")
FALLBACK = {"smoke": "packaged", "paper": "packaged"}

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DType = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A section of params.yaml: unknown keys and wrong types are refused, values cannot be changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Size(Section):
    """One entry of ``sizes``: what a model size stands for."""

    encoder: str
    encoder_layers: Positive | None
    judge: str
    recipe: Literal["packaged", "smoke", "paper"]


class Model(Section):
    size: str


class Data(Section):
    sources: list[str]
    instances: Positive
    task_queries: Positive | None
    task_documents: Positive | None
    passage_words: Positive
    development: Annotated[float, Field(ge=0, lt=1)]
    seed: int


class Questions(Section):
    generator: str
    prompt: str
    per_set: Positive
    max_new_tokens: Positive
    batch: Positive
    dtype: DType
    round_trip: Annotated[int, Field(ge=0)]


class Candidates(Section):
    source: Literal["auto", "same_document", "bm25", "dense", "hybrid"]
    count: Annotated[int, Field(ge=2)]
    include_positive: bool
    questions_per_set: Positive
    dense_model: str
    rrf_k: Positive
    seed: int


class BM25(Section):
    k1: Annotated[float, Field(ge=0)]
    b: Fraction
    stemmer: Literal["english", "none"]
    stopwords: Literal["none", "english"]


class Judge(Section):
    dtype: DType
    quantization: Literal["none", "8bit", "4bit"]
    passage_tokens: Positive
    query_tokens: Positive
    target_tokens: Positive


class Heads(Section):
    strategy: Literal["query_focused", "random", "random_middle", "all", "explicit"]
    count: Positive
    explicit: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    probes: Positive
    drop_low_tokens: bool
    bootstrap: Positive
    seed: int


class Injection(Section):
    rows: Literal["query", "query+label", "all"]
    budget: Literal["paper", "preserve"]
    # YAML reads off as false
    gate: Annotated[Literal["learned", "fixed", "off"], BeforeValidator(lambda v: "off" if v is False else v)]
    gate_init: Annotated[float, Field(gt=0, lt=1)]
    scores: Literal["learned", "uniform"]
    diagnostic: Positive
    gap_every: Positive
    force: bool


class Temperature(Section):
    init: Annotated[float, Field(gt=0)]
    learned: bool


class Encoder(Section):
    pooling: Literal["last", "mean"]
    append_eos: bool
    max_length: Positive
    dtype: DType
    token_budget: Positive
    trust_remote_code: bool


class Lora(Section):
    r: Positive
    alpha: Positive
    dropout: Fraction
    targets: list[str]


class Training(Section):
    steps: Positive
    batch: Positive
    micro_batch: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    scalar_learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant"]
    warmup: Fraction
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)]
    lora: Lora
    gradient_checkpointing: bool
    checkpoint_every: Positive
    keep_checkpoints: Positive
    log_every: Positive
    threads: Positive
    accelerate: str | None

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Training:
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        return self


class Tuned(Section):
    """Settings of one objective alone, where the search found better ones than the common ones (null: those)."""

    learning_rate: Annotated[float, Field(gt=0)] | None
    temperature: Annotated[float, Field(gt=0)] | None


class Dream(Tuned):
    judge: Literal["frozen", "lora"]
    r: Positive
    alpha: Positive


class InfoNCE(Tuned):
    in_batch_negatives: bool


class Published(Section):
    """A model that others trained, and all the rules that its scores depend on."""

    model: str
    adapter: str | None = None
    pooling: Literal["last", "mean", "cls"] | None = None
    append_eos: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    max_length: Positive = 512
    dtype: DType = "bfloat16"


class RePlug(Tuned):
    direction: Literal["teacher_student", "student_teacher"]
    tau_lm: Annotated[float, Field(gt=0)]
    mask_target: bool


class Revela(Section):
    learning_rate: Annotated[float, Field(gt=0)] | None
    tau: Annotated[float, Field(gt=0)]
    value_normalisation: bool
    lm: Literal["lora", "frozen"]
    r: Positive
    alpha: Positive


class QRHead(Section):
    depth: Positive
    per_prompt: Annotated[int, Field(ge=2)]


class Evaluate(Section):
    max_length: Positive
    query_prompt: str
    document_prompt: str
    dtype: DType
    token_budget: Positive
    search_chunk: Positive
    depth: Annotated[int, Field(ge=10)]
    drop_identical_ids: bool
    workers: Positive


class Report(Section):
    reference_system: str
    resamples: Positive
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: int


class Config(Section):
    """All of params.yaml, resolved for one size and one recipe."""

    model: Model
    recipe: Literal["packaged", "smoke", "paper"]
    sizes: dict[str, Size]
    objectives: list[str]
    seeds: list[int]
    references: list[str]
    rerankers: list[Literal["qrhead"]]
    tasks: list[str]
    task_lists: dict[str, list[str]]
    own: dict[str, str]
    data: Data
    questions: Questions
    candidates: Candidates
    bm25: BM25
    judge: Judge
    heads: Heads
    injection: Injection
    temperature: Temperature
    encoder: Encoder
    training: Training
    dream: Dream
    infonce: InfoNCE
    replug: RePlug
    revela: Revela
    qrhead: QRHead
    evaluate: Evaluate
    published: dict[str, Published]
    report: Report

    @field_validator("references")
    @classmethod
    def _rerankers_have_their_own_list(cls, names: list[str]) -> list[str]:
        if "qrhead" in names:
            raise ValueError("qrhead reads the judge's heads: list it under `rerankers`")
        return names

    @property
    def evaluated_only(self) -> list[str]:
        """The systems that are not trained here, in the order of a table's rows."""
        return [*self.references, *self.rerankers]

    @property
    def size(self) -> Size:
        """The entry of ``sizes`` that ``model.size`` names."""
        return self.sizes[self.model.size]

    def tuned(self, objective: str) -> Config:
        """The config as one objective trains with it: its section's learning rate and temperature in the common ones' place."""
        own = getattr(self, objective, None)
        rate, temperature = getattr(own, "learning_rate", None), getattr(own, "temperature", None)
        training = self.training.model_copy(update={"learning_rate": rate} if rate else {})
        start = self.temperature.model_copy(update={"init": temperature} if temperature else {})
        return self.model_copy(update={"training": training, "temperature": start})

    def part(self, *sections: str) -> dict[str, Any]:
        """The plain values of some sections plus size and recipe: what an artefact was made with.

        >>> sorted(load().part("bm25"))
        ['bm25', 'recipe', 'size']
        """
        dump = self.model_dump(mode="json")
        return {
            "recipe": self.recipe,
            "size": {"name": self.model.size, **self.size.model_dump(mode="json")},
            **{name: dump[name] for name in sections},
        }

    def hash(self, *sections: str) -> str:
        """Content hash of :meth:`part`."""
        return value_hash(self.part(*sections))


def load(path: Path | str = "params.yaml", overrides: dict[str, Any] | None = None) -> Config:
    """Read and resolve a params file.

    Args:
        path: the YAML file.
        overrides: dotted keys and values put over the file's, as ``dvc exp run -S`` does.

    Raises:
        DreamError: the file is missing or not YAML, a key is unknown, a type is wrong, a size or recipe is not defined.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DreamError(f"{path} is missing", "Run from the project's root folder") from None
    except yaml.YAMLError as error:
        raise DreamError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise DreamError(f"{path} holds no settings")
    for key, value in (overrides or {}).items():
        *parents, leaf = key.split(".")
        place = raw
        for name in parents:
            place = place.setdefault(name, {})
        place[leaf] = value
    return resolve(raw, str(path))


def load_for_stage(size: str) -> Config:
    """Load params.yaml for a stage that DVC started with ``--size``.

    DVC leaves a parameter named ``size`` out of its run-cache key (treeverse/dvc#10296), so every stage has the size in
    its command, and this stops a command whose size is not the one in params.yaml.
    """
    config = load()
    if config.model.size != size:
        raise DreamError(
            f"--size {size} was asked for, but params.yaml says model.size: {config.model.size}", "Run it through `dvc repro`"
        )
    return config


def resolve(raw: dict[str, Any], source: str = "params.yaml") -> Config:
    """Resolve the values of one recipe and validate them. See :func:`load`."""
    size = (raw.get("model") or {}).get("size")
    sizes = raw.get("sizes") or {}
    if str(size) not in map(str, sizes):
        raise DreamError(
            f"{source}: model.size {size!r} is not defined", f"Choose one of {', '.join(map(str, sizes))}, or add it to sizes"
        )
    recipe = raw.get("recipe", "auto")
    if recipe == "auto":
        recipe = (sizes[str(size)] or {}).get("recipe")
    if recipe not in RECIPES:
        raise DreamError(f"{source}: recipe {recipe!r} is not defined", f"Choose auto, {', '.join(RECIPES)}")
    values = _pick(raw, recipe, source)
    try:
        return Config.model_validate({**values, "recipe": recipe})
    except ValidationError as error:
        raise DreamError(f"{source}: {_first_problem(error, raw)}") from None


def _pick(value: Any, recipe: str, source: str, key: str = "") -> Any:
    """Replace every ``{recipe: value}`` mapping by the value of ``recipe`` (or of the recipe it builds on)."""
    if not isinstance(value, dict):
        return value
    if value and set(value) <= set(RECIPES):
        name = recipe
        while name not in value:
            if name not in FALLBACK:
                raise DreamError(f"{source}: {key} has no value for recipe {recipe!r}", f"Add `{recipe}: …` to it")
            name = FALLBACK[name]
        return value[name]
    return {k: _pick(v, recipe, source, f"{key}.{k}".lstrip(".")) for k, v in value.items()}


def _first_problem(error: ValidationError, raw: dict[str, Any]) -> str:
    """One line for the first problem that pydantic found, with the nearest known key for an unknown one."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = Config
        for name in problem["loc"][:-1]:
            known = known.model_fields[str(name)].annotation if str(name) in known.model_fields else Config
        near = difflib.get_close_matches(str(problem["loc"][-1]), list(known.model_fields), n=1)
        return f"{key} is not a known setting. " + (f"Did you mean {near[0]}?" if near else "Remove it")
    if problem["type"] == "missing":
        return f"{key} is missing. Add it (params.yaml in the repository shows every setting)"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (got {problem['input']!r})" if not isinstance(problem["input"], dict) else f"{key}: {message}"
