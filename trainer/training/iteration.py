"""One iteration of training as one function of the players' state and explicit draws.

An iteration is one generator update and then the discriminator's updates, the order of the official updater (i == 0 is
the generator's turn, before the first discriminator step). The loop makes the draws from the keys and calls this; tests
call it with draws of their own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainer.methods import Generator, Latents, Objective, RealAndLatents
from trainer.models.replicas import replica_passes
from trainer.players.player import Player
from trainer.processes.launch import Launch
from trainer.speed.settings import PLAIN, SpeedConfig
from trainer.training.ahead import images_ahead

Scalars = dict[str, Tensor]
Batch = TypeVar("Batch", Latents, RealAndLatents)
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
    synchronised: bool = False,
    speed: SpeedConfig = PLAIN,
) -> Scalars:
    """Update both players once more; returns named scalars summed over this process's replicas, divided by `replicas`.

    `generator_draws` has one element per replica of this process; `discriminator_draws` yields such a sequence per
    discriminator step. Every replica's loss is weighted so that what the player's strategy makes of them is the mean over
    replicas, also where the processes hold different numbers of them. `synchronised`: batch norm runs over all replicas
    (trainer/models/synchronised.py), so that a process gives its replicas as one batch.
    """
    held = launch.held_replicas(replicas)
    share = 1.0 / replicas
    if synchronised:  # the held replicas' batches as one, whose statistics go into those over all processes
        held, share = range(1), len(held) / replicas
        generator_draws = [joined(generator_draws)]
        discriminator_draws = ([joined(batches)] for batches in discriminator_draws)
    scalars: Scalars = {}

    def generator_step() -> None:
        with discriminator.frozen() as critic, replica_passes(generator.module, critic) as start_replica:
            weighted = []
            for replica, batch in zip(held, generator_draws, strict=True):
                start_replica(replica)
                seed_layers(0, replica)
                with launch.autocast():
                    losses = objective.generator_loss(generator.network, critic, batch)
                weighted.append(losses["loss"] * (generator.averaged * share))
                _note(scalars, "generator", losses, share)
        generator.step(weighted, rate_factor)

    def discriminator_step(number: int, batches: Sequence[RealAndLatents], made: Sequence[Generator]) -> None:
        with replica_passes(generator.module, discriminator.module) as start_replica:
            weighted = []
            for replica, batch, source in zip(held, batches, made, strict=True):
                start_replica(replica)
                seed_layers(number, replica)
                with launch.autocast():
                    losses = objective.discriminator_loss(source, discriminator.network, batch)
                weighted.append(losses["loss"] * (discriminator.averaged * share))
                _note(scalars, "discriminator", losses, share)
        discriminator.step(weighted, rate_factor)

    if generator_first:
        generator_step()
    steps = 0
    with images_ahead(speed, generator.module, discriminator_draws, held, launch) as draws:
        for steps, (batches, made) in enumerate(draws, start=1):
            discriminator_step(steps, batches, made)
    if not generator_first:
        generator_step()
    for name in scalars:
        if name.startswith("discriminator/"):
            scalars[name] /= steps
    return scalars


def joined(batches: Sequence[Batch]) -> Batch:
    """Several replicas' draws as one batch, in their order."""
    return type(batches[0])(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _note(scalars: Scalars, player: str, losses: Scalars, weight: float) -> None:
    for name, value in losses.items():
        key = f"{player}/{name}"
        scaled = value.detach().float() * weight
        scalars[key] = scalars[key] + scaled if key in scalars else scaled
