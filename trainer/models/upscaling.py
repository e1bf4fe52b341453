"""Super-resolution networks of "cGANs with Projection Discriminator" (Miyato & Koyama 2018), as in the official branch `sr`.

Files gen_models/resnet_sr.py and dis_models/snresnet_sr.py of pfnet-research/sngan_projection at df2f072. That branch was
never merged. The generator makes an image of a small one, with noise inside and no latent vector.

Shapes: B batch, C channels, H x W the large image, h x w = H/4 x W/4 the small one.
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.config import ModelConfig
from trainer.models.layers import (
    SQRT2,
    BatchNorm2d,
    Convolution,
    SpectralConv2d,
    SpectralLinear,
    at_least_float32,
    full_precision,
)
from trainer.models.resnet import DiscriminatorBlock, FirstDiscriminatorBlock

FACTOR = 4
"""Sides of the large image over those of the small one."""
# Widths in units of `channels`, and whether the block doubles the map.
GENERATOR_BLOCKS = ((4, False), (4, False), (4, False), (4, False), (2, True), (2, False), (1, True), (1, False))
# Widths in units of `channels`, and whether the block halves the map: before the small image joins, and after it.
FIRST_BLOCKS = ((1, False), (2, True), (2, False))
LAST_BLOCKS = ((4, True), (8, True), (16, True), (16, False))
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class UpscalerConfig:
    """Settings of the generator; the defaults are the official YAML's."""

    signature: ClassVar[str] = "small image"

    name: Literal["resnet_upscaler"] = "resnet_upscaler"
    channels: Annotated[int, Field(ge=1)] = 64
    """Width of the last blocks; the first have four times as many."""
    noise_channels: Annotated[int, Field(ge=0)] = 128
    """Planes of N(0, 1) that join the input of both doubling blocks (`dim_noise`); 0: none, the class's own default."""
    norm_eps: Annotated[float, Field(gt=0)] = 2e-5
    """Added to batch norm's variance; Chainer's default."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running statistics; the official decay of 0.9."""

    def build(self, model: ModelConfig) -> "Upscaler":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible size."""
        if model.resolution % FACTOR:
            raise SettingError(
                f"model.resolution: is {model.resolution}, which is not {FACTOR} times a whole number; give a multiple of "
                f"{FACTOR}"
            )
        return Upscaler(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class PairDiscriminatorConfig:
    """Settings of the discriminator of a large image with its small one; the defaults are the official code's."""

    signature: ClassVar[str] = "small image"
    couples_samples: ClassVar[bool] = False

    name: Literal["resnet_pairs"] = "resnet_pairs"
    channels: Annotated[int, Field(ge=1)] = 64
    """Width of the first block; the last has sixteen times as many."""
    join: Literal["projection", "concat"] = "projection"
    """`projection`: a convolution makes an image of the hidden map, whose inner product with the small image joins the logit
    (Eq. 9). `concat`: the small image joins the channels of the hidden map."""
    scaled: bool = True
    """Whether the inner product is divided by the square root of its number of terms, and the pooled sum by that of its
    places, as in the code; the paper's Eq. 9 has neither."""

    def build(self, model: ModelConfig) -> "PairDiscriminator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible size."""
        halvings = FACTOR * 2 ** sum(halve for _, halve in LAST_BLOCKS)
        if model.resolution % halvings:
            raise SettingError(
                f"model.resolution: is {model.resolution}, which this discriminator cannot halve five times; give a multiple "
                f"of {halvings}"
            )
        return PairDiscriminator(self, model)


class UpscalerBlock(nn.Module):
    """norm -> ReLU (-> noise joins) (-> up x2) -> conv3x3 -> norm -> ReLU -> conv3x3, plus (up x2 -> conv1x1) or x itself.

    Noise joins the main path alone, at the small size.
    """

    couples_samples = False

    def __init__(self, before: int, after: int, doubles: bool, config: UpscalerConfig) -> None:
        super().__init__()
        self.noise_channels = config.noise_channels if doubles else 0
        self.norm1 = BatchNorm2d(before, config.norm_eps, config.norm_momentum)
        self.conv1 = Convolution(before + self.noise_channels, after, 3, SQRT2, doubles=doubles)
        self.norm2 = BatchNorm2d(after, config.norm_eps, config.norm_momentum)
        self.conv2 = Convolution(after, after, 3, SQRT2)
        learned = doubles or before != after
        self.shortcut = Convolution(before, after, 1, doubles=doubles) if learned else None

    @property
    def draws(self) -> bool:
        """Whether a pass that is given no noise draws it."""
        return self.noise_channels > 0

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise [B, noise_channels, h, w] at the size of x; None: drawn from torch's default generator."""
        h = F.relu(self.norm1(x))
        if self.noise_channels:
            if noise is None:
                noise = torch.randn(len(x), self.noise_channels, *x.shape[2:], device=x.device)
            h = torch.cat([h, noise.to(h.dtype)], 1)
        h = self.conv2(F.relu(self.norm2(self.conv1(h)), inplace=True))
        y: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return y


