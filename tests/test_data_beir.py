"""A user's own BEIR folder or zip: the rules, and one clear line for every fault."""

import json
import zipfile

import pandas as pd
import pytest

from dream.data import beir
from dream.errors import DreamError

CORPUS = [{"_id": f"d{i}", "title": f"t{i}", "text": f"text {i}"} for i in range(4)]
QUERIES = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(3)]
QRELS = "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t2\nq1\td2\t1\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DVC_ROOT", raising=False)


def lines(records):
    return "".join(json.dumps(r) + "\n" for r in records)


@pytest.fixture
def make(tmp_path):
    def write(**files):
        folder = tmp_path / "mine"
        content = {"corpus.jsonl": lines(CORPUS), "queries.jsonl": lines(QUERIES), "qrels/test.tsv": QRELS}
        content |= {name.replace("__", "/").replace("_", "."): text for name, text in files.items()}
        for name, text in content.items():
            if text is not None:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(folder)

    return write


def test_folder_and_zip_read_the_same(make, tmp_path):
    path = make()
    read = beir.read(path)
    assert list(read.corpus["id"]) == ["d0", "d1", "d2", "d3"] and list(read.queries["id"]) == ["q0", "q1"]
    assert read.qrels.values.tolist() == [["q0", "d0", 1], ["q1", "d1", 2], ["q1", "d2", 1]] and read.notes == []
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
            opened.write(f"{path}/{name}", f"inside/{name}")
    zipped = beir.read(str(archive))
    for table in ("corpus", "queries", "qrels"):
        assert getattr(zipped, table).equals(getattr(read, table))


def test_a_file_read_in_blocks_is_the_same_table(make, tmp_path, monkeypatch):
    """Down to the bytes of the parquet file: they are what the stages' hashes see."""
    path = make()
    written = []
    for block in (1, 3, beir.BLOCK):
        monkeypatch.setattr(beir, "BLOCK", block)
        beir.read(path).corpus.to_parquet(tmp_path / "corpus.parquet", index=False)
        written.append((tmp_path / "corpus.parquet").read_bytes())
    rows = {"id": [r["_id"] for r in CORPUS], **{name: [r[name] for r in CORPUS] for name in ("title", "text")}}
    pd.DataFrame(rows, dtype="str").to_parquet(tmp_path / "corpus.parquet", index=False)
    assert set(written) == {(tmp_path / "corpus.parquet").read_bytes()}


