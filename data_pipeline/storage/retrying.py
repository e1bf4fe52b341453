"""Bytes from a file system that can stall, cut, drip or refuse: every call has a time limit, every object a deadline.

s3fs alone can wait for ever on a stalled connection (its retries multiply botocore's), so its own retries are
switched off and the limits are kept here: exponential backoff with jitter, a range that was cut is asked for again
from its last good byte, and the object's deadline ends everything with one sentence.

The limits know the size of what is moved. A download's deadline begins anew with every part that came, and after a
request that took too long the next ones are smaller. An upload is one request, so it has time for a slow line.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import fsspec

from data_pipeline.errors import DataError, FileError

T = TypeVar("T")

log = logging.getLogger("menagerie.data")  # its warnings are in the run's log

PIECE = 8 << 20
_SMALLEST_PIECE = 256 << 10
_SILENCE = 900.0  # seconds that a slow line may need for what the system's buffers hold of an upload
_SLOWEST = 16 << 10  # bytes per second: a slower upload counts as stalled
_STREAMS = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_SECRETS = (re.compile(r"(?<=://)[^/@\s]*@"), re.compile(r"\?[^\s\"']*"))
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_WRONG_SETUP = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ParamValidationError",
    "UnknownProtocol",
)


def redact(text: str) -> str:
    """The text without user names, passwords and query strings of any URL in it, and without AWS's secrets."""
    if "://" in text:
        for pattern in _SECRETS:
            text = pattern.sub("", text)
    for variable in _SECRET_VARIABLES:
        if secret := os.environ.get(variable):
            text = text.replace(secret, "***")
    return text


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to try."""

    deadline: float = 300.0
    """Seconds for one object, all retries together; while bytes come, seconds without a new one."""
    request: float = 60.0
    """Seconds for one request of at most `PIECE` bytes."""
    setting: str = ""
    """The setting that the deadline comes from, for errors; empty: it is fixed."""

    def to_send(self, size: int) -> "Limits":
        """The limits for sending `size` bytes in one request over a slow line."""
        seconds = size / _SLOWEST
        return replace(self, deadline=self.deadline + seconds, request=self.request + seconds)


class Counters:
    """Named sums that many threads add to."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1.0) -> None:
        with self._lock:
            self._sums[name] = self._sums.get(name, 0.0) + amount

    def values(self) -> dict[str, float]:
        with self._lock:
            return dict(self._sums)


class _Deadline:
    """When an object is given up. Threads may share it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.received = 0
        self.end = time.monotonic() + limits.deadline

    def came(self, count: int) -> None:
        """Bytes came, so the deadline begins anew. (An addition that a race loses only makes a message less exact.)"""
        self.received += count
        self.end = time.monotonic() + self.limits.deadline

    def timeout(self) -> float:
        """Seconds for the next request."""
        return max(0.1, min(self.limits.request, self.end - time.monotonic()))

    def passed(self) -> str:
        """For the error: how long was waited since what."""
        since = f"the last of {self.received} bytes" if self.received else "the first try"
        return f"gave up {self.limits.deadline:g} s after {since}"

    def cure(self) -> str:
        """For the error."""
        more = f", or raise {self.limits.setting}" if self.limits.setting else ", and run again"
        return f"check the network and the store{more}"


class Stopped(Exception):
    """The stream was closed while a fetch was under way."""


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an exception of s3fs, of fsspec's http file system, or of Hugging Face's."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status if isinstance(status, int) else None
        for status in (getattr(error, "status", None), getattr(response, "status_code", None)):
            if isinstance(status, int):
                return status
        error = error.__cause__
    return None


def _of_a_hub(error: BaseException | None) -> bool:
    """Whether Hugging Face's library is behind an exception."""
    while error is not None:
        if type(error).__module__.startswith("huggingface_hub"):
            return True
        error = error.__cause__
    return False


