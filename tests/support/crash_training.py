"""Real training processes to be killed and signalled: tiny networks on made-up images, seconds for a run."""

import contextlib
import gzip
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from tests.support.checkout import ROOT
from trainer.checkpoint.commits import CheckpointStore, state_hash

SINGLE = [sys.executable, "trainer/main.py"]
DDP = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", "cluster/launch/cpu.yaml"]
DDP.append("trainer/main.py")
ZERO = [*DDP[:3], "cluster/launch/{}.yaml", "--num_processes", "2", "--mixed_precision", "no", "trainer/main.py"]
LAUNCHES = {"single": SINGLE, "ddp": DDP, **{name: [word.format(name) for word in ZERO] for name in ("zero1", "zero2")}}
EXPERIMENT = """
run: {seed: 3, checkpoint_every: 5, log_every: 1, sample_every: 0, heartbeat_every: 0}
batch: {replicas: 2, real_per_replica: 2, generated_per_replica: 2}
model: {resolution: 32, image_channels: 1, classes: 10, latent_dim: 8}
generator: {name: resnet, channels: 4}
discriminator: {name: resnet, channels: 4, conditioning: {name: projection}}
objective: {name: adversarial}
schedule: {discriminator_steps: 1, stages: [{until: 1000000}]}
ema: {decay: 0.9}
"""
_WAIT_SECONDS = 240.0


def make_shards(folder: Path) -> Path:
    """Shards of 64 grey images of 10 classes, made by the project's own command; beside them experiment.yaml."""
    source, shards = folder / "idx", folder / "shards"
    source.mkdir()
    images = np.random.default_rng(5).integers(0, 256, (64, 28, 28), dtype=np.uint8)
    labels = (np.arange(64) % 10).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (source / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    command = [sys.executable, "-m", "data_pipeline.make_shards", "idx", str(source), str(shards)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    return shards


class Training:
    """One run that is started again and again with the same command. `launch`: a key of LAUNCHES."""

    def __init__(
        self,
        launch: str,
        url: str,
        shards: Path,
        environment: Mapping[str, str],
        iterations: int,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        given = {"run.dir": url, "data.shards": shards, "run.iterations": iterations, **(settings or {})}
        overrides = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        self.url = url
        self.command = [*LAUNCHES[launch], str(shards.parent / "experiment.yaml"), *overrides]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")},
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        }

    def start(self) -> "Life":
        """Start the processes."""
        return Life(self.command, self.environment)

    def complete(self) -> "Life":
        """Start the processes and wait until they end."""
        life = self.start()
        life.wait()
        return life

    def checkpoints(self, verb: str, *arguments: str) -> str:
        """What `python -m trainer.checkpoint VERB` prints."""
        command = [sys.executable, "-m", "trainer.checkpoint", verb, self.url, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def hash(self) -> str:
        """The state's hash of the newest checkpoint, with its iteration."""
        if "://" in self.url:
            return self.checkpoints("hash")
        restored = CheckpointStore(self.url).restore()
        assert restored is not None
        return f"{restored.commit.iteration} {state_hash(restored.tensors)}"

    def get(self, name: str) -> dict[str, object] | None:
        """A JSON file in the run's folder, None if it is not there."""
        if "://" not in self.url:
            path = Path(self.url, name)
            return json.loads(path.read_text() or "{}") if path.exists() else None
        text = self._store("get", name)
        return json.loads(text) if text is not None else None

    def put(self, name: str) -> None:
        """Put an empty file into the run's folder, as `touch` does."""
        assert self._store("put", name) is not None

    def _store(self, what: str, name: str) -> str | None:
        program = """if True:
            import sys
            from trainer.foundation.stores import Store
            store, what, name = Store(sys.argv[1]), *sys.argv[2:]
            sys.stdout.write(store.get(name).decode() if what == "get" else str(store.put(name, b"")))
        """
        command = [sys.executable, "-c", program, self.url, what, name]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "FileNotFoundError" in done.stderr, done.stderr
        return done.stdout if done.returncode == 0 else None


def hear_signals() -> None:
    """A process begins as at a terminal, whatever started the tests: under `nohup` and in the background some are ignored."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Life:
    """The processes of one start, from the launcher down; in a session of their own."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_signals,
        )
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def iterations(self) -> list[int]:
        """Iterations whose status line has been printed."""
        return [
            int(line.split("/")[0].removeprefix("iteration ").replace(",", ""))
            for line in list(self.lines)
            if line.startswith("iteration ") and "/" in line
        ]

    def wait_for(self, condition: Callable[["Life"], bool]) -> bool:
        """Wait until the output fulfils a condition; False if the processes ended before."""
        deadline = time.monotonic() + _WAIT_SECONDS
        with self._heard:
            while not condition(self):
                assert time.monotonic() < deadline, self.output[-3000:]
                if self._ended:
                    return False
                self._heard.wait(1.0)
        return True

    def wait(self) -> int:
        """Wait for the end; the launcher's exit status."""
        try:
            status = self.process.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("did not end: " + self.output[-3000:]) from None
        self._reader.join(10)
        return status

    def ranks(self) -> list[int]:
        """Process ids of the training processes, by rank; the process itself where there is no launcher."""
        found: dict[int, int] = {}
        for pid in _descendants(self.process.pid):
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                rank = [entry[5:] for entry in environment if entry.startswith(b"RANK=")]
                if rank and b"main.py" in command and b"accelerate" not in command:
                    found.setdefault(int(rank[0]), pid)
        return [found[rank] for rank in sorted(found)] or [self.process.pid]

    def kill(self) -> None:
        """SIGKILL to every process of this start, the launcher first, as when a machine is taken away."""
        pids = [self.process.pid, *_descendants(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                self.lines.append(line)
                self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [root]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def kill_and_resume(training: Training, kills: int, seed: int, furthest: int) -> dict[str, object]:
    """Kill a run `kills` times, each time after a random number (up to `furthest`) of new iterations and at a random moment
    inside one; then let it end. Returns figures."""
    chance = random.Random(seed)
    resumed, killed = [], 0
    begun = time.monotonic()
    for number in range(kills):
        with training.start() as life:
            wanted = chance.randint(1, furthest)
            assert life.wait_for(partial(_has_done, wanted)), life.output[-3000:]
            time.sleep(chance.uniform(0.0, 0.05))
            assert life.process.poll() is None, "the run was over before it was killed: " + life.output[-2000:]
            ranks = life.ranks()
            if len(ranks) > 1 and number % 2:
                os.kill(ranks[chance.randrange(len(ranks))], signal.SIGKILL)  # one rank; the launcher ends the others
                assert life.wait() != 0
            life.kill()
            killed += 1
            resumed.append(_start_of(life))
    life = training.complete()
    assert life.process.returncode == 0, life.output[-3000:]
    resumed.append(_start_of(life))
    return {"kills": killed, "resumed_at": resumed, "seconds": round(time.monotonic() - begun, 1)}


def _has_done(wanted: int, life: Life) -> bool:
    return len(life.iterations()) >= wanted


def _start_of(life: Life) -> int:
    (opening,) = [line for line in life.lines if "resumes at iteration" in line or "starts at iteration 0" in line]
    return int(opening.partition("iteration ")[2].split(" ")[0].rstrip(";").replace(",", ""))
