"""The residual networks of "cGANs with Projection Discriminator" (Miyato & Koyama 2018), as in the official code.

The official forms at 32 (CIFAR), 64 and 128 px are the defaults of their resolutions; `multipliers` gives others.
Shapes: B batch, C channels, H = W the resolution, K classes, Z latent dimension.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.conditioning import (
    ConditioningConfig,
    DiscriminatorOutput,
    ProjectionConfig,
    class_norm,
    normalised,
)
from trainer.models.config import ModelConfig, classifies
from trainer.models.forms import Placed
from trainer.models.layers import (
    SQRT2,
    Convolution,
    SpectralConv2d,
    SpectralLinear,
    at_least_float32,
    downsample,
    full_precision,
    glorot_uniform,
)
from trainer.models.recomputation import recomputed

# Width multipliers: of the bottom map and of every block's output.
GENERATOR_FORMS = {32: (1, 1, 1, 1), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
# Width multipliers of every block's output, how many of the blocks halve the map, whether the last layer has a bias.
DISCRIMINATOR_FORMS = {
    32: ((1, 1, 1, 1), 2, False),
    64: ((1, 2, 4, 8, 16), 5, True),
    128: ((1, 2, 4, 8, 16, 16), 5, True),
}

Multipliers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2)]
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ResNetGeneratorConfig:
    """Settings of the residual generator; the defaults are the official code's."""

    name: Literal["resnet"] = "resnet"
    channels: Annotated[int, Field(ge=1)] = 64
    """Width multiplier `ch` of the official code (64 at 64 and 128 px, 256 at 32 px)."""
    multipliers: Multipliers | None = None
    """Widths in units of `channels`: of the bottom map, then of each block's output. None: the resolution's form."""
    bottom_width: Annotated[int, Field(ge=1)] = 4
    """Height and width of the map that the linear layer makes."""
    final_norm: Literal["plain", "conditional"] = "plain"
    """The batch norm before the last convolution. The official code's is plain; many ports make it conditional."""
    norm_eps: Annotated[float, Field(gt=0)] = 2e-5
    """Added to batch norm's variance. Chainer's default, which the official code has; PyTorch's is 1e-5."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running statistics; the official decay of 0.9."""

    def build(self, model: ModelConfig) -> "ResNetGenerator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible one."""
        return ResNetGenerator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ResNetDiscriminatorConfig:
    """Settings of the residual discriminator; the defaults are the official code's."""

    name: Literal["resnet"] = "resnet"
    conditioning: ConditioningConfig = Field(default_factory=ProjectionConfig)
    channels: Annotated[int, Field(ge=1)] = 64
    """Width multiplier `ch` of the official code (64 at 64 and 128 px, 128 at 32 px)."""
    multipliers: Multipliers | None = None
    """Widths of the blocks' outputs in units of `channels`. None: the resolution's form."""
    downsampling_blocks: Annotated[int, Field(ge=1)] | None = None
    """How many blocks, from the first on, halve the map. None: the resolution's form."""
    head_bias: bool | None = None
    """Whether the last linear layer has a bias. None: the resolution's form (32 px: no; 64 and 128 px: yes)."""
    hidden_channels: Literal["input", "output"] = "input"
    """Width between a block's two convolutions. The official discriminator has the input's, most ports the output's."""
    pooling: Literal["sum", "mean"] = "sum"
    """Global pooling before the head. The official code sums; some ports take the mean."""

    @property
    def classifies(self) -> bool:
        """Whether it has class logits, given classes: the conditioning says it."""
        return classifies(self.conditioning)

    @property
    def couples_samples(self) -> bool:
        """Every sample is judged alone."""
        return False

    def build(self, model: ModelConfig) -> "ResNetDiscriminator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible one."""
        return ResNetDiscriminator(self, model)


class GeneratorBlock(nn.Module):
    """norm -> ReLU -> up x2 -> conv3x3 -> norm -> ReLU -> conv3x3, plus up x2 -> conv1x1; widths in -> out -> out."""

    draws = couples_samples = False

    def __init__(self, in_channels: int, out_channels: int, config: ResNetGeneratorConfig, classes: int) -> None:
        super().__init__()
        self.norm1 = class_norm(in_channels, classes, config.norm_eps, config.norm_momentum)
        self.conv1 = Convolution(in_channels, out_channels, 3, SQRT2, doubles=True)
        self.norm2 = class_norm(out_channels, classes, config.norm_eps, config.norm_momentum)
        self.conv2 = Convolution(out_channels, out_channels, 3, SQRT2)
        self.shortcut = Convolution(in_channels, out_channels, 1, doubles=True)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        # In place: nothing else reads a norm's output, neither forwards nor backwards.
        h = self.conv1(F.relu(normalised(self.norm1, x, labels), inplace=True))
        h = self.conv2(F.relu(normalised(self.norm2, h, labels), inplace=True))
        y: Tensor = h + self.shortcut(x)
        return y


