"""`python -m trainer.plan CONFIG --processes N --device NAME|measured [--section.key value ...]`: what a run will cost.

Operations and memory are counted from the networks; the time of one iteration is measured here, or derived from stated
peak figures and an assumed efficiency. Every assumption is printed. Nothing of the GPU figures was measured by us.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch

from trainer.config import Config, load_config
from trainer.costs.counted import Cost, count, turns_of
from trainer.costs.timed import Step, measured_turns, timed_iterations
from trainer.foundation.arithmetic import Arithmetic, set_arithmetic
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.options import number, whole
from trainer.processes.launch import Launch, Precision, keep_freed_memory, read_launch
from trainer.speed.settings import SpeedConfig
from trainer.training.sharing import uneven_cut

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DAY = 86_400.0


@dataclass(frozen=True)
class Device:
    """Stated peak figures of one accelerator: dense, without sparsity."""

    fp32: float
    """Operations a second outside tensor cores."""
    bf16: float
    """Operations a second of tensor cores, bfloat16 (V100: float16)."""
    memory: float
    """Bytes."""
    link: float
    """Bytes a second that one device sends to its neighbours in the machine."""


DEVICES = {  # the makers' data sheets
    "v100": Device(fp32=15.7e12, bf16=125e12, memory=32e9, link=150e9),
    "a100": Device(fp32=19.5e12, bf16=312e12, memory=80e9, link=300e9),
    "h100": Device(fp32=67e12, bf16=989e12, memory=80e9, link=450e9),
    "h200": Device(fp32=67e12, bf16=989e12, memory=141e9, link=450e9),
}


@dataclass(frozen=True)
class Assumptions:
    """What is neither counted nor measured."""

    efficiency: float = 0.35
    """Share of the stated peak that the step sustains."""
    devices_per_node: int = 8
    network: float = 25e9
    """Bytes a second that one device sends to another machine (one 200 Gbit/s port for each device)."""
    latency: float = 20e-6
    """Seconds of one message."""
    bucket: float = 25e6
    """Bytes of gradients that DDP sends together."""
    overlap: float = 0.8
    """Share of a player's backward pass behind which its reduction can hide."""
    image: float = 10e3
    """Bytes of one JPEG of 128 px; by area at other resolutions."""
    decoded: float = 5000.0
    """Images of 128 px that one core decodes and hands over in a second (docs/results.md, "The loader")."""


def reduction_seconds(parameters: int, processes: int, bandwidth: tuple[float, float], given: Assumptions) -> float:
    """A ring reduction of fp32 gradients: 2 (n - 1) / n of the bytes through the slowest link, and 2 (n - 1) messages for
    each bucket, of which several are under way at once inside a ring (so the latency counts once for each bucket and
    for one way round)."""
    if processes == 1:
        return 0.0
    size = 4.0 * parameters
    buckets = math.ceil(size / given.bucket)
    inside, outside = bandwidth
    slowest = inside if processes <= given.devices_per_node else min(inside, outside)
    return 2 * (processes - 1) / processes * size / slowest + given.latency * (2 * (processes - 1) + buckets - 1)


@dataclass(frozen=True)
class Row:
    """One launch."""

    processes: int
    held: float
    """Replicas of a process; below 1: its part of one."""
    seconds: float
    waiting: float
    """Share of the iteration in reductions that no computation hides."""
    images: float
    """Real images a second."""


