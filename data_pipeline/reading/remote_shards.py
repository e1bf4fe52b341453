"""Shards of a remote folder, fetched whole and ahead of need into the node's cache."""

import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import Manifest
from data_pipeline.reading.cache import Cache, NoRoom, Writer
from data_pipeline.storage.folder import Folder
from data_pipeline.storage.retrying import Counters, RetryingFileSystem, Stopped

_FETCHERS = 2  # shards at a time; each is fetched in several ranges at a time
_REFETCHES = 2


def default_cache_dir() -> Path:
    """The user's own folder on the node's disk for temporary files (TMPDIR)."""
    return Path(tempfile.gettempdir()) / f"menagerie-{os.getuid()}" / "shards"


class RemoteShards:
    """Reads samples from cached shards. `plan` says what is needed next, soonest first; `read` fetches what is not
    there.

    A shard stays mapped, and so cannot be evicted, while it is among the planned ones and after its first read.
    """

    def __init__(self, folder: Folder, manifest: Manifest, cache: Cache, counters: Counters) -> None:
        self._folder, self._shards, self._cache, self._counters = folder, manifest.shards, cache, counters
        self._section = manifest.section
        self._remote = RetryingFileSystem(folder.fs, folder.limits, counters)
        self._lock = threading.Condition()
        self._mapped: dict[int, memoryview] = {}
        self._demanded: dict[int, Future[memoryview]] = {}
        self._started: set[int] = set()
        """The shards that a thread is at work on, demanded or ahead of need."""
        self._ahead: list[int] = []
        self._planned: dict[int, int] = {}
        self._refetches: dict[int, int] = {}
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{k}", daemon=True) for k in range(_FETCHERS)]
        for thread in self._threads:
            thread.start()

    def name(self, shard: int) -> str:
        return f"{self._folder}/{self._shards[shard].name}"

    def plan(self, soon: Iterable[int], ahead: Sequence[int]) -> None:
        """`soon`: shards that batches under way may read. `ahead`: those to come, soonest first, within the cache's
        bounds."""
        with self._lock:
            self._planned = {shard: place for place, shard in enumerate(dict.fromkeys([*soon, *ahead]))}
            self._ahead = [shard for shard in self._planned if shard not in self._mapped]
            for shard in [shard for shard in self._mapped if shard not in self._planned]:
                del self._mapped[shard]
            self._lock.notify_all()

    def read(self, shard: int, offset: int, size: int) -> memoryview:
        """Bytes [offset, offset + size) of a shard, which is fetched first if it has to be. Raises DataError."""
        view = self._mapped.get(shard)
        if view is None:
            view = self._demand(shard)
        return view[offset : offset + size]

    def _demand(self, shard: int) -> memoryview:
        with self._lock:
            if self._closed:
                raise self._is_closed()
            if (view := self._mapped.get(shard)) is not None:
                return view
            if (future := self._demanded.get(shard)) is None:
                future = self._demanded[shard] = Future()
                self._lock.notify_all()
        return future.result()

    def spoiled(self, shard: int) -> bool:
        """A sample's CRC is wrong: forget and remove the cached shard; whether it is worth reading again."""
        with self._lock:
            self._refetches[shard] = self._refetches.get(shard, 0) + 1
            if self._refetches[shard] > _REFETCHES:
                return False
            self._mapped.pop(shard, None)
        self._cache.discard(self._shards[shard].sha256)
        return True

    def _next(self) -> tuple[int, Future[memoryview] | None] | None:
        """What a fetching thread does next: a shard somebody waits for, else the soonest planned one; None at the
        end."""
        with self._lock:
            while not self._closed:
                for shard, future in self._demanded.items():
                    if shard not in self._started:
                        self._started.add(shard)
                        return shard, future
                if self._ahead:
                    shard = self._ahead.pop(0)
                    if shard in self._started:
                        continue
                    self._started.add(shard)
                    return shard, None
                self._lock.wait()
            return None

    def _work(self) -> None:
        while (task := self._next()) is not None:
            shard, future = task
            try:
                view = self._obtain(shard, ahead=future is None)
            except BaseException as error:
                failure = self._is_closed() if isinstance(error, Stopped) else error
                self._end(shard, failure=None if future is None and isinstance(error, NoRoom) else failure)
            else:
                self._end(shard, view)
                del view  # a shard fetched ahead is not in use yet

    def _end(self, shard: int, view: memoryview | None = None, failure: BaseException | None = None) -> None:
        """Pass on what became of a shard to whoever waits for it. With neither result nor failure it is tried again,
        with more right to room. A failure ahead of need is dropped: whoever needs the shard then tries again, and
        hears of it."""
        with self._lock:
            self._started.discard(shard)
            if view is None and failure is None:
                self._lock.notify_all()
                return
            future = self._demanded.pop(shard, None)
            if future is not None and view is not None and not self._closed:
                self._mapped[shard] = view
        if future is not None and view is not None:
            future.set_result(view)
        elif future is not None:
            future.set_exception(failure)

    def _obtain(self, shard: int, ahead: bool) -> memoryview:
        info = self._shards[shard]
        what, path = self.name(shard), self._folder.path(info.name)

        def fetch(write: Writer) -> None:
            self._remote.download(what, path, info.bytes, write)

        with self._lock:
            keep = [self._shards[k].sha256 for k in self._planned]
        return self._cache.obtain(
            info.sha256,
            info.bytes,
            what,
            fetch,
            deadline=self._folder.limits.deadline,
            keep=keep,
            release=None if ahead else self._release,
        )

    def _release(self) -> bool:
        """Let go of the mapped shard that is needed last; a thread that reads in it keeps it until it has read."""
        with self._lock:
            if not self._mapped:
                return False
            del self._mapped[max(self._mapped, key=lambda shard: self._planned.get(shard, len(self._planned)))]
            return True

    def _is_closed(self) -> DataError:
        return DataError(f"{self._section}: the stream is closed")

    def close(self) -> None:
        """Stop fetching and let go of the shards."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            waiting = list(self._demanded.values())
            self._demanded.clear()
        for future in waiting:
            future.set_exception(self._is_closed())
        self._remote.stop.set()
        for thread in self._threads:
            thread.join(timeout=5)
        self._mapped.clear()