class Upscaler(nn.Module):
    """Eight residual blocks, of which the fifth and the seventh double the map, then batch norm, ReLU, conv3x3, tanh."""

    draws = couples_samples = False

    def __init__(self, config: UpscalerConfig, model: ModelConfig) -> None:
        super().__init__()
        blocks, before = [], model.image_channels
        for multiplier, doubles in GENERATOR_BLOCKS:
            blocks.append(UpscalerBlock(before, config.channels * multiplier, doubles, config))
            before = config.channels * multiplier
        self.blocks = nn.ModuleList(blocks)
        self.norm = BatchNorm2d(before, config.norm_eps, config.norm_momentum)
        self.conv = Convolution(before, model.image_channels, 3)
        self.noise_channels = config.noise_channels

    def noise(self, source: torch.Generator, height: int, width: int) -> list[Tensor]:
        """The planes of one sample [1, noise_channels, h, w] for a small image of h x w: one for each doubling block."""
        planes = []
        for _, doubles in GENERATOR_BLOCKS if self.noise_channels else ():
            if doubles:
                planes.append(torch.randn(1, self.noise_channels, height, width, generator=source))
                height, width = 2 * height, 2 * width
        return planes

    def forward(self, small: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        """Images [B, C, 4h, 4w] in [-1, 1], at least float32, for small ones [B, C, h, w].

        noise: what `noise` gives, of B samples; None: drawn from torch's default generator.
        """
        h, left = small, list(noise or ())
        for block in self.blocks:
            h = block(h, left.pop(0) if left and block.noise_channels else None)
        return torch.tanh(at_least_float32(self.conv(F.relu(self.norm(h)))))


class PairDiscriminator(nn.Module):
    """Logits [B] of images [B, C, H, W] with their small ones [B, C, h, w]; spectral norm on every weight."""

    draws = couples_samples = False

    def __init__(self, config: PairDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        colours, before = model.image_channels, config.channels
        first: list[nn.Module] = [FirstDiscriminatorBlock(colours, before)]
        for multiplier, halve in FIRST_BLOCKS:
            first.append(DiscriminatorBlock(before, config.channels * multiplier, before, halve))
            before = config.channels * multiplier
        self.first = nn.ModuleList(first)
        self.projection = SpectralConv2d(before, colours, 3) if config.join == "projection" else None
        before += 0 if config.join == "projection" else colours
        last = []
        for multiplier, halve in LAST_BLOCKS:
            last.append(DiscriminatorBlock(before, config.channels * multiplier, before, halve))
            before = config.channels * multiplier
        self.last = nn.ModuleList(last)
        self.linear = SpectralLinear(before, 1)
        self.scaled = config.scaled

    def forward(self, images: Tensor, small: Tensor) -> Tensor:
        """f(x, y) = psi(phi(x)) + <y, conv(phi(x))> (Eq. 9), at least float32."""
        h = images
        for block in self.first:
            h = block(h)
        inner = None
        if self.projection is not None:
            seen = self.projection(h)
            with full_precision(h.device):
                inner = (at_least_float32(seen) * small).sum((1, 2, 3))
                inner = inner / math.sqrt(small[0].numel()) if self.scaled else inner
        else:
            h = torch.cat([h, small.to(h.dtype)], 1)
        for block in self.last:
            h = block(h)
        with full_precision(h.device):
            h = F.relu(at_least_float32(h))
            pooled = h.sum((2, 3)) / (math.sqrt(h.shape[2] * h.shape[3]) if self.scaled else 1.0)
            logits: Tensor = self.linear(pooled).squeeze(1)
            return logits if inner is None else logits + inner
