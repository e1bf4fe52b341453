"""Training iterations on random data, timed: for the cost plan and for the benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import Config
from trainer.foundation.keys import Keys
from trainer.methods.protocol import Tensors, Turn
from trainer.models import ModelConfig
from trainer.players.player import Player
from trainer.processes.launch import Launch
from trainer.speed.apply import apply_speed
from trainer.training.iteration import run_iteration


@dataclass(frozen=True)
class Step:
    """Seconds of one process with one replica."""

    turns: Mapping[str, float]
    """Of one turn of each player."""

    def iteration(self, times: Mapping[str, int]) -> float:
        """Seconds of one iteration with so many turns of each player."""
        return sum(count * self.turns[player] for player, count in times.items())


def measured_turns(config: Config, iteration: int = 0) -> list[Turn]:
    """An iteration's turns, of those of one player in a row no more than two: a second one shows what is shared."""
    turns = config.objective.build(config.problem()).turns(iteration)
    return [
        turn
        for number, turn in enumerate(turns)
        if number < 2 or not turns[number - 2].player == turns[number - 1].player == turn.player
    ]


def random_fields(turn: Turn, model: ModelConfig, device: torch.device) -> dict[str, Tensors]:
    """Random images and labels of the model's shape, as if each source of the turn had been read."""
    side, channels = model.resolution, model.image_channels
    fields: dict[str, Tensors] = {}
    for source, samples in turn.reads.items():
        images = torch.randn(samples, side, side, channels, device=device).permute(0, 3, 1, 2)
        labels = torch.randint(max(model.classes, 1), (samples,), device=device)
        fields[source] = {"image": images, "class": labels}
    return fields


def timed_iterations(config: Config, launch: Launch, clock: Callable[[], float]) -> Callable[[Sequence[Turn]], Step]:
    """New networks of `config`, and a function that trains them with the given turns of one iteration, one replica a
    process.

    `clock` gives seconds; on a GPU it must wait for the device. Images made for several turns at once count to these.
    """
    method, model = config.objective.build(config.problem()), config.model
    modules = {network: method.build(network) for networks in method.players.values() for network in networks}
    apply_speed(config.speed, modules, model.resolution, launch)
    players = {
        name: Player(name, {n: modules[n] for n in networks}, config.optimizer.of(name), launch, speed=config.speed)
        for name, networks in method.players.items()
    }
    memory: dict[int, Tensors] = {launch.rank: method.memory(launch.rank)}
    number = iter(range(2**63))

    def run(turns: Sequence[Turn]) -> Step:
        keys_of = (0, next(number))
        marks: list[tuple[str, float]] = []

        def draws(turn: Turn) -> list[dict[str, Tensor]]:
            if not marks or marks[-1][0] != turn.player:
                marks.append((turn.player, clock()))
            drawn = method.draw(
                turn, Keys(*keys_of, turn.number, launch.rank), random_fields(turn, model, launch.device)
            )
            return [{name: value.to(launch.device) for name, value in drawn.items()}]

        run_iteration(
            method,
            players,
            turns,
            draws,
            memory,
            launch=launch,
            replicas=launch.world_size,
            rate_factor=1.0,
            seed_layers=lambda turn, replica: None,
            speed=config.speed,
        )
        ends = [began for _, began in marks[1:]] + [clock()]
        seconds: dict[str, float] = {}
        for (player, began), end in zip(marks, ends, strict=True):
            seconds[player] = seconds.get(player, 0.0) + end - began
        return Step({p: value / sum(turn.player == p for turn in turns) for p, value in seconds.items()})

    return run
