"""A small stand-in of the model hub: the few addresses that fetching asks for, over files in memory.

It can refuse, cut connections, hand out wrong bytes, and it notes every request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 100_000  # bytes from which a file is kept as the hub keeps large ones: redirected, with a SHA-256


@dataclass
class Hub:
    """``repositories``: name -> path -> content. ``revisions``: what names the one commit there is."""

    repositories: dict[str, dict[str, bytes]]
    revisions: set[str] = field(default_factory=lambda: {COMMIT, "main"})
    commit: str = COMMIT
    gated: set[str] = field(default_factory=set)
    token: str = ""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """path -> bytes to hand out instead"""
    gone: set[str] = field(default_factory=set)
    """paths that are listed and not there"""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """path -> of each coming answer, the bytes after which the connection breaks"""
    stall: dict[str, int] = field(default_factory=dict)
    """path -> bytes after which the answer stands still until :attr:`go_on`"""
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """method, path, Range"""
    address: str = ""

    def starts(self, path: str) -> list[int]:
        """Where each answer with content of ``path`` began."""
        return [
            int(asked.removeprefix("bytes=").rstrip("-") or 0)
            for method, place, asked in self.requests
            if method == "GET" and place == f"/cdn/{path}"
        ]


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """``hub`` behind a free port of this machine."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range") or ""))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            self._about("/".join(parts[2:4]), "/".join(parts[5:]))
        elif parts[2:3] == ["resolve"]:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif parts[0] == "cdn":
            self._content("/".join(parts[1:]))
        else:
            self._error(404, "")

    def _refused(self, name: str, revision: str) -> bool:
        if name not in self.hub.repositories:
            self._error(401, "RepoNotFound")  # as the hub does for who is not logged in
        elif name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._error(403, "GatedRepo")
        elif revision not in self.hub.revisions:
            self._error(404, "RevisionNotFound")
        else:
            return False
        return True

    def _about(self, name: str, revision: str) -> None:
        if self._refused(name, revision):
            return
        siblings = [_stated(path, content) for path, content in self.hub.repositories[name].items()]
        about = {"id": name, "modelId": name, "sha": self.hub.commit, "private": False, "tags": [], "downloads": 0}
        self._send(json.dumps({**about, "siblings": siblings}).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if self._refused(name, revision):
            return
        content = self.hub.repositories[name].get(path)
        if content is None or path in self.hub.gone:
            self._error(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{blob(content)}"'}
        if len(content) < LFS_FROM:
            self._send(self.hub.wrong.get(path, content), headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self._send(b"", {**headers, "Location": f"{self.hub.address}/cdn/{name}/{path}"}, status=302)

    def _content(self, place: str) -> None:
        *name, path = place.split("/")
        content = self.hub.wrong.get(path, self.hub.repositories["/".join(name)][path])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        headers = {"Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.cut.get(path)
        self._send(
            content[start:],
            headers,
            status=206 if asked else 200,
            cut=cuts.pop(0) if cuts else None,
            stall=self.hub.stall.pop(path, None),
        )

    def _error(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code} if code else {}, status=status)

    def _send(
        self,
        body: bytes,
        headers: dict[str, str],
        *,
        status: int = 200,
        cut: int | None = None,
        stall: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if stall is not None:
            self.wfile.write(body[:stall])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go_on.wait(60)
            self.close_connection = True
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _stated(path: str, content: bytes) -> dict[str, Any]:
    stated: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob(content)}
    if len(content) >= LFS_FROM:
        stated["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return stated
