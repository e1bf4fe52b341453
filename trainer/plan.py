"""`python -m trainer.plan CONFIG --processes N --device NAME|measured [--section.key value ...]`: what a run will cost.

Operations and memory are counted from the networks; the time of one iteration is measured here, or derived from stated
peak figures and an assumed efficiency. Every assumption is printed. Nothing of the GPU figures was measured by us.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from trainer.config import Config, load_config
from trainer.costs.counted import Cost, count, turns_of
from trainer.costs.dry_run import segment_table
from trainer.costs.timed import Step, measured_turns, timed_iterations
from trainer.foundation.arithmetic import Arithmetic, set_arithmetic
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.options import number, whole
from trainer.methods.protocol import Segment, Segmented
from trainer.processes.launch import Launch, Precision, keep_freed_memory, read_launch
from trainer.speed.settings import SpeedConfig

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
    replicas: int
    seconds: float
    waiting: float
    """Share of the iteration in reductions that no computation hides."""
    images: float
    """Real images a second."""


def row(
    config: Config, cost: Cost, step: Step, processes: int, link: float, given: Assumptions, iteration: int = 0
) -> Row:
    """One iteration on so many processes; above `batch.replicas` every process holds one replica of a larger batch."""
    replicas = max(config.batch.replicas, processes)
    held = math.ceil(replicas / processes)
    compute = waiting = 0.0
    for player, times in turns_of(config, iteration).items():
        parameters, own = cost.parameters[player], held * step.turns[player]
        hidden = given.overlap * own * 2 / 3  # the backward pass is two thirds of the operations
        reduction = reduction_seconds(parameters, processes, (link, given.network), given)
        compute += times * own
        waiting += times * max(0.0, reduction - hidden)
    total = compute + waiting
    return Row(processes, replicas, total, waiting / total, replicas * _samples_read(config, iteration) / total)


@dataclass(frozen=True)
class Priced:
    """A segment of the run: iterations that cost the same."""

    segment: Segment
    cost: Cost
    plain: Cost
    """In the plain forms."""
    step: Step

    @property
    def iterations(self) -> int:
        return self.segment.end - self.segment.begin


def whole_row(
    config: Config, priced: Sequence[Priced], processes: int, link: float, given: Assumptions
) -> tuple[Row, list[Row]]:
    """The mean iteration of a run, and an iteration of each segment."""
    rows = [row(config, p.cost, p.step, processes, link, given, p.segment.begin) for p in priced]
    if len(rows) == 1:
        return rows[0], rows
    shares = [p.iterations / config.run.iterations for p in priced]
    seconds = sum(share * found.seconds for share, found in zip(shares, rows, strict=True))
    waiting = sum(share * found.waiting * found.seconds for share, found in zip(shares, rows, strict=True)) / seconds
    images = sum(share * found.images * found.seconds for share, found in zip(shares, rows, strict=True)) / seconds
    return Row(processes, rows[0].replicas, seconds, waiting, images), rows


def _samples_read(config: Config, iteration: int) -> int:
    """Real samples of one replica in an iteration."""
    return sum(sum(turn.reads.values()) for turn in config.objective.build(config.problem()).turns(iteration))


def segments_of(config: Config) -> Sequence[Segment]:
    """The method's segments; one without any has one."""
    method = config.objective.build(config.problem())
    whole = [Segment(0, config.run.iterations, {})]
    return method.segments(config.run.iterations) if isinstance(method, Segmented) else whole


def measured_step(config: Config, launch: Launch, iteration: int = 0) -> Step:
    """Seconds of each player's turn of one replica on this machine: the second of two iterations on random data."""
    if launch.device.type == "cpu":
        keep_freed_memory()
    set_arithmetic(Arithmetic(config.run.tf32, config.run.deterministic, config.speed.cudnn_benchmark))

    def now() -> float:
        if launch.device.type == "cuda":
            torch.cuda.synchronize(launch.device)
        return time.monotonic()

    run, turns = timed_iterations(config, launch, now), measured_turns(config, iteration)
    run(turns)
    return run(turns)


def derived_step(cost: Cost, device: Device, precision: Precision, given: Assumptions) -> Step:
    """Seconds of each player's turn of one replica at the assumed share of the stated peak."""
    rate = given.efficiency * (device.fp32 if precision == "fp32" else device.bf16)
    return Step({player: operations / rate for player, operations in cost.turns.items()})


