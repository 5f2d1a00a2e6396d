"""The sections of params.yaml and the whole of it, :class:`Config`, resolved for one size and one recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dream.errors import DreamError
from dream.knobs import (
    DType,
    Fraction,
    ModelReference,
    Name,
    Names,
    Pooling,
    Positive,
    Processes,
    Section,
    Seed,
    SomeNames,
    distinct,
)  # fmt: skip


def _place(path: str) -> str:
    if not path.strip():
        raise ValueError("is empty. Name a folder, a file or a zip")
    return path


class Size(Section):
    """One entry of ``sizes``: the records of ``models`` that a size stands for, and its recipe."""

    encoder: Name
    """The model that is trained, an entry of `models`."""
    judge: Name
    """The frozen language model, an entry of `models`."""
    recipe: Literal["packaged", "smoke", "paper", "adapt"]
    """The recipe that `recipe: auto` stands for."""


class Model(Section):
    """A model that is loaded, and all the rules that its numbers depend on. None: as the model's own folder says."""

    model: ModelReference
    """packaged/<name>, a hub id (owner/name or owner/name@revision) or a folder."""
    adapter: ModelReference | None = None
    """A PEFT adapter on top of it."""
    layers: Positive | None = None
    """The first so many layers are kept; null: all."""
    pooling: Pooling | None = None
    """How the vectors of a text's tokens become one; null: as the model's folder says."""
    query_prompt: str | None = None
    """Put before every query, in training and evaluation."""
    document_prompt: str | None = None
    """Put before every document, in training and evaluation."""
    append_eos: bool = False
    """An end-of-text token behind every text."""
    max_length: Positive | None = None
    """Longest input in evaluation, in tokens; null: what the folder says, at most 512."""
    dtype: DType = "float32"
    """Of the weights as they are loaded; a LoRA's are float32."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Of a judge: bitsandbytes weights that compute in dtype."""
    lora_targets: SomeNames | None = None
    """Modules that a LoRA is put on; null: the attention projections of its architecture."""
    trust_remote_code: bool = False
    """Run code from the model's repository."""
    licence: str = ""
    """Of the weights, as its publisher names it."""


class Choice(Section):
    size: str


class Data(Section):
    sources: Names
    instances: Positive
    task_queries: Positive | None
    task_documents: Positive | None
    passage_words: Positive
    passage_overlap: Annotated[int, Field(ge=0, lt=2**31)]
    boilerplate: Annotated[float, Field(gt=0, le=1)]
    development: Annotated[float, Field(ge=0, lt=1)]
    seed: Seed

    @model_validator(mode="after")
    def _overlap_is_short(self) -> Data:
        if 2 * self.passage_overlap > self.passage_words:
            raise ValueError(
                f"passage_overlap is {self.passage_overlap}, more than half of passage_words ({self.passage_words}). Lower it"
            )
        return self


Prompt = Annotated[str, Field(pattern=r"\{passage\}")]


class Questions(Section):
    generator: Name
    kinds: Annotated[list[Literal["question", "keywords", "claim"]], Field(min_length=1), AfterValidator(distinct)]
    prompt: Prompt
    keywords_prompt: Prompt
    claim_prompt: Prompt
    examples: str | list[str | dict[str, str]]
    per_set: Positive
    limit: Positive | None
    max_new_tokens: Positive
    batch: Positive
    round_trip: Annotated[int, Field(ge=0, lt=2**31)]
    gap_filter: float | None
    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None
    endpoint_model: str | None

    @model_validator(mode="after")
    def _endpoint_has_a_model(self) -> Questions:
        if self.endpoint and not self.endpoint_model:
            raise ValueError("endpoint is set, but endpoint_model is not. Name the model as the server does")
        return self


class Candidates(Section):
    source: Literal["auto", "same_document", "bm25", "dense", "hybrid"]
    count: Annotated[Positive, Field(ge=2)]
    include_positive: bool
    questions_per_set: Positive
    dense_model: Name
    rrf_k: Positive
    seed: Seed


class BM25(Section):
    k1: Annotated[float, Field(ge=0)]
    b: Fraction
    stemmer: Literal["english", "none"]
    stopwords: Literal["none", "english"]
    tokenizer: Literal["words", "auto"]


class Judge(Section):
    passage_tokens: Positive
    query_tokens: Positive
    target_tokens: Positive
    cache_gib: Annotated[float, Field(ge=0, exclude=True)]  # it changes no result: only the file `readings` has it


