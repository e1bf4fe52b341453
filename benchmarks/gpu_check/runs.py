"""Part b: the program's own commands, the loader, and what a training learns."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gpu_check.runner import ROOT, Check
from data_pipeline.reading.stream import DataConfig, open_stream

DEMO = "configs/fashion32_projection.yaml"
NARROW = ("--generator.channels", "4", "--discriminator.channels", "4", "--batch.real_per_replica", "4")


def runs(check: Check) -> None:
    """A training, straight and killed in the middle; a second process for one card, which must be refused in a line."""
    iterations, every = (12, 2) if check.small else (200, 40)
    with tempfile.TemporaryDirectory() as folder:
        shards = _shards(check, Path(folder), 32, 1, 200)
        for precision in ("bf16",) if check.device.type == "cpu" else ("bf16", "fp16"):
            hashes = []
            for killed in (False, True):
                run = Path(folder) / f"{precision}-{'killed' if killed else 'straight'}"
                words = ["trainer/main.py", DEMO, "--run.dir", str(run), "--data.shards", str(shards)]
                words += ["--run.iterations", str(iterations), "--run.checkpoint_every", str(every)]
                words += ["--run.sample_every", "0", *(NARROW if check.small else ())]
                if killed:
                    _kill_in_the_middle(check, words, run, precision, iterations // 2)
                _python(check, words, ACCELERATE_MIXED_PRECISION=precision)
                hashes.append(_python(check, ["-m", "trainer.checkpoint", "hash", str(run)]).strip())
            check.judge(
                f"killed and resumed {precision}", hashes[0] == hashes[1] != "", f"{hashes[0][:12]} {hashes[1][:12]}"
            )
    if check.device.type == "cuda":
        beyond = {"RANK": "1", "LOCAL_RANK": "63", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        command = [sys.executable, "trainer/main.py", DEMO]
        done = subprocess.run(command, cwd=ROOT, env=_environment(check, beyond), capture_output=True, text=True)
        lines = done.stderr.strip().splitlines()
        refused = done.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: num_processes")
        check.judge("a process without a card", refused, (lines or ["nothing said"])[-1][:120])


def loader(check: Check) -> None:
    """Images a second of 128 px JPEG shards, with more and more threads."""
    with tempfile.TemporaryDirectory() as folder:
        shards = _shards(check, Path(folder), 128, 3, 40 if check.small else 2000)
        found = []
        for threads in (1, 2) if check.small else (1, 2, 4, 8, 16):
            settings = DataConfig(shards=str(shards), decode_threads=threads, prefetch_batches=8)
            with open_stream(settings, seed=0, replicas=1, held=[0], sizes=repeat(16)) as stream:
                for _ in range(4):
                    next(stream)
                began, read = time.perf_counter(), 0
                while time.perf_counter() - began < (0.2 if check.small else 2):
                    read += len(next(stream).images[0])
                found.append((threads, read / (time.perf_counter() - began)))
    check.say("loader", "FIGURE", ", ".join(f"{threads} threads {rate:,.0f} images/s" for threads, rate in found))


def quality(check: Check) -> None:
    """The demo in bf16, one process: does it learn on this card what it learns on a CPU?"""
    train, judge = check.data / "train", check.data / "classifier.safetensors"
    if not check.small and not (train / "manifest.json").exists():
        check.say("quality", "FAIL", f"{train} is not there; make it with `make demo` (or carry it here) and give DATA")
        return
    with tempfile.TemporaryDirectory() as folder:
        shards = train if not check.small else _shards(check, Path(folder), 32, 1, 100)
        run, iterations = Path(folder) / "demo", 4 if check.small else 2000
        words = ["trainer/main.py", DEMO, "--run.dir", str(run), "--data.shards", str(shards)]
        words += [*NARROW, "--run.iterations", "4"] if check.small else ["--run.checkpoint_every", "2000"]
        began = time.perf_counter()
        _python(check, words, ACCELERATE_MIXED_PRECISION="bf16")
        took = time.perf_counter() - began
        if check.small:
            check.say("quality", "FIGURE", f"{iterations} iterations in {took:.0f} s; the small form judges nothing")
            return
        words = ["-m", "trainer.evaluate", str(run), "--classifier", str(judge), "--real", str(check.data / "test")]
        printed = _python(check, words)
        check.detail(printed)
        share = re.search(r"^ *mean +([\d.]+)%", printed, re.M)
        accuracy = float(share.group(1)) if share else 0.0
        check.judge("quality", accuracy >= 75, f"class accuracy {accuracy:.1f}% after 2,000 iterations in {took:.0f} s")


def _kill_in_the_middle(check: Check, words: Sequence[str], run: Path, precision: str, iteration: int) -> None:
    """SIGKILL once a checkpoint of `iteration` or a later one is there, and before the run is complete, if it can be."""
    given = _environment(check, {"ACCELERATE_MIXED_PRECISION": precision})
    with (check.out / "runs.log").open("a") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=given, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                names = [path.parent.name for path in run.glob("checkpoints/*/manifest.json")]
                if any(int(name.split("-")[1]) >= iteration for name in names):
                    break
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


def _shards(check: Check, folder: Path, side: int, channels: int, images: int) -> Path:
    """Shards of noise round a level of each of 10 classes."""
    random, pictures = np.random.default_rng(side), folder / f"pictures{side}"
    for number in range(images):
        place = pictures / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (40 + 18 * (number % 10) + random.normal(0, 25, (side, side, channels))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(place / f"{number:05}.png")
    out, grey = folder / f"shards{side}", ["--grey"] if channels == 1 else []
    words = ["-m", "data_pipeline.make_shards", "folder", str(pictures), str(out), "--size", str(side)]
    _python(
        check,
        [*words, "--encoding", "png" if side == 32 else "jpeg", "--samples-per-shard", "100", "--jobs", "1", *grey],
    )
    return out


def _python(check: Check, words: Sequence[str], **environment: str) -> str:
    """Run one of the program's commands to its end; what it prints. Raises RuntimeError with its last line."""
    given = _environment(check, environment)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=given, capture_output=True, text=True)
    with (check.out / "runs.log").open("a") as log:
        log.write(f"{' '.join(words)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        lines = (done.stderr or done.stdout or "nothing said").strip().splitlines()
        raise RuntimeError(f"{' '.join(words[:3])} ended with {done.returncode}: {lines[-1]}")
    return done.stdout


def _environment(check: Check, more: dict[str, str]) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {"ACCELERATE_USE_CPU": "true"} if check.device.type == "cpu" else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **hidden, **more}
