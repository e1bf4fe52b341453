"""The networks. To add an architecture: one file with its settings and its two classes, and its name here."""

from torch import nn

from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import ModelConfig
from trainer.models.replicas import replica_passes
from trainer.models.resnet import (
    ResNetDiscriminator,
    ResNetDiscriminatorConfig,
    ResNetGenerator,
    ResNetGeneratorConfig,
)

# One member so far: a union needs two before it can be discriminated by name.
GeneratorConfig = ResNetGeneratorConfig
DiscriminatorConfig = ResNetDiscriminatorConfig

__all__ = [
    "DiscriminatorConfig",
    "DiscriminatorOutput",
    "GeneratorConfig",
    "ModelConfig",
    "build_discriminator",
    "build_generator",
    "replica_passes",
]


def build_generator(config: GeneratorConfig, model: ModelConfig) -> nn.Module:
    """The generator, weights drawn from torch's default generator.

    `forward(latents [B, Z], labels int64 [B] or class weights [B, K]) -> images [B, C, H, W] in [-1, 1]`.
    """
    return ResNetGenerator(config, model)


def build_discriminator(config: DiscriminatorConfig, model: ModelConfig) -> nn.Module:
    """The discriminator, weights drawn from torch's default generator.

    `forward(images [B, C, H, W], labels int64 [B]) -> DiscriminatorOutput`.
    """
    return ResNetDiscriminator(config, model)
