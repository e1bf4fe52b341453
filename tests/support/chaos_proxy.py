"""An HTTP proxy on a free loopback port that injects faults into the answers of the S3 server behind it."""

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.s3_server import S3Server

ERRORS = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Fault:
    """One kind of fault, for GET requests (`slow`: PUT requests) whose path contains `match`.

    kind: `status` (an answer with that HTTP status), `reset` (RST before the answer), `cut` (RST in the middle of the
    body), `short` (a well-formed answer with fewer bytes), `flip` (one byte wrong), `stall` (half the body, then
    nothing), `drip` (`rate` bytes a second), `slow` (the request's body is read at `rate` bytes a second).
    """

    kind: str
    count: int = -1
    """Answers that it strikes; -1 = all."""
    match: str = ".tar"
    status: int = 500
    rate: float = 1000.0
    probability: float = 1.0


class ChaosProxy:
    """`with ChaosProxy(port) as proxy:` listens on `proxy.port`; `proxy.faults` may be changed at any time."""

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.faults: list[Fault] = []
        self.struck: list[str] = []
        """The kinds of the faults that were injected, in order."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._released = threading.Event()
        proxy = self

        class Handler(_Handler):
            chaos = proxy

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """No more faults, and a fresh record."""
        with self._lock:
            self.faults, self.struck, self.requests = [], [], []

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if method == ("PUT" if fault.kind == "slow" else "GET") and fault.match in path and fault.count != 0:
                    if self._random.random() >= fault.probability:
                        continue
                    fault.count -= fault.count > 0
                    self.struck.append(fault.kind)
                    return fault
        return None

    def wait(self) -> None:
        """Hang until the proxy ends."""
        self._released.wait()


@contextlib.contextmanager
def s3_behind_proxy(folder: Path, seed: int = 0) -> Iterator[ChaosProxy]:
    """The way to a real S3 server (its data in `folder`); meanwhile this process's environment points at it."""
    with (
        pytest.MonkeyPatch.context() as patch,
        S3Server(folder) as server,
        ChaosProxy(server.ports[0], seed) as proxy,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


class _Handler(http.server.BaseHTTPRequestHandler):
    chaos: ChaosProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _forward(self, rate: float = 0.0) -> tuple[int, list[tuple[str, str]], bytes]:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        if rate:
            time.sleep(length / rate)
        upstream = http.client.HTTPConnection("127.0.0.1", self.chaos.target, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _send(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self) -> None:
        fault = self.chaos.fault_for(self.command, self.path)
        try:
            if fault is not None and fault.kind == "reset":
                return self._reset()
            if fault is not None and fault.kind == "status":
                code = ERRORS[fault.status]
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                self._send(fault.status, [("Content-Type", "application/xml")], len(body))
                self.wfile.write(body)
                return None
            status, headers, body = self._forward(fault.rate if fault is not None and fault.kind == "slow" else 0.0)
            length = len(body)
            if self.command == "HEAD":
                length = int(next((value for name, value in headers if name.lower() == "content-length"), "0"))
            if fault is not None and fault.kind == "short":
                body = body[: len(body) // 2]
                headers = [entry for entry in headers if entry[0].lower() != "content-range"]
                length = len(body)
            if fault is not None and fault.kind == "flip":
                changed = bytearray(body)
                changed[len(changed) // 2] ^= 0x55
                body = bytes(changed)
            self._send(status, headers, length)
            if fault is not None and fault.kind in ("cut", "stall"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault.kind == "stall":
                    self.chaos.wait()
                return self._reset()
            if fault is not None and fault.kind == "drip":
                for begin in range(0, len(body), max(1, int(fault.rate / 10))):
                    self.wfile.write(body[begin : begin + max(1, int(fault.rate / 10))])
                    self.wfile.flush()
                    time.sleep(0.1)
                return None
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer
