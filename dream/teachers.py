"""What a frozen model makes of a candidate set before any training: a table of K numbers for every question.

A teacher depends on nothing that is trained, so stage ``teacher`` asks it once for all seeds. Most are the judge
(``dream/judge``); ``models.<name>`` is an entry of ``models`` as it is, ``encoder`` the size's own. Several with ``+`` between
their names are one: the sum of their standardised answers. Answers are kept in a journal under
``$DVC_ROOT/.dream/teachers``, named after everything that can change one: a killed stage goes on where it stopped, and two
objectives with one teacher, or a run of other steps, ask it nothing twice. What an answer took stands beside it: a table costs
the same, whoever asked for it first.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from dream.files import Journal, folder_hash, lasting, value_hash
from dream.instances import CandidateSet

if TYPE_CHECKING:
    from dream.config import Config
    from dream.encoder import Encoder
    from dream.judge import Judge
    from dream.models import Rules

ROOT, MODELS, OWN = Path(__file__).resolve().parent, "models.", "encoder"
REGISTRY: dict[str, type[Teacher]] = {}


class Teacher:
    """One teacher; nothing is loaded before it is asked.

    Args:
        config: the settings in :meth:`reads`.
        heads: the judge's selected heads, for a teacher that needs them.
        readings: the file of settings ``readings``, for a judge that keeps what it reads.

    Attributes:
        needs_heads: it reads the result of stage ``heads``.
        code: the rooms of ``dream`` that decide its answers.
    """

    needs_heads: ClassVar[bool] = False
    code: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config, heads: Sequence[tuple[int, int]] = (), readings: Config | None = None) -> None:
        self.config, self.heads, self.readings = config, [(layer, head) for layer, head in heads], readings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @classmethod
    def reads(cls, name: str) -> tuple[str, ...]:
        """The settings that decide its answers."""
        raise NotImplementedError

    def identity(self) -> Any:
        """Everything that can change an answer, but for the set, the code and the machine."""
        raise NotImplementedError

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        """Its numbers for a set, ``[Q, K]``, and the operations that they took."""
        raise NotImplementedError

    def tokens(self, candidates: CandidateSet) -> list[int]:
        """Target tokens of every question; nothing where it reads no target."""
        return []

    def key(self) -> str:
        """Content hash of what all its answers depend on."""
        code = [folder_hash(ROOT / room, "*.py") for room in self.code]
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
        return value_hash([type(self).__name__, self.identity(), code, versions, self.device, self.config.training.threads])


def register(name: str) -> Callable[[type[Teacher]], type[Teacher]]:
    """Class decorator: make a teacher available under ``name``."""

    def add(cls: type[Teacher]) -> type[Teacher]:
        REGISTRY[name] = cls
        return cls

    return add


def find(name: str) -> type[Teacher]:
    """The class behind one name that an objective states."""
    return Similarity if name.startswith(MODELS) else REGISTRY[name]


def several(names: str) -> list[str]:
    """The names in a teacher's: ``bm25+attention`` is two."""
    return names.split("+")


def reads(names: str) -> tuple[str, ...]:
    """The settings that decide the answers of all of these."""
    return tuple(dict.fromkeys(knob for name in several(names) for knob in find(name).reads(name)))


def needs_heads(names: str) -> bool:
    """Whether one of these reads the result of stage ``heads``."""
    return any(find(name).needs_heads for name in several(names))


def build(names: str, config: Config, heads: Sequence[tuple[int, int]] = (), readings: Config | None = None) -> list[Teacher]:
    """All of these; see :class:`Teacher`."""
    return [find(name)(config, heads, readings) for name in several(names)]


class Answers(NamedTuple):
    """Of a teacher, for some sets.

    Attributes:
        rows: for every question ``instance_id``, ``scores`` (K numbers in the set's order), ``tokens`` (0: no target is read).
        flops: the operations that all of them took, whenever they were asked for.
        earlier: seconds that those took which were at hand.
        asked: how many sets were asked for now.
    """

    rows: list[dict[str, Any]]
    flops: float
    earlier: float
    asked: int


