"""A model hub on loopback that speaks as much of the hub's protocol as huggingface_hub, datasets and mteb ask for.

Repositories are folders, one revision each. What was asked is kept, and a repository can be made to fail as a real hub does.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ERRORS = {401: "GatedRepo"}


@dataclass
class Repository:
    """A folder under a name of the hub's, at one commit."""

    folder: Path
    commit: str
    fails: int = 0  # answer everything with this status
    cut: str = ""  # the next download of this file ends in its middle

    def files(self) -> list[dict]:
        paths = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return [
            {"type": "file", "path": p.relative_to(self.folder).as_posix(), "size": p.stat().st_size, "oid": etag(p)}
            for p in paths
        ]

    def tree(self, folder: str, recursive: bool) -> list[dict]:
        below = self.folder / folder
        within = [entry for entry in self.files() if (self.folder / entry["path"]).is_relative_to(below)]
        if recursive:
            return within
        folders = sorted(p.relative_to(self.folder).as_posix() for p in below.iterdir() if p.is_dir()) if below.is_dir() else []
        direct = [entry for entry in within if (self.folder / entry["path"]).parent == below]
        return [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders] + direct


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@dataclass
class Hub:
    """What is served, and what was asked: ``(method, path)``; telemetry is refused and not kept."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, folder: Path, commit: str) -> Repository:
        """Serve a folder as ``owner/name``, or ``datasets/owner/name``, at a commit."""
        self.repositories[name] = Repository(folder, commit)
        return self.repositories[name]


class Handler(BaseHTTPRequestHandler):
    """One request: ``/api/{models,datasets}/owner/name/…`` or ``/[datasets/]owner/name/resolve/revision/file``."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

    def answer(self, body: str = "") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path == "api/agent-harnesses":
            return self.send(404, {})
        self.hub.asked.append((self.command, path))
        api, parts = path.startswith("api/"), path.removeprefix("api/").split("/")
        datasets = parts[0] == "datasets"
        parts = parts[1:] if parts[0] in ("datasets", "models") else parts
        name = ("datasets/" if datasets else "") + "/".join(parts[:2])
        found = self.hub.repositories.get(name)
        if found is None:
            return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if found.fails:
            return self.send(found.fails, {"error": "as asked"}, {"X-Error-Code": ERRORS.get(found.fails, "")})
        what, revision, *rest = [*parts[2:], *["", "main"][len(parts[2:4]) :]]
        rest = "/".join(rest)
        if revision not in ("main", found.commit) and what in ("revision", "tree", "paths-info", "resolve"):
            return self.send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        if not api:
            return self.file(found, rest)
        if what == "tree":
            return self.send(200, found.tree(rest, "recursive=true" in self.path.lower()))
        if what == "paths-info":
            form = parse_qs(body)
            paths = json.loads(body)["paths"] if body.startswith("{") else form.get("paths", [])
            return self.send(200, [entry for entry in found.files() if entry["path"] in paths])
        if what == "refs":
            return self.send(
                200,
                {
                    "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": found.commit}],
                    "converts": [],
                    "tags": [],
                },
            )
        siblings = [{"rfilename": entry["path"]} for entry in found.files()]
        short = "/".join(parts[:2])
        info = {
            "id": short,
            "modelId": short,
            "sha": found.commit,
            "siblings": siblings,
            "private": False,
            "gated": False,
            "tags": [],
        }
        return self.send(200, info | {"disabled": False, "downloads": 0, "likes": 0, "lastModified": "2025-01-01T00:00:00.000Z"})

    def file(self, repository: Repository, name: str) -> None:
        path = repository.folder / name
        if not path.is_file():
            return self.send(
                404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit}
            )
        data, status, headers = (
            path.read_bytes(),
            200,
            {"ETag": f'"{etag(path)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"},
        )
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        self.reply(status, data, headers, cut=self.command == "GET" and repository.cut == name)
        if self.command == "GET" and repository.cut == name:
            repository.cut, self.close_connection = "", True

    def send(self, status: int, found: object, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(found).encode(), {"Content-Type": "application/json", **(headers or {})})

    def reply(self, status: int, data: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of loopback, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
