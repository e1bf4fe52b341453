"""The training step beside its plain form and beside torch-mimicry, in CPU time of one thread.

`make bench-train`. One process; all parties in every round, in a new random order; ratios within each round, then their
median and range. The networks are the 128 px projection ResNets at full width (configs/imagenet128_projection.yaml), the
batches random. A round of a party is one generator step and `--steps` discriminator steps; an iteration is the
configuration's: t(generator step) + 5 t(discriminator step).

torch-mimicry's networks and training steps run as they are (its own spectral norm, losses and log, Adam as in its
examples), from a folder of its own. Only its metrics and data sets are left out: they want TensorFlow and a PyTorch of
2019. Where it differs: it upsamples bilinearly, does not freeze D in G's step, and its default D is 128 wide (1024 here).
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parents[1]

import torch  # noqa: E402

from trainer.config import Config, load_config  # noqa: E402
from trainer.costs.counted import count  # noqa: E402
from trainer.costs.timed import Step, timed_iterations  # noqa: E402
from trainer.methods.protocol import Turn  # noqa: E402
from trainer.processes.launch import keep_freed_memory, read_launch  # noqa: E402
from trainer.speed.settings import PLAIN, SpeedConfig  # noqa: E402

MIMICRY = "torch-mimicry==0.1.16"
TIMES = {"generator": 1, "discriminator": 5}
"""Turns of an iteration."""
RATIOS = {  # what is printed: (ours, theirs)
    "plain fp32": ("fast fp32", "plain fp32"),
    "plain bf16": ("fast bf16", "plain fp32"),
    "plain-bf16 bf16": ("fast bf16", "plain bf16"),
    "mimicry fp32": ("fast fp32", "mimicry"),
    "mimicry bf16": ("fast bf16", "mimicry"),
}


Party = Callable[[Sequence[Turn]], Step]
"""Takes these turns of the two players."""


def ours(config: Config, speed: SpeedConfig, precision: str) -> Party:
    """Our networks under `speed`, with the loop's own function of an iteration."""
    launch = replace(read_launch(), precision=precision)
    torch.manual_seed(0)
    return timed_iterations(replace(config, speed=speed), launch, time.process_time)


def mimicry(config: Config, folder: Path) -> Party:
    """torch-mimicry's cGAN-PD at 128 px, full width, with its own training steps."""
    if not (folder / "torch_mimicry").is_dir():
        uv = [sys.executable, "-m", "uv"] if _has_uv() else ["uv"]
        command = [*uv, "pip", "install", "--quiet", "--no-deps", "--target", str(folder), MIMICRY]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    for name in ("metrics", "datasets"):
        sys.modules[f"torch_mimicry.{name}"] = ModuleType(f"torch_mimicry.{name}")
    from torch_mimicry.nets.cgan_pd import cgan_pd_128  # type: ignore[import-not-found]
    from torch_mimicry.training.metric_log import MetricLog  # type: ignore[import-not-found]

    torch.manual_seed(0)
    G = cgan_pd_128.CGANPDGenerator128(num_classes=config.model.classes)
    D = cgan_pd_128.CGANPDDiscriminator128(num_classes=config.model.classes, ndf=1024)
    adams = [torch.optim.Adam(network.parameters(), 2e-4, betas=(0.0, 0.9)) for network in (G, D)]
    batch_sizes, side = config.batch, config.model.resolution

    def step(network: Any, n: int, **others: Any) -> None:
        batch = (torch.randn(n, 3, side, side), torch.randint(config.model.classes, (n,)))
        network.train_step(real_batch=batch, log_data=MetricLog(), device=torch.device("cpu"), **others)

    def run(turns: Sequence[Turn]) -> Step:
        steps = sum(turn.player == "discriminator" for turn in turns)
        began = time.process_time()
        step(G, batch_sizes.generated_per_replica, netD=D, optG=adams[0])
        middle = time.process_time()
        for _ in range(steps):
            step(D, batch_sizes.real_per_replica, netG=G, optD=adams[1])
        return Step({"generator": middle - began, "discriminator": (time.process_time() - middle) / steps})

    return run


