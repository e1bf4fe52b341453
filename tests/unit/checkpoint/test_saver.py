"""The asynchronous saver: what it takes from training, and what it does when the store does not do its part."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import saver as saver_module
from trainer.checkpoint.commits import CheckpointConfig, CheckpointStore
from trainer.checkpoint.format import Commit
from trainer.checkpoint.lease import LeaseLost
from trainer.checkpoint.saver import Saver, StoreOverdue
from trainer.foundation.errors import CheckpointError, NonFinite

LONG = 60.0  # nothing waits that long unless it is broken


class Gate:
    """Stands between the saver and its store: holds saves back, or makes them fail."""

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()
        self.failures: list[Exception] = []
        self._save = checkpoints.save
        checkpoints.save = self.save  # type: ignore[method-assign, assignment]

    def save(self, *arguments: Any) -> Commit:
        self.entered.set()
        assert self.open.wait(LONG)
        if self.failures:
            raise self.failures.pop(0)
        return self._save(*arguments)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Saver, Gate]]]:
    monkeypatch.setattr(saver_module, "_FIRST_PAUSE", 0.001)
    savers = []

    def build(**settings: Any) -> tuple[Saver, Gate]:
        checkpoints = CheckpointStore(str(tmp_path), CheckpointConfig(**settings))
        checkpoints.acquire()
        gate = Gate(checkpoints)
        savers.append((Saver(checkpoints), gate))
        return savers[-1]

    yield build
    for saver, gate in savers:
        gate.open.set()
        saver.close()


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((1000,), value), "step": torch.tensor(value)}


def restored(tmp_path: Path) -> tuple[int, float]:
    result = CheckpointStore(str(tmp_path)).restore()
    assert result is not None
    return result.commit.iteration, float(result.tensors["step"])


def test_what_is_saved_is_the_state_at_the_call(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, gate = make()
    gate.open.clear()
    tensors = state(1.0)
    saver.save(1, tensors, {"real_images": 64})
    assert gate.entered.wait(LONG)
    for tensor in tensors.values():  # training goes on in place
        tensor.fill_(9.0)
    gate.open.set()
    assert saver.wait(LONG)
    assert restored(tmp_path) == (1, 1.0)
    buffers = {name: buffer.data_ptr() for name, buffer in saver._buffers.items()}
    saver.save(2, tensors)
    assert saver.wait(LONG)
    assert restored(tmp_path) == (2, 9.0)
    assert {name: buffer.data_ptr() for name, buffer in saver._buffers.items()} == buffers
    status = saver.status()
    assert (status.durable_iteration, status.saves, status.failures, status.busy) == (2, 2, 0, False)
    assert 0.0 < status.stolen_seconds < LONG
    assert status.scalars()["checkpoint/save_seconds"] > 0.0


def test_a_save_is_due_so_many_minutes_after_the_last_one(
    make: Callable[..., tuple[Saver, Gate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the iterations take: a machine that vanishes costs ten minutes at most."""
    saver, _ = make()
    begun = time.monotonic()
    for minutes, expected in ((9.9, False), (10.1, True)):
        monkeypatch.setattr(time, "monotonic", lambda minutes=minutes: begun + 60 * minutes)
        assert saver.due(False, 1) == expected
    saver.save(1, state(1.0))
    assert saver.wait(LONG)
    for minutes, expected in ((15, False), (20.2, True)):
        monkeypatch.setattr(time, "monotonic", lambda minutes=minutes: begun + 60 * minutes)
        assert saver.due(False, 2) == expected


