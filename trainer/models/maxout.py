"""The networks of "Conditional Generative Adversarial Nets" (Mirza & Osindero 2014, section 4.1): MLPs, maxout, dropout.

The paper leaves out the initial weights and where dropout acts. Both are taken from the code of its predecessor
(goodfeli/adversarial, mnist.yaml): uniform weights, and dropout on what a layer is given.
Shapes: B batch, C channels, H = W the resolution, K classes, Z latent dimension.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import ModelConfig
from trainer.models.layers import at_least_float32, full_precision

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class MLPGeneratorConfig:
    """Settings of the generator; the defaults are the paper's where it gives them."""

    name: Literal["mlp"] = "mlp"
    latent_width: Width = 200
    """Rectified linear units that see the latent vector."""
    class_width: Width = 1000
    """Rectified linear units that see the one-hot class; without classes there are none."""
    joint_width: Width = 1200
    """Rectified linear units that see both."""
    dropout: Share = 0.5
    """Share of hidden units that the next layer does not see in training. Samples are drawn without."""
    weight_range: Annotated[float, Field(gt=0)] = 0.05
    """Initial weights are U(-range, range), biases 0. Not given in the paper; this is the predecessor's."""

    def build(self, model: ModelConfig) -> "MLPGenerator":
        """The network, weights drawn from torch's default generator."""
        return MLPGenerator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class MaxoutDiscriminatorConfig:
    """Settings of the discriminator; the defaults are the paper's where it gives them."""

    name: Literal["maxout"] = "maxout"
    image_units: Width = 240
    """Maxout units that see the image."""
    class_units: Width = 50
    """Maxout units that see the one-hot class; without classes there are none."""
    pieces: Width = 5
    """Linear functions of which each of these units is the largest."""
    joint_units: Width = 240
    """Maxout units that see both."""
    joint_pieces: Width = 4
    """Linear functions of which each of these is the largest."""
    dropout: Share = 0.5
    """Share of hidden units that the next layer does not see in training."""
    input_dropout: Share = 0.2
    """The same of pixels. Not given in the paper; this is the predecessor's."""
    weight_range: Annotated[float, Field(gt=0)] = 0.005
    """Initial weights are U(-range, range), biases 0. Not given in the paper; this is the predecessor's."""

    @property
    def couples_samples(self) -> bool:
        """Every sample is judged alone."""
        return False

    def build(self, model: ModelConfig) -> "MaxoutDiscriminator":
        """The network, weights drawn from torch's default generator."""
        return MaxoutDiscriminator(self, model)


class Maxout(nn.Module):
    """max over j of W_ij x + b_ij (Goodfellow et al. 2013): one linear layer, then the largest of `pieces` outputs in a row.

    x [B, I] -> [B, units].
    """

    draws = couples_samples = False

    def __init__(self, features: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, units * pieces)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return torch.amax(self.linear(x).view(len(x), -1, self.pieces), 2)


class MLPGenerator(nn.Module):
    """z -> ReLU units, one-hot class -> ReLU units, both -> ReLU units -> a sigmoid for each pixel."""

    draws = couples_samples = False

    def __init__(self, config: MLPGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.classes = model.classes
        self.shape = (model.image_channels, model.resolution, model.resolution)
        self.latent = nn.Linear(model.latent_dim, config.latent_width)
        self.label = nn.Linear(model.classes, config.class_width) if model.classes else None
        both = config.latent_width + (config.class_width if model.classes else 0)
        self.joint = nn.Linear(both, config.joint_width)
        self.pixels = nn.Linear(config.joint_width, model.image_channels * model.resolution**2)
        self.dropout = nn.Dropout(config.dropout)
        _draw_weights(self, config.weight_range)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], at least float32, for latents [B, Z] and labels.

        `labels` are int64 [B], or float class weights [B, K] in place of the one-hot code.
        """
        h = F.relu(self.latent(latents))
        if self.label is not None:
            h = torch.cat([h, F.relu(self.label(_code(labels, self.classes, latents.dtype)))], 1)
        h = self.dropout(F.relu(self.joint(self.dropout(h))))
        return 2 * torch.sigmoid(at_least_float32(self.pixels(h))).view(-1, *self.shape) - 1


class MaxoutDiscriminator(nn.Module):
    """Image -> maxout units, one-hot class -> maxout units, both -> maxout units -> a logit."""

    draws = couples_samples = False

    def __init__(self, config: MaxoutDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.classes = model.classes
        pixels = model.image_channels * model.resolution**2
        self.image = Maxout(pixels, config.image_units, config.pieces)
        self.label = Maxout(model.classes, config.class_units, config.pieces) if model.classes else None
        both = config.image_units + (config.class_units if model.classes else 0)
        self.joint = Maxout(both, config.joint_units, config.joint_pieces)
        self.logit = nn.Linear(config.joint_units, 1)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)
        _draw_weights(self, config.weight_range)

    def forward(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """images [B, C, H, W] in [-1, 1], which the first layer sees in [0, 1]; labels int64 [B]."""
        h = self.image(self.input_dropout((images.flatten(1) + 1) / 2))
        if self.label is not None:
            h = torch.cat([h, self.label(_code(labels, self.classes, h.dtype))], 1)
        h = self.dropout(self.joint(self.dropout(h)))
        with full_precision(h.device):
            return DiscriminatorOutput(F.linear(at_least_float32(h), self.logit.weight, self.logit.bias).squeeze(1))


def _code(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """The one-hot code of labels [B], or class weights [B, K] as they are."""
    return (labels if labels.is_floating_point() else F.one_hot(labels, classes)).to(dtype)


def _draw_weights(module: nn.Module, bound: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
