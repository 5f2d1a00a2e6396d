"""params.yaml → one resolved, typed, frozen :class:`Config` that refuses what it does not know.

A knob in params.yaml is one value or one value per recipe (``{packaged: 8, paper: 16}``). :func:`resolve`
picks the recipe's value, validates every key and type, and looks the model size up. Adding a knob is one
line in params.yaml and one field here; nothing else in the library reads params.yaml.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dream import names
from dream.errors import DreamError
from dream.files import read_yaml, value_hash
from dream.names import RECIPES

FALLBACK = {"smoke": "packaged", "paper": "packaged"}


def _distinct(values: list) -> list:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} stands there twice. Name each once")
    return values


def _model(reference: str) -> str:
    name, at, revision = reference.partition("@")
    if not reference.isprintable() or reference != reference.strip() or not name or (at and not revision):
        raise ValueError("is no model. Use packaged/<name>, owner/name, owner/name@revision or the path of a folder")
    return reference


Positive = Annotated[int, Field(gt=0, lt=2**31)]
Processes = Annotated[int, Field(gt=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DType = Literal["float32", "bfloat16", "float16"]
Name = Annotated[str, AfterValidator(names.require)]
Names = Annotated[list[Name], AfterValidator(_distinct)]
SomeNames = Annotated[list[Name], Field(min_length=1), AfterValidator(_distinct)]
ModelReference = Annotated[str, AfterValidator(_model)]


class Section(BaseModel):
    """A section of params.yaml: unknown keys, wrong types and numbers that are not finite are refused, values stay."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Size(Section):
    """One entry of ``sizes``: what a model size stands for."""

    encoder: ModelReference
    encoder_layers: Positive | None
    judge: ModelReference
    recipe: Literal["packaged", "smoke", "paper"]


class Choice(Section):
    size: str


class Data(Section):
    sources: Names
    instances: Positive
    task_queries: Positive | None
    task_documents: Positive | None
    passage_words: Positive
    development: Annotated[float, Field(ge=0, lt=1)]
    seed: Seed


class Questions(Section):
    generator: ModelReference
    prompt: Annotated[str, Field(pattern=r"\{passage\}")]
    per_set: Positive
    max_new_tokens: Positive
    batch: Positive
    dtype: DType
    round_trip: Annotated[int, Field(ge=0, lt=2**31)]


class Candidates(Section):
    source: Literal["auto", "same_document", "bm25", "dense", "hybrid"]
    count: Annotated[Positive, Field(ge=2)]
    include_positive: bool
    questions_per_set: Positive
    dense_model: ModelReference
    rrf_k: Positive
    seed: Seed


class BM25(Section):
    k1: Annotated[float, Field(ge=0)]
    b: Fraction
    stemmer: Literal["english", "none"]
    stopwords: Literal["none", "english"]
    tokenizer: Literal["words", "auto"]


class Judge(Section):
    dtype: DType
    quantization: Literal["none", "8bit", "4bit"]
    passage_tokens: Positive
    query_tokens: Positive
    target_tokens: Positive


class Heads(Section):
    strategy: Literal["query_focused", "random", "random_middle", "all", "explicit"]
    count: Positive
    explicit: Annotated[
        list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]], AfterValidator(_distinct)
    ]
    probes: Positive
    drop_low_tokens: bool
    bootstrap: Positive
    seed: Seed

    @model_validator(mode="after")
    def _explicit_heads_are_listed(self) -> Heads:
        if self.strategy == "explicit" and not self.explicit:
            raise ValueError("strategy is explicit, but explicit is empty. List [layer, head] pairs")
        return self

    def require(self, layers: int, heads: int) -> None:
        """Stop if a judge with so many layers, and heads in each, cannot give what is asked for."""
        missing = [pair for pair in self.explicit if pair[0] >= layers or pair[1] >= heads]
        if self.strategy == "explicit" and missing:
            raise DreamError(
                f"heads.explicit: {missing[0]} is no head of the judge", f"It has {layers} layers of {heads} heads, from 0"
            )
        if self.strategy not in ("explicit", "all") and self.count > layers * heads:
            raise DreamError(
                f"heads.count is {self.count}, but the judge has {layers * heads} heads ({layers} layers of {heads})", "Lower it"
            )


class Injection(Section):
    rows: Literal["query", "query+label", "all"]
    budget: Literal["paper", "preserve"]
    gate: Literal["learned", "fixed", "off"]
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
    targets: SomeNames


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
    threads: Processes
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

    model: ModelReference
    adapter: ModelReference | None = None
    pooling: Literal["last", "mean", "cls"] | None = None
    append_eos: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    max_length: Positive = 512
    dtype: DType = "bfloat16"


class Model(Section):
    """A model that is loaded, and all the rules that its numbers depend on. None: as the model's own folder says."""

    model: ModelReference  # packaged/…, a hub id (owner/name or owner/name@revision) or a folder
    adapter: ModelReference | None = None  # a PEFT adapter on top of it
    layers: Positive | None = None  # the first so many layers are kept; None: all
    pooling: Literal["last", "mean", "cls"] | None = None
    query_prompt: str | None = None  # put before every query, in training and evaluation
    document_prompt: str | None = None
    append_eos: bool = False  # end-of-text token behind every text
    max_length: Positive | None = None  # longest input in evaluation, in tokens; None: what the folder says, at most 512
    dtype: DType = "float32"  # of the weights as they are loaded
    lora_targets: SomeNames | None = None  # None: the attention projections of its architecture
    trust_remote_code: bool = False  # run code from the model's repository
    licence: str = ""


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
    per_prompt: Annotated[Positive, Field(ge=2)]


