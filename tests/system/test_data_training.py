"""A real training that reads its shards from a real S3 server while the network, the store and the cache misbehave."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos_proxy import ChaosProxy, Fault, s3_behind_proxy

pytestmark = [pytest.mark.xdist_group("data-training"), pytest.mark.slow, pytest.mark.timeout(1800)]

SHARDS = "s3://runs/tiny"
ITERATIONS = 12
PASSING: dict[str, list[Fault]] = {
    "connection-reset": [Fault("reset", 3)],
    "cut-body": [Fault("cut", 3)],
    "wrong-length": [Fault("short", 3)],
    "wrong-bytes": [Fault("flip", 2)],
    "server-error-503": [Fault("status", 4, status=503)],
    "server-error-500-everywhere": [Fault("status", 6, status=500, match="tiny")],
    "stalled-connection": [Fault("stall", 1)],
    "slow-drip": [Fault("drip", 1, rate=400)],
    "one-after-the-other": [Fault(kind, 1) for kind in ("status", "cut", "reset", "short", "flip")],
}
STAYING: dict[str, tuple[list[Fault], str]] = {
    "forbidden-403": ([Fault("status", status=403)], "access was refused (403"),
    "missing-404": ([Fault("status", status=404)], "there is no such object"),
    "server-error-for-ever": ([Fault("status", status=503)], "gave up"),
    "stalled-for-ever": ([Fault("stall")], "no answer within"),
    "wrong-bytes-for-ever": ([Fault("flip")], "with a sha256 that is not"),
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Iterator[ChaosProxy]:
    import s3fs

    with s3_behind_proxy(tmp_path_factory.mktemp("s3")) as proxy:
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().put(str(tiny_shards), "runs/tiny", recursive=True)
        yield proxy


Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tiny: Callable[..., Path], command: Callable[..., Any], tmp_path: Path) -> Train:
    """`train(name, section={...})` runs the tiny experiment on the remote shards."""

    def run(name: str, data: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        settings = {
            "shards": SHARDS,
            "cache_dir": str(tmp_path / f"cache-{name}"),
            "shuffle_window": 40,
            "fetch_deadline": 60,
            "fetch_request_timeout": 3,
            **(data or {}),
        }
        done: subprocess.CompletedProcess[str] = command(tiny(name, data=settings), "--run.iterations", ITERATIONS)
        return done

    return run


def hash_of(run: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.checkpoint", "hash", str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


def proof(capsys: pytest.CaptureFixture[str], name: str, passed: bool, figures: str) -> None:
    with capsys.disabled():
        print(f"\nPROOF data-{name}: {'PASS' if passed else 'FAIL'} {figures}", flush=True)


def test_proof_faults_in_training(
    train: Train, proxy: ChaosProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every fault that passes, and with a cache folder that is deleted, the run ends with the quiet run's hash."""
    proxy.clear()
    assert (done := train("quiet")).returncode == 0, done.stderr[-3000:]
    quiet, failed = hash_of(tmp_path / "quiet"), []
    for name, faults in PASSING.items():
        proxy.clear()
        proxy.faults = [Fault(**vars(fault)) for fault in faults]
        done = train(name)
        same = done.returncode == 0 and hash_of(tmp_path / name) == quiet and bool(proxy.struck)
        proof(capsys, f"fault-{name}", same, f"injected={len(proxy.struck)} hash_equal={same}")
        failed += [] if same else [(name, done.stderr[-2000:])]
    proxy.clear()
    ended, deleted = threading.Event(), [0]

    def delete() -> None:
        while not ended.wait(0.3):
            if list((tmp_path / "cache-deleted").glob("*.tar")):
                shutil.rmtree(tmp_path / "cache-deleted", ignore_errors=True)
                deleted[0] += 1

    thread = threading.Thread(target=delete)
    thread.start()
    done = train("deleted")
    ended.set()
    thread.join()
    same = done.returncode == 0 and hash_of(tmp_path / "deleted") == quiet and deleted[0] > 0
    proof(capsys, "fault-cache-folder-deleted", same, f"deleted={deleted[0]} hash_equal={same}")
    assert not failed
    assert same, done.stderr[-2000:]


def test_proof_errors_in_training(
    train: Train, proxy: ChaosProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault that stays ends the run with one sentence that names the object, without a traceback and without a
    secret."""
    failed = []
    for name, (faults, message) in STAYING.items():
        proxy.clear()
        proxy.faults = [Fault(**vars(fault)) for fault in faults]
        done = train(name, data={"fetch_deadline": 6, "fetch_request_timeout": 1})
        last = done.stderr.strip().splitlines()[-1]
        passed = done.returncode != 0 and message in last and "Traceback" not in done.stderr and "shard-" in last
        passed = passed and "crash-secret" not in done.stderr + done.stdout
        proof(capsys, f"error-{name}", passed, f"exit_status={done.returncode} says={last[:160]!r}")
        failed += [] if passed else [(name, done.stderr[-2000:])]
    assert not failed
