"""Slow proofs on a real Slurm, with data and checkpoints on a real S3 server: every event that ends a job, on one run."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.support.checkout import ROOT
from tests.support.s3_server import S3Server
from tests.support.slurm_site import MARKS, Site, open_site

pytestmark = [*MARKS, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def site(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("slurm"), s3.environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def shards(site: Site, s3: S3Server) -> str:
    """Shards in object storage, made there by a job array."""
    url = s3.url("shards")
    _, merge = site.submit("make_shards", "--tasks", 2, "idx", site.folder / "idx", url, "--samples-per-shard", 20)
    site.wait_for_end(merge, what="make_shards-merge")
    return url


class Story:
    """One job, and the figures of everything that happens to it."""

    def __init__(self, site: Site, job: str) -> None:
        self.site, self.job, self.figures = site, job, ""
        self.ends = self.starts = 0

    def settle(self) -> None:
        """Until the training is at work, some iterations after the last start, whatever has happened meanwhile."""

        def at_work() -> bool:
            log = self.site.log(self.job)
            return (
                log.rfind(": START: ") > log.rfind(": ENDED with")
                and log.count("\niteration ", log.rfind(": START: ")) > 3
            )

        self.site.wait(self.job, "the training is at work", at_work)
        self.ends, self.starts = self._counts()

    def _counts(self) -> tuple[int, int]:
        log = self.site.log(self.job)
        return log.count(": ENDED with status"), log.count(": START: ")

    def over(self) -> bool:
        """Whether the start that settle() saw has ended: the batch script says so, if Slurm has let it live so long."""
        ends, starts = self._counts()
        return ends > self.ends or starts > self.starts

    def event(self, name: str, asked: float) -> None:
        """The processes end, and the training is at work again. `asked`: when it was asked to (time.monotonic)."""
        site, job = self.site, self.job
        site.wait(job, f"the end of a start: {name}", self.over)
        stop, before = time.monotonic() - asked, len(site.iterations(job))
        restart = site.wait_for_iterations(job, 1)
        iterations = site.iterations(job)
        # The first line of the next start is of the iteration after the one that it went on from.
        lost = max(iterations[:before]) - (iterations[before] - 1)
        self.figures += f"{name}: stop={stop:.1f}s restart={restart:.1f}s lost={lost}_iterations; "


def training_process(site: Site, job: str, rank: int) -> int:
    """The process id of one rank of a job."""
    wanted = {f"SLURM_CONF={site.environment['SLURM_CONF']}", f"SLURM_JOB_ID={job}", f"RANK={rank}"}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                variables = set((entry / "environ").read_text().split("\0"))
                if wanted <= variables and "trainer/main.py" in (entry / "cmdline").read_text():
                    return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


def test_proof_every_event_on_one_run(
    site: Site, s3: S3Server, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preempted, at its time limit, a process killed, requeued by hand: the run ends by itself, with the undisturbed bits.

    How fast it trains depends on the machine, so it is given its last iteration only when everything has happened: in
    its YAML, which every start reads anew.
    """
    cluster = site.cluster
    experiment = site.folder / "story.yaml"

    def write_experiment(iterations: int) -> None:
        tree = yaml.safe_load(site.experiment.read_text())
        tree["run"] |= {"iterations": iterations, "checkpoint_every": 10, "dir": s3.url("story")}
        tree["data"] = {"shards": shards}
        part = experiment.with_suffix(".part")
        part.write_text(yaml.safe_dump(tree))
        part.replace(experiment)

    write_experiment(1_000_000)
    (job,) = site.submit("train", "--nodes", 2, "--time", "00:04:00", experiment, TEST_NOTICE="30")
    story = Story(site, job)

    story.settle()
    site.wait_for_iterations(job, 20)  # a checkpoint or two
    asked = time.monotonic()
    os.kill(training_process(site, job, 1), signal.SIGKILL)
    story.event("process_killed", asked)
    in_place = cluster.job(job)["Restarts"] == "0"

    # The allocation is being used up meanwhile.
    story.settle()
    notices = site.log(job).count("notice of the time limit")
    site.wait(job, "notice", lambda: site.log(job).count("notice of the time limit") > notices, seconds=420)
    story.event("time_limit", time.monotonic())
    assert "REQUEUED by itself" in site.log(job)

    story.settle()
    asked = time.monotonic()
    site.preempt()
    story.event("preemption", asked)

    story.settle()
    asked = time.monotonic()
    cluster.run("scontrol", "requeue", job)
    site.wait(job, "the end of the start", story.over)
    end = max(site.iterations(job)) + 100
    write_experiment(end)
    story.event("requeued_by_hand", asked)
    site.wait_for_end(job, seconds=600)
    assert f"COMPLETE: {s3.url('story')} at iteration {end}" in site.log(job)
    restarts = cluster.job(job)["Restarts"]

    (calm,) = site.submit("train", "--nodes", 2, experiment, "--run.dir", s3.url("calm"))
    site.wait_for_end(calm, seconds=600)
    assert cluster.job(calm)["Restarts"] == "0"
    equal = site.hash(s3.url("story")) == site.hash(s3.url("calm"))
    with capsys.disabled():
        print(
            f"\nPROOF slurm-story: {'PASS' if equal else 'FAIL'} {story.figures}iterations={end} requeues={restarts} "
            f"killed_process_restarted_in_place={in_place} hash_equal_undisturbed={equal}"
        )
    assert equal


