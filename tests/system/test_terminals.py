"""Every ordinary way in which a terminal ends: the run saves, says so, and goes on later as if nothing had happened."""

import fcntl
import json
import os
import pty
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.crash_training import Training, hear_signals, make_shards

Make = Callable[..., Training]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make(shards: Path, tmp_path: Path) -> Make:
    def training(launch: str, name: str, iterations: int) -> Training:
        return Training(launch, str(tmp_path / name), shards, {}, iterations, {"run.checkpoint_every": 100_000})

    return training


def wait_for_iterations(training: Training, count: int) -> None:
    """By what the run has written: nobody here reads its output."""
    path, deadline = Path(training.url, "metrics.jsonl"), time.monotonic() + 200
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.1)


def interrupted_through(reader: str, training: Training) -> None:
    """Ctrl-C reaches the whole group in front, the reader too, which is gone at once. `ignored` in the shell alone."""
    words = f"trap : INT; {shlex.join(training.command)} 2>&1 | {reader}"
    group = subprocess.Popen(
        ["bash", "-c", words],
        cwd=ROOT,
        env=training.environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    wait_for_iterations(training, 3)
    os.killpg(group.pid, signal.SIGINT)
    group.wait(120)


def hung_up(training: Training) -> None:
    """The terminal is closed, as by a lost ssh: the system sends SIGHUP, and every write to it fails from then on."""
    controller, terminal = pty.openpty()

    def take_terminal() -> None:
        hear_signals()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        training.command,
        cwd=ROOT,
        env=training.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    wait_for_iterations(training, 3)
    os.close(controller)
    process.wait(120)


def terminated_unheard(training: Training) -> None:
    """`... | head -1` has long gone when the run is asked to stop; until then it trains on."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(training.command, cwd=ROOT, env=training.environment, stdout=writing, stderr=writing)
    os.close(writing)
    wait_for_iterations(training, 3)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    if len(training.command) < 5 or "accelerate" not in training.command[0]:
        assert process.returncode == 0


ENDS = {
    "ctrl-c through tee": lambda training: interrupted_through("tee /dev/null >/dev/null", training),
    "ctrl-c through cat": lambda training: interrupted_through("cat", training),
    "closed terminal": hung_up,
    "stopped unheard": terminated_unheard,
}
CASES = [
    pytest.param(launch, end, marks=[] if quick else pytest.mark.slow, id=f"{launch} {end}")
    for launch in ("single", "ddp")
    for end in ENDS
    for quick in [(launch, end) in (("single", "ctrl-c through tee"), ("single", "closed terminal"))]
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("launch", "end"), CASES)
def test_the_end_of_a_terminal_loses_nothing(make: Make, launch: str, end: str) -> None:
    training = make(launch, "run", 1_000_000)
    ENDS[end](training)
    marker = json.loads(Path(training.url, "preempted.json").read_text())
    stopped = int(marker["iteration"])
    assert marker["resumable"]
    assert training.hash().startswith(f"{stopped} ")
    total = stopped + 3
    more = make(launch, "run", total).complete()
    assert more.process.returncode == 0, more.output[-3000:]
    undisturbed = make(launch, "other", total)
    assert undisturbed.complete().process.returncode == 0
    assert training.hash() == undisturbed.hash()
