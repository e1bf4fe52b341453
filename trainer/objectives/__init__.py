"""The objectives: what a method adds to the loop."""

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from trainer.objectives.adversarial import (
    ACGANConfig,
    ACGANObjective,
    AdversarialConfig,
    AdversarialObjective,
    Discriminator,
    Generator,
    Latents,
    RealAndLatents,
)

ObjectiveConfig = Annotated[AdversarialConfig | ACGANConfig, Field(discriminator="name")]

__all__ = [
    "ACGANConfig",
    "AdversarialConfig",
    "Discriminator",
    "Generator",
    "Latents",
    "Objective",
    "ObjectiveConfig",
    "RealAndLatents",
    "build_objective",
]


class Objective(Protocol):
    """A method. "loss" of each returned dictionary is minimised, the other entries are detached scalars to log.

    G(latents, labels) and D(images, labels) are plain callables. Random draws inside come from torch's default
    generator, which the loop seeds for each replica and pass.
    """

    def discriminator_loss(self, G: Generator, D: Discriminator, batch: RealAndLatents, /) -> dict[str, Tensor]: ...

    def generator_loss(self, G: Generator, D: Discriminator, batch: Latents, /) -> dict[str, Tensor]: ...


def build_objective(config: AdversarialConfig | ACGANConfig) -> Objective:
    """The objective that `config` names."""
    return ACGANObjective(config) if isinstance(config, ACGANConfig) else AdversarialObjective(config)
