"""The objectives: what a method adds to the loop."""

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from trainer.models import DiscriminatorConfig, ModelConfig, has_batch_norm, has_class_logits
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
    "check_objective",
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


def check_objective(
    objective: AdversarialConfig | ACGANConfig, discriminator: DiscriminatorConfig, model: ModelConfig
) -> None:
    """Raise ValueError, beginning with the setting, where the objective and the discriminator do not fit together."""
    classifies = has_class_logits(discriminator) and model.classes > 0
    if objective.name == "acgan" and not classifies:
        raise ValueError(
            "objective.name: acgan needs a discriminator that classifies and this one does not; set "
            "discriminator.conditioning.name to acgan, and model.classes to the number of classes"
        )
    if objective.name != "acgan" and classifies:
        raise ValueError(
            f"objective.name: {objective.name} would leave the discriminator's classifier untrained; set it to acgan"
        )
    if objective.passes == "joint" and has_batch_norm(discriminator):
        raise ValueError(
            "objective.passes: joint would mix real and generated images in the discriminator's batch norm; "
            "set it to separate"
        )
