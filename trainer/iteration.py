"""One iteration of training as one function of the players' state and explicit draws.

An iteration is one generator update and then the discriminator's updates, the order of the official updater (i == 0 is
the generator's turn, before the first discriminator step). The loop makes the draws from the keys and calls this; tests
call it with draws of their own.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from trainer.launch import Launch
from trainer.models.replicas import replica_passes
from trainer.objectives import Latents, Objective, RealAndLatents
from trainer.player import Player

Scalars = dict[str, Tensor]
SeedLayers = Callable[[int, int], None]
"""`seed_layers(sub_step, replica)`: seeds torch's default generators, for layers that draw inside a forward pass."""


def run_iteration(
    generator: Player,
    discriminator: Player,
    objective: Objective,
    generator_draws: Sequence[Latents],
    discriminator_draws: Iterable[Sequence[RealAndLatents]],
    *,
    launch: Launch,
    replicas: int,
    rate_factor: float,
    seed_layers: SeedLayers,
    generator_first: bool = True,
) -> Scalars:
    """Update both players once more; returns named scalars summed over this process's replicas, divided by `replicas`.

    `generator_draws` has one element per replica of this process; `discriminator_draws` yields such a sequence per
    discriminator step. Every replica's loss is weighted by world_size / replicas, so that the strategy's mean over
    processes is the mean over replicas, also where the processes hold different numbers of them. One backward pass goes
    through the weighted sum: no strategy sees uneven accumulation.
    """
    held = launch.held_replicas(replicas)
    weight = launch.world_size / replicas
    scalars: Scalars = {}

    def generator_step() -> None:
        with discriminator.frozen() as critic, replica_passes(generator.module, critic) as start_replica:
            total = torch.zeros((), device=launch.device)
            for replica, batch in zip(held, generator_draws, strict=True):
                start_replica(replica)
                seed_layers(0, replica)
                with launch.autocast():
                    losses = objective.generator_loss(generator.network, critic, batch)
                total = total + losses["loss"] * weight
                _note(scalars, "generator", losses, 1.0 / replicas)
        generator.step(total, rate_factor)

    def discriminator_step(number: int, batches: Sequence[RealAndLatents]) -> None:
        with replica_passes(generator.module, discriminator.module) as start_replica:
            total = torch.zeros((), device=launch.device)
            for replica, batch in zip(held, batches, strict=True):
                start_replica(replica)
                seed_layers(number, replica)
                with launch.autocast():
                    losses = objective.discriminator_loss(generator.module, discriminator.network, batch)
                total = total + losses["loss"] * weight
                _note(scalars, "discriminator", losses, 1.0 / replicas)
        discriminator.step(total, rate_factor)

    if generator_first:
        generator_step()
    steps = 0
    for steps, batches in enumerate(discriminator_draws, start=1):
        discriminator_step(steps, batches)
    if not generator_first:
        generator_step()
    for name in scalars:
        if name.startswith("discriminator/"):
            scalars[name] /= steps
    return scalars


def _note(scalars: Scalars, player: str, losses: Scalars, weight: float) -> None:
    for name, value in losses.items():
        key = f"{player}/{name}"
        scaled = value.detach().float() * weight
        scalars[key] = scalars[key] + scaled if key in scalars else scaled
