"""The semi-supervised networks of "Improved Techniques for Training GANs" (Salimans et al. 2016): MLPs and convolutions.

Layers and widths are those of the authors' code (openai/improved-gan, mnist_svhn_cifar10). The discriminator is a classifier
of K classes. What it takes for generated is a class more, whose logit is 0 (section 5); `fake_class` gives it a logit of its
own, which is subtracted from the others, as in Odena 2016. Both are one function of K logits l: log p(real) / p(generated) =
log sum_k exp l_k.
Shapes: B batch, C channels, H = W the resolution, K classes, Z latent dimension, F features.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.conditioning import DiscriminatorOutput, check_classes
from trainer.models.config import ModelConfig
from trainer.models.dcgan import ActivationNoise
from trainer.models.layers import BatchNorm2d, at_least_float32, full_precision
from trainer.models.weight_norm import WeightNorm

Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
SLOPE = 0.2
"""Of the leaky ReLU below 0."""
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ImprovedMLPGeneratorConfig:
    """The generator of MNIST."""

    name: Literal["improved_mlp"] = "improved_mlp"
    widths: Widths = (500, 500)
    """Softplus units of the hidden layers, batch norm before them."""

    def build(self, model: ModelConfig) -> "ImprovedMLPGenerator":
        """The network, weights drawn from torch's default generator."""
        return ImprovedMLPGenerator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ImprovedConvGeneratorConfig:
    """The generator of CIFAR-10 and SVHN: 4 px, then twice the side in every step."""

    name: Literal["improved_conv"] = "improved_conv"
    widths: Widths = (512, 256, 128)
    """Channels at 4, 8, 16 px. The resolution is 4 times 2 for each of them."""

    def build(self, model: ModelConfig) -> "ImprovedConvGenerator":
        """The network, weights drawn from torch's default generator. Raises SettingError for an impossible one."""
        return ImprovedConvGenerator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class _Classifying:
    fake_class: bool = False
    """Whether generated images are a class with a logit of its own (Odena 2016), rather than one whose logit is 0."""

    @property
    def classifies(self) -> bool:
        """It has class logits."""
        return True

    @property
    def gives_features(self) -> bool:
        """Its output has features, which feature matching compares."""
        return True

    @property
    def couples_samples(self) -> bool:
        """Every sample is judged alone."""
        return False


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ImprovedMLPDiscriminatorConfig(_Classifying):
    """The discriminator of MNIST."""

    name: Literal["improved_mlp"] = "improved_mlp"
    widths: Widths = (1000, 500, 250, 250, 250)
    """Rectified linear units of the hidden layers."""
    input_noise: Annotated[float, Field(ge=0)] = 0.3
    """Deviation of the Gaussian noise on pixels in [0, 1], in training."""
    noise: Annotated[float, Field(ge=0)] = 0.5
    """Deviation of the noise on what every other layer is given."""

    def build(self, model: ModelConfig) -> "ImprovedMLPDiscriminator":
        """The network, weights drawn from torch's default generator. Raises SettingError without classes."""
        return ImprovedMLPDiscriminator(self, model)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ImprovedConvDiscriminatorConfig(_Classifying):
    """The discriminator of CIFAR-10; SVHN's has 64 and 128 channels."""

    name: Literal["improved_conv"] = "improved_conv"
    widths: Annotated[Widths, Field(min_length=2, max_length=2)] = (96, 192)
    """Channels of the first three convolutions, and of all others."""
    input_dropout: Share = 0.2
    """Share of pixels that are dropped in training."""
    dropout: Share = 0.5
    """Share of activations that are dropped, after the 3rd and after the 6th convolution."""

    def build(self, model: ModelConfig) -> "ImprovedConvDiscriminator":
        """The network, weights drawn from torch's default generator. Raises SettingError without classes."""
        return ImprovedConvDiscriminator(self, model)