def _has_uv() -> bool:
    return subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True, check=False).returncode == 0


def convolution_peak(precision: str, batch: int) -> float:
    """Operations per CPU second of the fastest of two 3x3 convolutions, channels last, forward."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for channels, side in ((64, 64), (256, 16)):
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last).to(dtype)
        w = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last).to(dtype)
        for _ in range(4):
            began = time.process_time()
            torch.nn.functional.conv2d(x, w, padding=1)
            seconds = time.process_time() - began
            best = max(best, 2 * 9 * channels**2 * side**2 * batch / seconds)
    return best


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--batch", default="8", help="real and generated images of a step, or own: the experiment's (16, 32)"
    )
    parser.add_argument("--steps", type=int, default=2, help="discriminator steps timed in a round")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv" / "peers" / "mimicry")
    parser.add_argument("--only", default="", help="only parties with this word in their names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    names = ("--batch.real_per_replica", "--batch.generated_per_replica")
    sizes = [] if options.batch == "own" else [word for name in names for word in (name, options.batch)]
    config = load_config(str(ROOT / "configs" / "imagenet128_projection.yaml"), sizes)
    turns = config.objective.build(config.problem()).turns(0)  # the generator's, then the discriminator's
    forms = {"plain": PLAIN, "fast": SpeedConfig()}
    parties: dict[str, Party] = {
        f"{form} {precision}": ours(config, speed, precision)
        for form, speed in forms.items()
        for precision in ("fp32", "bf16")
        if options.only in f"{form} {precision}"
    }
    if options.only in "mimicry":
        parties["mimicry"] = mimicry(config, options.peers)
    operations = {form: count(config, speed, torch.device("cpu")).iteration(TIMES) for form, speed in forms.items()}
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, batch {options.batch}, "
        f"{options.rounds} rounds, load {os.getloadavg()[0]:.1f}; glibc keeps freed memory, for all parties",
        flush=True,
    )
    times: dict[str, list[Step]] = {name: [] for name in parties}
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(options.rounds + 1):
        order = list(parties)
        random.Random(number).shuffle(order)
        for name in order:
            taken = parties[name](turns[: 1 + (options.steps if number else 1)])
            if number:  # round 0 warms up
                times[name].append(taken)
        for precision, found in peaks.items():
            found.append(convolution_peak(precision, config.batch.real_per_replica))
        line = ", ".join(f"{name} {found[-1].iteration(TIMES):.1f}" for name, found in times.items() if found)
        print(f"round {number}: {line or 'warm-up'}", flush=True)

    print("\n| party | iteration, CPU s | generator step | discriminator step | executed TFLOP | share of the peak |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        form, _, precision = name.partition(" ")
        iteration = [t.iteration(TIMES) for t in found]
        row = [spread(iteration), *(spread([t.turns[player] for t in found]) for player in TIMES)]
        if form in operations:
            share = [100 * operations[form] / t / max(peaks[precision]) for t in iteration]
            row += [f"{operations[form] / 1e12:.2f}", f"{spread(share, 0)}%"]
        else:
            row += ["-", "-"]
        print(f"| {name} | {' | '.join(row)} |")
    peak = ", ".join(f"{precision} {max(found) / 1e9:.0f} GFLOP/s" for precision, found in peaks.items())
    print(f"\nconvolution peak (3x3, forward, the best of all rounds): {peak}")
    print(
        f"reference operations (plain form, D frozen in G's step): {operations['plain'] / 1e12:.2f} TFLOP an iteration"
    )
    for what, (mine, theirs) in RATIOS.items():
        if mine in times and theirs in times:
            pairs = zip(times[mine], times[theirs], strict=True)
            ratios = [b.iteration(TIMES) / a.iteration(TIMES) for a, b in pairs]
            print(f"RATIO {what}: {spread(ratios)}")


if __name__ == "__main__":
    main()