class ResNetGenerator(nn.Module):
    """Linear -> blocks, each doubling the map -> batch norm -> ReLU -> conv3x3 -> tanh."""

    draws = couples_samples = False

    def __init__(self, config: ResNetGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in _generator_multipliers(config, model.resolution)]
        self.bottom_width = config.bottom_width
        self.linear = nn.Linear(model.latent_dim, config.bottom_width**2 * widths[0])
        glorot_uniform(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, config, model.classes) for before, after in pairwise(widths)
        )
        classes_of_last = model.classes if config.final_norm == "conditional" else 0
        self.norm = class_norm(widths[-1], classes_of_last, config.norm_eps, config.norm_momentum)
        self.conv = Convolution(widths[-1], model.image_channels, 3)
        self.recompute = False
        """Whether the backward pass computes the blocks again (trainer/models/recomputation.py)."""

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], at least float32, for latents [B, Z] and labels.

        `labels` are int64 [B], or float class weights [B, K] that mix the classes' gains and biases.
        """
        h = self.linear(latents).unflatten(1, (-1, self.bottom_width, self.bottom_width))
        for block in self.blocks:
            h = recomputed(block, h, labels) if self.recompute else block(h, labels)
        return torch.tanh(at_least_float32(self.conv(F.relu(normalised(self.norm, h, labels), inplace=True))))

    def placed_convolutions(self, resolution: int) -> list[Placed]:
        """The blocks' 3x3 convolutions, from first to last."""
        found, side = [], self.bottom_width
        for number, block in enumerate(cast(Iterable[GeneratorBlock], self.blocks)):
            found.append(Placed(f"blocks.{number}.conv1", block.conv1, side))
            side *= 2
            found.append(Placed(f"blocks.{number}.conv2", block.conv2, side))
        return found


class FirstDiscriminatorBlock(nn.Module):
    """conv3x3 -> ReLU -> conv3x3 -> down, plus down -> conv1x1: no ReLU at the image, the shortcut pools first."""

    draws = couples_samples = False

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, SQRT2)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, SQRT2, halve=True)
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True)) + self.shortcut(downsample(x))
        return y


class DiscriminatorBlock(nn.Module):
    """ReLU -> conv3x3 -> ReLU -> conv3x3 (-> down), plus conv1x1 (-> down), or plus x where the shape stays."""

    draws = couples_samples = False

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, halve: bool) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(in_channels, hidden_channels, 3, SQRT2)
        self.conv2 = SpectralConv2d(hidden_channels, out_channels, 3, SQRT2, halve=halve)
        learned = halve or in_channels != out_channels
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1, halve=halve) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
        y: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return y


class ResNetDiscriminator(nn.Module):
    """Blocks -> ReLU -> global sum -> linear, with a conditioning; spectral norm on every weight."""

    draws = couples_samples = False

    def __init__(self, config: ResNetDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        multipliers, halvings, head_bias = _discriminator_form(config, model.resolution)
        widths = [config.channels * m for m in multipliers]
        conditioning = config.conditioning.build(model.classes, widths[-1], len(widths))
        blocks: list[nn.Module] = [FirstDiscriminatorBlock(model.image_channels, widths[0])]
        for number in range(1, len(widths)):
            before = widths[number - 1] + conditioning.extra_channels(after_block=number)
            hidden = before if config.hidden_channels == "input" else widths[number]
            blocks.append(DiscriminatorBlock(before, widths[number], hidden, halve=number < halvings))
        self.blocks = nn.ModuleList(blocks)
        self.linear = SpectralLinear(widths[-1], 1, bias=head_bias)
        self.conditioning = conditioning
        self.mean_pooling = config.pooling == "mean"

    def forward(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """images [B, C, H, W] in [-1, 1], labels int64 [B]."""
        h = images
        for number, block in enumerate(self.blocks, start=1):
            h = self.conditioning.join(number, block(h), labels)
        with full_precision(h.device):
            h = F.relu(at_least_float32(h))
            features = h.mean((2, 3)) if self.mean_pooling else h.sum((2, 3))
            output: DiscriminatorOutput = self.conditioning(features, self.linear(features).squeeze(1), labels)
        return output

    def placed_convolutions(self, resolution: int) -> list[Placed]:
        """The blocks' 3x3 convolutions, from first to last, for images of `resolution` px."""
        found, side = [], resolution
        blocks = cast(Iterable[FirstDiscriminatorBlock | DiscriminatorBlock], self.blocks)
        for number, block in enumerate(blocks):
            found.append(Placed(f"blocks.{number}.conv1", block.conv1, side))
            found.append(Placed(f"blocks.{number}.conv2", block.conv2, side))
            side = side // 2 if block.conv2.halve else side
        return found


def _generator_multipliers(config: ResNetGeneratorConfig, resolution: int) -> tuple[int, ...]:
    multipliers = config.multipliers or GENERATOR_FORMS.get(resolution)
    if multipliers is None:
        raise SettingError(
            f"generator.multipliers: there is no official form at {resolution} px (there is at "
            f"{', '.join(map(str, GENERATOR_FORMS))}); give the widths of the bottom map and of every block"
        )
    made = config.bottom_width * 2 ** (len(multipliers) - 1)
    if made != resolution:
        raise SettingError(
            f"generator.multipliers: {len(multipliers)} widths from a bottom map of {config.bottom_width} px make "
            f"images of {made} px and model.resolution is {resolution}; add or remove blocks"
        )
    return multipliers


def _discriminator_form(config: ResNetDiscriminatorConfig, resolution: int) -> tuple[tuple[int, ...], int, bool]:
    form = DISCRIMINATOR_FORMS.get(resolution)
    if form is None and (config.multipliers is None or config.downsampling_blocks is None):
        raise SettingError(
            f"discriminator.multipliers: there is no official form at {resolution} px (there is at "
            f"{', '.join(map(str, DISCRIMINATOR_FORMS))}); give multipliers and downsampling_blocks"
        )
    multipliers, halvings, bias = form or ((), 0, True)
    multipliers = config.multipliers or multipliers
    halvings = halvings if config.downsampling_blocks is None else config.downsampling_blocks
    if halvings > len(multipliers) or resolution % 2**halvings:
        raise SettingError(
            f"discriminator.downsampling_blocks: {len(multipliers)} blocks cannot halve {resolution} px "
            f"{halvings} times; give fewer, or more multipliers"
        )
    return multipliers, halvings, bias if config.head_bias is None else config.head_bias