class ShiftedBatchNorm(nn.Module):
    """Batch norm with a bias and no gain, of x [B, C] or [B, C, H, W]; the linear layer in front has no bias."""

    draws = couples_samples = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(channels, 1e-6, 0.1, affine=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y + self.bias.view(1, -1, *[1] * (x.dim() - 2))


class ImprovedMLPGenerator(nn.Module):
    """z -> linear layers with batch norm and softplus -> a weight-normalised linear layer -> sigmoid."""

    draws = couples_samples = False

    def __init__(self, config: ImprovedMLPGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        self.shape = (model.image_channels, model.resolution, model.resolution)
        layers: list[nn.Module] = []
        for before, after in pairwise((model.latent_dim, *config.widths)):
            linear = nn.Linear(before, after, bias=False)
            nn.init.xavier_uniform_(linear.weight)
            layers += [linear, ShiftedBatchNorm(after), nn.Softplus()]
        self.hidden = nn.Sequential(*layers)
        pixels = model.image_channels * model.resolution**2
        self.pixels = WeightNorm("linear", config.widths[-1], pixels, trained=True, starts=False)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], at least float32, for latents [B, Z]; labels are not looked at."""
        pixels = at_least_float32(self.pixels(self.hidden(latents)))
        return 2 * torch.sigmoid(pixels).view(-1, *self.shape) - 1


class ImprovedConvGenerator(nn.Module):
    """z -> 4x4 map -> transposed 5x5 convolutions of stride 2, batch norm and ReLU -> a weight-normalised one -> tanh."""

    draws = couples_samples = False

    def __init__(self, config: ImprovedConvGeneratorConfig, model: ModelConfig) -> None:
        super().__init__()
        side = 4 * 2 ** len(config.widths)
        if model.resolution != side:
            raise SettingError(
                f"generator.widths: {len(config.widths)} of them make {side} px and model.resolution is "
                f"{model.resolution}; list one for every doubling of 4 px"
            )
        self.first = config.widths[0]
        self.linear = nn.Linear(model.latent_dim, 16 * self.first, bias=False)
        nn.init.normal_(self.linear.weight, std=0.05)
        self.norm = ShiftedBatchNorm(16 * self.first)
        layers: list[nn.Module] = []
        for before, after in pairwise(config.widths):
            up = nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=1, bias=False)
            nn.init.normal_(up.weight, std=0.05)
            layers += [up, ShiftedBatchNorm(after), nn.ReLU()]
        self.up = nn.Sequential(*layers)
        self.pixels = WeightNorm(
            "transposed", config.widths[-1], model.image_channels, 5, padding=2, trained=True, start_std=0.1
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], at least float32, for latents [B, Z]; labels are not looked at."""
        h = F.relu(self.norm(self.linear(latents))).view(-1, self.first, 4, 4)
        return torch.tanh(at_least_float32(self.pixels(self.up(h))))


class Head(nn.Module):
    """Features [B, F] -> K class logits, relative to the logit of generated images."""

    draws = couples_samples = False

    def __init__(self, features: int, classes: int, fake_class: bool, **layer: Any) -> None:
        super().__init__()
        self.fake_class = fake_class
        self.layer = WeightNorm("linear", features, classes + fake_class, trained=True, **layer)

    def forward(self, features: Tensor) -> Tensor:
        with full_precision(features.device):
            logits: Tensor = self.layer(at_least_float32(features))
            return logits[:, :-1] - logits[:, -1:] if self.fake_class else logits


class ImprovedMLPDiscriminator(nn.Module):
    """Weight-normalised linear layers with ReLU and Gaussian noise, then the class logits."""

    draws = couples_samples = False

    def __init__(self, config: ImprovedMLPDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        check_classes(config.name, model.classes)
        self.input_noise, self.noise = ActivationNoise(config.input_noise), ActivationNoise(config.noise)
        pixels = model.image_channels * model.resolution**2
        self.hidden = nn.ModuleList(
            WeightNorm("linear", before, after, weight_std=0.1) for before, after in pairwise((pixels, *config.widths))
        )
        self.logits = Head(config.widths[-1], model.classes, config.fake_class, weight_std=0.1)

    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer [B, F], before its noise, of images [B, C, H, W] in [-1, 1]."""
        h = (images.flatten(1) + 1) / 2
        for number, layer in enumerate(self.hidden):
            h = F.relu(layer(self.noise(h) if number else self.input_noise(h)))
        return h

    def head(self, features: Tensor) -> Tensor:
        """Class logits [B, K] of features [B, F]."""
        logits: Tensor = self.logits(self.noise(features))
        return logits

    def forward(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """images [B, C, H, W] in [-1, 1]; labels are not looked at."""
        return _output(self.features(images), self.head)


class ImprovedConvDiscriminator(nn.Module):
    """Nine weight-normalised convolutions with leaky ReLU, their mean over space, then the class logits."""

    draws = couples_samples = False

    def __init__(self, config: ImprovedConvDiscriminatorConfig, model: ModelConfig) -> None:
        super().__init__()
        check_classes(config.name, model.classes)
        first, rest = config.widths
        plan = [  # kernel, stride, padding
            *((model.image_channels, first, 3, 1, 1), (first, first, 3, 1, 1), (first, first, 3, 2, 1)),
            *((first, rest, 3, 1, 1), (rest, rest, 3, 1, 1), (rest, rest, 3, 2, 1)),
            *((rest, rest, 3, 1, 0), (rest, rest, 1, 1, 0), (rest, rest, 1, 1, 0)),
        ]
        layers: list[nn.Module] = [nn.Dropout(config.input_dropout)]
        for number, (before, after, kernel, stride, padding) in enumerate(plan, 1):
            layers += [WeightNorm("convolution", before, after, kernel, stride, padding), nn.LeakyReLU(SLOPE)]
            if number in (3, 6):
                layers.append(nn.Dropout(config.dropout))
        self.layers = nn.Sequential(*layers)
        self.head = Head(rest, model.classes, config.fake_class, start_std=0.1)

    def features(self, images: Tensor) -> Tensor:
        """The last map's means over space [B, F], of images [B, C, H, W] in [-1, 1]."""
        return at_least_float32(self.layers(images)).mean((2, 3))

    def forward(self, images: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """images [B, C, H, W] in [-1, 1]; labels are not looked at."""
        return _output(self.features(images), self.head)


def _output(features: Tensor, head: Any) -> DiscriminatorOutput:
    logits = head(features)
    return DiscriminatorOutput(torch.logsumexp(logits, 1), logits, features)
