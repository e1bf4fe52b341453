"""The objectives: what a method adds to the loop."""

from typing import Annotated

from trainer.foundation.choices import Choice
from trainer.methods.adversarial import (
    ACGANConfig,
    ACGANObjective,
    AdversarialConfig,
    AdversarialObjective,
    Discriminator,
    Generator,
    Latents,
    RealAndLatents,
)
from trainer.methods.protocol import Objective
from trainer.methods.terms.guidance import ClassifierLossConfig, check_classifier_loss
from trainer.models import DiscriminatorConfig, ModelConfig, classifies, couples_samples

ObjectiveConfig = Annotated[AdversarialConfig | ACGANConfig, Choice()]

__all__ = [
    "ACGANConfig",
    "AdversarialConfig",
    "ClassifierLossConfig",
    "Discriminator",
    "Generator",
    "Latents",
    "Objective",
    "ObjectiveConfig",
    "RealAndLatents",
    "build_objective",
    "check_classifier_loss",
    "check_objective",
]


def build_objective(config: AdversarialConfig | ACGANConfig) -> Objective:
    """The objective that `config` names."""
    return ACGANObjective(config) if isinstance(config, ACGANConfig) else AdversarialObjective(config)


def check_objective(
    objective: AdversarialConfig | ACGANConfig, discriminator: DiscriminatorConfig, model: ModelConfig
) -> None:
    """Raise ValueError, beginning with the setting, where the objective and the discriminator do not fit together."""
    trains_classes = classifies(discriminator) and model.classes > 0
    if objective.name == "acgan" and not trains_classes:
        raise ValueError(
            "objective.name: acgan needs a discriminator that classifies and this one does not; set "
            "discriminator.conditioning.name to acgan, and model.classes to the number of classes"
        )
    if objective.name != "acgan" and trains_classes:
        raise ValueError(
            f"objective.name: {objective.name} would leave the discriminator's classifier untrained; set it to acgan"
        )
    if objective.passes == "joint" and couples_samples(discriminator):
        raise ValueError(
            "objective.passes: joint would mix real and generated images in the discriminator's batch norm; "
            "set it to separate"
        )
