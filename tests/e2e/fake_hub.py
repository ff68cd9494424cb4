"""A server on the loopback interface that answers as much of the Hub's API as huggingface_hub asks for when it downloads a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Model:
    """A repository: its directory, its commits by revision, and what it refuses.

    Attributes:
        directory: the files that it serves.
        revisions: the commit of each branch or tag.
        license: of its model card.
        gated: the status with which its files are refused to those without the token "let-me-in"; 0 for an open model.
        claimed: sizes that it names in place of the files' own.
    """

    directory: Path
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    license: str | None = None
    gated: int = 0
    claimed: dict[str, int] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        return {path.relative_to(self.directory).as_posix(): path for path in sorted(self.directory.rglob("*")) if path.is_file()}


class Hub:
    """The server's models by id, its address, and the requests that it has answered, as (method, path, status)."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.down = 0
        self.broken_after: int | None = None
        self.address = ""

    def sent(self, ending: str) -> int:
        """How often a file with this ending was sent."""
        return sum(method == "GET" and status in (200, 206) and path.endswith(ending) for method, path, status in self.requests)


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if self.hub.down:
            return self._refuse(self.hub.down, "")
        words = path.removeprefix("api/models/").split("/")
        model = self.hub.models.get("/".join(words[:2]))
        if model is None:
            return self._refuse(401, "RepoNotFound")
        kind, revision = (words[2], words[3]) if len(words) > 3 else ("revision", "main")
        commit = model.revisions.get(revision, revision if revision in model.revisions.values() else None)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if kind == "resolve":
            return self._file(model, commit, "/".join(words[4:]))
        sizes = {name: model.claimed.get(name, file.stat().st_size) for name, file in model.files().items()}
        if kind == "tree":
            return self._json([{"type": "file", "path": name, "size": size, "oid": _digest(name)} for name, size in sizes.items()])
        siblings = [{"rfilename": name, "size": size, "blobId": _digest(name)} for name, size in sizes.items()]
        card = {"license": model.license} if model.license else {}
        return self._json({"id": "/".join(words[:2]), "sha": commit, "siblings": siblings, "cardData": card, "tags": []})

    def _file(self, model: Model, commit: str, name: str) -> None:
        if model.gated and self.headers.get("authorization") != "Bearer let-me-in":
            return self._refuse(model.gated, "GatedRepo")
        file = model.directory / name
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        data = file.read_bytes()
        self._answer(200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Content-Length": str(len(data))}, data)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code, "Content-Length": "0"} if code else {"Content-Length": "0"}, b"")

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self._answer(200, {"Content-Type": "application/json", "Content-Length": str(len(data))}, data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.hub.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.broken_after is not None and len(data) > self.hub.broken_after:
            self.wfile.write(data[: self.hub.broken_after])
            self.close_connection = True
        else:
            self.wfile.write(data)


def _digest(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()