def test_same_content_as_the_beir_package(make):
    from beir.datasets.data_loader import GenericDataLoader

    path = make()
    corpus, queries, qrels = GenericDataLoader(path).load("test")
    read = beir.read(path)
    assert set(corpus) == set(read.corpus["id"]) and set(queries) == set(read.queries["id"])
    assert {(q, d, g) for q, docs in qrels.items() for d, g in docs.items()} == set(map(tuple, read.qrels.values.tolist()))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus_jsonl": None}, r"holds no corpus\.jsonl"),
        ({"queries_jsonl": None}, r"holds no queries\.jsonl"),
        ({"qrels__test_tsv": None}, r"holds no qrels/test\.tsv"),
        ({"corpus_jsonl": lines(CORPUS) + '{"_id": "d9", \n'}, r"mine/corpus\.jsonl:5: not valid JSON"),
        ({"corpus_jsonl": lines(CORPUS) + "[1]\n"}, r"mine/corpus\.jsonl:5: no _id"),
        ({"corpus_jsonl": lines(CORPUS) + '{"text": "x"}\n'}, r"mine/corpus\.jsonl:5: no _id"),
        ({"corpus_jsonl": lines([*CORPUS, CORPUS[1]])}, r"mine/corpus\.jsonl:5: id 'd1' appears twice"),
        ({"corpus_jsonl": lines([{"_id": "a\tb", "text": "x"}])}, r"corpus\.jsonl:1: id 'a\\tb' holds '\\t'"),
        ({"corpus_jsonl": lines([{"_id": "a", "text": 7}])}, r"corpus\.jsonl:1: text is not a text"),
        ({"corpus_jsonl": b'{"_id": "a", "text": "\xff"}\n'}, r"corpus\.jsonl:1: not valid UTF-8"),
        ({"corpus_jsonl": ""}, r"mine/corpus\.jsonl is empty"),
        ({"queries_jsonl": lines([*QUERIES, QUERIES[0]])}, r"mine/queries\.jsonl:4: id 'q0' appears twice"),
        (
            {"queries_jsonl": lines([{"_id": "q0", "text": " "}, *QUERIES[1:]])},
            r"queries\.jsonl: query 'q0' has no text",
        ),
        ({"qrels__test_tsv": QRELS + "q2\td9\t1\n"}, r"mine/qrels/test\.tsv:5: id 'd9' is not in corpus\.jsonl"),
        ({"qrels__test_tsv": QRELS + "q9\td0\t1\n"}, r"mine/qrels/test\.tsv:5: id 'q9' is not in queries\.jsonl"),
        (
            {"qrels__test_tsv": QRELS + "q2 \td0\t1\n"},
            r"5: id 'q2 ' is not in queries\.jsonl\. Remove the space around it: 'q2' is there",
        ),
        (
            {"qrels__test_tsv": QRELS + "q2\td0 d1\t1\n"},
            r"5: id 'd0 d1' is not in corpus\.jsonl\. It holds a space, and columns are separated by tabs",
        ),
        (
            {"qrels__test_tsv": QRELS + "q9\td0\t1\n"},
            r"5: id 'q9' is not in queries\.jsonl\. Correct the id or remove this judgement",
        ),
        (
            {"qrels__test_tsv": "corpus-id\tquery-id\tscore\nd0\tq0\t1\n"},
            r"test\.tsv:1: the header is 'corpus-id', 'query-id', 'score', expected query-id, corpus-id, score\. Name and order",
        ),
        (
            {"qrels__test_tsv": "Anfrage\tText\tNote\nq0\td0\t1\n"},
            r"1: the header is 'Anfrage', 'Text', 'Note', expected query-id",
        ),
        ({"qrels__test_tsv": "q0\td0\tyes\n"}, r"1: score 'yes' is not a number in plain digits"),
        ({"qrels__test_tsv": "q8\td8\t1e3\n"}, r"1: score '1e3' is not a number in plain digits"),
        ({"qrels__test_tsv": QRELS + "q2 d0 1\n"}, r"mine/qrels/test\.tsv:5: 1 columns, expected"),
        ({"qrels__test_tsv": QRELS + "q2\td0\tyes\n"}, r"mine/qrels/test\.tsv:5: score 'yes' is not a number in plain digits"),
        (
            {"qrels__test_tsv": "query-id\tcorpus-id\tscore\n"},
            r"has no query with a relevant document in qrels/test\.tsv",
        ),
        ({"qrels__test_tsv": "q0\td0\t0\n"}, r"has no query with a relevant document"),
    ],
)
def test_faults_are_one_line(make, files, message):
    with pytest.raises(DreamError, match=message) as caught:
        beir.read(make(**files))
    assert "\n" not in str(caught.value)


def test_rules_are_applied_and_noted(make):
    corpus = [
        *CORPUS,
        {"_id": "blank", "title": " ", "text": ""},
        {"_id": "a/b", "text": "slash"},
        {"_id": 7, "text": "number"},
    ]
    qrels = QRELS + "q0\td1\t-1\nq2\tblank\t1\nq1\ta/b\t1\nq1\t7\t1\n"
    read = beir.read(make(corpus_jsonl=lines(corpus), qrels__test_tsv=qrels))
    assert "blank" not in set(read.corpus["id"]) and {"a/b", "7"} <= set(read.corpus["id"])
    assert ["q0", "d0", 1] in read.qrels.values.tolist() and list(read.queries["id"]) == ["q0", "q1"]
    assert read.notes == ["1 documents without title and text left out"]
    read = beir.read(make(qrels__test_tsv=QRELS + "q2\td3\t0\n"))
    assert read.notes == ["1 judged queries without a relevant document left out"]


def test_archive_faults(tmp_path):
    with pytest.raises(DreamError, match=r"own data nowhere.zip is missing"):
        beir.read("nowhere.zip")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DreamError, match="not a complete zip archive"):
        beir.read(str(broken))
    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("corpus.jsonl", "{}")
        archive.writestr("../../evil.txt", "x")
    with pytest.raises(DreamError, match="points outside its folder"):
        beir.read(str(hostile))
    assert not list(tmp_path.rglob("evil.txt"))
