"""The networks. To add an architecture: one file with its settings and its two classes, and its name here."""

from typing import Annotated

from pydantic import Field
from torch import nn

from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import ModelConfig
from trainer.models.dcgan import DCGANDiscriminator, DCGANDiscriminatorConfig, DCGANGenerator, DCGANGeneratorConfig
from trainer.models.replicas import replica_passes
from trainer.models.resnet import ResNetDiscriminator, ResNetDiscriminatorConfig, ResNetGenerator, ResNetGeneratorConfig

GeneratorConfig = Annotated[ResNetGeneratorConfig | DCGANGeneratorConfig, Field(discriminator="name")]
DiscriminatorConfig = Annotated[ResNetDiscriminatorConfig | DCGANDiscriminatorConfig, Field(discriminator="name")]

__all__ = [
    "DiscriminatorConfig",
    "DiscriminatorOutput",
    "GeneratorConfig",
    "ModelConfig",
    "build_discriminator",
    "build_generator",
    "has_batch_norm",
    "has_class_logits",
    "replica_passes",
]


def build_generator(config: ResNetGeneratorConfig | DCGANGeneratorConfig, model: ModelConfig) -> nn.Module:
    """The generator, weights drawn from torch's default generator. Raises SettingError for an impossible one.

    `forward(latents [B, Z], labels int64 [B] or class weights [B, K]) -> images [B, C, H, W] in [-1, 1]`.
    """
    if isinstance(config, DCGANGeneratorConfig):
        return DCGANGenerator(config, model)
    return ResNetGenerator(config, model)


def build_discriminator(config: ResNetDiscriminatorConfig | DCGANDiscriminatorConfig, model: ModelConfig) -> nn.Module:
    """The discriminator, weights drawn from torch's default generator. Raises SettingError for an impossible one.

    `forward(images [B, C, H, W], labels int64 [B]) -> DiscriminatorOutput`.
    """
    if isinstance(config, DCGANDiscriminatorConfig):
        return DCGANDiscriminator(config, model)
    return ResNetDiscriminator(config, model)


def has_batch_norm(config: ResNetDiscriminatorConfig | DCGANDiscriminatorConfig) -> bool:
    """Whether the discriminator's samples depend on the others of their pass."""
    return isinstance(config, DCGANDiscriminatorConfig)


def has_class_logits(config: ResNetDiscriminatorConfig | DCGANDiscriminatorConfig) -> bool:
    """Whether the discriminator classifies, which the objective must then train (given `model.classes` > 0)."""
    return isinstance(config, DCGANDiscriminatorConfig) or config.conditioning.name == "acgan"
