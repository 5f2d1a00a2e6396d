"""The judge's prompt and the exact place of every passage, question and target in it (method.md, section 1, item 3).

The text, causal and documents first::

    PASSAGES:
                                        ← blank line
    <passage 1>

    …

    <passage K>

    QUESTION: <question>

    TARGET PASSAGE:

    <target>

It is tokenised *by pieces*: every label, separator, passage, question and target on its own, and the token lists are
joined. Spans are therefore exact by construction (no character offsets, no token that straddles a border), a passage
has the same tokens wherever it stands, and the target has the same tokens as the passage that it is. The price is that
a tokenizer which would have merged a full stop with the blank line after it does not. The question's piece begins with
the space that follows ``QUESTION:``. Text that spells a special token is tokenised as text.

The part up to the last passage (:class:`Documents`) does not depend on the question: its keys and values are computed
once and shared by all questions of a set (:class:`Suffix`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dream.errors import DreamError
from dream.instances import CandidateSet

HEADER, SEPARATOR, QUESTION, TARGET = "PASSAGES:\n\n", "\n\n", "\n\nQUESTION:", "\n\nTARGET PASSAGE:\n\n"
EMPTY_QUERY = "N/A"  # the content-free query that calibrates the heads' attention (method.md, section 2)

Span = tuple[int, int]  # first token, one past the last


@dataclass(frozen=True)
class Limits:
    """Longest passage, question and target in tokens; what is longer is cut at the end."""

    passage: int = 192
    query: int = 64
    target: int = 192


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Documents:
    """The shared prefix ``[BOS] PASSAGES: d_1 … d_K``: token ids and the span D_j of every passage."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    def alone(self) -> list[Documents]:
        """Every passage behind the header as if it were the only candidate.

        >>> Documents((0, 1, 7, 7, 2, 8), ((2, 4), (5, 6))).alone()[1]
        Documents(ids=(0, 1, 8), spans=((2, 3),))
        """
        head = self.ids[: self.spans[0][0]]
        pieces = [self.ids[start:end] for start, end in self.spans]
        return [Documents((*head, *piece), ((len(head), len(head) + len(piece)),)) for piece in pieces]


@dataclass(frozen=True)
class Suffix:
    """``QUESTION: q TARGET PASSAGE: y`` of one question; spans count from the suffix's own first token.

    Attributes:
        ids: token ids.
        query: span Q of the question's tokens.
        label: span of the tokens of ``TARGET PASSAGE:`` after the question.
        target: span of the target's tokens.
    """

    ids: tuple[int, ...]
    query: Span
    label: Span
    target: Span

    def rows(self, kind: str) -> range:
        """The query rows R that are injected: ``query``, ``query+label`` or ``all`` (and target rows).

        >>> Suffix((1,) * 9, (1, 3), (3, 5), (5, 9)).rows("query+label")
        range(1, 5)
        """
        return range(self.query[0], {"query": self.query, "query+label": self.label, "all": self.target}[kind][1])


@dataclass(frozen=True)
class Layout:
    """Prompt of one question: documents, then the suffix. Spans count from the prompt's first token."""

    documents: Documents
    suffix: Suffix

    @property
    def ids(self) -> tuple[int, ...]:
        return self.documents.ids + self.suffix.ids

    def _shift(self, span: Span) -> Span:
        n = len(self.documents.ids)
        return span[0] + n, span[1] + n

    @property
    def query(self) -> Span:
        return self._shift(self.suffix.query)

    @property
    def label(self) -> Span:
        return self._shift(self.suffix.label)

    @property
    def target(self) -> Span:
        return self._shift(self.suffix.target)


class Prompt:
    """Builds prompts with one tokenizer and one set of limits."""

    def __init__(self, tokenizer: Any, limits: Limits = DEFAULT_LIMITS) -> None:
        self.tokenizer, self.limits = tokenizer, limits
        bos = getattr(tokenizer, "bos_token_id", None)
        self._bos = () if bos is None else (bos,)
        self._header, self._separator, self._question, self._label = map(self.tokens, (HEADER, SEPARATOR, QUESTION, TARGET))

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of one piece of text, nothing added and nothing in it taken as a special token."""
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def documents(self, candidates: CandidateSet) -> Documents:
        """The prefix of a candidate set.

        Raises:
            DreamError: a passage has no token: its place in the attention would be empty.
        """
        ids, spans = [*self._bos, *self._header], []
        for j, text in enumerate(candidates.passages):
            piece = self.tokens(text)[: self.limits.passage]
            if not piece:
                raise DreamError(
                    f"candidate set {candidates.id}: passage {candidates.passage_ids[j]} is empty",
                    "Remove empty passages from the data",
                )
            if j:
                ids += self._separator
            spans.append((len(ids), len(ids) + len(piece)))
            ids += piece
        return Documents(tuple(ids), tuple(spans))

    def suffix(self, query: str, target: str = "") -> Suffix:
        """The part that asks for ``target``. Without a target it ends after the question (head detection)."""
        text = query.strip() or EMPTY_QUERY
        question = self.tokens(" " + text)[: self.limits.query]
        ids = [*self._question, *question]
        query_span = (len(self._question), len(ids))
        answer = self.tokens(target)[: self.limits.target]
        if answer:
            ids += self._label
        label_span = (query_span[1], len(ids))
        return Suffix((*ids, *answer), query_span, label_span, (len(ids), len(ids) + len(answer)))

    def layout(self, candidates: CandidateSet, question: int = 0) -> Layout:
        """Whole prompt of one of the set's questions."""
        return Layout(self.documents(candidates), self.suffixes(candidates)[question])

    def suffixes(self, candidates: CandidateSet) -> list[Suffix]:
        """The suffixes of all questions of a set."""
        return [self.suffix(q.text, candidates.passages[q.gold]) for q in candidates.questions]
