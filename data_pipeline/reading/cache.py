"""A bounded cache of verified shards on the node's disk, shared by all its processes; nothing in it is trusted after
a crash.

A folder of files named after the shards' sha256:

- `SHA.tar` is there only whole: fetched under another name, checked by size and sha256, then renamed.
- `SHA.ok` says for which file (inode, time) and which boot of the machine that check was made; without it the file is
checked again before use. Its time is the shard's last use.
- `SHA.lock` is locked by the one process that fetches or checks the shard; the others wait for it and find the file.
- `space.lock` is locked while room is made. A shard in use is locked (shared) by its readers, so only unused ones are
evicted.

All locks are the kernel's (`flock`): they end with the process that held them, however it ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_pipeline.errors import DataError
from data_pipeline.storage.retrying import Counters

log = logging.getLogger("menagerie.data")

Writer = Callable[[bytes, int], object]
_BLOCK = 1 << 20
_WRONG_BODIES = 3
_DISK_MARGIN = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_PAUSE = 0.05
_LOCK_MARGIN = 10.0  # seconds that the process which fetches may need beyond its deadline


class NoRoom(DataError):
    """All shards of the cache are in use."""


@dataclass(frozen=True)
class _Room:
    """How room may be made: see `Cache.obtain`."""

    rank: dict[str, int]
    release: Callable[[], bool] | None
    end: float


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _identity(fd: int) -> str:
    found = os.fstat(fd)
    return f"{_boot()} {found.st_ino} {found.st_mtime_ns} {found.st_size}"


def _sha256(fd: int) -> str:
    digest, position = hashlib.sha256(), 0
    while block := os.pread(fd, _BLOCK, position):
        digest.update(block)
        position += len(block)
    return digest.hexdigest()


class Cache:
    """`limit`: bytes that all shards in the folder may take together; `section`: of the settings, for errors."""

    def __init__(self, folder: Path, limit: int, counters: Counters, section: str = "data") -> None:
        self.folder, self.limit, self.counters, self.section = folder, limit, counters, section
        self._make_folder()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = self.folder.stat().st_uid
        except OSError as error:
            raise DataError(
                f"{self.section}.cache_dir: {self.folder} cannot be made ({error.strerror}); choose another"
            ) from None
        if owner not in (os.getuid(), 0):
            raise DataError(f"{self.section}.cache_dir: {self.folder} belongs to another user; choose another")

    def _path(self, sha256: str, kind: str) -> Path:
        return self.folder / f"{sha256}.{kind}"

    def open(self, sha256: str, size: int) -> memoryview | None:
        """The verified shard, mapped and marked as in use for as long as the view lives; None where it is not there."""
        try:
            fd = os.open(self._path(sha256, "tar"), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)  # the mapping keeps the open file, and with it the lock
            found = os.fstat(fd)
            marker = self._path(sha256, "ok")
            try:
                trusted = marker.read_text() == _identity(fd)
                os.utime(marker)
            except OSError:
                trusted = False
            if not trusted or found.st_nlink == 0 or found.st_size != size:
                return None
            return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)

    def obtain(
        self,
        sha256: str,
        size: int,
        what: str,
        fetch: Callable[[Writer], object],
        *,
        deadline: float,
        keep: Sequence[str] = (),
        release: Callable[[], bool] | None = None,
    ) -> memoryview:
        """The verified shard, fetched by one process of the node if it is not there; `fetch` writes its bytes.

        `keep`: shards that will be needed, the soonest first. `release` lets go of a mapped one (False: there is none
        left), which is asked when all are in use; without it (a fetch ahead of need) the kept ones are not evicted,
        and nothing waits for room. Raises DataError.
        """
        end = time.monotonic() + deadline
        room = _Room({key: place for place, key in enumerate(keep)}, release, end)
        for _ in range(20):  # each round begins anew because somebody took the file or the folder away
            if (view := self.open(sha256, size)) is not None:
                return view
            self._make_folder()
            try:
                with self._fetching(sha256, deadline):
                    if (view := self.open(sha256, size)) is None and not self._check(sha256, size, what, room):
                        self._fetch(sha256, size, what, fetch, room)
            except Timeout:
                raise DataError(
                    f"{what}: another process of this node has been fetching it for {deadline:g} s without "
                    "success; see its log"
                ) from None
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._unusable(error) from None
            if view is not None:
                return view
        raise DataError(f"{self.section}.cache_dir: {self.folder} is emptied by somebody all the time; choose another")

    @contextlib.contextmanager
    def _fetching(self, sha256: str, deadline: float) -> Iterator[None]:
        """Hold the shard's lock; wait for the process that has it as long as bytes come to it. Raises Timeout."""
        lock = FileLock(self._path(sha256, "lock"), timeout=deadline + _LOCK_MARGIN)
        while True:
            try:
                lock.acquire()
                break
            except Timeout:
                parts = [found for path, found in self._files() if path.suffix == ".part" and sha256 in path.name]
                if time.time() - max((found.st_mtime for found in parts), default=0.0) > deadline:
                    raise
        try:
            yield
        finally:
            lock.release()

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.section}.cache_dir: {self.folder} cannot be written ({error.strerror}); mend it or choose another"
        )

    def _mark(self, sha256: str, fd: int, what: str, room: _Room) -> None:
        """Write down that the file was verified; `fd` is locked, so that making room for that does not take it."""
        while True:
            try:
                self._path(sha256, "ok").write_text(_identity(fd))
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._make_room(room, what, os.fstat(fd).st_blksize)

    def _check(self, sha256: str, size: int, what: str, room: _Room) -> bool:
        """Verify a file that an earlier boot or a crashed process left; remove it if it is not right. Under the
        shard's lock."""
        path = self._path(sha256, "tar")
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_size == size and _sha256(fd) == sha256:
                self._mark(sha256, fd, what, room)
                self.counters.add("cache_rechecked")
                return True
        finally:
            os.close(fd)
        log.warning("%s: is damaged; it is removed and fetched again", path)
        self.counters.add("cache_damaged")
        path.unlink(missing_ok=True)
        return False

    def discard(self, sha256: str) -> None:
        """Remove a shard that was found wrong while it was read."""
        self.counters.add("cache_damaged")
        for kind in ("ok", "tar"):
            self._path(sha256, kind).unlink(missing_ok=True)

    def _fetch(self, sha256: str, size: int, what: str, fetch: Callable[[Writer], object], room: _Room) -> None:
        part = self.folder / f"{sha256}.{secrets.token_hex(4)}.part"
        for attempt in range(_WRONG_BODIES):
            fd = self._reserve(part, size, what, room)
            try:
                self._receive(fd, fetch, what, room)
                found = _sha256(fd)
                if found == sha256 and os.fstat(fd).st_size == size:
                    os.utime(part)
                    part.replace(self._path(sha256, "tar"))
                    self._mark(sha256, fd, what, room)
                    self.counters.add("fetched_shards")
                    return
            finally:
                part.unlink(missing_ok=True)
                os.close(fd)
            self.counters.add("wrong_bodies")
            log.warning(
                "%s: %d bytes came with the wrong sha256 (try %d of %d)", what, size, attempt + 1, _WRONG_BODIES
            )
        raise DataError(
            f"{what}: {size} bytes came as expected, but {_WRONG_BODIES} times with a sha256 that is not the "
            "manifest's; the shard "
            "was replaced or damaged, run `python -m data_pipeline.manifest verify` and bring the right shard back"
        )

    def _receive(self, fd: int, fetch: Callable[[Writer], object], what: str, room: _Room) -> None:
        def write(data: bytes, offset: int) -> None:
            view = memoryview(data)
            while view:
                try:
                    written = os.pwrite(fd, view, offset)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise self._unusable(error) from None
                    self._make_room(room, what, len(view))
                    continue
                view, offset = view[written:], offset + written

        fetch(write)

    def _full(self, what: str, size: int) -> NoRoom:
        free = shutil.disk_usage(self.folder).free
        return NoRoom(
            f"{self.section}.cache_dir: no room in {self.folder} for {what} ({size} bytes more; {free} bytes are free on "
            "the disk, "
            f"{self.section}.cache_bytes is {self.limit}), and all shards in it are in use; give it more room, "
            f"or set a smaller {self.section}.shuffle_window"
        )

    @contextlib.contextmanager
    def _space_lock(self) -> Iterator[None]:
        with FileLock(self.folder / "space.lock", timeout=60):
            yield

    def _reserve(self, part: Path, size: int, what: str, room: _Room) -> int:
        """Make room, and make the file that holds the room; it stays locked while its process lives."""
        while True:
            with self._space_lock():
                taken = sum(found.st_size for _, found in self._files())
                free = shutil.disk_usage(self.folder).free
                if taken + size <= self.limit and free >= size + _DISK_MARGIN:
                    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                    fcntl.flock(fd, fcntl.LOCK_SH)
                    os.ftruncate(fd, size)
                    return fd
            self._make_room(room, what, size)

    def _make_room(self, room: _Room, what: str, size: int) -> None:
        """Evict a shard, or wait for one to fall out of use. Raises DataError where there is none."""
        with self._space_lock():
            if self._evict_one(room.rank, evict_kept=room.release is not None):
                return
        if room.release is None or time.monotonic() > room.end:
            raise self._full(what, size)
        if not room.release():
            time.sleep(_ROOM_PAUSE)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        files = []
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part"):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    if stat.S_ISREG(found.st_mode):
                        files.append((path, found))
        return files

    def _evict_one(self, rank: dict[str, int], evict_kept: bool) -> bool:
        """Remove one file that nobody uses: parts of killed processes, then the longest unused, then the last
        needed."""

        def order(entry: tuple[Path, os.stat_result]) -> tuple[int, float]:
            path, found = entry
            if path.suffix == ".part":
                return 0, 0.0
            if (position := rank.get(path.stem)) is not None:
                return 2, -position
            with contextlib.suppress(OSError):
                return 1, path.with_suffix(".ok").stat().st_mtime
            return 1, found.st_mtime

        for path, _ in sorted(self._files(), key=order):
            if path.stem in rank and not evict_kept:
                continue
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                path.with_suffix(".ok").unlink(missing_ok=True)
                self.counters.add("evictions")
                return True
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
        return False
