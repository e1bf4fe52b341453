"""The scripts of cluster/ on a real Slurm: preemption, scancel, requeue; what is sent to them and what they leave.

The site file is cluster/sites/test.env; everything else is what users run.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from crash_training import ROOT, make_shards
from slurm_cluster import SlurmCluster, why_not

from trainer.checkpoint import CheckpointStore, state_hash

REASON = why_not()
pytestmark = [
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(600),
    # CI must not pass for want of a Slurm: there the tests run, and say what is missing.
    pytest.mark.skipif(REASON is not None and os.environ.get("SLURM_TESTS") != "required", reason=str(REASON)),
]


class Site:
    """The cluster with one folder for logs; `submit` runs cluster/submit.sh as a user would."""

    def __init__(self, cluster: SlurmCluster, folder: Path, shards: Path) -> None:
        self.cluster, self.folder, self.shards = cluster, folder, shards
        self.experiment = shards.parent / "experiment.yaml"
        self.environment = {
            "TEST_LOGS": str(folder / "logs"),
            "TEST_PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
        }

    def submit(self, *words: object, **environment: str) -> list[str]:
        """The job ids that it printed."""
        command = ["cluster/submit.sh", "cluster/sites/test.env", *map(str, words)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **self.cluster.environment, **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[-1].removeprefix("submitted ").split()

    def log(self, job: str, what: str = "train") -> str:
        path = self.folder / "logs" / f"{what}-{job}.log"
        return path.read_text() if path.exists() else ""

    def iterations(self, job: str) -> list[int]:
        """The iterations whose status lines the job has printed, over all its starts."""
        return [int(text.replace(",", "")) for text in re.findall(r"^(?:\d+: )?iteration ([\d,]+)/", self.log(job), re.M)]

    def wait_for_iterations(self, job: str, count: int) -> None:
        """Until the job has printed `count` more status lines than it has now."""
        wanted = len(self.iterations(job)) + count

        def condition() -> bool:
            assert "GIVING UP" not in self.log(job), self.log(job)[-3000:]
            return len(self.iterations(job)) >= wanted

        self.cluster.wait_for(f"{wanted} lines of job {job}: {self.log(job)[-3000:]}", condition)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert REASON is None, REASON
    folder = tmp_path_factory.mktemp("slurm")
    with SlurmCluster() as cluster:
        yield Site(cluster, folder, make_shards(folder))


def final_hash(run: Path) -> str:
    restored = CheckpointStore(str(run)).restore()
    assert restored is not None
    return f"{restored.commit.iteration} {state_hash(restored.tensors)}"


def test_preempted_then_cancelled_then_submitted_again(site: Site) -> None:
    """One run in three lives ends with the bits of one that was never disturbed; a cancelled job stays cancelled."""
    cluster, run = site.cluster, site.folder / "run"
    settings = ["--run.dir", run, "--data.shards", site.shards, "--run.checkpoint_every", 100_000]
    command = ["train", "--nodes", 2, site.experiment, *settings]

    # Preempted by a job of higher priority: it saves, goes back into the queue, and starts again by itself.
    (job,) = site.submit(*command, "--run.iterations", 100_000)
    site.wait_for_iterations(job, 3)
    high = cluster.run("sbatch", "--parsable", "-p", "high", "-N2", "-o", site.folder / "high.log", "--wrap", "true").strip()
    cluster.wait_for("the job of high priority", lambda: cluster.state(high) == "COMPLETED")
    assert (run / "preempted.json").exists()
    saved = max(site.iterations(job))
    site.wait_for_iterations(job, 3)
    assert cluster.job(job)["Restarts"] == "1"
    assert f"going on from iteration {saved}" in site.log(job)
    assert not (run / "preempted.json").exists()

    # Cancelled by a person: it saves as well, and that is the end of the job.
    cluster.run("scancel", job)
    cluster.wait_for("the end of the cancelled job", lambda: cluster.ended(job))
    assert cluster.state(job) == "CANCELLED"
    assert "left to Slurm" in site.log(job)
    assert cluster.job(job)["Restarts"] == "1"
    end = max(site.iterations(job)) + 5

    # The same command again goes on. The undisturbed run has both processes on one machine, under cluster/local.sh.
    (again,) = site.submit(*command, "--run.iterations", end)
    cluster.wait_for("the end of the run", lambda: cluster.ended(again))
    assert cluster.state(again) == "COMPLETED", site.log(again)[-3000:]
    assert f"COMPLETE: {run} at iteration {end}" in site.log(again)
    undisturbed = site.folder / "undisturbed"
    settings[1] = undisturbed
    local(site, *settings, "--run.iterations", end)
    assert final_hash(run) == final_hash(undisturbed)


def local(site: Site, *settings: object) -> str:
    """A run of two processes under cluster/local.sh; what it printed."""
    begun = time.monotonic()
    done = subprocess.run(
        ["cluster/local.sh", str(site.experiment), *map(str, settings)],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": site.environment["TEST_PATH"],
            "ACCELERATE_USE_CPU": "true",
            "PROCESSES": "2",
            "LAUNCH": "cluster/launch/cpu.yaml",
            "SITE_LOGS": str(site.folder / "logs"),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() > begun
    return done.stdout
