"""The node's cache: bounded, verified, never trusting, and clear when there is no room."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.reading import cache as module
from data_pipeline.reading.cache import Cache, NoRoom, Writer
from data_pipeline.storage.retrying import Counters

SIZE = 1000


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def key(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


class Shelf:
    """A cache for three shards, and a count of what was fetched."""

    def __init__(self, folder: Path, limit: int = 3 * SIZE) -> None:
        self.counters = Counters()
        self.cache = Cache(folder, limit, self.counters)
        self.fetched: list[int] = []

    def get(self, number: int, **options: object) -> memoryview:
        def fetch(write: Writer) -> None:
            self.fetched.append(number)
            write(content(number)[: SIZE // 2], 0)
            write(content(number)[SIZE // 2 :], SIZE // 2)

        options = {"deadline": 5.0, "release": lambda: False, **options}
        return self.cache.obtain(key(number), SIZE, f"shard {number}", fetch, **options)  # type: ignore[arg-type]

    def held(self) -> set[int]:
        return {number for number in range(10) if (self.cache.folder / f"{key(number)}.tar").exists()}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "cache")


def age(shelf: Shelf, number: int, seconds: int) -> None:
    """Say that a shard was last used so long ago."""
    os.utime(shelf.cache.folder / f"{key(number)}.ok", (seconds, seconds))


def test_fetched_once_and_the_longest_unused_is_evicted(shelf: Shelf) -> None:
    for number in (1, 2, 3, 1, 2, 3):
        assert bytes(shelf.get(number)) == content(number)
    assert shelf.fetched == [1, 2, 3]
    for number, seconds in ((1, 200), (2, 100), (3, 300)):
        age(shelf, number, seconds)
    shelf.get(4)
    assert shelf.held() == {1, 3, 4}
    assert sum(path.stat().st_size for path in shelf.cache.folder.glob("*.tar")) <= 3 * SIZE


def test_what_is_needed_soonest_stays_longest(shelf: Shelf) -> None:
    for number in (1, 2, 3):
        shelf.get(number)
    shelf.get(4, keep=[key(n) for n in (2, 4, 1, 3)])
    assert shelf.held() == {1, 2, 4}
    with pytest.raises(NoRoom):  # ahead of need (no release): nothing that is needed is evicted
        shelf.get(5, keep=[key(n) for n in (1, 2, 4)], release=None)
    assert shelf.held() == {1, 2, 4}


def test_a_shard_in_use_is_not_evicted(shelf: Shelf) -> None:
    views = [shelf.get(number) for number in (1, 2, 3)]
    with pytest.raises(NoRoom, match=r"data\.cache_dir: no room in .* all shards in it are in use"):
        shelf.get(4, deadline=0.2)
    released = []

    def release() -> bool:
        released.append(views.pop(1))
        released.clear()
        return True

    assert bytes(shelf.get(4, release=release)) == content(4)
    assert shelf.held() == {1, 3, 4}
    assert bytes(views[0]) == content(1)


def test_threads_fetch_a_shard_once(shelf: Shelf) -> None:
    """Each thread opens the lock's file anew, as another process would."""
    barrier = threading.Barrier(6)
    views: list[bytes] = []

    def work() -> None:
        barrier.wait()
        views.append(bytes(shelf.get(1)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shelf.fetched == [1]
    assert views == [content(1)] * 6


def test_a_full_disk_evicts_then_says_so(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in the middle of a shard: room is made where there is an unused shard, else one clear error."""
    shelf.get(1)
    write, full = os.pwrite, [True]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(module.os, "pwrite", pwrite)
    evict = Cache._evict_one

    def evicting(self: Cache, *arguments: object, **options: object) -> bool:
        done = evict(self, *arguments, **options)  # type: ignore[arg-type]
        full[0] = not done
        return done

    monkeypatch.setattr(Cache, "_evict_one", evicting)
    assert bytes(shelf.get(2)) == content(2)
    assert shelf.held() == {2}
    view, full[0] = shelf.get(2), True
    monkeypatch.setattr(Cache, "_evict_one", lambda *_, **__: False)
    with pytest.raises(NoRoom, match=r"data\.cache_dir: no room in .* bytes are free on the disk"):
        shelf.get(3, deadline=0.2)
    assert not list(shelf.cache.folder.glob("*.part"))
    assert bytes(view) == content(2)


def test_a_nearly_full_disk_is_noticed_before_the_write(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    free = module.shutil.disk_usage("/")._replace(free=SIZE)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free)
    with pytest.raises(NoRoom, match=rf"{SIZE} bytes are free"):
        shelf.get(1, deadline=0.2)
    assert shelf.fetched == []


def test_wrong_bytes_are_fetched_again_then_refused(shelf: Shelf) -> None:
    bodies = [b"x" * SIZE, content(1)]
    view = shelf.cache.obtain(key(1), SIZE, "shard 1", lambda write: write(bodies.pop(0), 0), deadline=5)
    assert bytes(view) == content(1)
    with pytest.raises(DataError, match=r"shard 2: 1000 bytes came as expected, but 3 times with a sha256 that is not"):
        shelf.cache.obtain(key(2), SIZE, "shard 2", lambda write: write(b"x" * SIZE, 0), deadline=5)
    assert shelf.held() == {1}


def test_a_failing_fetch_leaves_nothing(shelf: Shelf) -> None:
    def fetch(write: Writer) -> None:
        write(b"half", 0)
        raise DataError("the store is gone")

    with pytest.raises(DataError, match="the store is gone"):
        shelf.cache.obtain(key(1), SIZE, "shard 1", fetch, deadline=5)
    assert not [path for path in shelf.cache.folder.iterdir() if path.suffix in (".tar", ".part")]


def test_an_unverified_file_is_checked(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.get(1)
    monkeypatch.setattr(module, "_boot", lambda: "after a crash")
    shelf.get(1)
    assert (shelf.fetched, shelf.counters.values()["cache_rechecked"]) == ([1], 1)
    path = shelf.cache.folder / f"{key(1)}.tar"
    path.write_bytes(b"y" * SIZE)
    assert bytes(shelf.get(1)) == content(1)
    assert (shelf.fetched, shelf.counters.values()["cache_damaged"]) == ([1, 1], 1)


def test_parts_of_killed_processes_go_first(shelf: Shelf) -> None:
    for number in (1, 2):
        shelf.get(number)
    (shelf.cache.folder / f"{key(7)}.00000000.part").write_bytes(bytes(SIZE))
    shelf.get(3)
    assert shelf.held() == {1, 2, 3}
    assert not list(shelf.cache.folder.glob("*.part"))


def test_another_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
    monkeypatch.setattr(module.os, "getuid", lambda: 54321)
    if folder.stat().st_uid != 0:
        with pytest.raises(DataError, match=r"data\.cache_dir: .* belongs to another user"):
            Cache(folder, 1, Counters())


@pytest.mark.parametrize("moving", [True, False])
def test_a_slow_fetch_of_another_process_is_waited_for_while_bytes_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving: bool
) -> None:
    monkeypatch.setattr(module, "_LOCK_MARGIN", 0.1)
    data = b"slow but whole" * (100 if moving else 20)
    key = hashlib.sha256(data).hexdigest()
    started = threading.Event()

    def fetch(write: Writer) -> None:
        for offset in range(0, len(data), 100):
            write(data[offset : offset + 100], offset)
            started.set()
            time.sleep(0.1 if moving else 0.5)

    def slow() -> None:
        Cache(tmp_path, 10**6, Counters()).obtain(key, len(data), "other", fetch, deadline=60.0)

    thread = threading.Thread(target=slow)
    thread.start()
    started.wait()

    def wait() -> bytes:
        return bytes(Cache(tmp_path, 10**6, Counters()).obtain(key, len(data), "x", pytest.fail, deadline=0.2))

    if moving:
        assert wait() == data
    else:
        with pytest.raises(DataError, match=r"^x: another process of this node has been fetching it for 0\.2 s"):
            wait()
    thread.join()
