"""Writers of checkpoints that are killed: at random, at every named step of the protocol, and by a rival.

Each runs crash_writer.py as a program, on the local disk and on a real S3 server: short forms in the tests, the full
ones as proofs (`make proofs`).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import environment, program
from tests.support.s3_server import S3Server

STORES = ["local", "s3"]
pytestmark = pytest.mark.xdist_group("checkpoint-crashes")  # one S3 server for all


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class Place:
    """Where a run lives: a folder, or a prefix on the S3 server."""

    def __init__(self, url: str, more: dict[str, str]) -> None:
        self.url = url
        self.environment = environment(OMP_NUM_THREADS="1", **more)

    def crash(self, mode: str, *arguments: object) -> dict[str, Any]:
        command = [sys.executable, program("crash_writer.py"), mode, self.url, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def python(self, program: str) -> str:
        command = [sys.executable, "-c", program, self.url]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(str(tmp_path / "run"), {})
    server: S3Server = request.getfixturevalue("s3")
    return Place(server.url(request.node.name.replace("[", "-").rstrip("]")), server.environment)


def figures(result: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in result.items() if isinstance(value, int | float))


def prove(capsys: pytest.CaptureFixture[str], name: str, failures: list[str], text: str) -> None:
    """The one line that `make proofs` shows for a proof; fails the test where the proof did."""
    with capsys.disabled():
        print(f"\nPROOF {name}: {'FAIL' if failures else 'PASS'} {text} failures={len(failures)}", flush=True)
    assert not failures


def test_killed_at_random_moments(place: Place) -> None:
    result = place.crash("random", 12, 0)
    assert result["failures"] == []
    assert result["iterations"] > 0


def test_killed_at_steps_of_the_protocol(place: Place) -> None:
    result = place.crash("steps", 5 if place.url.startswith("/") else 19)
    assert result["failures"] == []
    assert result["killed"] > 0
    for name in ("before manifest", "after manifest", "before read back", "before retention", "after retention"):
        assert name in result["names"]


def test_of_two_writers_exactly_one_goes_on(place: Place) -> None:
    result = place.crash("rivals", 1)
    assert result["failures"] == []
    assert "has taken over this run" in result["messages"][0]


def test_store_operations_on_s3(s3: S3Server) -> None:
    program = """if True:
        import sys, threading
        from trainer.processes.preemption import StopRequest, clear_marker, write_marker
        from trainer.foundation.stores import Store
        store = Store(sys.argv[1])
        assert store.find() == {}
        store.put("a/one", b"1"); store.put("a/one", b"22"); store.put("ab/two", b"")
        assert store.find("a") == {"a/one": 2}, store.find("a")
        assert store.find() == {"a/one": 2, "ab/two": 0}
        assert store.get("a/one") == b"22" and store.exists("a/one")
        wins, barrier = [], threading.Barrier(8)
        def create(number):
            barrier.wait()
            if store.create("token", b"%d" % number):
                wins.append(number)
        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]; [thread.join() for thread in threads]
        assert len(wins) == 1 and store.get("token") == b"%d" % wins[0], wins
        store.delete(["a/one", "a/none"])
        assert not store.exists("a/one")
        try:
            store.get("a/one")
        except FileNotFoundError:
            pass
        else:
            raise AssertionError("a deleted object was read")
        store.put("STOP", b"")
        with StopRequest(sys.argv[1]) as stop:
            stop._thread.join(60)
            assert stop.requested() and stop.reason == "file STOP"
        write_marker(sys.argv[1], iteration=3, reason=stop.reason)
        assert not store.exists("STOP") and b'"iteration": 3' in store.get("preempted.json")
        clear_marker(sys.argv[1])
        assert not store.exists("preempted.json")
        print("all")
    """
    assert Place(s3.url("operations"), s3.environment).python(program) == "all\n"


def test_store_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    program = """if True:
        import sys, threading, time, torch
        from trainer.checkpoint.commits import CheckpointStore
        from trainer.checkpoint.saver import Saver
        checkpoints = CheckpointStore(sys.argv[1])
        checkpoints.acquire()
        with Saver(checkpoints) as saver:
            saver.save(1, {"a": torch.ones(1000)})
            saver.wait()
            print("durable", flush=True)
            sys.stdin.readline()  # the server is gone now
            saver.save(2, {"a": torch.ones(2000)})
            while not saver.status().failures:
                saver.poll()
                time.sleep(0.05)
            print("failing", flush=True)
            saver.wait()
            print(f"durable of {saver.status().durable_iteration}", flush=True)
    """
    with S3Server(tmp_path) as server:
        command = [sys.executable, "-c", program, server.url("run")]
        variables = environment(OMP_NUM_THREADS="1", **server.environment)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=variables, text=True, bufsize=1, **pipes) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            assert writer.stderr is not None
            try:
                assert writer.stdout.readline() == "durable\n"
                server.stop()
                print("go", file=writer.stdin, flush=True)
                assert writer.stdout.readline() == "failing\n"
                server.start()
                assert writer.stdout.readline() == "durable of 2\n"
                assert "checkpoint of iteration 2 could not be written" in writer.stderr.read()
            finally:
                writer.kill()


def test_verbs_on_s3(s3: S3Server) -> None:
    place = Place(s3.url("verbs"), s3.environment)
    place.crash("random", 3, 1)
    program = """if True:
        import sys
        from trainer.checkpoint.__main__ import main
        for verb in ("list", "verify", "hash", "prune"):
            assert main([verb, sys.argv[1]]) == 0, verb
    """
    output = place.python(program)
    assert "committed, newest" in output
    assert "verified, newest" in output
    assert "deleted 0 checkpoints" in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_proof_200_random_kills(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    result = place.crash("random", 200, 7)
    kind = "local" if place.url.startswith("/") else "s3"
    prove(capsys, f"checkpoint-random-kills-{kind}", result["failures"], figures(result))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_proof_every_step_of_the_protocol(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    result = place.crash("steps", 1)
    kind = "local" if place.url.startswith("/") else "s3"
    failures = result["failures"] + ([] if result["killed"] == result["steps"] else ["not every step was reached"])
    prove(capsys, f"checkpoint-every-step-{kind}", failures, figures(result))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_proof_two_writers(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    result = place.crash("rivals", 10)
    kind = "local" if place.url.startswith("/") else "s3"
    prove(capsys, f"checkpoint-two-writers-{kind}", result["failures"], figures(result))
