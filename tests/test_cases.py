"""Small own sets and archives that once lost, changed or crashed something: each is right now, or refused in one line.

Every case is the set of ``base()`` with a few lines changed.
"""

import csv
import json
import math
import re
import zipfile
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dream import cells, systems
from dream import config as configs
from dream.data import beir, prepare, sources, tasks
from dream.data.tables import CORPUS, LARGEST_GRADE, QRELS, blank, check_id, copies, fingerprint, grade
from dream.errors import DreamError
from dream.evaluation import metrics
from dream.instances import load_sets

HEADER = "query-id\tcorpus-id\tscore\n"
JUDGED = "q0\td0\t1\nq1\td1\t1\nq2\td2\t1\nq3\td3\t1\n"
LIKE_MISSING = ["NA", "null", "nan", "None", "true", "1e5", "007", "N/A", "NaN", "-inf", "1_000", "0x10", "", "  ", "#N/A"]


def base():
    return {
        "corpus.jsonl": "".join(json.dumps({"_id": f"d{i}", "text": f"word{i} common text"}) + "\n" for i in range(12)),
        "queries.jsonl": "".join(json.dumps({"_id": f"q{i}", "text": f"word{i}"}) + "\n" for i in range(4)),
        "qrels/test.tsv": HEADER + JUDGED,
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture
def make(tmp_path):
    """Write the base set with these files replaced, ``+text`` appended; returns its path."""

    def write(files=(), name="set"):
        content = base()
        for file, text in dict(files).items():
            content[file] = content[file] + text[1:] if isinstance(text, str) and text.startswith("+") else text
        for file, text in content.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / name)

    return write


def line(**record):
    return "+" + json.dumps(record) + "\n"


NUMBER = "is not a number in plain digits"
WHOLE = "is not a whole number. trec_eval's gain is a whole grade"
RANGE = f"is outside -{LARGEST_GRADE} to {LARGEST_GRADE}"
REFUSED = [
    # ids: no control characters, line separators or surrogates; texts or numbers; equal ones are an error
    ({"queries.jsonl": '+{"_id": "q\\u0000x", "text": "nul"}\n'}, r"set/queries.jsonl:5: id 'q\x00x' holds '\x00'"),
    ({"corpus.jsonl": '+{"_id": "\\u001b]0;pwn\\u0007"}\n'}, r"set/corpus.jsonl:13: id '\x1b]0;pwn\x07' holds '\x1b'"),
    ({"corpus.jsonl": '+{"_id": "d\\ud800"}\n'}, r"set/corpus.jsonl:13: id 'd\ud800' holds '\ud800'"),
    ({"corpus.jsonl": '+{"_id": "d\\u2028"}\n'}, r"set/corpus.jsonl:13: id 'd\u2028' holds '\u2028'"),
    ({"corpus.jsonl": '+{"_id": 1}\n{"_id": "1"}\n'}, "set/corpus.jsonl:14: id '1' appears twice"),
    *(({"corpus.jsonl": f'+{{"_id": {x}}}\n'}, "set/corpus.jsonl:13: no _id that is a text or a number")
      for x in ("true", "null", "NaN", "-Infinity", "[1]", '{"a": 1}', '""')),
    # JSON
    ({"corpus.jsonl": '+{"_id": "x", "metadata": ' + "[" * 50_000 + "]" * 50_000 + "}\n"}, "set/corpus.jsonl:13: JSON nested too deeply"),
    ({"corpus.jsonl": '+{"_id": "x", "_id": "y"}\n'}, "set/corpus.jsonl:13: not valid JSON (a key stands twice in one object)"),
    ({"corpus.jsonl": "+" + b'{"_id": "x", "text": "\x00"}\n'.decode()}, "set/corpus.jsonl:13: not valid JSON (Invalid control character"),
    *(({"corpus.jsonl": f'+{{"_id": "x", "title": {x}}}\n'}, "set/corpus.jsonl:13: title is not a text")
      for x in ("7", "false", "0", "[]", "{}", "NaN", "9" * 5000)),
    ({"corpus.jsonl": base()["corpus.jsonl"].encode() + b'{"_id": "x", "text": "\xed\xa0\x80"}\n'}, "set/corpus.jsonl:13: not valid UTF-8"),
    ({"qrels/test.tsv": HEADER.encode() + b"q0\td\xff\t1\n"}, "set/qrels/test.tsv:2: not valid UTF-8"),
    # judgements
    ({"qrels/test.tsv": "+q0\td0\t0\n"}, "set/qrels/test.tsv:2 and set/qrels/test.tsv:6: document 'd0' has the scores 1 and 0 for query 'q0'"),
    ({"qrels/test.tsv": "a\tb\tc\n" + JUDGED}, "set/qrels/test.tsv:1: the header is 'a', 'b', 'c', expected query-id, corpus-id, score"),
    ({"qrels/test.tsv": "q0\td0\tscore\n" + JUDGED}, f"set/qrels/test.tsv:1: score 'score' {NUMBER}"),
    ({"qrels/test.tsv": HEADER + HEADER + JUDGED}, f"set/qrels/test.tsv:2: score 'score' {NUMBER}"),
    *(({"qrels/test.tsv": f"{HEADER}q0\td0\t{x}\n"}, f"set/qrels/test.tsv:2: score {x!r} {NUMBER}")
      for x in ("1_0", " 1", "1 ", "٣", "1e400", "1e0", "nan", "inf", "", ".5", "0x1", "--1", "¹")),
    *(({"qrels/test.tsv": f"{HEADER}q0\td0\t{x}\n"}, f"set/qrels/test.tsv:2: score {x!r} {WHOLE}")
      for x in ("0.5", "1.00000000000000000000001", "-0.1")),
    *(({"qrels/test.tsv": f"{HEADER}q0\td0\t{x}\n"}, f"set/qrels/test.tsv:2: score {x!r} {RANGE}")
      for x in ("99999999999", str(LARGEST_GRADE + 1), str(-LARGEST_GRADE - 1))),
    ({"qrels/test.tsv": f"{HEADER}q0\td0\t{'9' * 5000}\n"}, f"set/qrels/test.tsv:2: score '{'9' * 37}...' {RANGE}"),
    # queries that show nothing
    *(({"queries.jsonl": "+" + json.dumps({"_id": "q4", "text": x}) + "\n", "qrels/test.tsv": "+q4\td4\t1\n"},
       "set/queries.jsonl: query 'q4' has no text") for x in ("\u200b", "\ufeff \u2060", "\x1b\x7f", "\u2029\u00a0\u3000", "\u200e\u00ad")),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), REFUSED, ids=[f"{i}-{m[4:40]}" for i, (_, m) in enumerate(REFUSED)])
