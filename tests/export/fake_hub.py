"""A hub on this machine: one repository at one commit, over HTTP, as far as its library asks for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class Hub(ThreadingHTTPServer):
    """files: what the repository has. fetched: the paths of files whose contents were asked for."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.files, self.fetched = name, files, []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, path = self.server, self.path.split("?")[0]
        api, plain = f"/api/models/{hub.name}", f"/{hub.name}/resolve/"
        if (path.startswith(f"{api}/revision/") and path.split("/revision/")[1] in REVISIONS) or path == api:
            found = {"id": hub.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
            return self.send(200, json.dumps(found).encode(), body=body)
        if path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                for name, data in hub.files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), body=body)
        revision, _, name = path.removeprefix(plain).partition("/")
        if path.startswith(plain) and revision in REVISIONS and name in hub.files:
            if body:
                hub.fetched.append(name)
            return self.send(200, hub.files[name], body=body, etag=f'"{digest(hub.files[name])}"')
        code = "RevisionNotFound" if path.startswith(api) and "/revision/" in path else "RepoNotFound"
        return self.send(404, b"{}", body=body, code=code)

    def send(self, status: int, data: bytes, *, body: bool, etag: str = "", code: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(data)), "Content-Type": "application/json", "X-Repo-Commit": COMMIT}
        for name, value in {**headers, "ETag": etag, "X-Error-Code": code}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serving(name: str, folder: Path, **more: bytes) -> Iterator[Hub]:
    """The files of a folder as a repository, and more of them by path."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub = Hub(name, {**files, **more})
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
