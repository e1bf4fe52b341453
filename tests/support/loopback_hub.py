"""A model hub on this machine: files of one data set over HTTP and by the hub's API, with ranges, redirects to another
address, 429 with Retry-After, and 401 for what is gated."""

import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """`files`: by path in the data set. `refusals`: how many of the next requests for bytes are answered with 429.
    `gated`: whether a token is needed."""

    daemon_threads = True

    def __init__(
        self, files: dict[str, bytes], *, refusals: int = 0, retry_after: str = "1", gated: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.refusals, self.retry_after, self.gated = files, refusals, retry_after, gated
        self.served = 0
        self.seen: list[str] = []
        self.refused_at = 0.0
        self.waits: list[float] = []
        """Seconds between an answer 429 and the next request for bytes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub(files: dict[str, bytes], **options: Any) -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    with Hub(files, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self.form = urllib.parse.parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.server, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.seen.append(f"{self.command} {self.path}")
        if hub.gated and "Authorization" not in self.headers:
            self._send(401, b"gated", {"X-Error-Code": "GatedRepo"}, body)
        elif found := re.fullmatch(r"(?:/datasets/lab/pictures/resolve/\w+|/files)/(.+)", path):
            self._send(302, b"", {"Location": f"/cdn/{found[1]}", "X-Repo-Commit": COMMIT}, body)
        elif path.startswith("/cdn/"):
            self._file(hub.files.get(path.removeprefix("/cdn/")), body)
        elif path.startswith("/api/datasets/lab/pictures"):
            self._api(path.removeprefix("/api/datasets/lab/pictures").strip("/"), body)
        else:
            self._send(404, b"nothing here", {}, body)

    def _file(self, data: bytes | None, body: bool) -> None:
        hub = self.server
        if data is None:
            return self._send(404, b"nothing here", {}, body)
        if body and hub.refused_at:
            hub.waits.append(time.monotonic() - hub.refused_at)
            hub.refused_at = 0.0
        if body and hub.refusals > 0:
            hub.refusals -= 1
            hub.refused_at = time.monotonic()
            return self._send(429, b"slowly", {"Retry-After": hub.retry_after}, body)
        headers = {"Accept-Ranges": "bytes", "ETag": '"1"'}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            begin, end = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
            data = data[begin : end + 1]
        hub.served += len(data) if body else 0
        return self._send(206 if found else 200, data, headers, body)

    def _api(self, what: str, body: bool) -> None:
        entries = [
            {"type": "file", "oid": "1", "size": len(data), "path": path} for path, data in self.server.files.items()
        ]
        folders = {path.rpartition("/")[0] for path in self.server.files} - {""}
        entries += [{"type": "directory", "oid": "2", "size": 0, "path": path} for path in sorted(folders)]
        if what.startswith("tree/"):
            below = what.split("/", 2)[2] if what.count("/") > 1 else ""
            found: object = [entry for entry in entries if str(entry["path"]).rpartition("/")[0] == below]
        elif what.startswith("paths-info/"):
            found = [entry for entry in entries if entry["path"] in self.form.get("paths", [])]
        else:
            found = {"id": "lab/pictures", "sha": COMMIT, "private": False, "tags": [], "siblings": []}
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