def plan(config: Config, processes: int, name: str, precision: Precision, given: Assumptions) -> str:
    """The whole plan, for people."""
    launch = replace(read_launch(), precision=precision)
    if name == "measured":
        device = launch.device
        link = DEVICES["h100"].link if device.type == "cuda" else 1e9
        where = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
    else:
        device, link, where = torch.device("cuda"), DEVICES[name].link, name
    priced, plain = [], SpeedConfig(convolutions="plain", low_resolution_shortcuts=False)
    for segment in segments_of(config):
        at = segment.begin
        cost = count(config, config.speed, device, precision, at)
        step = (
            measured_step(config, launch, at)
            if name == "measured"
            else derived_step(cost, DEVICES[name], precision, given)
        )
        priced.append(Priced(segment, cost, count(config, plain, device, precision, at), step))
    cost, step = priced[-1].cost, priced[-1].step
    if name == "measured":
        seconds = " + ".join(f"{player} {seconds:.2f} s" for player, seconds in step.turns.items())
        how = f"measured here: {where}, {precision}, one replica, a turn of each player: {seconds}"
    else:
        stated = DEVICES[name]
        peak = stated.fp32 if precision == "fp32" else stated.bf16
        how = (
            f"not measured: {name}'s stated {peak / 1e12:,.0f} TFLOP/s in {precision}, {given.efficiency:.0%} of it sustained "
            "(assumed; --efficiency)"
        )
    batch, run = config.batch, config.run
    times = turns_of(config, priced[-1].segment.begin)
    state = 16 * sum(cost.parameters.values())
    sent = sum(count * cost.parameters[player] for player, count in times.items())
    held = math.ceil(max(batch.replicas, processes) / processes)
    kept = max(p.cost.activations for p in priced)
    memory = state + held * kept
    counts = [(p.iterations, turns_of(config, p.segment.begin), p) for p in priced]
    operations = sum(n * p.cost.iteration(of) for n, of, p in counts) * batch.replicas
    in_plain_form = sum(n * p.plain.iteration(of) for n, of, p in counts) * batch.replicas
    room = "" if name == "measured" else f" of {DEVICES[name].memory / 1e9:.0f} GB"
    scale = (config.model.resolution / 128) ** 2
    lines = [
        f"{run.iterations:,} iterations of {_said(times)}; {batch.replicas} replicas with "
        f"{batch.real_per_replica} real and {batch.generated_per_replica} generated images",
        "",
        f"time of a step:   {how}",
        f"operations:       {operations / run.iterations / 1e12:,.2f} TFLOP an iteration as it runs, "
        f"{in_plain_form / run.iterations / 1e12:,.2f} in the plain form; {operations / 1e18:,.3f} EFLOP in all",
        f"memory:           {memory / 1e9:,.1f} GB{room} a process: weights, gradients and moments {state / 1e9:,.1f}, kept "
        f"activations {held * kept / 1e9:,.1f} (counted; without the kernels' own workspaces)",
        f"gradients:        {4e-6 * sent:,.0f} MB an iteration, fp32, DDP",
        f"links:            {link / 1e9:,.0f} GB/s inside a machine of {given.devices_per_node}, "
        f"{given.network / 1e9:,.0f} GB/s a device between machines, {given.latency * 1e6:.0f} us a message; a reduction hides "
        f"behind {given.overlap:.0%} of its backward pass (all assumed)",
        f"data:             {given.image * scale / 1e3:,.0f} kB an image, {given.decoded / scale:,.0f} images decoded by a "
        "core and second (measured at 128 px; by area)",
        "",
        "| processes | replicas | s/iteration | waiting for reductions | real images/s | data MB/s | decoding cores | days | "
        "device hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n in sorted({*SIZES, processes}):
        found, _ = whole_row(config, priced, n, link, given)
        days = found.seconds * run.iterations / DAY
        mark = " *" if found.replicas != batch.replicas else ""
        chosen = "**" if n == processes else ""
        lines.append(
            f"| {chosen}{n}{chosen} | {found.replicas}{mark} | {found.seconds:,.3f} | {found.waiting:.0%} | "
            f"{found.images:,.0f} | {found.images * given.image * scale / 1e6:,.1f} | "
            f"{found.images * scale / given.decoded:,.1f} | {days:,.2f} | {days * 24 * n:,.0f} |"
        )
    lines += [
        "",
        f"* more processes than the experiment's {batch.replicas} replicas: a larger batch, another experiment",
    ]
    if len(priced) > 1:
        lines += ["", f"by segment, on {processes} processes; the figures above are those of the mean iteration:", ""]
        lines += [_by_segment(config, priced, whole_row(config, priced, processes, link, given)[1])]
    return "\n".join(lines)


def _by_segment(config: Config, priced: Sequence[Priced], rows: Sequence[Row]) -> str:
    """The segments with their time, and all of it."""
    days = [found.seconds * p.iterations / DAY for p, found in zip(priced, rows, strict=True)]
    more = {
        "s/iteration": [f"{found.seconds:,.3f}" for found in rows],
        "real images/s": [f"{found.images:,.0f}" for found in rows],
        "days": [f"{spent:,.3f}" for spent in days],
    }
    return f"{segment_table([p.segment for p in priced], more)}\n\nin all {sum(days):,.2f} days"


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
