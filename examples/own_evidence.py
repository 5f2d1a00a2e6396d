"""The sets of documents of docs/adapt.md, made from what is at hand: documents, and people's queries about them.

    python examples/own_evidence.py ../shared/data evidence

writes ``evidence/NAME.jsonl`` (documents alone) and ``evidence/NAME-people`` (a BEIR folder: the same documents, queries,
judgements) for ``scifact``, ``feedbackqa`` (passages grouped by web page) and ``functions`` (of the docstring → code tasks); and
``paragraphs`` (of DROP), on which methods are tried out before (docs/search.md).
"""

import gzip
import json
import sys
import zipfile
from pathlib import Path

from dream.config import load
from dream.data import tasks

OF_TASKS = {"functions": ("docstring-networkx", "humaneval", "mbpp"), "paragraphs": ("drop",)}


def main(source: Path, out: Path) -> None:
    """Write all of them."""
    for name, archive in (("scifact", "scifact.zip"), ("feedbackqa", "feedbackqa/feedbackqa.zip")):
        if not (source / archive).is_file():
            sys.exit(f"error: {source / archive} is missing. It is {name} as a zip in BEIR's format: docs/evaluation.md")
        with zipfile.ZipFile(source / archive) as held:
            corpus, queries = (lines(held.read(f"{name}/{part}.jsonl")) for part in ("corpus", "queries"))
            qrels = held.read(f"{name}/qrels/test.tsv").decode("utf-8")
        pages = {}
        if name == "feedbackqa":
            pages = {
                row["_id"]: row["uri"] for row in lines(gzip.decompress((source / "feedbackqa/pages.jsonl.gz").read_bytes()))
            }
        write(out, name, corpus, queries, qrels, pages)

    config = load(overrides={"data.task_documents": None, "data.task_queries": None})
    for name, members in OF_TASKS.items():
        used = {f"{member}-" if len(members) > 1 else "": tasks.build(member, config) for member in members}
        corpus = [{"_id": f"{p}{d.id}", "title": d.title, "text": d.text} for p, t in used.items() for d in t.corpus.itertuples()]
        queries = [{"_id": f"{p}{q.id}", "text": q.text} for p, t in used.items() for q in t.queries.itertuples()]
        judged = [f"{p}{r.query_id}\t{p}{r.doc_id}\t{r.relevance}" for p, t in used.items() for r in t.qrels.itertuples()]
        write(out, name, corpus, queries, "\n".join(["query-id\tcorpus-id\tscore", *judged, ""]), {})


def write(out: Path, name: str, corpus: list[dict], queries: list[dict], qrels: str, pages: dict[str, str]) -> None:
    """Documents alone, and the same documents with people's queries."""
    people = out / f"{name}-people"
    rows = [{"id": d["_id"], "title": d.get("title", ""), "text": d["text"]} for d in corpus]
    write_lines(out / f"{name}.jsonl", [row | {"uri": pages[row["id"]]} if pages else row for row in rows])
    write_lines(people / "corpus.jsonl", corpus)
    write_lines(people / "queries.jsonl", queries)
    (people / "qrels").mkdir(exist_ok=True)
    (people / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    print(f"{name}: {len(corpus)} documents, {len(queries)} queries of people")


def lines(data: bytes) -> list[dict]:
    """Rows of JSON lines."""
    return [json.loads(line) for line in data.decode("utf-8").splitlines() if line]


def write_lines(path: Path, rows: list[dict]) -> None:
    """The other way round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
