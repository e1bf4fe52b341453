"""The files of cluster/ and the Dockerfile: linted, valid, and their decisions after every kind of end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.support.lying_data import fill

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch"), *CLUSTER.glob("sites/*.env")])


def test_shellcheck() -> None:
    assert len(SCRIPTS) > 10
    command = [str(BIN / "shellcheck"), "--external-sources", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint() -> None:
    done = subprocess.run([str(BIN / "hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_batch_script_survives_preemption() -> None:
    """What Slurm needs to know before a job starts stands in the script itself, also for those who use bare sbatch."""
    for script in CLUSTER.glob("*.sbatch"):
        text = script.read_text()
        assert "#SBATCH --requeue" in text, script.name
        if script.name != "table.sbatch":
            assert "#SBATCH --signal=B:USR1@" in text, script.name
            assert "#SBATCH --open-mode=append" in text, script.name


def test_kubernetes_job_fits_its_schema() -> None:
    documents = list(yaml.safe_load_all((CLUSTER / "kubernetes" / "train.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, desired_version="1.31", strict=True)
    job = documents[1]["spec"]
    container = job["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert str(job["completions"]) == str(job["parallelism"]) == environment["MACHINES"]
    assert (ROOT / container["args"][1]).exists()
    job["template"]["spec"]["containers"][0]["imagge"] = "typo"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[1], desired_version="1.31", strict=True)


def test_dockerfile_copies_what_dockerignore_lets_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    for source in [source for copy in copies for source in copy]:
        assert source.split("/")[0] in allowed
        assert (ROOT / source).exists()


HARNESS = """
set -u
progress=$FOLDER/progress
source cluster/supervise.sh
SITE_RUN=("$FOLDER/status")
trap 'stop_wanted="notice"' USR1
trap 'being_ended=yes' TERM
start_processes() { exec "$FOLDER/processes"; }
forward_stop() { echo "forwarded"; kill -TERM "$1"; }
hand_over() { echo "handed over with $1"; return 75; }
supervise CONFIG --some.setting value
echo "supervise returned $?"
"""


class Supervised:
    """supervise.sh round made-up processes. `lives`: for each start, a bash script, and the status line that follows it."""

    def __init__(self, folder: Path, lives: list[tuple[str, str]], **environment: str) -> None:
        self.folder = folder
        (folder / "lives.json").write_text(json.dumps(lives))
        (folder / "line").write_text("run\t0\tnone\tready\n")
        for number, (script, line) in enumerate(lives, 1):
            (folder / f"life-{number}").write_text(script)
            (folder / f"line-{number}").write_text(line.replace(" ", "\t") + "\n")
        (folder / "count").write_text("0")
        self._script("status", f"cat {folder}/line")
        self._script(
            "processes",
            f"""read -r n < {folder}/count; n=$((n + 1)); echo $n > {folder}/count
            cp {folder}/line-$n {folder}/line
            exec bash {folder}/life-$n""",
        )
        self.environment = {**os.environ, "FOLDER": str(folder), "SITE_PAUSE": "0", **environment}

    def _script(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (self.folder / name).chmod(0o755)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", HARNESS],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> str:
        return self.start().communicate(timeout=60)[0]

    @property
    def starts(self) -> int:
        return int((self.folder / "count").read_text())


@pytest.mark.parametrize(
    ("script", "line", "message", "status"),
    [
        ("exit 0", "run 30 none ready", "COMPLETE: run at iteration 30", 0),
        ("exit 1", "run 20 person ready", "stopped by a person", 0),
        ("exit 0", "run 20 person ready", "stopped by a person", 0),
        ("exit 1", "run 20 requeue ready", "handed over with 1", 75),
        ("exit 0", "run 20 requeue ready", "handed over with 0", 75),
        ('echo "run.dir: wrong" > "$MENAGERIE_REFUSAL"; exit 1', "run 0 none ready", "REFUSED: run.dir: wrong", 2),
    ],
)
def test_one_start_is_enough(tmp_path: Path, script: str, line: str, message: str, status: int) -> None:
    supervised = Supervised(tmp_path, [(script, line)])
    output = supervised.run()
    assert message in output
    assert f"supervise returned {status}\n" in output
    assert supervised.starts == 1


def test_failures_are_started_again_and_progress_counts(tmp_path: Path) -> None:
    lives = [("exit 1", f"run {10 * (n // 3)} none ready") for n in range(9)] + [("exit 0", "run 30 none ready")]
    supervised = Supervised(tmp_path, lives, SITE_RESTARTS="3")
    assert "COMPLETE: run at iteration 30" in supervised.run()
    assert supervised.starts == 10
    assert not (tmp_path / "progress").exists()


def test_cap_on_starts_without_progress_holds_across_requeues(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, [("exit 1", "run 10 none ready")] * 9, SITE_RESTARTS="2")
    output = supervised.run()
    assert "GIVING UP: 3 starts in a row" in output
    assert "supervise returned 1\n" in output
    assert supervised.starts == 4  # the first brought iteration 10
    # Slurm starts the script anew after a requeue; what it counts is in the file. Here one that was just killed, twice.
    (tmp_path / "progress").write_text("10 1\n")
    assert "GIVING UP: 3 starts in a row" in supervised.run()
    assert supervised.starts == 5


def test_notice_is_forwarded_and_handed_over_with_and_without_marker(tmp_path: Path) -> None:
    waiting = f"trap 'exit 1' TERM; touch {tmp_path}/up; for ((i = 0; i < 600; i++)); do sleep 0.05; done"
    for line in ("run 20 requeue ready", "run 0 none ready"):
        supervised = Supervised(tmp_path, [(waiting, line)])
        process = supervised.start()
        deadline = time.monotonic() + 30
        while not (tmp_path / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        output = process.communicate(timeout=30)[0]
        assert output.count("forwarded") == 1
        assert "handed over with 1" in output
        assert supervised.starts == 1
        (tmp_path / "up").unlink()


def test_processes_that_end_while_a_signal_comes_keep_their_status(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, [("kill -CONT $PPID; kill -TERM $PPID; exit 3", "run 0 none ready")])
    assert "ENDED with status 3" in supervised.run()


def test_submit_fills_in_the_site_and_shows_it(tmp_path: Path) -> None:
    """The example site, without its environment: the command lines that a user would otherwise write himself."""
    site = tmp_path / "site.env"
    text = (CLUSTER / "sites" / "example.env").read_text().replace("source .venv/bin/activate", ":")
    site.write_text(text.replace("SITE_LOGS=logs", f"SITE_LOGS={tmp_path}/logs"))

    def submit(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["cluster/submit.sh", str(site), *words]
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    config = "configs/fashion32_projection.yaml"
    refused = submit("train", "--nodes", "3", "--processes", "1", "--show", config)
    assert refused.returncode != 0
    assert "batch.replicas: is 2, but the launch started 3 processes" in refused.stderr
    shared = submit("train", "--nodes", "2", "--show", config)
    assert "2 replicas on 8 processes (4 share each replica)" in shared.stdout
    shown = submit("train", "--nodes", "2", "--processes", "1", "--show", config, "--run.seed", "7")
    assert shown.returncode == 0, shown.stderr
    assert "2 replicas on 2 processes (1 + 1)" in shown.stdout
    line = next(line for line in shown.stdout.splitlines() if line.startswith("sbatch "))
    for word in ("--partition=gpu", "--nodes=2", "--gpus-per-node=1", "--time=04:00:00", "--signal=B:USR1@300"):
        assert word in line
    assert line.split()[-4:] == ["cluster/train.sbatch", config, "--run.seed", "7"]
    assert submit("trian", config).returncode == 2
    assert (
        "cluster/sites/nowhere.env"
        in subprocess.run(
            ["cluster/submit.sh", "nowhere", "train", config], cwd=ROOT, capture_output=True, text=True
        ).stderr
    )
    shards = submit("make_shards", "--tasks", "4", "--show", "folder", "in", "out").stdout.splitlines()
    assert "--array=1-4" in shards[0]
    assert "--dependency=afterok:0" in shards[1]
    wrong = submit("make_shards", "--show", "folder", "in", "out", "--split", "train")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("--split: means nothing to SOURCE folder")
    assert submit("make_shards", "--show", "folder", "in", "out", "--class-names", "names.txt").returncode == 1
    (tmp_path / "names.txt").write_text("a ant\nb bee\n")
    command = [ROOT / "cluster" / "submit.sh", "site.env", "make_shards", "--show", "folder", "in", "out"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run([*command, "--class-names", "names.txt"], cwd=tmp_path, env=environment, check=True)


def test_make_shards_jobs_work_in_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text(
        f"SITE_LOGS={tmp_path}/logs SITE_RUN=() SITE_RESTARTS=1\nsite_setup() {{ :; }}\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    fill(tmp_path / "in")
    variables = {"PATH": f"{tmp_path}/bin:{BIN}:{os.environ['PATH']}", "MENAGERIE_ROOT": str(ROOT), "SLURM_JOB_ID": "1"}
    variables |= {"MENAGERIE_SITE": str(tmp_path / "site.env"), "MENAGERIE_CALLER": str(tmp_path), "SLURM_NNODES": "1"}
    variables |= {"SITE_PROCESSES": "1", "SITE_LAUNCH": "none", "SLURM_JOB_NODELIST": "here"}
    command = ["bash", "cluster/make_shards.sbatch", "folder", "in", "out", "--size", "16"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_requirements_of_the_image(tmp_path: Path) -> None:
    command = [sys.executable, "cluster/requirements.py", "pyproject.toml", "evaluation"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(line.startswith("torch>=") for line in listed)
    assert any(line.startswith("torchvision>=") for line in listed)
    assert not any(line.startswith("pytest") for line in listed)
    assert shutil.which("bash")


@pytest.mark.parametrize(
    ("gpus", "replicas", "machines", "started"),
    [(8, 4, 1, 8), (6, 4, 1, 4), (2, 4, 1, 2), (8, 4, 2, 8), (3, 4, 3, 1), (0, 4, 1, 2)],
)
def test_local_starts_as_many_processes_as_can_have_the_replicas(
    tmp_path: Path, gpus: int, replicas: int, machines: int, started: int
) -> None:
    """At most as many as replicas, or a multiple: any others would be refused, and then started again for nothing."""
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    scripts = {
        "nvidia-smi": f"for i in $(seq {gpus}); do echo GPU $i: A card; done",
        "python": f"if [ $1 = -c ]; then echo {replicas}; else printf 'run\\t0\\tnone\\tready\\n'; fi",
        "accelerate": 'echo "$@" >> started; exit 0',
    }
    (tmp_path / "bin").mkdir()
    for name, body in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    across = {"MACHINES": str(machines), "MACHINE_RANK": "0", "MAIN_ADDRESS": "a", "MAIN_PORT": "1"}
    environment = {**os.environ, **across, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["cluster/local.sh", "c.yaml"], cwd=tmp_path, env=environment, check=True, timeout=60)
    words = (tmp_path / "started").read_text()
    assert f"--num_processes {machines * started} " in words
    assert ("ddp.yaml" in words) == (gpus > 0)
