"""What a run would do and cost, without data and without a GPU."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch

from trainer.config import Config, as_yaml
from trainer.costs.counted import count
from trainer.methods import schedule
from trainer.methods.places import samples_before, sources_of
from trainer.methods.protocol import Method, Segment, Segmented
from trainer.methods.terms import guidance
from trainer.processes.launch import Launch, held_description

MIB = 2**20


def describe(config: Config, launch: Launch) -> str:
    """The resolved settings, parameter counts, batch arithmetic, stages, memory and traffic estimates."""
    method = config.objective.build(config.problem())
    with torch.device("meta"):
        modules = {network: method.build(network) for networks in method.players.values() for network in networks}
    counts = {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()}
    of_players = {player: sum(counts[network] for network in networks) for player, networks in method.players.items()}
    rate = config.optimizer.of(method.shown).learning_rate
    sections = {
        "settings": as_yaml(config).rstrip(),
        "parameters": "\n".join(f"{name}: {count:,}" for name, count in counts.items()),
        "batch": "\n".join(_batch(config, launch, method)),
        "stages": "\n".join(
            [
                *schedule.describe(config.schedule, config.run.iterations, rate),
                *guidance.describe(config.classifier_loss),
            ]
        ),
        **(
            {"segments": segment_table(method.segments(config.run.iterations))} if isinstance(method, Segmented) else {}
        ),
        "memory of one process, estimated": "\n".join(_memory(config, launch, sum(counts.values()), method)),
        "traffic, estimated": "\n".join(_traffic(config, launch, method, of_players)),
    }
    body = "\n\n".join(f"# {title}\n{text}" for title, text in sections.items())
    return f"{body}\n\ndry run: nothing was read or written"


def segment_table(segments: Sequence[Segment], more: Mapping[str, Sequence[str]] | None = None) -> str:
    """The segments of a method whose turns change, one a row; `more`: further columns by their heads."""
    more = more or {}
    heads = ["iterations", *segments[0].described, *more]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for number, segment in enumerate(segments):
        cells = [*segment.described.values(), *(column[number] for column in more.values())]
        lines.append(f"| {segment.begin:,} to {segment.end:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _batch(config: Config, launch: Launch, method: Method) -> list[str]:
    """How many samples each kind of turn takes, and the run."""
    replicas, lines = config.batch.replicas, []
    turns = method.turns(0)
    for player in method.players:
        own = [turn for turn in turns if turn.player == player]
        if own:
            reads = [f"{replicas} x {n} = {replicas * n} read from {source}" for source, n in own[0].reads.items() if n]
            made = [f"{replicas} x {own[0].made} = {replicas * own[0].made} generated"] if own[0].made else []
            lines.append(f"a turn of the {player}: {', '.join([*reads, *made]) or 'no'} samples (replicas x each)")
    order = ", ".join(f"{len(list(same))} of the {player}" for player, same in groupby(t.player for t in turns))
    iterations = config.run.iterations
    read = sum(samples_before(method, source, iterations) for source in sources_of(method))
    first = sum(sum(turn.reads.values()) for turn in turns)
    return [
        held_description(launch, replicas),
        *lines,
        f"one iteration: turns in this order: {order}; {replicas * first:,} real samples",
        f"the run: {iterations:,} iterations = {replicas * read:,} real samples",
    ]


def _memory(config: Config, launch: Launch, parameters: int, method: Method) -> list[str]:
    """Of the first iteration, or of the last one where networks grow and it needs more."""
    ends = (0, config.run.iterations - 1) if isinstance(method, Segmented) else (0,)
    held = len(launch.held_replicas(config.batch.replicas))
    state = state_bytes(parameters, launch.strategy, launch.world_size) / MIB
    lines = [
        f"weights, gradients and the optimizers' moments ({launch.strategy}, {launch.world_size} processes): {state:,.0f} MiB"
    ]
    if each := memory_bytes(config):
        lines.append(f"what the method remembers: {held} x {each / MIB:,.1f} MiB (replicas x each)")
    try:
        costs = [count(config, config.speed, launch.device, launch.precision, iteration) for iteration in ends]
        kept = held * max(cost.activations for cost in costs) / MIB
    except KeyError:  # a field that random images do not have
        return [*lines, "activations: not counted, since the method reads samples other than images"]
    return [
        *lines,
        f"activations kept for the backward pass: {kept:,.0f} MiB ({held} replicas at once; counted without computing)",
    ]


def state_bytes(parameters: int, strategy: str, world_size: int) -> float:
    """Bytes of fp32 weights, gradients and Adam's two moments in each process, without buckets.

    DDP keeps 4 + 4 + 8 bytes per parameter. ZeRO divides the moments, and a copy of the weights that the optimizer works on, by
    the number of processes; ZeRO-2 the gradients as well.
    """
    whole, divided = {"zero1": (8, 12), "zero2": (4, 16)}.get(strategy, (16, 0))
    return parameters * (whole + divided / world_size)


def memory_bytes(config: Config) -> int:
    """Bytes of what the method remembers of one replica."""
    with torch.device("meta"):
        remembered = config.objective.build(config.problem()).memory(0)
    return sum(value.numel() * value.element_size() for value in remembered.values())


def _traffic(config: Config, launch: Launch, method: Method, parameters: Mapping[str, int]) -> list[str]:
    batch, model, turns = config.batch, config.model, method.turns(0)
    reduced = 4 * sum(parameters[turn.player] for turn in turns) / MIB
    share = 2 * (launch.world_size - 1) / launch.world_size
    read = batch.replicas * sum(sum(turn.reads.values()) for turn in turns)
    pixels = read * model.resolution**2 * model.image_channels / MIB
    state = 12 * sum(parameters.values()) / MIB
    remembered = batch.replicas * memory_bytes(config) / MIB
    more = f", and {remembered:,.0f} MiB that the method remembers" if remembered else ""
    return [
        f"gradients: {reduced * share:,.0f} MiB sent by each process per iteration (ring reduction of {reduced:,.0f} MiB)",
        f"decoded images: {pixels:,.1f} MiB per iteration over all processes",
        f"one checkpoint: {state + remembered:,.0f} MiB (fp32 weights and two moments{more})",
    ]