def test_one_save_in_flight_and_the_next_one_postponed(
    make: Callable[..., tuple[Saver, Gate]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver, gate = make()
    assert not saver.due(False, 0)
    gate.open.clear()
    assert saver.due(True, 1)
    saver.save(1, state(1.0))
    with caplog.at_level(logging.WARNING):
        assert not saver.due(True, 2)
        assert not saver.due(False, 3)
        assert not saver.due(True, 4)
    assert caplog.messages == [
        message
        for message in caplog.messages
        if message.startswith("checkpoint of iteration 2 postponed: the save of iter")
    ]
    assert len(caplog.messages) == 1
    assert saver.status().postponed
    with pytest.raises(RuntimeError, match="iteration 1 is still running"):
        saver.save(4, state(4.0))
    gate.open.set()
    assert saver.wait(LONG)
    assert saver.due(False, 5)  # made up for at the first iteration that finds the store free
    saver.save(5, state(5.0))
    assert saver.wait(LONG)
    assert not saver.due(False, 6)
    assert restored(tmp_path) == (5, 5.0)


def test_failing_store_is_tried_again(
    make: Callable[..., tuple[Saver, Gate]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver, gate = make()
    gate.failures = [OSError(28, "No space left on device"), TimeoutError("slow"), ConnectionError("gone")]
    saver.save(1, state(1.0))
    assert saver.wait(LONG)
    assert restored(tmp_path) == (1, 1.0)
    status = saver.status()
    assert (status.saves, status.failures) == (1, 3)
    assert "No space left on device" in caplog.text
    assert "next try in" in caplog.text


def test_save_that_is_given_up_does_not_end_the_run(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, gate = make(retry_minutes=0.0)
    gate.failures = [OSError(28, "No space left on device")]
    saver.save(1, state(1.0))
    assert saver.wait(LONG)
    assert saver.status().durable_iteration is None
    saver.save(2, state(2.0))
    assert saver.wait(LONG)
    assert restored(tmp_path) == (2, 2.0)


def test_run_ends_when_nothing_has_become_durable_for_too_long(
    make: Callable[..., tuple[Saver, Gate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("trainer.checkpoint.saver.time.monotonic", lambda: now)
    saver, gate = make(retry_minutes=0.0, stop_after_hours=2.0)
    now += 50 * 3600  # no save was due: nothing is overdue
    saver.poll()
    gate.failures = [OSError("one"), OSError("two")]
    saver.save(1, state(1.0))
    assert saver.wait(LONG)
    now += 1.9 * 3600
    saver.save(2, state(2.0))
    assert saver.wait(LONG)
    assert saver.status().age == pytest.approx(51.9 * 3600)
    now += 0.2 * 3600
    with pytest.raises(StoreOverdue, match=r"^checkpoint\.stop_after_hours: .* for 2\.1 h \(2 failures"):
        saver.poll()


def test_finish_is_durable_and_saves_an_iteration_once(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, gate = make()
    gate.open.clear()
    saver.save(1, state(1.0))
    threading.Timer(0.05, gate.open.set).start()
    saver.finish(2, state(2.0))
    assert restored(tmp_path) == (2, 2.0)
    saver.finish(2, state(2.0))
    assert saver.status().saves == 2


def test_finish_says_when_it_cannot(make: Callable[..., tuple[Saver, Gate]]) -> None:
    saver, gate = make(retry_minutes=0.0)
    gate.failures = [OSError("broken")]
    with pytest.raises(CheckpointError, match="the last checkpoint, of iteration 3, could not be written; there is no"):
        saver.finish(3, state(3.0))


def test_state_with_nan_is_never_committed(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, _ = make()
    saver.save(1, state(1.0))
    assert saver.wait(LONG)
    with pytest.raises(NonFinite, match=r"^step: 1 of 1 numbers .* at iteration 2; .* of iteration 1"):
        saver.finish(2, {**state(2.0), "step": torch.tensor(float("nan"))})
    assert restored(tmp_path) == (1, 1.0)


def test_fenced_writer_stops_by_its_next_save(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, _ = make()
    saver.save(1, state(1.0))
    assert saver.wait(LONG)
    CheckpointStore(str(tmp_path)).acquire()
    saver.save(2, state(2.0))
    with pytest.raises(LeaseLost, match=r"writer 2 .* has taken over"):
        saver.wait(LONG)
    with pytest.raises(LeaseLost):
        saver.save(3, state(3.0))
    assert restored(tmp_path) == (1, 1.0)


def test_idle_fenced_writer_notices_by_itself(
    make: Callable[..., tuple[Saver, Gate]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "_LEASE_CHECK_SECONDS", 0.01)
    saver, _ = make()
    CheckpointStore(str(tmp_path)).acquire()
    saver._thread.join(LONG)
    with pytest.raises(LeaseLost):
        saver.poll()


def test_old_checkpoints_go_after_a_save(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, _ = make(keep_last=2)
    for iteration in (1, 2, 3, 4):
        saver.save(iteration, state(iteration))
        assert saver.wait(LONG)
    saver.close()  # waits for the cleaning
    assert [commit.iteration for commit in CheckpointStore(str(tmp_path)).commits()] == [4, 3]


def test_cleaning_that_fails_is_only_told(
    make: Callable[..., tuple[Saver, Gate]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(checkpoints: CheckpointStore) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(saver_module, "clean", broken)
    saver, _ = make()
    for iteration in (1, 2):
        saver.save(iteration, state(iteration))
        assert saver.wait(LONG)
    saver.close()
    assert saver.status().saves == 2
    assert "PermissionError: not yours" in caplog.text


def test_synchronous_on_request(make: Callable[..., tuple[Saver, Gate]], tmp_path: Path) -> None:
    saver, _ = make(asynchronous=False)
    before = time.monotonic()
    saver.save(1, state(1.0))
    assert restored(tmp_path) == (1, 1.0)
    assert 0 < saver.status().stolen_seconds <= time.monotonic() - before


def test_save_that_does_not_fit_into_the_grace_period_is_told_once(
    make: Callable[..., tuple[Saver, Gate]], caplog: pytest.LogCaptureFixture
) -> None:
    saver, gate = make(grace_seconds=0.02)
    assert not saver.due(False, 0)
    gate.open.clear()
    saver.save(1, state(1.0))
    time.sleep(0.03)  # the save lasts longer than the grace period, whatever else happens
    gate.open.set()
    assert saver.wait(LONG)
    assert not saver.due(False, 1)
    assert not saver.due(False, 2)
    warnings = [message for message in caplog.messages if "checkpoint.grace_seconds" in message]
    assert len(warnings) == 1
