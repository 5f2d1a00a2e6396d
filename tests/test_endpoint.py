"""Questions by an OpenAI-compatible endpoint: a server on loopback that fails now and then, is slow, or is down."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from dream import config as configs
from dream.config import stages
from dream.data import endpoint, questions
from dream.errors import DreamError

KEY = "sk-secret-of-the-environment"


@contextlib.contextmanager
def served(fails=lambda n: None, wait=0.0):
    """A chat server; ``fails(n)`` is the status of the n-th request, or None. Yields its URL and what it saw."""
    seen = {"requests": [], "keys": set(), "at once": 0, "most": 0}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen["requests"].append(body)
                seen["keys"].add(self.headers["Authorization"])
                seen["at once"] += 1
                seen["most"] = max(seen["most"], seen["at once"])
                status = fails(len(seen["requests"]))
            time.sleep(wait)
            with lock:
                seen["at once"] -= 1
            passage = body["messages"][0]["content"].split("Passage: ")[1].split("\n")[0]
            message = {"role": "assistant", "content": f"Question: what is {passage}? It asks"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                      "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
            text = json.dumps({"error": {"message": "no"}} if status else answer).encode()
            self.send_response(status or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setenv("DREAM_ENDPOINT_KEY", KEY)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def settings(url, **more):
    return configs.load(
        overrides={"data.sources": ["squad-generated"], "questions.endpoint": url, "questions.endpoint_model": "m",
                   "questions.batch": 4, **more}
    )  # fmt: skip


def passages(n):
    return pd.DataFrame({"passage_id": [f"p{i}" for i in range(n)], "source": "s", "text": [f"thing{i}" for i in range(n)]})


def test_a_server_that_fails_now_and_then_writes_every_question_once(tmp_path):
    with served(lambda n: (429, 500, 503)[n // 3 % 3] if n % 3 == 0 else None, wait=0.02) as (url, seen):
        written = questions.generate(settings(url), passages(24))
        assert list(written["query"]) == [f"what is thing{i}?" for i in range(24)]
        assert len(seen["requests"]) > 24 and 1 < seen["most"] <= 4 and seen["keys"] == {f"Bearer {KEY}"}
        assert {(r["model"], r["temperature"], r["max_tokens"]) for r in seen["requests"]} == {("m", 0, 48)}
        asked = len(seen["requests"])
        assert questions.generate(settings(url), passages(24)).equals(written) and len(seen["requests"]) == asked


def test_a_server_that_goes_down_keeps_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "RETRIES", 1)
    journal = tmp_path / "journal.jsonl"
    line = r"^questions.endpoint http\S+ answers with status 500 for model m\. Check "
    with served(lambda n: 500 if n > 8 else None) as (url, _), pytest.raises(DreamError, match=line):
        questions.generate(settings(url), passages(12), journal)
    assert len(journal.read_text().splitlines()) == 8
    with pytest.raises(DreamError, match=r"^questions.endpoint http\S+ cannot be reached\. Start its server"):
        questions.generate(settings(url), passages(12), journal)
    with served() as (url, seen):
        assert len(questions.generate(settings(url), passages(12), journal)) == 12 and len(seen["requests"]) == 4


def test_a_refused_key_is_one_line_that_does_not_hold_it():
    line = "refuses the key. Set DREAM_ENDPOINT_KEY or OPENAI_API_KEY"
    with served(lambda n: 401) as (url, _), pytest.raises(DreamError, match=line) as refused:
        questions.generate(settings(url), passages(2))
    assert KEY not in str(refused.value)


def test_the_key_is_written_nowhere(tmp_path, monkeypatch):
    """The whole stage, from its settings to its record."""
    from dream.files import write_json
    from stages import questions as stage

    monkeypatch.setattr("sys.argv", ["questions"])
    monkeypatch.setattr(questions, "targets", lambda config: passages(6).assign(source="squad-generated"))
    with served() as (url, seen):
        config = settings(url)
        assert "generator" not in config.roles
        monkeypatch.chdir(tmp_path)
        for name, values in stages.files(config).items():
            write_json(stages.FOLDER / f"{name}.json", values)
        write_json(tmp_path / "reports/assets/generator.json", {})
        stage.main()
        assert seen["keys"] == {f"Bearer {KEY}"}
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {"questions.parquet", "journal.jsonl", "questions.json"} <= {p.name for p in files}
    assert not [p for p in files if KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://me:secret@host/v1", "https://host/v1?key=secret"])
def test_a_url_that_could_hold_a_key_or_is_none_is_refused(url):
    with pytest.raises(DreamError, match="questions.endpoint"):
        settings(url)


def test_an_endpoint_without_a_model_is_refused():
    with pytest.raises(DreamError, match="endpoint_model"):
        settings("http://127.0.0.1:1/v1", **{"questions.endpoint_model": None})
