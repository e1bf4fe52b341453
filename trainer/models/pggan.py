"""The networks of "Progressive Growing of GANs" (Karras et al. 2018, arXiv 1710.10196, Table 2) for any power of two.

All layers exist from the start; a stage (trainer/models/growing.py) says which of them act. Layers at s px have
min(fmap_base / (s / 2)^fmap_decay, fmap_max) channels. Shapes: B batch, C image channels, r the stage's resolution, K
classes, Z latent dimension.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import ModelConfig
from trainer.models.forms import Placed
from trainer.models.growing import (
    SMALLEST,
    EqualisedConvolution,
    EqualisedLinear,
    Reached,
    Stage,
    enlarged,
    faded,
    leaky_relu,
    levels,
    minibatch_deviation,
    pixel_norm,
    placed_blocks,
)
from trainer.models.layers import SQRT2, at_least_float32, downsample, upsample

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Widths:
    """Channels by resolution."""

    fmap_base: Annotated[int, Field(ge=2)] = 8192
    """Twice the channels at 4 px, before `fmap_max`; each doubling of the resolution halves them (with `fmap_decay` 1)."""
    fmap_decay: Annotated[float, Field(ge=0)] = 1.0
    """Binary logarithm of the factor by which a doubling divides the channels."""
    fmap_max: Annotated[int, Field(ge=1)] = 512
    """The most channels that a layer has."""

    def at(self, side: int) -> int:
        """Channels of the layers at `side` px; at 2 px those of the discriminator's hidden dense layer."""
        return max(1, min(int(self.fmap_base / 2.0 ** ((side.bit_length() - 2) * self.fmap_decay)), self.fmap_max))


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class PGGANGeneratorConfig(Widths):
    """Settings of the generator; the defaults are the official code's."""

    latent_norm: Literal["joint", "latents"] = "joint"
    """The pixel norm of the input runs over latents and one-hot class together, as in the official code, so that the class
    has little energy; or over the latents alone, as in the first official code."""

    def build(self, model: ModelConfig) -> "PGGANGenerator":
        """The network, weights drawn from torch's default generator."""
        return PGGANGenerator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class PGGANDiscriminatorConfig(Widths):
    """Settings of the discriminator; the defaults are the official code's."""

    pool: Literal["before_activation", "after_activation"] = "before_activation"
    """Order of a block's second layer: convolution, mean, bias, activation, as in the official code's fused form; or
    convolution, bias, activation, mean, as in the paper and in the first official code."""
    group: Annotated[int, Field(ge=1)] | None = 4
    """Samples of a group of the minibatch deviation; null: the replica's whole batch, as in the paper."""
    noisy: bool = False
    """Whether layers multiply their input by noise around 1, as strong as the method says (appendix B: least squares)."""

    def build(self, model: ModelConfig) -> "PGGANDiscriminator":
        """The network, weights drawn from torch's default generator."""
        return PGGANDiscriminator(self, model)