class Heads(Section):
    strategy: Literal["query_focused", "random", "random_middle", "all", "explicit"]
    count: Positive
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None
    explicit: Annotated[
        list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]], AfterValidator(distinct)
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

    @model_validator(mode="after")
    def _layers_are_a_range(self) -> Heads:
        if self.layers and self.layers[0] > self.layers[1]:
            raise ValueError(f"layers: {self.layers} holds no layer. Give [first, last], both included")
        outside = [pair for pair in self.explicit if self.strategy == "explicit" and not self.may_use(pair[0])]
        if outside:
            raise ValueError(f"explicit: {outside[0]} lies outside of layers {self.layers}. Widen layers, or leave the head out")
        return self

    def may_use(self, layer: int) -> bool:
        """Whether heads of a layer may be selected."""
        return not self.layers or self.layers[0] <= layer <= self.layers[1]

    def require(self, layers: int, heads: int) -> None:
        """Stop if a judge with so many layers, and heads in each, cannot give what is asked for."""
        missing = [pair for pair in self.explicit if pair[0] >= layers or pair[1] >= heads]
        if self.strategy == "explicit" and missing:
            raise DreamError(
                f"heads.explicit: {missing[0]} is no head of the judge", f"It has {layers} layers of {heads} heads, from 0"
            )
        if self.layers and self.layers[1] >= layers:
            raise DreamError(f"heads.layers: the judge has no layer {self.layers[1]}", f"It has {layers} layers, from 0")
        there = sum(map(self.may_use, range(layers)))
        if self.strategy not in ("explicit", "all") and self.count > there * heads:
            where = f"heads.layers {self.layers} hold" if self.layers else "the judge has"
            raise DreamError(
                f"heads.count is {self.count}, but {where} {there * heads} heads ({there} layers of {heads})", "Lower it"
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
    max_length: Positive
    token_budget: Positive


class Lora(Section):
    r: Positive
    alpha: Positive
    dropout: Fraction


class Training(Section):
    steps: Positive
    batch: Positive
    micro_batch: Positive
    block: Positive
    snapshots: Annotated[list[Positive], AfterValidator(distinct)]
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


class Evaluate(Section):
    token_budget: Positive
    search_chunk: Positive
    depth: Annotated[Positive, Field(ge=100)]  # Recall@100 counts so many hits
    drop_identical_ids: bool
    workers: Processes


class Adapt(Section):
    snapshots: Annotated[list[Positive], AfterValidator(distinct)]
    strengths: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(distinct)]
    distractors: Positive
    queries: Positive
    control: Name


class Report(Section):
    reference_system: str
    resamples: Positive
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed


class Config(Section):
    """All of params.yaml, resolved for one size and one recipe; of a stage, the part that the stage may read.

    ``probes`` counts the candidate sets at the end that no run trains on: heads are scored, and the gap before training is
    measured, on them. ``roles`` holds the records of the models in use: ``encoder`` (trained, and ``untrained``), ``judge``,
    ``generator`` of questions, ``dense`` of candidates, and every reference that is a model under its own name. ``knobs``
    holds the settings that objectives and systems carry in their own files, by name. ``mirror`` holds the tasks that a mirror of
    mteb's serves, each with its content hash (:func:`dream.data.tasks.mirrored`).
    """

    model: Choice
    recipe: Literal["packaged", "smoke", "paper", "adapt"]
    sizes: dict[Name, Size]
    models: dict[Name, Model]
    objectives: Names
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)]
    references: Names
    rerankers: Names
    tasks: SomeNames
    task_lists: dict[Name, SomeNames]
    own: dict[Name, Annotated[str, AfterValidator(_place)]]
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
    evaluate: Evaluate
    adapt: Adapt
    report: Report
    probes: int = 0
    roles: dict[str, Model] = Field(default_factory=dict)
    knobs: dict[str, Any] = Field(default_factory=dict)
    mirror: dict[str, str] = Field(default_factory=dict)

    @property
    def evaluated_only(self) -> list[str]:
        """The systems that are not trained here, in the order of a table's rows."""
        return [*self.references, *self.rerankers]

    @property
    def size(self) -> Size:
        """The entry of ``sizes`` that ``model.size`` names."""
        return self.sizes[self.model.size]

    @property
    def sets_read(self) -> int:
        """Candidate sets that the judge reads in one run, at most: those that are trained on and the probes."""
        return min(self.training.steps * self.training.batch, self.data.instances) + self.probes
