"""What every objective looks like."""

from typing import Protocol

from torch import Tensor

from trainer.methods.adversarial import Discriminator, Generator, Latents, RealAndLatents


class Objective(Protocol):
    """A method. "loss" of each returned dictionary is minimised, the other entries are detached scalars to log.

    G(latents, labels) and D(images, labels) are plain callables. Random draws inside come from torch's default
    generator, which the loop seeds for each replica and pass.
    """

    def discriminator_loss(self, G: Generator, D: Discriminator, batch: RealAndLatents, /) -> dict[str, Tensor]: ...

    def generator_loss(self, G: Generator, D: Discriminator, batch: Latents, /) -> dict[str, Tensor]: ...
