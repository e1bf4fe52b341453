"""The explicit draws of an iteration, made from the keys: functions of (seed, iteration, sub-step, replica)."""

from collections.abc import Iterator, Sequence

import torch

from data_pipeline.reading.stream import Stream
from trainer.config import Config
from trainer.foundation import keys
from trainer.foundation.pixels import flip_half, normalise
from trainer.methods import Latents, RealAndLatents
from trainer.processes.launch import Launch


def latents_of(
    config: Config, launch: Launch, iteration: int, sub_step: int, replica: int, count: int, rollbacks: int = 0
) -> Latents:
    """Latents and labels of one replica: sub-step 0 is the generator's step, k >= 1 the k-th discriminator step.

    `rollbacks` is part of a run's state: after each rollback the draws are others.
    """
    model, seed = config.model, config.run.seed
    latents = keys.draw_latents(
        keys.generator(seed, _purpose("latents", rollbacks), iteration, sub_step, replica),
        count,
        model.latent_dim,
        model.latent_distribution,
    )
    source = keys.generator(seed, _purpose("labels", rollbacks), iteration, sub_step, replica)
    labels = keys.draw_labels(source, count, model.classes)
    return Latents(latents.to(launch.device), labels.to(launch.device))


def generator_draws(config: Config, launch: Launch, iteration: int, rollbacks: int = 0) -> list[Latents]:
    """The draws of the generator's step, for each replica of this process."""
    count = config.batch.generated_per_replica
    held = launch.held_replicas(config.batch.replicas)
    return [latents_of(config, launch, iteration, 0, replica, count, rollbacks) for replica in held]


def discriminator_draws(
    config: Config, launch: Launch, stream: Stream, iteration: int, rollbacks: int = 0
) -> Iterator[Sequence[RealAndLatents]]:
    """For each discriminator step the draws of this process's replicas: real images, labels, latents, labels.

    The stream stands at the iteration's first batch; every step takes one batch from it.
    """
    seed, batch = config.run.seed, config.batch
    held = launch.held_replicas(batch.replicas)
    for sub_step in range(1, config.schedule.discriminator_steps + 1):
        data = next(stream)
        draws = []
        for row, replica in enumerate(held):
            source = None
            if batch.dequantize:
                source = keys.generator(seed, "dequantization", iteration, sub_step, replica, launch.device)
            real = normalise(data.images[row].to(launch.device), source)
            if config.data.horizontal_flip:
                real = flip_half(real, data.positions[row], seed, replica)
            fake = latents_of(config, launch, iteration, sub_step, replica, batch.real_per_replica, rollbacks)
            real_labels = data.labels[row].to(launch.device, copy=True)
            draws.append(RealAndLatents(real, real_labels, fake.latents, fake.labels))
        yield draws


def seed_layers(config: Config, rollbacks: int, iteration: int, sub_step: int, replica: int) -> None:
    """Seed torch's default generators, for layers that draw inside a forward pass (dropout, activation noise)."""
    torch.manual_seed(keys.key(config.run.seed, _purpose("layers", rollbacks), iteration, sub_step, replica))


def _purpose(name: str, rollbacks: int) -> str:
    return f"{name} after rollback {rollbacks}" if rollbacks else name
