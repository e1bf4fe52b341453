"""The networks. To add an architecture: one file with its settings and its networks, and its name in a union here.

The settings build the network they name: `config.build(model)`. A network is called as

    generator(latents [B, Z], labels int64 [B] or class weights [B, K]) -> images [B, C, H, W] in [-1, 1]
    discriminator(images [B, C, H, W], labels int64 [B]) -> DiscriminatorOutput

One that is called in another way says so in its settings: `signature` (trainer/models/config.py).
"""

from typing import Annotated

from trainer.foundation.choices import Choice
from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import BY_CLASS, ModelConfig, NetworkConfig, check_signature, classifies, couples_samples
from trainer.models.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from trainer.models.improved import (
    ImprovedConvDiscriminatorConfig,
    ImprovedConvGeneratorConfig,
    ImprovedMLPDiscriminatorConfig,
    ImprovedMLPGeneratorConfig,
)
from trainer.models.maxout import MaxoutDiscriminatorConfig, MLPGeneratorConfig
from trainer.models.replicas import replica_passes
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.models.translation import PatchDiscriminatorConfig, TranslatorConfig
from trainer.models.upscaling import PairDiscriminatorConfig, UpscalerConfig

GeneratorConfig = Annotated[
    ResNetGeneratorConfig
    | DCGANGeneratorConfig
    | MLPGeneratorConfig
    | ImprovedMLPGeneratorConfig
    | ImprovedConvGeneratorConfig
    | TranslatorConfig
    | UpscalerConfig,
    Choice(),
]
DiscriminatorConfig = Annotated[
    ResNetDiscriminatorConfig
    | DCGANDiscriminatorConfig
    | MaxoutDiscriminatorConfig
    | ImprovedMLPDiscriminatorConfig
    | ImprovedConvDiscriminatorConfig
    | PatchDiscriminatorConfig
    | PairDiscriminatorConfig,
    Choice(),
]

__all__ = [
    "BY_CLASS",
    "DiscriminatorConfig",
    "DiscriminatorOutput",
    "GeneratorConfig",
    "ModelConfig",
    "NetworkConfig",
    "check_signature",
    "classifies",
    "couples_samples",
    "replica_passes",
]
