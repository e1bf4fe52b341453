"""The networks of "Conditional Image Synthesis with Auxiliary Classifier GANs" (Odena, Olah & Shlens 2017).

The paper's table of the 128 px generator is one stage short of 128 px and gives no paddings. Both are filled in as
common ports do: 1 -> 5 -> 13 -> 29 -> 61 -> 128 px in the generator, 13x13 maps before the discriminator's head.
Shapes: B batch, C channels, H = W the resolution, K classes, Z latent dimension.
"""

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.conditioning import DiscriminatorOutput
from trainer.models.config import ModelConfig
from trainer.models.layers import BatchNorm2d, at_least_float32, full_precision


class _Form(NamedTuple):
    widths: tuple[int, ...]
    """Of the linear layer and of every transposed convolution but the last."""
    stages: tuple[tuple[int, int, int], ...]
    """Kernel, stride, padding of every transposed convolution; the first works on a 1x1 map."""
    discriminator_padding: int
    """Padding of the discriminator's stride-1 convolutions; those of stride 2 have 1."""


FORMS = {
    128: _Form((768, 384, 256, 192, 64), ((5, 2, 0), (5, 2, 0), (5, 2, 0), (5, 2, 0), (8, 2, 0)), 0),
    32: _Form((384, 192, 96, 48), ((4, 1, 0), (4, 2, 1), (4, 2, 1), (4, 2, 1)), 1),
}
STRIDES = (2, 1, 2, 1, 2, 1)

Widths = tuple[Annotated[int, Field(ge=1)], ...]
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class DCGANGeneratorConfig:
    """Settings of AC-GAN's generator; the defaults are the paper's where it gives them."""

    name: Literal["dcgan"] = "dcgan"
    widths: Widths | None = None
    """Channels of the linear layer and of every transposed convolution but the last. None: the resolution's form."""
    class_placement: Literal["appended", "overwrites_latents"] = "appended"
    """Where the one-hot class goes: behind the latent vector, as in the paper (100 + 10 inputs), or over its first
    `model.classes` entries, as in a common port (110 inputs, 100 of them noise)."""
    weight_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to batch norm's variance. Not given in the paper."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running statistics. Not given in the paper."""

    def build(self, model: ModelConfig) -> "DCGANGenerator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible one."""
        return DCGANGenerator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class DCGANDiscriminatorConfig:
    """Settings of AC-GAN's discriminator; the defaults are the paper's where it gives them."""

    name: Literal["dcgan"] = "dcgan"
    widths: Annotated[Widths, Field(min_length=6, max_length=6)] = (16, 32, 64, 128, 256, 512)
    """Channels of the six convolutions (strides 2, 1, 2, 1, 2, 1)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of activations that each layer drops in training."""
    activation_noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the Gaussian noise added to each layer's output in training (the paper's grid for CIFAR:
    0, 0.1, 0.2)."""
    slope: Annotated[float, Field(ge=0)] = 0.2
    """Slope of the leaky ReLU below 0."""
    weight_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to batch norm's variance. Not given in the paper."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running statistics. Not given in the paper."""

    @property
    def classifies(self) -> bool:
        """It has class logits, given classes."""
        return True

    @property
    def couples_samples(self) -> bool:
        """Batch norm mixes the samples of a pass."""
        return True

    def build(self, model: ModelConfig) -> "DCGANDiscriminator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible one."""
        return DCGANDiscriminator(self, model)