def test_refused_in_one_line(make, files, message):
    with pytest.raises(DreamError, match=rf"^{re.escape(message)}") as caught:
        beir.read(make(files))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


BASE = [["q0", "d0", 1], ["q1", "d1", 1], ["q2", "d2", 1], ["q3", "d3", 1]]
READ = [
    ({"qrels/test.tsv": JUDGED.replace("1\n", "1.0\n", 1)}, BASE, []),  # no header: the first judgement is one
    ({"qrels/test.tsv": "\n" + HEADER + JUDGED}, BASE, []),
    *(({"qrels/test.tsv": f"{x}\n{JUDGED}"}, BASE, []) for x in ("query_id\tdoc_id\trelevance", "QID\tDocNo\tRel", '"query-id"\t"corpus-id"\t"score"', "Query ID\tPID\tlabel")),
    ({"qrels/test.tsv": "+q0\td5\t007\nq0\td6\t+2.000\nq0\td7\t-0\nq0\td8\t10000\nq0\td9\t-3.\n"},
     [*BASE, ["q0", "d5", 7], ["q0", "d6", 2], ["q0", "d8", 10_000]], []),
    ({"qrels/test.tsv": "+q0\td0\t1.0\nq0\td0\t1\nq1\td5\t0\nq1\td5\t-0\n"}, BASE, ["3 repeated judgements, equal to the first, counted once"]),
    ({name: "\ufeff" + text for name, text in base().items()}, BASE, []),
    ({name: text.replace("\n", "\r\n") for name, text in base().items()}, BASE, []),
    ({"corpus.jsonl": line(_id="x", text="a", metadata=[[[]]] * 90) + '{"_id": "y", "metadata": ' + "9" * 5000 + ', "text": "a2"}\n'}, BASE, []),
    ({"corpus.jsonl": '+{"_id": "x", "text": "bad \\ud800 \\u0000 word", "title": "\\udc00"}\n', "queries.jsonl": '+{"_id": "q", "text": "\\u0000"}\n'},
     BASE, ["3 texts with NUL or half a surrogate pair, read as U+FFFD"]),
    ({"corpus.jsonl": line(_id="x", text="word0 common text") + line(_id="y", text="word0 common text")[1:]}, BASE,
     ["2 documents repeat the text of a relevant one and are not judged: a hit on one counts as wrong"]),
    ({"corpus.jsonl": line(_id="x", text="word0 common text"), "qrels/test.tsv": "+q0\tx\t0\n"}, BASE, []),  # judged: not relevant
    ({"corpus.jsonl": line(_id="x", text="\u200b\ufeff", title=" ")}, BASE, ["1 documents without title and text left out"]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "qrels", "notes"), READ)
