"""The networks of CycleGAN (Zhu et al. 2017, appendix 7.2): images to images, and a judge of patches.

Shapes: B batch, C channels, H height, W width.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.config import ModelConfig
from trainer.models.layers import at_least_float32

HALVINGS = 2
"""How often the generator halves the map before its blocks."""
SMALLEST = 8
"""Pixels: below it the blocks have nothing to reflect."""
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class TranslatorConfig:
    """Settings of the residual image-to-image generator; the defaults are the PyTorch code's for 256 px."""

    signature: ClassVar[str] = "image"

    name: Literal["resnet_translator"] = "resnet_translator"
    channels: Annotated[int, Field(ge=1)] = 64
    """Width after the first convolution."""
    blocks: Annotated[int, Field(ge=1)] = 9
    """Residual blocks: the paper has 6 at 128 px and 9 from 256 px on. The number does not follow from the size."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of entries that are dropped inside each block. The official code has an option of 0.5, off for CycleGAN."""
    affine: bool = False
    """Whether instance norm has a gain and a bias per channel, as in the Lua code."""
    bias: bool = True
    """Whether convolutions have a bias. The Lua code sets it to 0 before each step, so that it has none."""

    def build(self, model: ModelConfig) -> "Translator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible size."""
        if model.resolution % 2**HALVINGS or model.resolution < SMALLEST:
            raise SettingError(
                f"model.resolution: is {model.resolution}, which this generator cannot halve {HALVINGS} times; give a "
                f"multiple of {2**HALVINGS} from {SMALLEST} on"
            )
        return Translator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class PatchDiscriminatorConfig:
    """Settings of the patch discriminator (Isola et al. 2017); the defaults judge patches of 70x70 pixels."""

    signature: ClassVar[str] = "image"
    couples_samples: ClassVar[bool] = False

    name: Literal["patchgan"] = "patchgan"
    channels: Annotated[int, Field(ge=1)] = 64
    """Width after the first convolution."""
    layers: Annotated[int, Field(ge=1)] = 3
    """Convolutions that halve the map. 1, 2, 3 judge patches of 16, 34, 70 pixels."""
    padding: Annotated[int, Field(ge=1, le=2)] = 1
    """Zero padding of every convolution. The Lua code has 2."""
    affine: bool = False
    """Whether instance norm has a gain and a bias per channel, as in the Lua code."""
    bias: bool = True
    """Whether convolutions have a bias. The Lua code sets it to 0 before each step, so that it has none."""

    def map_side(self, side: int) -> int:
        """Height of the map of scores for images `side` px high."""
        for stride in [2] * self.layers + [1, 1]:
            side = (side + 2 * self.padding - 4) // stride + 1
        return side

    def build(self, model: ModelConfig) -> "PatchDiscriminator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible size."""
        if self.map_side(model.resolution) + 3 - 2 * self.padding < 2:  # the last map that is normalised
            raise SettingError(
                f"discriminator.layers: {self.layers} convolutions leave nothing of images of {model.resolution} px; give "
                "fewer layers, or a larger model.resolution"
            )
        return PatchDiscriminator(self, model)


def instance_norm(channels: int, affine: bool) -> nn.Module:
    """Every channel of every sample to mean 0 and variance 1 (biased, eps 1e-5), in training and evaluation alike.

    As a group norm of one channel a group. torch 2.14's InstanceNorm2d has a wrong gradient on a CPU for one sample whose
    gradient comes channels-last, which is CycleGAN's batch of 1.
    """
    return nn.GroupNorm(channels, channels, affine=affine)


def initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02), gains of norms from N(1, 0.02), biases 0 (the official code's `init_weights`)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.GroupNorm) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """x + [pad, conv3x3, norm, ReLU, pad, conv3x3, norm](x), reflections as padding; no ReLU after the sum."""

    draws = couples_samples = False

    def __init__(self, channels: int, config: TranslatorConfig) -> None:
        super().__init__()
        dropout = [nn.Dropout(config.dropout)] if config.dropout else []
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=config.bias),
            instance_norm(channels, config.affine),
            nn.ReLU(),
            *dropout,
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=config.bias),
            instance_norm(channels, config.affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class Translator(nn.Module):
    """conv7x7, two convolutions of stride 2, residual blocks, two transposed ones, conv7x7, tanh; instance norm.

    The 7x7 convolutions pad by reflection, those that change the size with zeros.
    """

    draws = couples_samples = False

    def __init__(self, config: TranslatorConfig, model: ModelConfig) -> None:
        super().__init__()
        width, channels = config.channels, model.image_channels

        def normalised(convolution: nn.Module, out: int) -> list[nn.Module]:
            return [convolution, instance_norm(out, config.affine), nn.ReLU()]

        layers = [nn.ReflectionPad2d(3), *normalised(nn.Conv2d(channels, width, 7, bias=config.bias), width)]
        for _ in range(HALVINGS):
            layers += normalised(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=config.bias), 2 * width)
            width *= 2
        layers += [ResidualBlock(width, config) for _ in range(config.blocks)]
        for _ in range(HALVINGS):
            halved = width // 2
            layers += normalised(nn.ConvTranspose2d(width, halved, 3, 2, 1, 1, bias=config.bias), halved)
            width = halved
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7, bias=config.bias)]
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> the same shape and range, at least float32. H and W: multiples of 4."""
        return torch.tanh(at_least_float32(self.layers(images)))


class PatchDiscriminator(nn.Module):
    """4x4 convolutions: `layers` of stride 2, then two of stride 1. LeakyReLU 0.2, instance norm between first and last."""

    draws = couples_samples = False

    def __init__(self, config: PatchDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()

        def convolution(before: int, after: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 4, stride, config.padding, bias=config.bias)

        width = config.channels
        layers: list[nn.Module] = [convolution(model.image_channels, width, 2), nn.LeakyReLU(0.2)]
        for number in range(1, config.layers + 1):
            before, width = width, config.channels * min(2**number, 8)
            stride = 2 if number < config.layers else 1
            norm = instance_norm(width, config.affine)
            layers += [convolution(before, width, stride), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, convolution(width, 1, 1))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, 1, h, w], at least float32: one for each patch of images [B, C, H, W] in [-1, 1]."""
        return at_least_float32(self.layers(images))