class Evaluate(Section):
    max_length: Positive
    query_prompt: str
    document_prompt: str
    dtype: DType
    token_budget: Positive
    search_chunk: Positive
    depth: Annotated[Positive, Field(ge=100)]  # Recall@100 counts so many hits
    drop_identical_ids: bool
    workers: Processes


class Report(Section):
    reference_system: str
    resamples: Positive
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed


class Config(Section):
    """All of params.yaml, resolved for one size and one recipe."""

    model: Choice
    recipe: Literal["packaged", "smoke", "paper"]
    sizes: dict[Name, Size]
    objectives: Names
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
    references: Names
    rerankers: Annotated[list[Literal["qrhead"]], AfterValidator(_distinct)]
    tasks: SomeNames
    task_lists: dict[Name, SomeNames]
    own: dict[Name, str]
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
    published: dict[Name, Published]
    report: Report

    @model_validator(mode="after")
    def _in_batch_negatives_need_a_batch(self) -> Config:
        if self.infonce.in_batch_negatives and self.training.micro_batch == 1:
            raise ValueError(
                "infonce.in_batch_negatives: training.micro_batch is 1, so no other set is at hand to take negatives from. "
                "Raise training.micro_batch"
            )
        return self

    @property
    def evaluated_only(self) -> list[str]:
        """The systems that are not trained here, in the order of a table's rows."""
        return [*self.references, *self.rerankers]

    @property
    def size(self) -> Size:
        """The entry of ``sizes`` that ``model.size`` names."""
        return self.sizes[self.model.size]

    @property
    def roles(self) -> dict[str, Model]:
        """The records of the models in use, by role: encoder, judge, generator, dense, and references that are models."""
        remote = {"trust_remote_code": self.encoder.trust_remote_code}
        return {
            "encoder": Model(model=self.size.encoder, layers=self.size.encoder_layers, **remote),
            "judge": Model(model=self.size.judge, **remote),
            "generator": Model(model=self.questions.generator, dtype=self.questions.dtype, **remote),
            "dense": Model(model=self.candidates.dense_model),
            **{
                name: Model(model=self.published[name].model, adapter=self.published[name].adapter, **remote)
                for name in self.references
                if name in self.published
            },
        }

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
        DreamError: see :func:`dream.files.read_yaml` and :func:`resolve`.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise DreamError(f"{path} holds no settings", "params.yaml in the repository shows every setting")
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
    """Resolve the values of one recipe and validate them, so that nothing runs on a wrong one.

    Raises:
        DreamError: a size or recipe is not defined, a key is unknown or missing, a value has the wrong type or is out of
            range, or the names do not stand (see :func:`dream.names.check`).
    """
    sizes, model = (raw.get(key) if isinstance(raw.get(key), dict) else {} for key in ("sizes", "model"))
    size = model.get("size")
    if not isinstance(size, str) or not isinstance(sizes.get(size), dict):
        raise DreamError(
            f"{source}: model.size {size!r} is not defined", f"Choose one of {', '.join(map(str, sizes))}, or add it to sizes"
        )
    recipe = raw.get("recipe", "auto")
    if recipe == "auto":
        recipe = sizes[size].get("recipe")
    if recipe not in RECIPES:
        raise DreamError(f"{source}: recipe {recipe!r} is not defined", f"Choose auto, {', '.join(RECIPES)}")
    values = _pick(raw, recipe, source)
    try:
        config = Config.model_validate({**values, "recipe": recipe})
        names.check(config)
    except ValidationError as error:
        raise DreamError(f"{source}: {_first_problem(error)}") from None
    except DreamError as error:
        raise DreamError(f"{source}: {error.what}", error.remedy) from None
    return config


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


def _first_problem(error: ValidationError) -> str:
    """One line for the first problem that pydantic found, with the nearest known key for an unknown one."""
    problem = error.errors()[0]
    place = [part for part in problem["loc"] if part != "[key]"]
    key = ".".join(str(part) if names.RULE.fullmatch(str(part)) else ascii(part) for part in place)
    if problem["type"] == "extra_forbidden":
        return f"{key} is not a known setting. {names.hint(str(place[-1]), _section(place[:-1]).model_fields, 'Remove it')}"
    if problem["type"] == "missing":
        return f"{key} is missing. Add it (params.yaml in the repository shows every setting)"
    message = f"{key}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    given = repr(problem["input"])
    return message if isinstance(problem["input"], dict | Section) else f"{message} (got {given[:80]}{'…' * (len(given) > 80)})"


def _section(place: list[str | int]) -> type[BaseModel]:
    """The section that stands at a place of params.yaml, such as ``published``, ``minilm``."""
    found: Any = Config
    for key in place:
        entries = typing.get_args(found)  # of a mapping of names to sections
        found = entries[-1] if entries else found.model_fields[key].annotation
    return found
