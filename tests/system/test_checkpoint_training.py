"""Real training that is killed with SIGKILL, again and again, and asked to stop in every way there is."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.crash_training import Training, kill_and_resume, make_shards
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.xdist_group("checkpoint-training")  # one set of shards for all


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


Make = Callable[..., Training]


@pytest.fixture
def make(request: pytest.FixtureRequest, shards: Path, tmp_path: Path) -> Make:
    def build(launch: str, where: str, name: str, iterations: int, **settings: object) -> Training:
        if where == "local":
            return Training(launch, str(tmp_path / name), shards, {}, iterations, settings)
        server: S3Server = request.getfixturevalue("s3")
        url = server.url(f"{request.node.name.replace('[', '-').rstrip(']')}/{name}")
        return Training(launch, url, shards, server.environment, iterations, settings)

    return build


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run of 30 iterations, with checkpoints of 20, 25 and 30."""
    training = Training("single", str(tmp_path_factory.mktemp("undisturbed") / "run"), shards, {}, 30)
    life = training.complete()
    assert life.process.returncode == 0, life.output[-3000:]
    return training


def test_killed_run_ends_like_an_undisturbed_one(make: Make, undisturbed: Training) -> None:
    killed = make("single", "local", "run", 30)
    figures = kill_and_resume(killed, kills=1, seed=1, furthest=12)
    assert figures["kills"] == 1
    assert killed.hash() == undisturbed.hash()


@pytest.mark.parametrize(
    ("damaged", "status", "message"),
    [(1, 0, "resuming from the checkpoint before it: iteration 25"), (3, 3, "not started again from zero")],
)
def test_damaged_checkpoints(
    make: Make, undisturbed: Training, tmp_path: Path, damaged: int, status: int, message: str
) -> None:
    training = make("single", "local", "run", 30)
    shutil.copytree(undisturbed.url, training.url)
    files = sorted((tmp_path / "run" / "checkpoints").glob("iteration-*/state-*"))
    assert len(files) == 3
    for path in files[-damaged:]:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    life = training.complete()
    assert life.process.returncode == status, life.output[-3000:]
    assert message in life.output
    if status == 0:
        assert training.hash() == undisturbed.hash()  # computed again, bit for bit


class Stop(NamedTuple):
    """One row of the table of signals: who is asked how, and what comes of it."""

    launch: str
    ask: str
    """A signal's name, or the stop file."""
    whom: str
    """`main` or `other` (a training process), `launcher`, `all` processes, `folder` (of the run)."""
    status: int
    """Exit status of what the user started."""
    requeue: bool


QUICK = [
    Stop("single", "SIGTERM", "main", 0, True),
    Stop("single", "SIGHUP", "main", 0, True),
    Stop("single", "STOP", "folder", 0, False),
    Stop("ddp", "SIGTERM", "launcher", 1, True),
]
MORE = [
    Stop("single", "SIGUSR1", "main", 0, True),
    Stop("single", "SIGINT", "main", 0, False),
    Stop("ddp", "SIGTERM", "main", 0, True),
    Stop("ddp", "SIGTERM", "other", 0, True),
    Stop("ddp", "SIGUSR1", "main", 0, True),
    Stop("ddp", "SIGUSR1", "other", 0, True),
    Stop("ddp", "SIGHUP", "launcher", 1, True),
    Stop("ddp", "SIGHUP", "other", 0, True),
    Stop("ddp", "SIGINT", "all", 1, False),
    Stop("ddp", "STOP", "folder", 0, False),
    Stop("single", "STOP", "s3 folder", 0, False),
    Stop("ddp", "SIGTERM", "s3 launcher", 1, True),
]