def test_proof_scancel_stays_cancelled(
    site: Site, s3: S3Server, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--run.dir", s3.url("cancelled"), "--data.shards", shards, "--run.iterations", 100_000]
    (job,) = site.submit("train", "--nodes", 2, site.experiment, *settings)
    site.wait_for_iterations(job, 3)
    asked = time.monotonic()
    site.cluster.run("scancel", job)
    site.wait_for_end(job, "CANCELLED")
    seconds = time.monotonic() - asked
    # Longer than a requeued job has to wait. A later job gets the nodes, so they are free, and the scheduler at work.
    other = site.cluster.run("sbatch", "--parsable", "-N2", "--begin=now+20", "-o/dev/null", "--wrap", "true").strip()
    site.wait_for_end(other)
    state, restarts = site.cluster.state(job), site.cluster.job(job)["Restarts"]
    saved = "saved" if "stop requeue" in site.log(job) else "not_saved"
    passed = (state, restarts) == ("CANCELLED", "0")
    with capsys.disabled():
        print(f"\nPROOF slurm-scancel: {'PASS' if passed else 'FAIL'} stop={seconds:.1f}s state={state} {saved}")
    assert passed


def test_proof_node_failure_and_s3_outage(
    site: Site, s3: S3Server, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node loses its power and comes back; then the object storage is away while the run trains on."""
    cluster, run = site.cluster, s3.url("outage")
    settings = ["--run.dir", run, "--data.shards", shards, "--run.iterations", 100_000, "--run.checkpoint_every", 10]
    (job,) = site.submit("train", "--nodes", 2, site.experiment, *settings)
    site.wait_for_iterations(job, 15)
    asked = time.monotonic()
    processes = cluster.kill_node(cluster.nodes[1])
    site.wait(job, "Slurm takes the job back", lambda: cluster.job(job)["Restarts"] == "1")
    noticed = time.monotonic() - asked
    before = len(site.iterations(job))
    cluster.start_node(cluster.nodes[1])
    back = site.wait_for_iterations(job, 1)
    iterations = site.iterations(job)
    lost = max(iterations[:before]) - (iterations[before] - 1)
    assert "GIVING UP" not in site.log(job)

    site.wait_for_iterations(job, 5)
    s3.stop()
    away = time.monotonic()
    trained = len(site.iterations(job))
    site.wait_for_iterations(job, 30)
    trained = len(site.iterations(job)) - trained
    seconds = time.monotonic() - away
    s3.start()
    # A checkpoint of the time after the outage; then a person stops the run, with an object STOP.
    reached = max(site.iterations(job))
    site.cluster.wait_for("a new checkpoint", lambda: newest_commit(site, run) > reached, 240.0, 5.0)
    put = "import sys; from trainer.foundation.stores import Store; Store(sys.argv[1]).put('STOP', b'')"
    site.run("python", "-c", put, run)
    site.wait_for_end(job)
    assert "stopped by a person" in site.log(job)
    with capsys.disabled():
        print(
            f"\nPROOF slurm-node-failure: PASS processes_killed={processes} noticed={noticed:.0f}s back={back:.0f}s "
            f"lost={lost}_iterations"
            f"\nPROOF slurm-s3-outage: PASS away={seconds:.0f}s iterations_meanwhile={trained} restarts=0 "
            f"stop_object=COMPLETED_not_requeued"
        )


def newest_commit(site: Site, run: str) -> int:
    """The iteration of the newest checkpoint."""
    return int(site.run("python", "-m", "trainer.status", site.experiment, "--run.dir", run).split("\t")[1])


def test_proof_finetuning_waits_for_the_base(
    site: Site, s3: S3Server, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Submitted before the base run has its checkpoint; the evaluation of the base follows it to its end."""
    base, tuned = s3.url("base"), s3.url("tuned")
    common = ["--data.shards", shards, "--run.checkpoint_every", 20]
    (waiting,) = site.submit(
        "finetune",
        site.experiment,
        *common,
        "--run.dir",
        tuned,
        "--run.iterations",
        60,
        "--run.initialize_from",
        f"{base}@40",
    )
    site.cluster.wait_for("it waits", lambda: "WAITING" in site.log(waiting, "finetune"))
    site.cluster.wait_for("it is back in the queue", lambda: site.cluster.state(waiting) == "PENDING")
    begun = time.monotonic()
    (training,) = site.submit("train", site.experiment, *common, "--run.dir", base, "--run.iterations", 40)
    (following,) = site.submit("evaluate", base, "--measures", "ms_ssim", "--pairs", 4, "--poll", 2)
    site.wait_for_end(training)
    site.wait_for_end(following, what="evaluate", seconds=600)
    site.wait_for_end(waiting, what="finetune", seconds=600)
    seconds = time.monotonic() - begun
    assert "starting from iteration 40" in site.log(waiting, "finetune")
    assert f"COMPLETE: {tuned} at iteration 60" in site.log(waiting, "finetune")
    measured = sorted({int(n) for n in re.findall(r"iteration (\d+)", site.log(following, "evaluate"))})
    assert 40 in measured, site.log(following, "evaluate")[-3000:]
    with capsys.disabled():
        print(
            f"\nPROOF slurm-finetune: PASS waited_for_iteration=40 finished_at=60 seconds={seconds:.0f} "
            f"requeues={site.cluster.job(waiting)['Restarts']} evaluated_checkpoints={measured}"
        )


def test_proof_class_splits(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Three splits of Fashion-MNIST's ten classes as a job array, measured, in one table."""
    shards = "data/fashion32/train/manifest.json"
    if not (ROOT / shards).exists():
        site.run("make", shards)
    study = site.folder / "splits"
    small = ["--generator.channels", 8, "--discriminator.channels", 8, "--run.sample_every", 0]
    array, table = site.submit(
        *("class_splits", "--parts", 3),
        *("--evaluate", "--measures ms_ssim --pairs 10"),
        *("configs/fashion32_acgan.yaml", "--run.dir", study, "--run.iterations", 60, *small),
    )
    begun = time.monotonic()
    site.wait_for_end(table, what="class_splits-table", seconds=1500)
    seconds = time.monotonic() - begun
    logs = "".join(site.log(f"{array}_{part}", "class_splits")[-1500:] for part in (1, 2, 3))
    text = (study / "splits.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0][:3] == ["split", "classes", "iteration"]
    assert "ms_ssim" in rows[0], logs
    assert [len(row[1].split(", ")) for row in rows[2:5]] == [3, 3, 4]
    assert [row[2] for row in rows[2:5]] == ["60"] * 3, logs
    assert all(cell not in ("", "-") for row in rows[2:] for cell in row), text
    with capsys.disabled():
        print(
            f"\nPROOF slurm-class-splits: PASS splits=3 classes=3+3+4 seconds={seconds:.0f} summary={' | '.join(rows[5])}"
        )
        print(text)
