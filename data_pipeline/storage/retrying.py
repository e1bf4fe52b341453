"""Bytes from a file system that can stall, cut, drip or refuse: every call has a time limit, every object a deadline.

s3fs alone can wait for ever on a stalled connection (its retries multiply botocore's), so its own retries are
switched off and the limits are kept here: exponential backoff with jitter, a range that was cut is asked for again
from its last good byte, and the object's deadline ends everything with one sentence.
"""

import asyncio
import concurrent.futures
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from data_pipeline.errors import DataError

T = TypeVar("T")

log = logging.getLogger("menagerie.data")  # its warnings are in the run's log

PIECE = 8 << 20
_SMALLEST_PIECE = 256 << 10
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
    """Seconds for one object, all retries together."""
    request: float = 60.0
    """Seconds for one request of at most `PIECE` bytes."""
    setting: str = ""
    """The setting that the deadline comes from, for errors; empty: it is fixed."""


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


class Stopped(Exception):
    """The stream was closed while a fetch was under way."""


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an exception of s3fs or of fsspec's http file system."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status if isinstance(status, int) else None
        if isinstance(status := getattr(error, "status", None), int):
            return status
        error = error.__cause__
    return None


def _permanent(error: Exception) -> str | None:
    """What to do about an error that trying again cannot mend; None for one that it may."""
    status = _status(error)
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or status == 404:
        return "there is no such object (404); check the path, and that the upload was complete"
    if isinstance(error, PermissionError) or status in (401, 403):
        return (
            f"access was refused ({status or 403}: {redact(str(error))}); check the credentials and the bucket's policy"
        )
    if type(error).__name__ in _WRONG_SETUP:
        return f"{redact(str(error))}; check the credentials' environment variables and configuration files"
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return f"the store refuses the request ({status}: {redact(str(error))}); check the address and its settings"
    return None


def open_filesystem(url: str, limits: Limits) -> tuple[Any, str]:
    """The fsspec file system of a URL, without retries of its own, and the path in it. Raises DataError."""
    protocol = url.split("://", 1)[0]
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        once = {
            "retries": {"max_attempts": 1},
            "connect_timeout": min(10.0, limits.request),
            "read_timeout": limits.request,
        }
        options = {"config_kwargs": {**configured, **once}, "use_listings_cache": False}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise DataError(f"{redact(url)}: cannot be opened ({redact(str(error))}); check the URL's scheme") from None
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

    def retrying(self, what: str, action: Callable[[float], T], end: float | None = None) -> T:
        """`action(timeout)` until it succeeds, `end` (time.monotonic) comes, or trying again is useless. Raises
        DataError."""
        deadline = self.limits.deadline
        end = time.monotonic() + deadline if end is None else end
        tries = 0
        while True:
            try:
                return action(max(0.1, min(self.limits.request, end - time.monotonic())))
            except (DataError, Stopped):
                raise
            except Exception as error:
                if cure := _permanent(error):
                    raise DataError(f"{what}: {cure}") from None
                tries += 1
                self.counters.add("retries")
                pause = min(_FIRST_PAUSE * 2**tries, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                reason = redact(str(error)) or type(error).__name__
                if time.monotonic() + pause >= end:
                    more = f", or raise {self.limits.setting}" if self.limits.setting else ", and run again"
                    raise DataError(
                        f"{what}: gave up {deadline:g} s after the first try ({tries} failures, the last: {reason}); "
                        f"check the network and the store{more}"
                    ) from None
                log.warning("%s: %s; trying again in %.1f s", what, reason, pause)
                if self.stop.wait(pause):
                    raise Stopped from None

    def call(self, what: str, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the file system, with retries. Raises DataError."""
        return self.retrying(what, lambda timeout: self._once(method, arguments, options, timeout))

    def size(self, what: str, path: str, end: float | None = None) -> int | None:
        """The object's size; None where the file system cannot tell."""
        size = self.retrying(what, lambda timeout: self._once("info", (path,), {}, timeout), end).get("size")
        return None if size is None else int(size)

    def read_range(self, what: str, path: str, begin: int, size: int) -> bytes:
        """Bytes [begin, begin + size) of an object; fewer only at its end. Raises DataError."""
        return bytes(self.call(what, "cat_file", path, start=begin, end=begin + size)) if size else b""

    def download(self, what: str, path: str, size: int, write: Callable[[bytes, int], object]) -> None:
        """Fetch an object of `size` bytes in ranges, several at a time; `write(data, offset)` stores them. Raises
        DataError."""
        end = time.monotonic() + self.limits.deadline
        found = self.size(what, path, end)
        if found is not None and found != size:
            raise DataError(
                f"{what}: has {found} bytes, the manifest says {size}; the shard was replaced or cut, "
                "bring the shard of this manifest back, or start a new run with the new manifest"
            )
        lock = threading.Lock()
        state = {"next": 0, "done": 0}
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while not failures:
                    with lock:
                        begin, state["next"] = state["next"], min(size, state["next"] + PIECE)
                    if begin >= size:
                        return
                    for length in self._piece(what, path, begin, min(PIECE, size - begin), write, end, state):
                        with lock:
                            state["done"] += length
            except BaseException as error:
                failures.append(error)

        with ThreadPoolExecutor(min(_STREAMS, -(-size // PIECE)) or 1, thread_name_prefix="range") as pool:
            for _ in range(min(_STREAMS, -(-size // PIECE))):
                pool.submit(work)
        if failures:
            raise failures[0]

    def _piece(
        self,
        what: str,
        path: str,
        begin: int,
        size: int,
        write: Callable[[bytes, int], object],
        end: float,
        state: dict[str, int],
    ) -> Any:
        """Fetch one range from its last good byte on, in smaller parts after a failure; yields the bytes of each
        part."""
        position, part = begin, size
        while position < begin + size:
            wanted = min(part, begin + size - position)

            def once(timeout: float, position: int = position) -> bytes:
                nonlocal part, wanted
                try:
                    data = bytes(
                        self._once("cat_file", (path,), {"start": position, "end": position + wanted}, timeout)
                    )
                    if not 0 < len(data) <= wanted:
                        raise OSError(f"{len(data)} bytes came for a range of {wanted}")
                    return data
                except Stopped:
                    raise
                except Exception:
                    part = wanted = max(min(_SMALLEST_PIECE, wanted), wanted // 2)
                    raise

            try:
                data = self.retrying(what, once, end)
            except DataError as error:
                if "gave up" in str(error):
                    raise DataError(f"{error} ({state['done']} of the object's bytes had come)") from None
                raise
            write(data, position)
            self.counters.add("fetched_bytes", len(data))
            position += len(data)
            yield len(data)