def test_read_with_its_right_value(make, files, qrels, notes):
    read = beir.read(make(files))
    assert read.qrels.values.tolist() == qrels and read.notes == notes
    assert list(read.queries["text"]) == ["word0", "word1", "word2", "word3"] and read.corpus["text"][0] == "word0 common text"
    tasks.base.revision(read.corpus, read.queries, read.qrels)  # every text can be stored


def test_replaced_characters_are_the_only_ones_that_change(make):
    text = "bad \\ud800 \\u0000 \\ud83d\\ude00 word"
    read = beir.read(make({"corpus.jsonl": f'+{{"_id": "x", "text": "{text}"}}\n'}))
    assert read.corpus.set_index("id")["text"]["x"] == "bad \ufffd \ufffd 😀 word"


def test_numbers_are_ids_by_their_digits(make):
    names = ["0", "-1", "1.0", "1e5", "1E5", "10000000000000000000000000", "1" * 5000]
    read = beir.read(make({"corpus.jsonl": "+" + "".join(f'{{"_id": {name}, "text": "x{name}"}}\n' for name in names)}))
    assert list(read.corpus["id"])[12:] == names


@settings(deadline=None)
@given(st.text(st.sampled_from("+-.0123456789e_ ٣\n"), max_size=12) | st.text(max_size=3) | st.integers().map(str))
def test_a_grade_is_the_number_that_is_written(text):
    plain = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", text, re.ASCII) and not text.endswith("\n")
    value = Fraction(text.rstrip(".")) if plain else None
    if value is not None and value.denominator == 1 and abs(value) <= LARGEST_GRADE:
        assert grade(text, "x") == value
    else:
        with pytest.raises(DreamError):
            grade(text, "x")


def test_trec_eval_takes_the_largest_grade():
    qrels = pd.DataFrame([("q", "a", LARGEST_GRADE), ("q", "b", 1)], columns=QRELS)
    low = 1 / math.log2(3)
    scored = metrics.per_query({"q": {"b": 2.0, "a": 1.0}}, qrels)
    assert scored["ndcg_at_10"][0] == pytest.approx((1 + LARGEST_GRADE * low) / (LARGEST_GRADE + low))
    assert scored["mrr_at_10"][0] == 1


@settings(deadline=None)
@given(st.sets(st.text(min_size=1), min_size=1, max_size=5))
def test_ids_that_pass_are_stored_and_told_apart(names):
    kept = []
    for name in names:
        try:
            check_id(name, "x")
        except DreamError:
            continue
        kept.append(name)
    for name in kept:  # what lines, UTF-8 and C's strings would cut or lose
        assert name.splitlines() == [name] and name.encode() and "\0" not in name and "\t" not in name
    qrels = pd.DataFrame([(name, "d", 1) for name in kept], columns=QRELS)
    if kept:
        assert list(metrics.per_query({name: {"d": 1.0} for name in kept}, qrels)["recall_at_100"]) == [1.0] * len(kept)


