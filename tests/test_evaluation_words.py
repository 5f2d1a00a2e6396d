"""BM25 without words: what the analyser cannot read is found nowhere, and says so; a set in Chinese is searched."""

from __future__ import annotations

import json

import pytest
from test_evaluation_cells import evaluate, llama, load_system, make_task, part, project  # noqa: F401
from test_rerank import both, reranker

from dream import cells
from dream.data import tasks

CHINESE = {
    "corpus": {"d0": "北京是中国的首都", "d1": "上海是最大的城市", "d2": "今天天气很好", "d3": "我喜欢吃苹果"},
    "queries": {"q0": "中国的首都是哪里", "q1": "最大的城市"},
}
NOTE = "{} of {} queries have no word for the analyser that any document holds (bm25.tokenizer: {})"


@pytest.fixture
def chinese(tmp_path):
    """The set as a folder of the user's own."""
    folder = tmp_path / "chinese"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in CHINESE.items():
        lines = (json.dumps({"_id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(("tokenizer", "score"), [("words", 0.0), ("auto", 1.0)])
def test_a_set_in_chinese_from_its_folder_to_the_cell(project, chinese, tokenizer, score):  # noqa: F811
    config = project(own={"tiny": chinese}, bm25__tokenizer=tokenizer)
    tasks.write_entry("tiny", config, tasks.FOLDER / "tiny")
    table, (record,) = evaluate("bm25")
    assert record["ndcg_at_10"] == record["recall_at_100"] == score and record["queries"] == 2
    assert [list(hits) for hits in table["hits"]] == ([["d0"], ["d1"]] if score else [[], []])
    assert record["notes"][-1:] == ([] if score else [NOTE.format(2, 2, "words")])
    assert record["wordless_queries"] == 2 * (not score)
    assert ("scripts without spaces" in record["settings"]["analyser"]) == bool(score)


@pytest.mark.parametrize("tokenizer", ["words", "auto"])
def test_queries_of_one_letter_find_nothing_and_are_counted(project, tokenizer, monkeypatch):  # noqa: F811
    """Of the queries that count only; over the parts of a task, with the notes of all parts."""
    project(bm25__tokenizer=tokenizer)
    corpus = [("a", "", "C is a language"), ("b", "", "R is another")]
    asked = [("q1", "C"), ("q2", "?"), ("q3", "language"), ("q4", "R")]  # q4 has no relevant document
    rows = {"corpus": corpus, "queries": asked, "qrels": [("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1), ("q4", "a", 0)]}
    parts = [make_task(**rows, part=name, notes=["both", name]) for name in "xy"]
    monkeypatch.setattr(cells.tasks, "parts", lambda name, config, *_: iter(parts))
    table, (record,) = evaluate("bm25")
    assert [len(hits) for hits in table["hits"]] == [0, 0, 1] * 2
    assert record["notes"] == ["both", "x", "y", NOTE.format(4, 6, tokenizer)] and record["wordless_queries"] == 4
    monkeypatch.setattr(cells.tasks, "parts", lambda name, config, *_: iter(parts[:1]))
    assert evaluate("bm25")[1][0]["notes"] == ["both", "x", NOTE.format(2, 3, tokenizer)]
    (other,) = evaluate("untrained")[1]
    assert other["notes"] == ["both", "x"] and "wordless_queries" not in other


def test_the_judge_reads_nothing_where_bm25_finds_nothing(project, chinese):  # noqa: F811
    for tokenizer in ("words", "auto"):
        config = project(own={"tiny": chinese}, bm25__tokenizer=tokenizer)
        system = reranker(both()[0], load_system("bm25"))
        table, record = cells.score(system, tasks.build("tiny", config), part("bm25"))
        assert (system.flops > 0) == (tokenizer == "auto") == (record["ndcg_at_10"] == 1)
        assert record["wordless_queries"] == 2 * (tokenizer == "words") and record["queries"] == len(table) == 2
