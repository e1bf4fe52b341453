"""The lease: each start fences off the ones before it, and starts that come to nothing are counted."""

import threading
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.commits import CheckpointConfig, CheckpointStore
from trainer.checkpoint.lease import FOLDER, LeaseLost, RestartLoop, acquire
from trainer.foundation.stores import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_the_newest_start_is_the_writer(store: Store) -> None:
    first = acquire(store, [])
    first.check()
    second = acquire(store, [])
    second.check()
    assert second.token == first.token + 1
    with pytest.raises(
        LeaseLost, match=r"writer 2 \(process \d+ on .*\) has taken over this run; this process \(writer 1\)"
    ):
        first.check()


def test_tokens_rise_above_those_of_committed_checkpoints(store: Store) -> None:
    assert acquire(store, [7]).token == 8  # also where somebody deleted the writers' folder


def test_racing_starts_get_different_tokens_and_one_holds_the_lease(store: Store) -> None:
    barrier = threading.Barrier(8)
    leases = []

    def start() -> None:
        barrier.wait()
        leases.append(acquire(store, []))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({lease.token for lease in leases}) == 8

    def holds(lease: object) -> bool:
        try:
            lease.check()  # type: ignore[attr-defined]
        except LeaseLost:
            return False
        return True

    assert sum(map(holds, leases)) == 1


def test_a_start_that_slept_cannot_take_a_forgotten_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token 1 was deleted as history; a process whose listing is from before must not end up with it."""
    acquire(store, [41])
    listing = store.find
    stale: list[dict[str, int]] = [{}]
    monkeypatch.setattr(store, "find", lambda folder="": stale.pop() if stale else listing(folder))
    lease = acquire(store, [])
    assert lease.token == 43


def test_fenced_writer_cannot_commit(tmp_path: Path) -> None:
    old, new = CheckpointStore(str(tmp_path)), CheckpointStore(str(tmp_path))
    old.acquire()
    old.save(10, {"a": torch.ones(1)})
    new.acquire()
    with pytest.raises(LeaseLost):
        old.save(20, {"a": torch.ones(2)})
    assert not list((tmp_path / "checkpoints").glob("iteration-00000020-*"))
    new.save(15, {"a": torch.ones(3)})
    # The last moment: the old writer had checked its lease before the new one took it.
    monkey = CheckpointStore(str(tmp_path))
    monkey.lease = old.lease
    monkey.lease.check = lambda: None  # type: ignore[union-attr,method-assign]
    monkey.save(90, {"a": torch.ones(4)})
    newest = new.newest()
    assert newest is not None
    assert (newest.iteration, newest.writer) == (15, 2)


def test_restarts_without_progress_end(tmp_path: Path) -> None:
    def start() -> CheckpointStore:
        store = CheckpointStore(str(tmp_path), CheckpointConfig(restart_limit=3))
        store.acquire()
        return store

    for _ in range(3):
        start()
    with pytest.raises(RestartLoop, match=r"the last 3 starts .* ended without a new checkpoint") as refusal:
        start()
    assert refusal.value.exit_status == 3
    assert "raise checkpoint.restart_limit" in str(refusal.value)
    CheckpointStore(str(tmp_path), CheckpointConfig(restart_limit=0)).acquire()
    for path in (tmp_path / "checkpoints" / FOLDER).iterdir():
        path.unlink()
    for _ in range(2):
        start()
    start().save(5, {"a": torch.ones(1)})
    for _ in range(3):
        store = start()
    with pytest.raises(RestartLoop):
        start()
    store.release("preempted", 5)  # a start that ended in good order breaks the row
    for _ in range(3):
        start()


def test_history_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.lease._KEPT", 5)
    for _ in range(12):
        lease = acquire(store, [])
        lease.release("complete", 1)
    assert lease.token == 12
    assert len(store.find(FOLDER)) == 10
