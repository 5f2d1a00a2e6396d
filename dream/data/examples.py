"""A user's own example queries, which steer the writer of questions as in InPars (Bonifacio et al. 2022): few-shot, by example.

An example is a query, or a query with the passage that it is meant to find. With passages they are shown to the model as answers
that it has given; queries alone are listed before the request.
"""

from __future__ import annotations

from dream.data import beir
from dream.data.own import place_of
from dream.errors import DreamError

Example = dict[str, str]  # query, and passage where there is one
Given = str | list[str | Example]


def read(given: Given) -> list[Example]:
    """``questions.examples`` as a list.

    Args:
        given: a list of queries or of ``{query, passage}``, or the path of a file: .jsonl with such objects, else a query a line.

    Raises:
        DreamError: the file is missing or no UTF-8, it is empty, or an example has no query.
    """
    if isinstance(given, str):
        path = place_of(given)
        if not path.is_file():
            raise DreamError(f"questions.examples: {given} is missing", "Name a file, or list the queries themselves")
        found = [(place, beir.parse(line, place) if path.suffix == ".jsonl" else line.strip())
                 for place, line in beir.lines(path, path.parent.name)]  # fmt: skip
        if not found:
            raise DreamError(f"questions.examples: {given} is empty", "Write a query a line")
    else:
        found = [("questions.examples", one) for one in given]
    return [_example(place, one) for place, one in found]


def _example(place: str, one: object) -> Example:
    fields = {"query": one} if isinstance(one, str) else one
    if not isinstance(fields, dict) or not all(isinstance(text, str) for text in fields.values()) or not fields.get("query"):
        raise DreamError(f"{place}: no query", 'An example is a text, or {"query": …, "passage": …}')
    if odd := set(fields) - {"query", "passage"}:
        raise DreamError(f"{place}: {min(odd)!r} is not known", 'An example is a text, or {"query": …, "passage": …}')
    return {key: text.strip() for key, text in fields.items() if text.strip()}


def turns(prompt: str, text: str, examples: list[Example]) -> list[str]:
    """What is said to the model, request and answer in turn, the last being the request.

    Args:
        prompt: the request; ``{passage}`` stands for the passage.
        text: the passage that is asked about.
        examples: as :func:`read` gives them.

    >>> turns("Ask about {passage}", "bees", [{"query": "what is wax?"}, {"query": "who?", "passage": "ants"}])
    ['Ask about ants', 'who?', 'Write it in the manner of these:\\n- what is wax?\\n\\nAsk about bees']
    """
    said: list[str] = []
    for one in examples:
        if "passage" in one:
            said += [prompt.replace("{passage}", one["passage"]), one["query"]]
    alone = "\n".join(f"- {one['query']}" for one in examples if "passage" not in one)
    before = f"Write it in the manner of these:\n{alone}\n\n" if alone else ""
    return [*said, before + prompt.replace("{passage}", text)]
