"""Stop requests: signals and the stop file only raise a flag; the marker says what a scheduler may do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.foundation.stores import Store
from trainer.processes import preemption
from trainer.processes.preemption import StopRequest, clear_marker, grace_seconds, grace_warning, write_marker


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signal_sets_the_flag_and_nothing_else(name: str) -> None:
    before = signal.getsignal(signal.Signals[name])
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.requested()
        assert stop.reason == name
    assert signal.getsignal(signal.Signals[name]) == before


def test_first_reason_counts() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGUSR1"


def test_second_interrupt_ends_the_process_at_once() -> None:
    program = """if True:
        import os, signal
        from trainer.processes.preemption import StopRequest
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            print(stop.requested(), flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("still here", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n"
    assert done.returncode == -signal.SIGINT


def test_local_stop_file_is_seen_at_the_next_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("trainer.processes.preemption.time.monotonic", lambda: now)
    with StopRequest(str(tmp_path)) as stop, StopRequest() as other_rank:
        assert not stop.requested()
        (tmp_path / "STOP").touch()
        assert not stop.requested()  # one stat a second at most
        now += 1.0
        assert stop.requested()
        assert stop.reason == "file STOP"
        assert not other_rank.requested()
        now += 2.0
        assert stop.seconds_since == 2.0


def test_remote_stop_file_is_seen_by_the_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_REMOTE_POLL_SECONDS", 0.01)
    url = f"memory://{os.getpid()}-stop"
    Store(url).put("STOP", b"")
    with StopRequest(url) as stop:
        assert stop._thread is not None
        stop._thread.join(10)  # it ends when it has seen the file
        assert stop.requested()


@pytest.mark.parametrize(
    ("reason", "requeue"),
    [
        ("SIGTERM", True),
        ("SIGUSR1", True),
        ("another process was asked", True),
        ("SIGINT", False),
        ("file STOP", False),
    ],
)
def test_marker_says_whether_to_requeue_and_consumes_the_stop_file(tmp_path: Path, reason: str, requeue: bool) -> None:
    (tmp_path / "STOP").touch()
    write_marker(str(tmp_path), iteration=7, reason=reason, details={"save_seconds": 0.5})
    marker = json.loads((tmp_path / "preempted.json").read_text())
    assert (marker["iteration"], marker["resumable"], marker["requeue"]) == (7, True, requeue)
    assert marker["save_seconds"] == 0.5
    assert not (tmp_path / "STOP").exists()
    clear_marker(str(tmp_path))
    clear_marker(str(tmp_path))
    assert not (tmp_path / "preempted.json").exists()


def test_grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert grace_seconds() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert grace_seconds() == 30.0
    assert grace_seconds(90.0) == 90.0
    assert grace_warning(20.0, 9.9, 30.0) is None
    assert grace_warning(1000.0, 1.0, None) is None
    warning = grace_warning(29.0, 2.0, 30.0)
    assert warning is not None
    assert "29.0 s" in warning
    assert "30 s after SIGTERM" in warning