def retry_after(error: BaseException) -> float:
    """Seconds that a server asks to wait before the next try (RFC 9110, section 10.2.3); 0 where it does not."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    else:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
    said = headers.get("Retry-After") or headers.get("retry-after") or ""
    if said.isascii() and said.isdigit():
        return float(said)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return 0.0


def _permanent(error: Exception) -> str | None:
    """What to do about an error that trying again cannot mend; None for one that it may."""
    status = _status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        if _of_a_hub(error):
            return (
                f"access was refused ({status or 403}); check the name, accept the data set's terms on the hub, and set "
                "HF_TOKEN or run `hf auth login`"
            )
        return (
            f"access was refused ({status or 403}: {redact(str(error))}); check the credentials and the bucket's policy"
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or status == 404:
        if "bucket does not exist" in str(error):
            return "there is no such bucket (404); check the bucket's name"
        return "there is no such object (404); check the path, and that the upload was complete"
    if type(error).__name__ in _WRONG_SETUP:
        return f"{redact(str(error))}; check the credentials' environment variables and configuration files"
    if status is not None and (400 <= status < 500 or status in (501, 505)) and status not in (408, 425, 429):
        return f"the store refuses the request ({status}: {redact(str(error))}); check the address and its settings"
    return None


def open_filesystem(url: str, limits: Limits) -> tuple[Any, str]:
    """The fsspec file system of a URL, without its retries, and the path in it. Raises DataError."""
    protocol = url.split("://", 1)[0]
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        once = {
            "retries": {"max_attempts": 1},
            "connect_timeout": min(10.0, limits.request),
            "read_timeout": max(_SILENCE, limits.request),  # `_once` is stricter, and knows the size of what is sent
        }
        options = {"config_kwargs": {**configured, **once}, "use_listings_cache": False}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        cure = "install that package" if isinstance(error, ImportError) else "check the URL's scheme"
        raise DataError(f"{redact(url)}: cannot be opened ({redact(str(error))}); {cure}") from None
    if options:
        fs.retries = 1
    return fs, str(root).rstrip("/")


class RetryingFileSystem:
    """Calls of one fsspec file system, within the limits. Threads may share it."""

    def __init__(self, fs: Any, limits: Limits, counters: Counters | None = None) -> None:
        self.fs, self.limits = fs, limits
        self.counters = counters or Counters()
        self.stop = threading.Event()

    def _once(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any], timeout: float) -> Any:
        """One call of a method of the file system. Raises TimeoutError, Stopped, and what the method raises."""
        if self.fs.async_impl:
            call = getattr(self.fs, "_" + method)(*arguments, **options)
            future = asyncio.run_coroutine_threadsafe(call, self.fs.loop)
        else:
            future = concurrent.futures.Future()

            def work() -> None:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(getattr(self.fs, method)(*arguments, **options))
                except BaseException as error:
                    future.set_exception(error)

            threading.Thread(target=work, daemon=True, name="store").start()  # cannot be stopped, only left behind
        end = time.monotonic() + timeout
        try:
            while True:
                if self.stop.is_set():
                    raise Stopped
                done, _ = concurrent.futures.wait([future], timeout=min(0.2, max(0.0, end - time.monotonic())))
                if done:
                    return future.result()
                if time.monotonic() >= end:
                    raise TimeoutError(f"no answer within {timeout:.3g} s")
        finally:
            future.cancel()

    def retrying(self, what: str, action: Callable[[float], T], deadline: _Deadline | None = None) -> T:
        """`action(timeout)` until it succeeds, the deadline passes, or trying again is useless. Raises DataError."""
        deadline = deadline or _Deadline(self.limits)
        tries = 0
        while True:
            try:
                return action(deadline.timeout())
            except (DataError, Stopped):
                raise
            except Exception as error:
                if cure := _permanent(error):
                    raise FileError(f"{what}: {cure}", reason=cure.split(";")[0]) from None
                tries += 1
                self.counters.add("retries")
                pause = min(_FIRST_PAUSE * 2**tries, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                pause = max(pause, retry_after(error))
                reason = redact(str(error)) or type(error).__name__
                if time.monotonic() + pause >= deadline.end:
                    raise DataError(
                        f"{what}: {deadline.passed()} ({tries} failures, the last: {reason}); {deadline.cure()}"
                    ) from None
                log.warning("%s: %s; trying again in %.1f s", what, reason, pause)
                if self.stop.wait(pause):
                    raise Stopped from None

    def call(self, what: str, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the file system, with retries. Raises DataError."""
        return self.retrying(what, lambda timeout: self._once(method, arguments, options, timeout))

    def send(self, what: str, size: int, method: str, *arguments: Any) -> None:
        """A method of the file system that sends `size` bytes, with retries. Raises DataError."""
        deadline = _Deadline(self.limits.to_send(size))
        self.retrying(what, lambda timeout: self._once(method, arguments, {}, timeout), deadline)

    def size(self, what: str, path: str) -> int | None:
        """The object's size; None where the file system cannot tell. Raises DataError."""
        size = self.call(what, "info", path).get("size")
        return None if size is None else int(size)

    def read(self, what: str, path: str, size: int | None = None) -> bytes:
        """A whole object; where its size is given or can be asked for, in parts, so a slow line may take its time.
        Raises DataError."""
        size = self.size(what, path) if size is None else size
        if size is None or size <= PIECE:
            return bytes(self.call(what, "cat_file", path))
        data = bytearray(size)

        def write(part: bytes, offset: int) -> None:
            data[offset : offset + len(part)] = part

        self.download(what, path, size, write)
        return bytes(data)

    def read_range(self, what: str, path: str, begin: int, size: int) -> bytes:
        """Bytes [begin, begin + size) of an object; fewer only at its end. Raises DataError."""
        data = bytes(self.call(what, "cat_file", path, start=begin, end=begin + size)) if size else b""
        return data if len(data) <= size else data[begin : begin + size]  # a server without ranges sends everything

    def download(self, what: str, path: str, size: int, write: Callable[[bytes, int], object]) -> None:
        """Fetch an object of `size` bytes in ranges, several at a time; `write(data, offset)` stores them. Raises
        DataError."""
        found = self.size(what, path)
        if found is not None and found != size:
            raise DataError(
                f"{what}: has {found} bytes, the manifest says {size}; the shard was replaced or cut, "
                "bring the shard of this manifest back, or start a new run with the new manifest"
            )
        _Download(self, what, path, size, write).run()


