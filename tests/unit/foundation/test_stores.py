"""Stores: whole objects or none, exclusive creation, and a listing that is never old."""

import errno
import os
import threading
from pathlib import Path

import pytest

from trainer.foundation.stores import Store


@pytest.fixture(params=["local", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = {"local": str(tmp_path / "a"), "file": f"file://{tmp_path}/a", "memory": f"memory://{tmp_path}"}
    return Store(url[request.param])


def test_objects(store: Store) -> None:
    assert store.find() == {}
    assert store.find("x") == {}
    store.put("x/one", b"1")
    store.put("x/one", b"22")
    store.put("x/y/two", b"")
    store.put("xx/three", b"333")
    assert store.get("x/one") == b"22"
    assert store.find() == {"x/one": 2, "x/y/two": 0, "xx/three": 3}
    assert store.find("x") == {"x/one": 2, "x/y/two": 0}
    assert store.exists("x/one")
    store.delete(["x/one", "x/none"])
    assert not store.exists("x/one")
    with pytest.raises(FileNotFoundError):
        store.get("x/one")
    assert store.below("xx").get("three") == b"333"
    assert store.describe("xx/three") == f"{store.url}/xx/three"


def test_create_is_exclusive(store: Store) -> None:
    assert store.create("token", b"first")
    assert not store.create("token", b"second")
    assert store.get("token") == b"first"


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    store, wins, barrier = Store(tmp_path), [], threading.Barrier(16)

    def create(number: int) -> None:
        barrier.wait()
        if store.create("token", b"%d" % number):
            wins.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.get("token") == b"%d" % wins[0]


def test_failed_write_leaves_the_old_object_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put("a", b"old")

    def no_space(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.foundation.stores.os.write", no_space)
    with pytest.raises(OSError, match="No space"):
        store.put("a", b"new")
    monkeypatch.undo()
    assert store.find() == {"a": 3}
    assert store.get("a") == b"old"


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("trainer.foundation.stores.os.write", lambda descriptor, data: write(descriptor, data[:3]))
    store = Store(tmp_path)
    store.put("a", b"0123456789")
    monkeypatch.undo()
    assert store.get("a") == b"0123456789"


def test_precondition_failure_without_its_name_counts_as_existing(tmp_path: Path) -> None:
    """What s3fs raises for servers that answer 412 without saying which condition failed."""
    store = Store(f"memory://{tmp_path}")
    store.put("token", b"first")

    class Picky:
        def __getattr__(self, name: str) -> object:
            return getattr(store_fs, name)

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")

    store_fs = store._fs
    store._fs = Picky()
    assert not store.create("token", b"second")
    with pytest.raises(OSError, match="pre-conditions"):
        store.create("other", b"x")
