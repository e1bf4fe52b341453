"""Retries, time limits and errors on made-up file systems; the real S3 server is in tests/system/test_data_s3.py."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage import retrying as module
from data_pipeline.storage.retrying import Limits, RetryingFileSystem, redact

DATA = bytes(range(256)) * 40


class FakeFileSystem:
    """A synchronous file system with one object; `faults` are called before the reads, in turn."""

    async_impl = False

    def __init__(self, *faults: Callable[[], object]) -> None:
        self.faults = list(faults)
        self.ranges: list[tuple[int, int]] = []
        self.lock = threading.Lock()

    def info(self, path: str) -> dict[str, Any]:
        return {"size": len(DATA)}

    def cat_file(self, path: str, start: int = 0, end: int = len(DATA)) -> bytes:
        with self.lock:
            self.ranges.append((start, end))
            fault = self.faults.pop(0) if self.faults else None
        if fault is not None and (answer := fault()) is not None:
            assert isinstance(answer, bytes)
            return answer
        return DATA[start:end]


def failing(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIECE": 4096, "_SMALLEST_PIECE": 512, "_FIRST_PAUSE": 0.001, "_LONGEST_PAUSE": 0.01}.items():
        monkeypatch.setattr(module, name, value)


def download(fs: FakeFileSystem, **limits: float) -> bytes:
    received = bytearray(len(DATA))

    def write(data: bytes, offset: int) -> None:
        received[offset : offset + len(data)] = data

    RetryingFileSystem(fs, Limits(**{"deadline": 5.0, "request": 1.0, **limits})).download(
        "x/shard", "shard", len(DATA), write
    )
    return bytes(received)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [failing(OSError("reset"))] * 5,
        [failing(ConnectionResetError())] * 2 + [lambda: b""],
        [lambda: DATA],  # a server that does not know ranges answers with everything
        [lambda: time.sleep(0.4)],
    ],
    ids=["quiet", "errors", "empty", "too much", "slow"],
)
def test_whole_after_faults(faults: list[Callable[[], object]]) -> None:
    assert download(FakeFileSystem(*faults), request=0.2) == DATA


def test_a_short_answer_is_gone_on_from() -> None:
    fs = FakeFileSystem(lambda: DATA[:100])
    assert download(fs) == DATA
    assert (100, 4096) in fs.ranges


def test_ranges_shrink_after_a_failure() -> None:
    """A connection that never lives for a whole piece still makes headway."""

    class Weak(FakeFileSystem):
        def cat_file(self, path: str, start: int = 0, end: int = len(DATA)) -> bytes:
            if end - start > 600:
                raise ConnectionResetError
            return super().cat_file(path, start, end)

    fs = Weak()
    assert download(fs) == DATA
    assert max(end - begin for begin, end in fs.ranges) <= 600


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("x"), "x/shard: there is no such object"),
        (PermissionError("Forbidden"), "x/shard: access was refused .*check the credentials"),
    ],
)
def test_permanent_errors_are_not_retried(error: Exception, message: str) -> None:
    fs = FakeFileSystem(*[failing(error)] * 100)
    with pytest.raises(DataError, match=message):
        download(fs)
    assert len(fs.ranges) <= module._STREAMS


@pytest.mark.parametrize("fault", [failing(OSError("down")), lambda: time.sleep(0.5)], ids=["error", "stall"])
def test_the_deadline_holds(fault: Callable[[], object]) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=r"x/shard: gave up 0\.6 s after the first try .* bytes had come"):
        download(FakeFileSystem(*[fault] * 1000), deadline=0.6, request=0.1)
    assert time.monotonic() - began < 10


def test_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"x: has 10240 bytes, the manifest says 99; the shard was replaced or cut"):
        RetryingFileSystem(FakeFileSystem(), Limits()).download("x", "shard", 99, lambda data, offset: None)


def test_stop_ends_a_waiting_call() -> None:
    remote = RetryingFileSystem(FakeFileSystem(lambda: time.sleep(30)), Limits(deadline=30, request=30))
    threading.Timer(0.1, remote.stop.set).start()
    began = time.monotonic()
    with pytest.raises(module.Stopped):
        remote.call("x", "cat_file", "shard")
    assert time.monotonic() - began < 10


def test_secrets_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    assert redact("AKIA and hush at s3://me:pw@bucket/x?sig=1") == "*** and *** at s3://bucket/x"
