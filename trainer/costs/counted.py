"""What an iteration costs: operations and memory, counted on the meta device from the networks as they will run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import Config
from trainer.costs.timed import random_fields
from trainer.foundation.keys import Keys
from trainer.models.replicas import replica_passes
from trainer.processes.launch import Launch, Precision
from trainer.speed.apply import apply_speed
from trainer.speed.settings import SpeedConfig


@dataclass(frozen=True)
class Cost:
    """Of one replica."""

    turns: Mapping[str, float]
    """Operations of one turn of each player (2 for a multiplication and an addition) in matrix products and convolutions,
    forward and backward, with what the other players make for it."""
    parameters: Mapping[str, int]
    """Of each player."""
    activations: int
    """Bytes that the largest turn keeps for its backward pass."""

    def iteration(self, times: Mapping[str, int]) -> float:
        """Operations of one iteration with so many turns of each player."""
        return sum(count * self.turns[player] for player, count in times.items())


def turns_of(config: Config, iteration: int = 0) -> dict[str, int]:
    """How many turns each player has in an iteration."""
    times: dict[str, int] = {}
    for turn in config.objective.build(config.problem()).turns(iteration):
        times[turn.player] = times.get(turn.player, 0) + 1
    return times


def count(
    config: Config, speed: SpeedConfig, device: torch.device, precision: Precision = "fp32", iteration: int = 0
) -> Cost:
    """Costs of one replica under `speed`, in the forms chosen for `device`, of an iteration; nothing is computed."""
    model, method, meta = config.model, config.objective.build(config.problem()), torch.device("meta")
    launch = Launch(rank=0, world_size=1, local_rank=0, device=device, precision=precision, strategy="single")
    with meta:
        modules = {network: method.build(network) for networks in method.players.values() for network in networks}
        apply_speed(speed, modules, model.resolution, launch)
    operations: dict[str, float] = {}
    kept_bytes = 0
    for turn in method.turns(iteration):
        if turn.player in operations:
            continue
        with meta:
            fields = random_fields(turn, model, meta)
        drawn = method.draw(turn, Keys(0, 0, turn.number, 0), fields)
        memory = {name: value.to(meta) for name, value in method.memory(0).items()}
        movers = method.players[turn.player]
        others = {name: module for name, module in modules.items() if name not in movers}
        for name, module in modules.items():
            module.requires_grad_(name in movers)
        counter, kept = FlopCounterMode(display=False), _Kept()
        with meta, counter, replica_passes(*modules.values()) as start_replica:
            start_replica(0)
            draw = {name: value.to(meta) for name, value in drawn.items()}
            with torch.no_grad():
                draw |= method.ahead(turn, others, draw)
            with saved_tensors_hooks(kept.note, lambda tensor: tensor):
                losses, _ = method.loss(turn, modules, draw, memory)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
        operations[turn.player] = float(counter.get_total_flops())
        kept_bytes = max(kept_bytes, kept.total())
    width = 1.0 if precision == "fp32" else 0.5
    sizes = {
        player: sum(p.numel() for network in networks for p in modules[network].parameters())
        for player, networks in method.players.items()
    }
    return Cost(operations, sizes, int(width * kept_bytes))


class _Kept:
    """Distinct tensors that a graph keeps; parameters among them are counted too, and are small beside activations."""

    def __init__(self) -> None:
        self._found: dict[Any, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._found[storage._cdata] = storage.nbytes()
        return tensor

    def total(self) -> int:
        return sum(self._found.values())