class PGGANGenerator(nn.Module):
    """Dense -> 4 px -> doubling blocks of two convolutions, each with leaky ReLU and pixel norm; a linear RGB layer for
    every level."""

    draws = couples_samples = False

    def __init__(self, config: PGGANGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.resolution, self.classes, self.joint = model.resolution, model.classes, config.latent_norm == "joint"
        sides = levels(model.resolution)
        first = config.at(SMALLEST)
        self.dense = EqualisedLinear(model.latent_dim + model.classes, first * SMALLEST**2, SQRT2 / 4, bias=False)
        self.dense_bias = nn.Parameter(torch.zeros(first))
        self.first = EqualisedConvolution(first, first, 3)
        self.blocks = nn.ModuleDict({str(side): _GeneratorBlock(config, side) for side in sides[1:]})
        self.to_rgb = nn.ModuleDict(
            {str(side): EqualisedConvolution(config.at(side), model.image_channels, 1, gain=1.0) for side in sides}
        )
        self.reached = Reached(SMALLEST)

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage | None = None) -> Tensor:
        """Images, at least float32, not bounded, for latents [B, Z] and labels.

        `labels` are int64 [B], or float class weights [B, K] in place of the one-hot code. With a `stage` the images are
        [B, C, r, r]. Without one the network is sampled: they are of the full size, at the stage of its last training.
        """
        whole = stage is None
        stage = self.reached(stage)
        h = self._input(latents, labels)
        h = self.dense(h).view(len(h), -1, SMALLEST, SMALLEST) + self.dense_bias[:, None, None]
        h = pixel_norm(leaky_relu(h))
        h = pixel_norm(leaky_relu(self.first(h)))
        below, side = h, SMALLEST
        while side < stage.resolution:
            side *= 2
            below, h = h, self.blocks[str(side)](h)
        images = at_least_float32(self.to_rgb[str(side)](h))
        if stage.fade < 1.0:
            images = faded(upsample(at_least_float32(self.to_rgb[str(side // 2)](below))), images, stage.fade)
        return enlarged(images, self.resolution) if whole else images

    def _input(self, latents: Tensor, labels: Tensor) -> Tensor:
        if not self.classes:
            return pixel_norm(latents)
        code = labels if labels.is_floating_point() else F.one_hot(labels, self.classes)
        code = code.to(latents.dtype)
        if self.joint:
            return pixel_norm(torch.cat([latents, code], 1))
        return torch.cat([pixel_norm(latents), code], 1)

    def placed_convolutions(self, resolution: int) -> list[Placed]:
        """The 3x3 convolutions, from first to last."""
        return [Placed("first", self.first, SMALLEST), *placed_blocks(self.blocks.items(), doubled=True)]


class _GeneratorBlock(nn.Module):
    """x [B, I, r/2, r/2] -> [B, O, r, r]."""

    draws = couples_samples = False

    def __init__(self, widths: Widths, side: int) -> None:
        super().__init__()
        self.conv1 = EqualisedConvolution(widths.at(side // 2), widths.at(side), 3, doubles=True)
        self.conv2 = EqualisedConvolution(widths.at(side), widths.at(side), 3)

    def forward(self, x: Tensor) -> Tensor:
        h = pixel_norm(leaky_relu(self.conv1(x)))
        return pixel_norm(leaky_relu(self.conv2(h)))


class PGGANDiscriminator(nn.Module):
    """An RGB layer for every level -> halving blocks of two convolutions -> minibatch deviation at 4 px -> two dense
    layers, the last with one logit and K class logits."""

    couples_samples = True

    def __init__(self, config: PGGANDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.group, self.noisy = config.group, config.noisy
        sides = levels(model.resolution)
        after = config.pool == "after_activation"
        self.from_rgb = nn.ModuleDict(
            {str(side): EqualisedConvolution(model.image_channels, config.at(side), 1) for side in sides}
        )
        self.blocks = nn.ModuleDict({str(side): _DiscriminatorBlock(config, side, after) for side in sides[1:]})
        first = config.at(SMALLEST)
        self.last = EqualisedConvolution(first + 1, first, 3)
        self.hidden = EqualisedLinear(first * SMALLEST**2, config.at(2))
        self.output = EqualisedLinear(config.at(2), 1 + model.classes, gain=1.0)

    @property
    def draws(self) -> bool:
        """The noise is drawn in a pass."""
        return self.noisy

    def forward(self, images: Tensor, labels: Tensor, stage: Stage, noise: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B], and class logits [B, K] where there are classes; labels are not looked at.

        Args:
            images: [B, C, r, r].
            noise: scalar: the strength s of the noise, x (1 + s sqrt(channels) n) with n ~ N(0, 1) for every sample and
                channel of each layer's input; None: there is none.
        """
        side = stage.resolution
        h = leaky_relu(self.from_rgb[str(side)](_noisy(images, noise)))
        while side > SMALLEST:
            h = self.blocks[str(side)](h, noise)
            side //= 2
            if stage.fade < 1.0 and 2 * side == stage.resolution:
                old = leaky_relu(self.from_rgb[str(side)](_noisy(downsample(images), noise)))
                h = faded(old, h, stage.fade)
        h = minibatch_deviation(h, self.group)
        h = leaky_relu(self.last(_noisy(h, noise)))
        h = leaky_relu(self.hidden(_noisy(at_least_float32(h).flatten(1), noise)))
        outputs = self.output(_noisy(h, noise))
        return DiscriminatorOutput(outputs[:, 0], outputs[:, 1:] if outputs.shape[1] > 1 else None)

    def placed_convolutions(self, resolution: int) -> list[Placed]:
        """The 3x3 convolutions, from the images on."""
        from_images = reversed(list(self.blocks.items()))
        return [*placed_blocks(from_images, doubled=False), Placed("last", self.last, SMALLEST)]


class _DiscriminatorBlock(nn.Module):
    """x [B, I, r, r] -> [B, O, r/2, r/2]."""

    draws = couples_samples = False

    def __init__(self, widths: Widths, side: int, pools_after: bool) -> None:
        super().__init__()
        self.pools_after = pools_after
        self.conv1 = EqualisedConvolution(widths.at(side), widths.at(side), 3)
        self.conv2 = EqualisedConvolution(widths.at(side), widths.at(side // 2), 3, halves=not pools_after)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        h = leaky_relu(self.conv1(_noisy(x, noise)))
        h = leaky_relu(self.conv2(_noisy(h, noise)))
        return downsample(h) if self.pools_after else h


def _noisy(x: Tensor, strength: Tensor | None) -> Tensor:
    if strength is None:
        return x
    shape = (*x.shape[:2], *[1] * (x.dim() - 2))
    noise = torch.randn(shape, dtype=x.dtype, device=x.device)
    return x * (1.0 + strength.to(x.dtype) * math.sqrt(x.shape[1]) * noise)