def table(asked: Sequence[Teacher], sets: Sequence[CandidateSet], folder: Path | None = None) -> Answers:
    """The answers of a teacher for every question of the sets; of several, the sum of what each gives a question's K
    candidates, less its mean and by its standard deviation.

    Args:
        asked: one or several.
        sets: the candidate sets, a row for every question in their order.
        folder: of the journals.
    """
    tables = [answers(teacher, sets, folder) for teacher in asked]
    if len(tables) == 1:
        return tables[0]
    rows = []
    for parts in zip(*(found.rows for found in tables), strict=True):
        each = torch.tensor([part["scores"] for part in parts], dtype=torch.float64)
        rows.append(parts[0] | {"scores": standardised(each).sum(0).tolist(), "tokens": max(part["tokens"] for part in parts)})
    flops, earlier, new = (sum(getattr(found, key) for found in tables) for key in ("flops", "earlier", "asked"))
    return Answers(rows, flops, earlier, new)


def standardised(scores: Tensor) -> Tensor:
    """Every row less its mean, by its standard deviation; a row of equal numbers is zero."""
    spread = scores.std(-1, correction=0, keepdim=True)
    return (scores - scores.mean(-1, keepdim=True)) / spread.clamp(min=1e-12)


def answers(teacher: Teacher, sets: Sequence[CandidateSet], folder: Path | None = None) -> Answers:
    """One teacher's answers for every question of the sets, from the journal or asked now.

    Args:
        teacher: who is asked.
        sets: the candidate sets, a row for every question in their order.
        folder: of the journals.
    """
    folder = folder or lasting("teachers")
    journal, rows, flops, earlier, asked = Journal(folder / f"{teacher.key()[:24]}.jsonl"), [], 0.0, 0.0, 0
    for candidates in tqdm(sets, desc="teacher", unit="set"):
        key = value_hash([candidates.passages, [(q.text, q.gold) for q in candidates.questions]])
        if "seconds" in journal.done.get(key, {}):  # an older journal does not say what its answers took
            earlier += journal.done[key]["seconds"]
        else:
            started = time.perf_counter()
            scores, took = teacher.ask(candidates)
            answer = {"scores": scores.tolist(), "tokens": teacher.tokens(candidates), "flops": took}
            journal.add(key, answer | {"seconds": round(time.perf_counter() - started, 3)})
            asked += 1
        answer = journal.done[key]
        flops += answer["flops"]
        tokens = answer["tokens"] or [0] * len(candidates.questions)
        for question, scores, length in zip(candidates.questions, answer["scores"], tokens, strict=True):
            rows.append({"instance_id": question.id, "scores": scores, "tokens": length})
    return Answers(rows, flops, earlier, asked)


class OfJudge(Teacher):
    """A teacher that is the frozen judge."""

    code: ClassVar[tuple[str, ...]] = ("judge",)

    @classmethod
    def reads(cls, name: str) -> tuple[str, ...]:
        return ("roles.judge", "judge")

    @cached_property
    def judge(self) -> Judge:
        from dream.judge import Judge
        from dream.judge.store import Store

        return Judge.build(self.config, store=Store.of(self.readings) if self.readings else None)

    def identity(self) -> Any:
        from dream import assets
        from dream.judge.model import pick_dtype

        record = self.config.roles["judge"]
        dtype = str(pick_dtype(record.dtype, self.device))
        return [assets.content_hash(record.model), dtype, record.quantization, self.config.judge.model_dump()]

    def tokens(self, candidates: CandidateSet) -> list[int]:
        return [end - start for start, end in (s.target for s in self.judge.prompt.suffixes(candidates))]


@register("likelihood")
class Likelihood(OfJudge):
    """l_j: mean log-likelihood per token of the target, given the question and candidate j alone (REPLUG, EMDR²)."""

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        from dream.judge import flops

        prompt, shapes = self.judge.prompt, self.judge.model.config
        took = flops.likelihoods(shapes, prompt.documents(candidates), prompt.suffixes(candidates))
        return self.judge.passage_log_likelihood(candidates), took


@register("leave_one_out")
class LeaveOneOut(OfJudge):
    """c_j: mean cross-entropy of the target, given the question and all candidates but j (Atlas' LOOP)."""

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        from dream.judge import flops

        prompt, shapes = self.judge.prompt, self.judge.model.config
        took = flops.leave_one_out(shapes, prompt.documents(candidates), prompt.suffixes(candidates))
        return self.judge.leave_one_out(candidates), took


