"""Generated images for all discriminator steps of an iteration, made at once."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from trainer.methods import Generator, RealAndLatents
from trainer.models.layers import kept_kernels, normalised_in_groups
from trainer.models.replicas import replica_passes
from trainer.models.traits import can_group
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig

Draws = Sequence[RealAndLatents]
"""Of one discriminator step: one element for each replica at hand."""


@torch.no_grad()
def generate_ahead(
    generator: nn.Module, steps: Sequence[Draws], held: Sequence[int], launch: Launch
) -> list[list[Generator]]:
    """The generated images of all discriminator steps, one pass of the generator for each replica.

    `steps[k][r]` are the draws of step k for the replica `held[r]`. Images and running statistics are those of one pass
    for each step, in their order. Returns what stands for the generator in each step, for each replica.
    """
    made: list[list[Generator]] = [[] for _ in steps]
    with replica_passes(generator) as start_replica, normalised_in_groups(generator, len(steps)):
        for row, replica in enumerate(held):
            start_replica(replica)
            batches = [step[row] for step in steps]
            latents = torch.cat([batch.latents for batch in batches])
            with launch.autocast():
                images = generator(latents, torch.cat([batch.labels for batch in batches]))
            for of_step, batch, part in zip(made, batches, images.chunk(len(steps)), strict=True):
                of_step.append(_stand_in(generator, batch, part))
    return made


def _stand_in(generator: nn.Module, batch: RealAndLatents, images: Tensor) -> Generator:
    def generated(latents: Tensor, labels: Tensor) -> Tensor:
        if latents is batch.latents and labels is batch.labels:
            return images
        other: Tensor = generator(latents, labels)
        return other

    return generated


@contextmanager
def images_ahead(
    speed: SpeedConfig, generator: nn.Module, draws: Iterable[Draws], held: Sequence[int], launch: Launch
) -> Iterator[Iterable[tuple[Draws, Sequence[Generator]]]]:
    """Open while the discriminator's steps run, in which the generator stays as it is.

    Yields each step's draws, with what stands for the generator in it: images made ahead, or the generator itself.
    """
    if speed.grouped_generation and can_group(generator):
        steps = list(draws)
        if len(steps) > 1:
            yield zip(steps, generate_ahead(generator, steps, held, launch), strict=True)
            return
        draws = steps
    with kept_kernels(generator) if speed.kept_kernels else nullcontext():
        yield ((batches, [generator] * len(held)) for batches in draws)