def test_ids_stay_text_from_file_to_cell(make, tmp_path, monkeypatch):
    """Through JSON, parquet and CSV, queries and documents alike: none is a missing value or a number."""
    names = [name for name in LIKE_MISSING if name]
    path = make({
        "corpus.jsonl": "".join(json.dumps({"_id": n, "text": f"number{i} common"}) + "\n" for i, n in enumerate(names)),
        "queries.jsonl": "".join(json.dumps({"_id": n, "text": f"number{i}"}) + "\n" for i, n in enumerate(names)),
        "qrels/test.tsv": HEADER + "".join(f"{n}\t{n}\t1\n" for n in names),
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    params = Path(__file__).parent.parent / "params.yaml"
    config = configs.load(params, overrides={"own": {"mine": path}, "tasks": ["mine"]})
    tasks.write(tasks.build("mine", config), tasks.FOLDER / "mine")
    read = tasks.load("mine", config)
    assert set(read.judgements) == set(read.queries["id"]) == set(read.corpus["id"]) == set(names)
    system = systems.load("bm25", config)
    table, records = cells.run(system, None, ["mine"], config)
    cells.write("bm25-mine", table, records)
    assert set(pd.read_parquet("work/evaluate/bm25-mine/queries.parquet")["query_id"]) == set(names)
    with open("reports/results/evaluate/bm25-mine.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["query_id"]: float(row["ndcg_at_10"]) for row in rows} == dict.fromkeys(names, 1.0)


def test_own_sets_never_share_an_id(make, tmp_path):
    """Sets ``a`` with ``b-c`` and ``a-b`` with ``c``; packaged sources have no colon in their ids."""
    train = {"qrels/train.tsv": "q0\tb-c\t1\n"}, {"qrels/train.tsv": "q0\tc\t1\n"}
    paths = {
        "a": make({"corpus.jsonl": line(_id="b-c", text="first"), **train[0]}, "a"),
        "a-b": make({"corpus.jsonl": line(_id="c", text="second"), **train[1]}, "a-b"),
    }
    config = configs.load(overrides={"own": paths, "data.sources": [], "tasks": ["a"], "data.development": 0.0})
    loaded = {name: sources.load(name, config) for name in paths}
    passages = pd.concat([tables[0] for tables in loaded.values()])
    assert passages["passage_id"].is_unique and passages["passage_id"].str.count(":").eq(1).all()
    texts = dict(zip(passages["passage_id"], passages["text"], strict=True))
    assert [texts[tables[1]["target_id"][0]] for tables in loaded.values()] == ["first", "second"]
    assert loaded["a"][1]["instance_id"][0] != loaded["a-b"][1]["instance_id"][0]
    assert not any(":" in name for name in sources.SOURCES)


@pytest.mark.parametrize(("file", "column"), [("passages", "passage_id"), ("instances", "instance_id"), ("candidates", "set_id")])
def test_an_id_that_stands_twice_is_no_silent_choice(tmp_path, file, column):
    tables = {
        "passages": pd.DataFrame({"passage_id": ["p", "r"], "title": "", "text": ["one", "two"]}),
        "instances": pd.DataFrame({"instance_id": ["i", "j"], "query": ["x", "y"], "target_id": "p"}),
        "candidates": pd.DataFrame({"set_id": ["s", "t"], "source": "", "passage_ids": [["p", "r"]] * 2, "instance_ids": [["i"], ["j"]], "gold": [[0]] * 2}),
    }  # fmt: skip
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    assert [s.questions[0].text for s in load_sets(tmp_path, tmp_path)] == ["x", "y"]
    tables[file][column] = tables[file][column].iloc[0]
    tables[file].to_parquet(tmp_path / f"{file}.parquet")
    with pytest.raises(DreamError, match=f"{file}.parquet: {column} '[pis]' appears twice"):
        load_sets(tmp_path, tmp_path)


def test_what_was_left_out_reaches_the_records(make, tmp_path):
    """Of the task and, which may read other judgements, of the training source."""
    path = make({"qrels/test.tsv": "+q0\td0\t1\n", "qrels/train.tsv": JUDGED + "q1\td1\t1\nq2\td2\t1\n"})
    config = configs.load(overrides={"own": {"mine": path}, "data.sources": [], "tasks": ["mine"], "data.development": 0.0})
    queries = pd.DataFrame({"source": [], "target_id": [], "query": []})
    _, instances, (source,) = prepare.training(config, queries, set())
    assert source["notes"] == "2 repeated judgements, equal to the first, counted once" and not instances.attrs
    tasks.write(tasks.build("mine", config), tmp_path / "tasks/mine")
    record = prepare.contamination(tasks.load("mine", config, tmp_path / "tasks"), set())
    assert record["notes"] == "1 repeated judgements, equal to the first, counted once"


def test_copies_are_counted_by_query():
    corpus = pd.DataFrame([(d, "", text) for d, text in zip("abcdef", "xxxyyz", strict=True)], columns=CORPUS)
    count = lambda *rows: copies(corpus, pd.DataFrame(rows, columns=QRELS))  # noqa: E731
    assert count(("q", "f", 1)) == [] == count(("q", "a", 0)) == count(("q", "d", 1), ("q", "e", 2))
    assert count(("q", "a", 1), ("q", "b", 1), ("q", "c", 0)) == []
    assert count(("q", "a", 1))[0].startswith("2 documents") and count(("q", "d", 1), ("r", "e", 1))[0].startswith("2 documents")
    assert count(("q", "d", 1), ("q", "e", 1), ("r", "e", 1))[0].startswith("1 documents")


def test_texts_without_a_word_are_not_one_text():
    assert fingerprint("?") != fingerprint("!") and fingerprint("? ") == fingerprint("?") != fingerprint("")


@settings(deadline=None)
@given(st.text())
def test_a_text_that_python_shows_is_not_blank(text):
    if any(c.isprintable() and not c.isspace() for c in text):
        assert not blank(text)
    if not text.strip():
        assert blank(text)


def pack(folder, archive, extra=()):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            opened.write(path, path.relative_to(folder).as_posix())
        for name, text in dict(extra).items():
            opened.writestr(name, text)
    return str(archive)


def test_hidden_files_of_macos_are_no_part_of_a_set(make, tmp_path):
    path = make()
    hidden = {
        f"{folder}{name}": b"\0\5\26\7"
        for folder in ("__MACOSX/set/", "__MACOSX/")
        for name in ("corpus.jsonl", "._corpus.jsonl")
    }
    hidden |= {
        ".DS_Store": b"",
        "._set": b"",
        "set/qrels/._test.tsv": b"\0",
        "set/qrels/._train.tsv": b"\0",
        ".trash/corpus.jsonl": b"",
    }
    archive = pack(tmp_path / "set", tmp_path / "flat.zip", {"qrels/._train.tsv": b"\0", "._corpus.jsonl": b"\0"})
    below = {f"set/{name}": text for name, text in base().items()}
    nested = pack(tmp_path / "nothing", tmp_path / "nested.zip", {**below, **hidden})
    for place in (archive, nested):
        assert beir.splits(place) == ["test"]
        assert beir.read(place).corpus.equals(beir.read(path).corpus)


def test_an_archive_of_two_sets_is_no_silent_choice(tmp_path):
    two = {f"{folder}/{name}": text for folder in ("one", "two") for name, text in base().items()}
    with pytest.raises(DreamError, match=r"two.zip holds several sets, in one and two\. "):
        beir.read(pack(tmp_path / "nothing", tmp_path / "two.zip", two))
    deep = {f"{folder}/{name}": text for folder in ("a/b", "a/c/d") for name, text in base().items()}
    with pytest.raises(DreamError, match=r"deep.zip holds several sets, in a/b and a/c/d\. "):
        beir.read(pack(tmp_path / "nothing", tmp_path / "deep.zip", deep))


@pytest.mark.parametrize("above", ["", "set/", "data/set/", "1/2/3/"])
def test_a_set_is_found_however_deep_it_lies(make, tmp_path, above):
    """As the one folder that holds a corpus.jsonl; what lies beside it, hidden or not, is nothing to it."""
    beside = {
        "data/readme.txt": b"",
        "data/.old/corpus.jsonl": b"",
        "__MACOSX/data/set/corpus.jsonl": b"",
        "data/other/queries.jsonl": b"",
    }
    files = {f"{above}{name}": text for name, text in base().items()}
    zipped = pack(tmp_path / "nothing", tmp_path / "deep.zip", files | beside)
    read, expected = beir.read(zipped), beir.read(make())
    for table in ("corpus", "queries", "qrels"):
        pd.testing.assert_frame_equal(getattr(read, table), getattr(expected, table))
    (tmp_path / "links").mkdir()
    (tmp_path / "links/here").symlink_to(tmp_path / "set")
    assert beir.read(str(tmp_path / "links")).corpus.equals(expected.corpus)


def test_a_refused_archive_leaves_nothing(make, tmp_path):
    """Damage that only unpacking finds: the second member's bytes."""
    make()
    archive = Path(pack(tmp_path / "set", tmp_path / "x.zip"))
    raw = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        last = opened.infolist()[-1]
    start = last.header_offset + 30 + len(last.filename)
    raw[start : start + last.compress_size] = b"\xff" * last.compress_size
    archive.write_bytes(raw)
    with pytest.raises(DreamError, match=r"x\.zip is not a complete zip archive \(.*\)\. Delete it and get it again"):
        beir.read(str(archive))
    assert [p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [".lock"]