@register("attention")
class Attention(OfJudge):
    """r_j: calibrated attention of the question's rows on candidate j, mean over the selected heads. It reads no target."""

    needs_heads = True

    @classmethod
    def reads(cls, name: str) -> tuple[str, ...]:
        return (*super().reads(name), "heads.drop_low_tokens")

    def identity(self) -> Any:
        return [super().identity(), self.heads, self.config.heads.drop_low_tokens]

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        from dream.judge import flops, heads

        prompt = self.judge.prompt
        suffixes = [prompt.suffix(text) for text in (*(q.text for q in candidates.questions), "")]
        layers = heads.layers_needed(self.heads)
        took = flops.masses(self.judge.model.config, prompt.documents(candidates), suffixes, layers)
        return heads.rerank(self.judge, candidates, self.heads, self.config.heads.drop_low_tokens) / len(self.heads), took

    def tokens(self, candidates: CandidateSet) -> list[int]:
        return []


@register("question_likelihood")
class QuestionLikelihood(OfJudge):
    """u_j: mean log-likelihood per token of the question, given candidate j alone (UPR, ART). It reads no target."""

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        from dream.judge import flops, questions

        prompt = self.judge.prompt
        suffixes = [questions.suffix(prompt, question.text) for question in candidates.questions]
        took = flops.likelihoods(self.judge.model.config, prompt.documents(candidates), suffixes)
        return questions.log_likelihood(self.judge, candidates), took

    def tokens(self, candidates: CandidateSet) -> list[int]:
        return []


@register("bm25")
class Lexical(Teacher):
    """b_j: BM25's score of candidate j, words counted in the set alone; 0 where it shares no word with the question."""

    code = ("candidates",)

    @classmethod
    def reads(cls, name: str) -> tuple[str, ...]:
        return ("bm25",)

    def identity(self) -> Any:
        return self.config.bm25.model_dump()

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        from dream.candidates.bm25 import BM25Index

        index = BM25Index(candidates.passages, self.config.bm25)
        scores = torch.zeros(len(candidates.questions), len(index))
        for row, places, found in zip(scores, *index.search([q.text for q in candidates.questions], len(index)), strict=True):
            row[list(map(int, places))] = torch.from_numpy(found).float()
        return scores, 0.0


class Similarity(Teacher):
    """s_T: cosine similarity of question and candidate in an encoder that nobody trains here, an entry of ``models``."""

    code = ("encoder", "models")

    @classmethod
    def reads(cls, name: str) -> tuple[str, ...]:
        return (f"roles.{name.removeprefix(MODELS)}",)

    @property
    def role(self) -> str:
        """The one entry of ``models`` that the stage may read, beside the judge and the size's encoder."""
        (name,) = self.config.roles.keys() - {"judge", OWN}
        return name

    @property
    def record(self) -> Any:
        """The encoder's."""
        return self.config.roles[self.role]

    @cached_property
    def rules(self) -> Rules:
        from dream import models

        return models.rules(self.record, f"{MODELS}{self.role}")

    @cached_property
    def encoder(self) -> Encoder:
        from dream.encoder import Encoder

        return Encoder.load(self.rules, device=self.device)

    def identity(self) -> Any:
        from dream import assets

        return [
            [assets.content_hash(name) for name in (self.record.model, self.record.adapter) if name],
            self.record.model_dump(),
        ]

    def ask(self, candidates: CandidateSet) -> tuple[Tensor, float]:
        before, length = self.encoder.tokens, self.rules.max_length
        questions = [q.text for q in candidates.questions]
        queries = self.encoder.encode(questions, self.encoder.query_prompt, length)
        passages = self.encoder.encode(candidates.passages, self.encoder.document_prompt, length)
        took = (self.encoder.tokens - before) * self.encoder.flops_per_token
        return torch.from_numpy(queries) @ torch.from_numpy(passages).T, took


@register(OWN)
class Untouched(Similarity):
    """The same in the size's own encoder, untouched: what a student knows before it learns. Such a table is one size's."""

    @property
    def role(self) -> str:
        return OWN

    @classmethod
    def reads(cls, name: str) -> tuple[str, ...]:
        return (f"roles.{OWN}",)
