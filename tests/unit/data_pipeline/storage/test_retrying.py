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


class SlowLine(FakeFileSystem):
    """Bytes come and go at `rate` a second; a call that is given up brings nothing."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.stored = b""

    def cat_file(self, path: str, start: int = 0, end: int = len(DATA)) -> bytes:
        data = super().cat_file(path, start, end)
        time.sleep(len(data) / self.rate)
        return data

    def pipe_file(self, path: str, data: bytes) -> None:
        time.sleep(len(data) / self.rate)
        self.stored = data


def test_a_slow_line_is_no_fault_while_bytes_come() -> None:
    """A piece of 4096 bytes would need 1.4 s and a request has 0.2 s; the whole needs longer than the deadline."""
    fs = SlowLine(rate=3000)
    began = time.monotonic()
    limits = Limits(deadline=0.9, request=0.2)
    received = bytearray(len(DATA))

    def write(data: bytes, offset: int) -> None:
        received[offset : offset + len(data)] = data

    RetryingFileSystem(fs, limits).download("x", "shard", len(DATA), write)
    assert bytes(received) == DATA
    assert time.monotonic() - began > limits.deadline


def test_an_upload_has_time_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOWEST", 4000)
    fs = SlowLine(rate=8000)
    remote = RetryingFileSystem(fs, Limits(deadline=0.3, request=0.1))
    remote.send("x", len(DATA), "pipe_file", "x", DATA)  # 1.3 s
    assert fs.stored == DATA
    fs.rate = 100.0
    began = time.monotonic()
    with pytest.raises(DataError, match=r"^x: gave up 0\.55 s after the first try .* and run again$"):
        remote.send("x", 1000, "pipe_file", "x", DATA[:1000])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_whole_object_is_read_in_parts(size: int | None) -> None:
    fs = FakeFileSystem(failing(OSError("reset")))
    assert RetryingFileSystem(fs, Limits()).read("x", "x", size) == DATA
    assert max(end - begin for begin, end in fs.ranges) <= 4096


class WithoutRanges(FakeFileSystem):
    """A server that answers every request with everything."""

    def cat_file(self, path: str, start: int = 0, end: int = len(DATA)) -> bytes:
        super().cat_file(path, start, end)
        return DATA


def test_a_server_without_ranges_is_not_accused() -> None:
    fs = WithoutRanges()
    assert download(fs) == DATA
    remote = RetryingFileSystem(fs, Limits())
    assert remote.read_range("x", "x", 700, 40) == DATA[700:740]
    assert "retries" not in remote.counters.values()


class Refused(Exception):
    """As fsspec's http file system raises it."""

    def __init__(self, status: int) -> None:
        super().__init__("refused")
        self.status = status


@pytest.mark.parametrize(("status", "tries"), [(400, 1), (410, 1), (501, 1), (408, 3), (429, 3), (500, 3), (503, 3)])
def test_only_statuses_that_may_pass_are_tried_again(status: int, tries: int) -> None:
    fs = FakeFileSystem(*[failing(Refused(status))] * 2)
    remote = RetryingFileSystem(fs, Limits())
    if tries == 1:
        with pytest.raises(DataError, match=rf"^x: the store refuses the request \({status}"):
            remote.call("x", "cat_file", "x")
    else:
        assert remote.call("x", "cat_file", "x") == DATA
    assert len(fs.ranges) == tries


def test_the_cure_names_the_setting_that_there_is() -> None:
    limits = {"deadline": 0.1, "request": 0.05}
    for setting, cure in (("data.fetch_deadline", "or raise data.fetch_deadline"), ("", "and run again")):
        fs = FakeFileSystem(*[failing(OSError("down"))] * 1000)
        with pytest.raises(DataError, match=f"{cure}$"):
            RetryingFileSystem(fs, Limits(**limits, setting=setting)).call("x", "cat_file", "x")


def test_a_missing_bucket_is_called_that() -> None:
    fs = FakeFileSystem(failing(FileNotFoundError("The specified bucket does not exist")))
    with pytest.raises(DataError, match=r"^s3://b/x: there is no such bucket \(404\); check the bucket's name"):
        RetryingFileSystem(fs, Limits()).call("s3://b/x", "cat_file", "x")