def stop_cleanly(make: Make, row: Stop) -> float:
    """Start, ask, and check everything that a stop promises; returns the seconds from the request to the end."""
    where, _, whom = row.whom.rpartition(" ")
    training = make(row.launch, where or "local", "run", 5000, **{"run.checkpoint_every": 50_000})
    with training.start() as life:
        assert life.wait_for(lambda life: len(life.iterations()) >= 3), life.output[-3000:]
        begun = time.monotonic()
        if whom == "folder":
            training.put("STOP")
        else:
            ranks = life.ranks()
            assert len(ranks) == (2 if row.launch == "ddp" else 1)
            whose = {"main": ranks[:1], "other": ranks[1:], "launcher": [life.process.pid]}
            for pid in whose.get(whom, [life.process.pid, *ranks]):
                os.kill(pid, signal.Signals[row.ask])
        status = life.wait()
        seconds = time.monotonic() - begun
    assert status == row.status, life.output[-3000:]
    marker = training.get("preempted.json")
    assert marker is not None
    assert (marker["resumable"], marker["requeue"]) == (True, row.requeue)
    assert marker["iteration"] == life.iterations()[-1]  # nothing was computed after the agreed iteration
    assert training.get("STOP") is None
    table = training.checkpoints("verify")
    assert f"{marker['iteration']:>10}  " in table
    assert "verified, newest" in table
    return seconds


@pytest.mark.parametrize("row", QUICK, ids=lambda row: f"{row.launch}-{row.ask}-{row.whom}")
def test_stops_cleanly(make: Make, row: Stop) -> None:
    stop_cleanly(make, row)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", MORE, ids=lambda row: f"{row.launch}-{row.ask}-{row.whom}".replace(" ", "-"))
def test_proof_stops_cleanly(make: Make, row: Stop, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"checkpoint-stop-{row.launch}-{row.ask}-{row.whom}".replace(" ", "-")
    try:
        seconds = stop_cleanly(make, row)
    except AssertionError:
        with capsys.disabled():
            print(f"\nPROOF {name}: FAIL")
        raise
    with capsys.disabled():
        print(f"\nPROOF {name}: PASS exit_status={row.status} requeue={row.requeue} seconds={seconds:.1f}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGKILL"])
def test_proof_a_lost_launcher_stops_its_training(make: Make, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`accelerate launch` dies of SIGUSR1; its processes then stop in good order, and nobody trains on unseen."""
    training, number = make("ddp", "local", "run", 5000), signal.Signals[name]
    with training.start() as life:
        assert life.wait_for(lambda life: len(life.iterations()) >= 3), life.output[-3000:]
        ranks = life.ranks()
        try:
            os.kill(life.process.pid, number)
            assert life.process.wait(60) == -number
            assert not life.wait_for(lambda life: False)  # until their output ends
        finally:
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    marker = training.get("preempted.json")
    assert marker is not None
    assert marker["requeue"] is True
    with capsys.disabled():
        print(
            f"\nPROOF checkpoint-stop-ddp-{name}-launcher: PASS launcher_status={-number} stopped_by={marker['reason']!r}"
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("launch", ["single", "ddp"])
def test_proof_killed_five_times(make: Make, launch: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    undisturbed, killed = make(launch, where, "a", 120), make(launch, where, "b", 120)
    life = undisturbed.complete()
    assert life.process.returncode == 0, life.output[-3000:]
    figures = kill_and_resume(killed, kills=5, seed=3, furthest=20)
    same = killed.hash() == undisturbed.hash()
    text = " ".join(f"{name}={value}" for name, value in figures.items()).replace(", ", ",")
    with capsys.disabled():
        print(f"\nPROOF checkpoint-training-{launch}-{where}: {'PASS' if same else 'FAIL'} {text} hash_equal={same}")
    assert same


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("launch", "where"), [("single", "local"), ("ddp", "s3")])
def test_proof_second_start_takes_over(make: Make, launch: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is started again while its old copy still trains: the old one stops with a message, the new one goes on."""
    training = make(launch, where, "run", 5000)
    with training.start() as old:
        assert old.wait_for(lambda life: len(life.iterations()) >= 12), old.output[-3000:]
        with training.start() as new:
            status = old.wait()
            assert new.wait_for(lambda life: len(life.iterations()) >= 12), new.output[-3000:]
            assert new.process.poll() is None
    taken_over = "has taken over this run; this process (writer 1) stops and writes nothing more" in old.output
    passed = status == (3 if launch == "single" else 1) and taken_over
    with capsys.disabled():
        print(f"\nPROOF checkpoint-takeover-{launch}-{where}: {'PASS' if passed else 'FAIL'} exit_status={status}")
    assert passed, old.output[-3000:]
    assert "verified, newest" in training.checkpoints("verify")
