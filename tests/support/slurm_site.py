"""A user of the test cluster: submits through cluster/submit.sh, follows logs, with cluster/sites/test.env as the site."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.crash_training import make_shards
from tests.support.slurm_cluster import SlurmCluster, why_not

REASON = why_not()
MARKS = [
    pytest.mark.xdist_group("slurm"),
    # CI must not pass for want of a Slurm: there the tests run, and say what is missing.
    pytest.mark.skipif(REASON is not None and os.environ.get("SLURM_TESTS") != "required", reason=str(REASON)),
]
SITE = "cluster/sites/test.env"


class Site:
    """The cluster, a folder for logs and runs, shards of 64 images, and beside them an experiment of a few seconds."""

    def __init__(self, cluster: SlurmCluster, folder: Path, environment: Mapping[str, str]) -> None:
        self.cluster, self.folder = cluster, folder
        self.shards = make_shards(folder)
        self.experiment = folder / "experiment.yaml"
        self.environment = {
            **os.environ,
            **cluster.environment,
            "TEST_LOGS": str(folder / "logs"),
            "TEST_PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
            "MENAGERIE_CACHE": str(folder / "cache"),
            **environment,
        }

    def submit(self, *words: object, **environment: str) -> list[str]:
        """The job ids that submit.sh printed."""
        printed = self.run("cluster/submit.sh", SITE, *words, **environment)
        return printed.splitlines()[-1].removeprefix("submitted ").split()

    def run(self, *command: object, **environment: str) -> str:
        """Run a command with the environment's python first on PATH, as a user on the login node; what it printed."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env={**self.environment, "PATH": self.environment["TEST_PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, job: str, what: str = "train") -> str:
        path = self.folder / "logs" / f"{what}-{job}.log"
        return path.read_text() if path.exists() else ""

    def iterations(self, job: str, what: str = "train") -> list[int]:
        """The iterations whose status lines the job has printed, over all its starts."""
        lines = re.findall(r"^iteration ([\d,]+)/", self.log(job, what), re.M)
        return [int(text.replace(",", "")) for text in lines]

    def wait(self, job: str, what: str, condition: Callable[[], object], seconds: float = 600.0) -> float:
        """Wait for a training job; fails early where the script has given up. The seconds that took."""
        begun = time.monotonic()
        while not condition():
            log = self.log(job)
            assert not re.search("GIVING UP|REFUSED", log), log[-4000:]
            assert time.monotonic() < begun + seconds, f"not within {seconds:.0f} s: {what}\n{log[-4000:]}"
            time.sleep(0.1)
        return time.monotonic() - begun

    def wait_for_iterations(self, job: str, count: int) -> float:
        """Until the job has printed `count` more status lines than it has now."""
        wanted = len(self.iterations(job)) + count
        return self.wait(job, f"{wanted} status lines", lambda: len(self.iterations(job)) >= wanted)

    def wait_for_line(self, job: str, text: str, count: int) -> float:
        """Until the job's log has `text` for the `count`-th time."""
        return self.wait(job, text, lambda: self.log(job).count(text) >= count)

    def wait_for_end(self, job: str, state: str = "COMPLETED", what: str = "train", seconds: float = 600.0) -> None:
        """Until Slurm is done with the job."""
        self.cluster.wait_for(f"the end of job {job}", lambda: self.cluster.ended(job), seconds)
        assert self.cluster.state(job) == state, self.log(job, what)[-4000:]

    def preempt(self) -> str:
        """Submit a job of higher priority that needs all nodes; its id."""
        size, log = f"-N{len(self.cluster.nodes)}", self.folder / "logs" / "high.log"
        return self.cluster.run("sbatch", "--parsable", "-phigh", size, "-o", log, "--wrap", "true").strip()

    def hash(self, run: str) -> str:
        """What `python -m trainer.checkpoint hash` prints."""
        return self.run("python", "-m", "trainer.checkpoint", "hash", run).strip()


@contextmanager
def open_site(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Site]:
    """A cluster that is there for the length of the context."""
    assert REASON is None, REASON
    with SlurmCluster() as cluster:
        yield Site(cluster, folder, environment or {})