def held_replicas(replicas: int, processes: int) -> float:
    """The most replicas that one of the processes holds; below 1 its part of a shared one."""
    return math.ceil(replicas / processes) if processes <= replicas else 1 / (processes // replicas)


def _refused(config: Config, processes: int) -> str | None:
    """Why so many processes cannot have this experiment, if they cannot."""
    replicas = config.batch.replicas
    if processes <= replicas:
        return None
    if processes % replicas:
        return f"{processes} processes cannot share {replicas} replicas evenly"
    return uneven_cut(config.objective.build(config.problem()), processes // replicas)


def row(config: Config, cost: Cost, step: Step, processes: int, link: float, given: Assumptions) -> Row:
    """One iteration on so many processes; above `batch.replicas` each computes an equal part of a replica."""
    replicas = config.batch.replicas
    held = held_replicas(replicas, processes)
    compute = waiting = 0.0
    for player, times in turns_of(config).items():
        parameters, own = cost.parameters[player], held * step.turns[player]
        hidden = given.overlap * own * 2 / 3  # the backward pass is two thirds of the operations
        reduction = reduction_seconds(parameters, processes, (link, given.network), given)
        compute += times * own
        waiting += times * max(0.0, reduction - hidden)
    total = compute + waiting
    return Row(processes, held, total, waiting / total, replicas * _samples_read(config) / total)


def _samples_read(config: Config) -> int:
    """Real samples of one replica in the first iteration."""
    return sum(sum(turn.reads.values()) for turn in config.objective.build(config.problem()).turns(0))


def measured_step(config: Config, launch: Launch) -> Step:
    """Seconds of each player's turn of one replica on this machine: the second of two iterations on random data."""
    if launch.device.type == "cpu":
        keep_freed_memory()
    set_arithmetic(Arithmetic(config.run.tf32, config.run.deterministic, config.speed.cudnn_benchmark))

    def now() -> float:
        if launch.device.type == "cuda":
            torch.cuda.synchronize(launch.device)
        return time.monotonic()

    run, turns = timed_iterations(config, launch, now), measured_turns(config)
    run(turns)
    return run(turns)


def derived_step(cost: Cost, device: Device, precision: Precision, given: Assumptions) -> Step:
    """Seconds of each player's turn of one replica at the assumed share of the stated peak."""
    rate = given.efficiency * (device.fp32 if precision == "fp32" else device.bf16)
    return Step({player: operations / rate for player, operations in cost.turns.items()})


def plan(config: Config, processes: int, name: str, precision: Precision, given: Assumptions) -> str:
    """The whole plan, for people."""
    if refused := _refused(config, processes):
        raise SettingError(f"--processes: {refused}; give at most {config.batch.replicas}, or a multiple that fits")
    launch = replace(read_launch(), precision=precision)
    if name == "measured":
        device = launch.device
        link = DEVICES["h100"].link if device.type == "cuda" else 1e9
        where = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
    else:
        device, link, where = torch.device("cuda"), DEVICES[name].link, name
    cost = count(config, config.speed, device, precision)
    reference = count(config, SpeedConfig(convolutions="plain", low_resolution_shortcuts=False), device, precision)
    if name == "measured":
        step = measured_step(config, launch)
        seconds = " + ".join(f"{player} {seconds:.2f} s" for player, seconds in step.turns.items())
        how = f"measured here: {where}, {precision}, one replica, a turn of each player: {seconds}"
    else:
        stated = DEVICES[name]
        step = derived_step(cost, stated, precision, given)
        peak = stated.fp32 if precision == "fp32" else stated.bf16
        how = (
            f"not measured: {name}'s stated {peak / 1e12:,.0f} TFLOP/s in {precision}, {given.efficiency:.0%} of it sustained "
            "(assumed; --efficiency)"
        )
    times, batch, run = turns_of(config), config.batch, config.run
    state = 16 * sum(cost.parameters.values())
    sent = sum(count * cost.parameters[player] for player, count in times.items())
    held = held_replicas(batch.replicas, processes)
    memory = state + held * cost.activations
    room = "" if name == "measured" else f" of {DEVICES[name].memory / 1e9:.0f} GB"
    scale = (config.model.resolution / 128) ** 2
    lines = [
        f"{run.iterations:,} iterations of {_said(times)}; {batch.replicas} replicas with "
        f"{batch.real_per_replica} real and {batch.generated_per_replica} generated images",
        "",
        f"time of a step:   {how}",
        f"operations:       {batch.replicas * cost.iteration(times) / 1e12:,.2f} TFLOP an iteration as it runs, "
        f"{batch.replicas * reference.iteration(times) / 1e12:,.2f} in the plain form; "
        f"{batch.replicas * cost.iteration(times) * run.iterations / 1e18:,.3f} EFLOP in all",
        f"memory:           {memory / 1e9:,.1f} GB{room} a process: weights, gradients and moments {state / 1e9:,.1f}, kept "
        f"activations {held * cost.activations / 1e9:,.1f} (counted; without the kernels' own workspaces)",
        f"gradients:        {4e-6 * sent:,.0f} MB an iteration, fp32, DDP",
        f"links:            {link / 1e9:,.0f} GB/s inside a machine of {given.devices_per_node}, "
        f"{given.network / 1e9:,.0f} GB/s a device between machines, {given.latency * 1e6:.0f} us a message; a reduction hides "
        f"behind {given.overlap:.0%} of its backward pass (all assumed)",
        f"data:             {given.image * scale / 1e3:,.0f} kB an image, {given.decoded / scale:,.0f} images decoded by a "
        "core and second (measured at 128 px; by area)",
        "",
        "| processes | replicas each | s/iteration | waiting for reductions | real images/s | data MB/s | decoding cores | "
        "days | device hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n in sorted({*(size for size in SIZES if not _refused(config, size)), processes}):
        found = row(config, cost, step, n, link, given)
        days = found.seconds * run.iterations / DAY
        chosen = "**" if n == processes else ""
        lines.append(
            f"| {chosen}{n}{chosen} | {found.held:g} | {found.seconds:,.3f} | {found.waiting:.0%} | "
            f"{found.images:,.0f} | {found.images * given.image * scale / 1e6:,.1f} | "
            f"{found.images * scale / given.decoded:,.1f} | {days:,.2f} | {days * 24 * n:,.0f} |"
        )
    lines += [
        "",
        f"more processes than the {batch.replicas} replicas share them, a part each: the same experiment; a part is taken to "
        "need its share of a replica's time",
    ]
    return "\n".join(lines)


def _said(times: Mapping[str, int]) -> str:
    """For people: "1 turn of the generator and 5 turns of the discriminator"."""
    return " and ".join(f"{count} turn{'s' if count > 1 else ''} of the {player}" for player, count in times.items())


def main(arguments: list[str]) -> int:
    """Parse, print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.plan", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--processes", type=whole(1), default=1)
    parser.add_argument("--device", default="measured", help=f"measured, {', '.join(DEVICES)}")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--efficiency", type=number(0.0, 1.0, above=True), default=Assumptions.efficiency)
    options, overrides = parser.parse_known_args(arguments)
    if options.device != "measured" and options.device not in DEVICES:
        raise SettingError(f"--device: {options.device!r} is not known; give measured, {', '.join(DEVICES)}")
    if options.processes < 1 or not 0 < options.efficiency <= 1:
        raise SettingError("--processes: give 1 or more; --efficiency: above 0, at most 1")
    config = load_config(options.config, overrides)
    given = Assumptions(efficiency=options.efficiency)
    print(plan(config, options.processes, options.device, cast(Precision, options.precision), given))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
