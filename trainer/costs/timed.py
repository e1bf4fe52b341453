"""Training iterations on random data, timed: for the cost plan and for the benchmarks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from trainer.config import Config
from trainer.methods import Latents, RealAndLatents, build_objective
from trainer.models import build_discriminator, build_generator
from trainer.players.player import AdamConfig, Player
from trainer.processes.launch import Launch
from trainer.speed.apply import apply_speed
from trainer.training.iteration import run_iteration


@dataclass(frozen=True)
class Step:
    """Seconds of one process with one replica."""

    generator: float
    discriminator: float

    def iteration(self, discriminator_steps: int) -> float:
        """Seconds of one iteration."""
        return self.generator + discriminator_steps * self.discriminator


def timed_iterations(config: Config, launch: Launch, clock: Callable[[], float]) -> Callable[[int], Step]:
    """New networks of `config`, and a function that trains them for one iteration of so many discriminator steps (two or
    more, or images made for several steps at once do not count as in training), one replica a process.

    `clock` gives seconds; on a GPU it must wait for the device.
    """
    model, batch, objective = config.model, config.batch, build_objective(config.objective)
    networks = build_generator(config.generator, model), build_discriminator(config.discriminator, model)
    named = dict(zip(("generator", "discriminator"), networks, strict=True))
    apply_speed(config.speed, named, model.resolution, launch)
    generator, discriminator = (
        Player(name, network, AdamConfig(), launch, speed=config.speed)
        for name, network in zip(("generator", "discriminator"), networks, strict=True)
    )

    def latents(n: int) -> Latents:
        labels = torch.randint(max(model.classes, 1), (n,), device=launch.device)
        return Latents(torch.randn(n, model.latent_dim, device=launch.device), labels)

    def run(steps: int) -> Step:
        marks = [clock()]

        def draws() -> Iterator[Sequence[RealAndLatents]]:
            marks.append(clock())  # the generator's step is over
            n = batch.real_per_replica
            for _ in range(steps):
                real = torch.randn(n, model.resolution, model.resolution, model.image_channels, device=launch.device)
                yield [RealAndLatents(real.permute(0, 3, 1, 2), latents(n).labels, *latents(n))]

        run_iteration(
            generator,
            discriminator,
            objective,
            [latents(batch.generated_per_replica)],
            draws(),
            launch=launch,
            replicas=launch.world_size,
            rate_factor=1.0,
            seed_layers=lambda step, replica: None,
            speed=config.speed,
        )
        began, middle, end = *marks, clock()
        return Step(middle - began, (end - middle) / steps)

    return run
