"""One iteration of training as one function of the players' state and explicit draws.

An iteration is the method's sequence of turns. The loop makes the draws from the keys and calls this; tests call it with
draws of their own.

While a player moves, the others stay as they are. So what they make for several of its turns in a row is made at once, in
one pass, in which batch norm takes each turn's samples alone.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from trainer.methods.protocol import Method, Tensors, Turn
from trainer.models.layers import kept_kernels, normalised_in_groups
from trainer.models.replicas import replica_passes
from trainer.models.traits import can_group
from trainer.players.player import Player
from trainer.processes.launch import Launch
from trainer.speed.settings import PLAIN, SpeedConfig

Scalars = dict[str, Tensor]
Memory = MutableMapping[int, Tensors]
"""What each replica of this process remembers, by the replica's number."""
Drawn = Sequence[Tensors]
"""A draw for each replica that this process holds."""


def run_iteration(
    method: Method,
    players: Mapping[str, Player],
    turns: Sequence[Turn],
    draws: Callable[[Turn], Sequence[Tensors]],
    memory: Memory,
    *,
    launch: Launch,
    replicas: int,
    rate_factor: float,
    seed_layers: Callable[[Turn, int], None],
    synchronised: bool = False,
    speed: SpeedConfig = PLAIN,
) -> Scalars:
    """Take the turns; returns named scalars summed over this process's replicas, divided by `replicas`.

    `draws(turn)` gives a draw for each replica of this process, and is called once a turn, in their order. Every
    replica's loss is weighted so that what the mover's strategy makes of them is the mean over replicas, also where the
    processes hold different numbers of them. `synchronised`: batch norm runs over all replicas
    (trainer/models/synchronised.py), so that a process gives its replicas as one batch.
    """
    held, share = launch.held_replicas(replicas), 1.0 / replicas
    if synchronised:  # the held replicas' batches as one, whose statistics go into those over all processes
        held, share = range(1), len(held) / replicas
    scalars: Scalars = {}
    counts: dict[str, int] = {}
    for name, of_player in itertools.groupby(turns, key=lambda turn: turn.player):
        in_a_row, mover = list(of_player), players[name]
        others = {n: module for p in players.values() if p is not mover for n, module in p.modules.items()}
        drawn = (_as_one(draws(turn)) if synchronised else draws(turn) for turn in in_a_row)
        with ExitStack() as stack:
            for player in players.values():
                if player is not mover:
                    stack.enter_context(player.frozen())
            steps = stack.enter_context(with_ahead(method, in_a_row, others, drawn, held, launch, speed))
            for turn, replica_draws, made in steps:
                if turn.forgets:
                    mover.forget()
                losses = []
                with replica_passes(*mover.modules.values(), *others.values()) as start_replica:
                    for replica, draw in zip(held, replica_draws, strict=True):
                        start_replica(replica)
                        seed_layers(turn, replica)
                        with launch.autocast():
                            if not made:
                                with torch.no_grad():
                                    draw = {**draw, **method.ahead(turn, others, draw)}
                            found, memory[replica] = method.loss(
                                turn, {**others, **mover.networks}, draw, memory.get(replica, {})
                            )
                        losses.append(found["loss"] * (mover.averaged * share))
                        _note(scalars, name, found, share)
                mover.step(losses, rate_factor * turn.rate)
                for key in found:
                    counts[f"{name}/{key}"] = counts.get(f"{name}/{key}", 0) + 1
    return {name: value / counts[name] if counts[name] > 1 else value for name, value in scalars.items()}


def _as_one(draws: Sequence[Tensors]) -> list[Tensors]:
    """Several replicas' draws as one batch, in their order."""
    joined = Joined(draws)
    return [{name: joined[name] for name in joined}]


def _note(scalars: Scalars, player: str, found: Mapping[str, Tensor], weight: float) -> None:
    for name, value in found.items():
        key = f"{player}/{name}"
        scaled = value.detach().float() * weight
        scalars[key] = scalars[key] + scaled if key in scalars else scaled


class Joined(Mapping[str, Tensor]):
    """Several draws as one, joined along the first dimension where they are looked at."""

    def __init__(self, draws: Sequence[Tensors]) -> None:
        self._draws = draws

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([draw[name] for draw in self._draws])

    def __iter__(self) -> Iterator[str]:
        return iter(self._draws[0])

    def __len__(self) -> int:
        return len(self._draws[0])


@torch.no_grad()
def make_ahead(
    method: Method,
    turns: Sequence[Turn],
    others: Mapping[str, nn.Module],
    drawn: Sequence[Drawn],
    held: Sequence[int],
    launch: Launch,
) -> list[list[dict[str, Tensor]]]:
    """Each turn's draws with what `others` make of them, one pass for each replica. `drawn[k][r]`: turn k, `held[r]`.

    Results and running statistics are those of one pass for each turn, in their order.
    """
    made: list[list[dict[str, Tensor]]] = [[] for _ in turns]
    with replica_passes(*others.values()) as start_replica, ExitStack() as stack:
        for network in others.values():
            stack.enter_context(normalised_in_groups(network, len(turns)))
        for row, replica in enumerate(held):
            start_replica(replica)
            draws = [of_turn[row] for of_turn in drawn]
            with launch.autocast():
                results = method.ahead(turns[0], others, Joined(draws))
            parts = {name: value.chunk(len(turns)) for name, value in results.items()}
            for number, (of_turn, draw) in enumerate(zip(made, draws, strict=True)):
                of_turn.append({**draw, **{name: chunks[number] for name, chunks in parts.items()}})
    return made


@contextmanager
def with_ahead(
    method: Method,
    turns: Sequence[Turn],
    others: Mapping[str, nn.Module],
    drawn: Iterable[Drawn],
    held: Sequence[int],
    launch: Launch,
    speed: SpeedConfig,
) -> Iterator[Iterable[tuple[Turn, Drawn, bool]]]:
    """Open while one player takes `turns` in a row, in which `others` stay as they are.

    Yields each turn with its draws, and whether what the others make is among them. Where it is not, it is made in the
    turn's own pass.
    """
    shapes = [(turn.form, turn.made, turn.reads) for turn in turns]
    alike = all(shape == shapes[0] for shape in shapes)
    if speed.grouped_generation and alike and len(turns) > 1 and all(can_group(network) for network in others.values()):
        made = make_ahead(method, turns, others, list(drawn), held, launch)
        yield ((turn, draws, True) for turn, draws in zip(turns, made, strict=True))
        return
    with ExitStack() as stack:
        for network in others.values() if speed.kept_kernels else ():
            stack.enter_context(kept_kernels(network))
        yield ((turn, draws, False) for turn, draws in zip(turns, drawn, strict=True))
