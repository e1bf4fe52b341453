"""The discriminator of StyleGAN (Karras et al. 2019, arXiv 1812.04948): PGGAN's with a blur before each halving, and with a
logit for each class, of which a sample's own one is its score (after Mescheder et al. 2018).

Shapes: B batch, C image channels, r the stage's resolution, K classes.
"""

from typing import Annotated

import torch
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
    Stage,
    faded,
    leaky_relu,
    levels,
    minibatch_deviation,
    placed_blocks,
)
from trainer.models.layers import at_least_float32, downsample
from trainer.models.pggan import Widths
from trainer.models.stylegan import blur


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class StyleGANDiscriminatorConfig(Widths):
    """Settings of the discriminator; the defaults are the official code's."""

    blur: bool = True
    """Whether halvings are bilinear: what is halved is blurred by [1, 2, 1] before."""
    group: Annotated[int, Field(ge=1)] | None = 4
    """Samples of a group of the minibatch deviation; null: the replica's whole batch."""

    def build(self, model: ModelConfig) -> "StyleGANDiscriminator":
        """The network, weights drawn from torch's default generator."""
        return StyleGANDiscriminator(self, model)


class StyleGANDiscriminator(nn.Module):
    """An RGB layer for every level -> halving blocks -> minibatch deviation at 4 px -> two dense layers."""

    draws = False
    couples_samples = True

    def __init__(self, config: StyleGANDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.group, self.classes = config.group, model.classes
        sides = levels(model.resolution)
        self.from_rgb = nn.ModuleDict(
            {str(side): EqualisedConvolution(model.image_channels, config.at(side), 1) for side in sides}
        )
        self.blocks = nn.ModuleDict({str(side): _Block(config, side) for side in sides[1:]})
        first = config.at(SMALLEST)
        self.last = EqualisedConvolution(first + 1, first, 3)
        self.hidden = EqualisedLinear(first * SMALLEST**2, config.at(2))
        self.output = EqualisedLinear(config.at(2), max(model.classes, 1), gain=1.0)

    def forward(self, images: Tensor, labels: Tensor, stage: Stage) -> DiscriminatorOutput:
        """Logits [B]: with classes that of the label. Args: images [B, C, r, r]; labels int64 [B]."""
        side = stage.resolution
        h = leaky_relu(self.from_rgb[str(side)](images))
        while side > SMALLEST:
            h = self.blocks[str(side)](h)
            side //= 2
            if stage.fade < 1.0 and 2 * side == stage.resolution:
                h = faded(leaky_relu(self.from_rgb[str(side)](downsample(images))), h, stage.fade)
        h = leaky_relu(self.last(minibatch_deviation(h, self.group)))
        outputs = self.output(leaky_relu(self.hidden(at_least_float32(h).flatten(1))))
        row = labels if self.classes else torch.zeros(len(outputs), dtype=torch.int64, device=outputs.device)
        return DiscriminatorOutput(outputs.gather(1, row[:, None])[:, 0])

    def placed_convolutions(self, resolution: int) -> list[Placed]:
        """The 3x3 convolutions, from the images on."""
        from_images = reversed(list(self.blocks.items()))
        return [*placed_blocks(from_images, doubled=False), Placed("last", self.last, SMALLEST)]


class _Block(nn.Module):
    """x [B, I, r, r] -> [B, O, r/2, r/2]; the mean comes before the bias, as in the official code."""

    draws = couples_samples = False

    def __init__(self, config: StyleGANDiscriminatorConfig, side: int) -> None:
        super().__init__()
        self.blur = config.blur
        self.conv1 = EqualisedConvolution(config.at(side), config.at(side), 3)
        self.conv2 = EqualisedConvolution(config.at(side), config.at(side // 2), 3, halves=True)

    def forward(self, x: Tensor) -> Tensor:
        h = leaky_relu(self.conv1(x))
        return leaky_relu(self.conv2(blur(h) if self.blur else h))
