"""The scripts of cluster/ on a real Slurm: preemption, scancel, the same command again; shards by a job array.

The site file is cluster/sites/test.env; everything else is what users run.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_site import MARKS, Site, open_site
from trainer.checkpoint.commits import CheckpointStore, state_hash

pytestmark = [*MARKS, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("slurm")) as opened:
        yield opened


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
    high = site.preempt()
    cluster.wait_for("the job of higher priority", lambda: cluster.state(high) == "COMPLETED")
    assert (run / "preempted.json").exists()
    saved = max(site.iterations(job))
    site.wait_for_iterations(job, 3)
    assert cluster.job(job)["Restarts"] == "1"
    assert f"resumes at iteration {saved}" in site.log(job)
    assert not (run / "preempted.json").exists()

    # Cancelled by a person: it saves as well, and that is the end of the job.
    cluster.run("scancel", job)
    site.wait_for_end(job, "CANCELLED")
    assert "left to Slurm (COMPLETING" in site.log(job)
    assert cluster.job(job)["Restarts"] == "1"
    end = max(site.iterations(job)) + 5

    # The same command again goes on. The undisturbed run has both processes on one machine, under cluster/local.sh.
    (again,) = site.submit(*command, "--run.iterations", end)
    site.wait_for_end(again)
    assert f"COMPLETE: {run} at iteration {end}" in site.log(again)
    settings[1] = site.folder / "undisturbed"
    words = [site.experiment, *settings, "--run.iterations", end]
    launch = {"PROCESSES": "2", "LAUNCH": "cluster/launch/cpu.yaml", "ACCELERATE_USE_CPU": "true"}
    local = site.run("cluster/local.sh", *words, SITE_LOGS=str(site.folder / "logs"), **launch)
    assert f"COMPLETE: {settings[1]} at iteration {end}" in local
    assert final_hash(run) == final_hash(site.folder / "undisturbed")


def test_shards_by_an_array_and_a_merge(site: Site) -> None:
    options = ["idx", site.folder / "idx", site.folder / "parts", "--samples-per-shard", 20]
    array, merge = site.submit("make_shards", "--tasks", 2, *options)
    site.wait_for_end(merge, what="make_shards-merge")
    assert site.cluster.state(f"{array}_1") == site.cluster.state(f"{array}_2") == "COMPLETED"
    assert "part 2 of 2 is finished" in site.log(f"{array}_2", "make_shards")
    assert "4 of 4 shards are finished already" in site.log(merge, "make_shards-merge")
    assert "64 samples in 4 shards" in site.log(merge, "make_shards-merge")