class _Download:
    """One object on its way: threads fetch its pieces."""

    def __init__(
        self, remote: RetryingFileSystem, what: str, path: str, size: int, write: Callable[[bytes, int], object]
    ) -> None:
        self.remote, self.what, self.path, self.size, self.write = remote, what, path, size, write
        self.deadline = _Deadline(remote.limits)
        self._begins = iter(range(0, size, PIECE))
        self._part = PIECE
        self._failures: list[BaseException] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        """Fetch all of it. Raises DataError, and what `write` raises."""
        threads = min(_STREAMS, -(-self.size // PIECE))
        with ThreadPoolExecutor(threads or 1, thread_name_prefix="range") as pool:
            for _ in range(threads):
                pool.submit(self._work)
        if self._failures:
            raise self._failures[0]

    def _work(self) -> None:
        try:
            while not self._failures:
                with self._lock:
                    begin = next(self._begins, None)
                if begin is None:
                    return
                self._piece(begin, min(begin + PIECE, self.size))
        except BaseException as error:
            self._failures.append(error)

    def _piece(self, position: int, end: int) -> None:
        """Fetch the bytes [position, end), each part from the last good byte on."""
        while position < end and not self._failures:
            try:
                data = self.remote.retrying(self.what, partial(self._once, position, end), self.deadline)
            except FileError:
                raise
            except DataError as error:
                raise DataError(f"{error} ({self.deadline.received} of the object's bytes had come)") from None
            self.write(data, position)
            self.remote.counters.add("fetched_bytes", len(data))
            self.deadline.came(len(data))
            position += len(data)

    def _once(self, position: int, end: int, timeout: float) -> bytes:
        """Some of the bytes [position, end), at least one. What follows a failure is smaller, and after a quick
        success larger again."""
        wanted = min(self._part, end - position)
        began = time.monotonic()
        try:
            options = {"start": position, "end": position + wanted}
            data = bytes(self.remote._once("cat_file", (self.path,), options, timeout))
            if len(data) == self.size > wanted:  # from a server without ranges
                data = data[position : position + wanted]
            if not 0 < len(data) <= wanted:
                raise OSError(f"{len(data)} bytes came for a range of {wanted}")
        except Stopped:
            raise
        except Exception:
            self._part = max(min(_SMALLEST_PIECE, wanted), wanted // 4)
            raise
        if time.monotonic() - began < self.remote.limits.request / 8:
            self._part = min(PIECE, 2 * self._part)
        return data