class DCGANGenerator(nn.Module):
    """Linear -> ReLU -> transposed convolutions with batch norm and ReLU -> transposed convolution -> tanh."""

    draws = couples_samples = False

    def __init__(self, config: DCGANGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        form = _form("generator", model.resolution)
        widths = config.widths or form.widths
        if len(widths) != len(form.stages):
            raise SettingError(
                f"generator.widths: {len(widths)} widths given, {model.resolution} px takes {len(form.stages)}; "
                "list one for the linear layer and one for every transposed convolution but the last"
            )
        self.classes = model.classes
        self.overwrites = config.class_placement == "overwrites_latents"
        if self.overwrites and model.latent_dim <= model.classes:
            raise SettingError(
                f"model.latent_dim: {model.latent_dim} entries are all overwritten by {model.classes} classes; "
                "give more, or set generator.class_placement to appended"
            )
        self.linear = nn.Linear(model.latent_dim + (0 if self.overwrites else model.classes), widths[0])
        stages: list[nn.Module] = []
        for (before, after), (kernel, stride, padding) in zip(pairwise(widths), form.stages, strict=False):
            stages.append(nn.ConvTranspose2d(before, after, kernel, stride, padding, bias=False))
            stages.append(BatchNorm2d(after, config.norm_eps, config.norm_momentum))
            stages.append(nn.ReLU())
        stages.append(nn.ConvTranspose2d(widths[-1], model.image_channels, *form.stages[-1]))
        self.stages = nn.Sequential(*stages)
        _draw_weights(self, config.weight_std)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], at least float32, for latents [B, Z] and labels.

        `labels` are int64 [B], or float class weights [B, K] in place of the one-hot code.
        """
        if self.classes:
            code = labels if labels.is_floating_point() else F.one_hot(labels, self.classes)
            kept = latents[:, self.classes :] if self.overwrites else latents
            parts = (code.to(latents.dtype), kept) if self.overwrites else (kept, code.to(latents.dtype))
            latents = torch.cat(parts, dim=1)
        h = F.relu(self.linear(latents))[:, :, None, None]
        return torch.tanh(at_least_float32(self.stages(h)))


class DCGANDiscriminator(nn.Module):
    """Six convolutions, then a logit for the source and logits for the class; batch norm on all but the first.

    Batch norm mixes the samples of a pass: real and generated images must go through in separate passes.
    """

    draws = couples_samples = False

    def __init__(self, config: DCGANDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        form = _form("discriminator", model.resolution)
        side, before = model.resolution, model.image_channels
        stages: list[nn.Module] = []
        for number, (after, stride) in enumerate(zip(config.widths, STRIDES, strict=True)):
            padding = 1 if stride == 2 else form.discriminator_padding
            stages.append(nn.Conv2d(before, after, 3, stride, padding, bias=number == 0))
            if number:
                stages.append(BatchNorm2d(after, config.norm_eps, config.norm_momentum))
            stages.append(nn.LeakyReLU(config.slope))
            stages.append(nn.Dropout(config.dropout))
            stages.append(ActivationNoise(config.activation_noise))
            side, before = (side + 2 * padding - 3) // stride + 1, after
        self.stages = nn.Sequential(*stages)
        self.source = nn.Linear(side * side * before, 1)
        self.classifier = nn.Linear(side * side * before, model.classes) if model.classes else None
        _draw_weights(self, config.weight_std)

    def forward(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """images [B, C, H, W] in [-1, 1]; labels are not looked at."""
        features = self.stages(images).flatten(1)
        with full_precision(features.device):
            features = at_least_float32(features)
            class_logits = None if self.classifier is None else self.classifier(features)
            return DiscriminatorOutput(self.source(features).squeeze(1), class_logits)


class ActivationNoise(nn.Module):
    """x + N(0, std^2) in training, from torch's default generator (Salimans et al. 2016, in the discriminator)."""

    couples_samples = False

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    @property
    def draws(self) -> bool:
        """Without noise it draws nothing."""
        return self.std > 0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x) if self.training and self.std else x

    def extra_repr(self) -> str:
        return f"std={self.std}"


def _form(network: str, resolution: int) -> _Form:
    if resolution not in FORMS:
        raise SettingError(
            f"{network}.name: the dcgan networks exist at {' and '.join(map(str, sorted(FORMS)))} px and "
            f"model.resolution is {resolution}; set {network}.name to resnet, or model.resolution to one of these"
        )
    return FORMS[resolution]


def _draw_weights(module: nn.Module, std: float) -> None:
    """Weights N(0, std^2), biases 0 (Odena et al. 2017, appendix); batch norm keeps gain 1 and bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
