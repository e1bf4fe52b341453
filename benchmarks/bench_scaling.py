"""Weak scaling from one process to two on this machine: twice the replicas, twice the processes, in wall time.

Part of `make bench-train`. The 128 px projection networks at full width, bf16 where the CPU multiplies it, fast form, one
replica and one thread a process, gloo. Three ways in every round, in random order: one process alone; two without any
reduction; two as in training (DDP, reductions overlapped with the backward pass). So what two processes lose by sharing
the machine's memory is told apart from what the reductions cost.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]

WAYS = {"alone": 1, "without reduction": 2, "as in training": 2}


def work(way: str, batch: str, steps: int, repeats: int) -> None:
    """In each process: print the seconds of every repetition but the first."""
    import torch
    import torch.distributed as dist

    from trainer.config import load_config
    from trainer.costs.counted import turns_of
    from trainer.costs.timed import timed_iterations
    from trainer.processes.launch import read_launch, start_processes, stop_processes

    torch.set_num_threads(1)
    names = ("--batch.real_per_replica", "--batch.generated_per_replica")
    sizes = [] if batch == "own" else [word for name in names for word in (name, batch)]
    config = load_config(str(ROOT / "configs" / "imagenet128_projection.yaml"), sizes)
    launch = read_launch()
    start_processes(launch)
    training = launch if way == "as in training" else replace(launch, rank=0, world_size=1, strategy="single")
    torch.manual_seed(0)

    def now() -> float:
        if launch.world_size > 1:
            dist.barrier()  # both have come so far
        return time.monotonic()

    run = timed_iterations(config, training, now)
    turns = config.objective.build(config.problem()).turns(0)  # the generator's, then the discriminator's
    for number in range(repeats + 1):
        step = run(turns[: 1 + steps])
        if number and launch.is_main:
            print(f"SECONDS {step.iteration(turns_of(config))}", flush=True)
    stop_processes()


def measure(way: str, batch: str, steps: int, repeats: int, precision: str) -> float:
    """Seconds of the fastest repetition of one start."""
    processes = WAYS[way]
    arguments = ["--way", way, "--batch", batch, "--steps", str(steps), "--repeats", str(repeats)]
    port = str(_free_port())
    running = []
    for rank in range(processes):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "ACCELERATE_MIXED_PRECISION": precision,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, "-m", "benchmarks.bench_scaling", *arguments]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    try:
        outputs = [process.communicate()[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process in running:
        if process.returncode:
            raise SystemExit(f"{way}: a process ended with status {process.returncode}")
    return min(float(line.split()[1]) for line in outputs[0].splitlines() if line.startswith("SECONDS"))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="iterations of one start; the fastest counts")
    parser.add_argument(
        "--batch", default="own", help="images of a step, or own: the experiment's (16 real, 32 generated)"
    )
    parser.add_argument("--steps", type=int, default=2, help="discriminator steps of an iteration")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options.way, options.batch, options.steps, options.repeats)
        return
    cpuinfo = Path("/proc/cpuinfo")
    precision = "bf16" if cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text() else "no"
    print(
        f"{os.cpu_count()} cores, {precision}, batch {options.batch} a process, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        order = list(WAYS)
        random.Random(number).shuffle(order)
        for way in order:
            found[way].append(measure(way, options.batch, options.steps, options.repeats, precision))
        print(
            f"round {number + 1}: " + ", ".join(f"{way} {seconds[-1]:.2f} s" for way, seconds in found.items()),
            flush=True,
        )
    alone, apart, training = (found[way] for way in WAYS)
    efficiency = [a / t for a, t in zip(alone, training, strict=True)]
    reductions = [1 - a / t for a, t in zip(apart, training, strict=True)]
    print(
        f"share of the time that reductions add: {median(reductions):.1%} [{min(reductions):.1%}..{max(reductions):.1%}]"
    )
    name = "bf16" if precision == "bf16" else "fp32"
    print(f"RATIO scaling {name}: {median(efficiency):.2f} [{min(efficiency):.2f}..{max(efficiency):.2f}]")


if __name__ == "__main__":
    main()
