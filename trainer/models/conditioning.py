"""How the networks learn which class is meant.

The generator's norms are conditional: `class_norm` chooses them. The discriminator has a `Conditioning`, which every
backbone that yields pooled features can use. To add one: its settings, which build it, its class, and its name in
`ConditioningConfig`.

Shapes: B batch, C channels, K classes, F features.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.choices import Choice
from trainer.foundation.errors import SettingError
from trainer.models.layers import BatchNorm2d, SpectralEmbedding, SpectralLinear, full_precision


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says of B images."""

    logits: Tensor
    """[B], float32: high for images taken as real."""
    class_logits: Tensor | None = None
    """[B, K], float32: the auxiliary classifier's logits; None where there is none."""
    features: Tensor | None = None
    """[B, F]: what feature matching compares; None where the network does not give them."""


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm without gain and bias, then a gain and a bias per class (Dumoulin et al. 2017; de Vries et al. 2017).

    The gain table starts at 1, the bias table at 0, both [K, C].
    """

    draws = couples_samples = False
    takes_labels = True
    fuses = "conditional_norm"

    def __init__(self, channels: int, classes: int, eps: float = 2e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.norm = BatchNorm2d(channels, eps, momentum, affine=False)
        self.gain = nn.Parameter(torch.ones(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes, channels))
        self.fused = False
        """Whether gain and bias are first cast to the type of x, and then applied in one go."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """x [B, C, H, W]; labels int64 [B], or class weights [B, K] that mix the rows of gain and bias (morphing)."""
        gain, bias = (rows(table, labels)[:, :, None, None] for table in (self.gain, self.bias))
        if not self.fused:  # under autocast the float32 gain makes the product, and what follows it, float32
            y: Tensor = self.norm(x) * gain + bias
            return y
        return torch.addcmul(bias.to(x.dtype), self.norm(x), gain.to(x.dtype))


def class_norm(channels: int, classes: int, eps: float, momentum: float) -> nn.Module:
    """The norm that tells a generator the class: the one place where it is chosen. Without classes it is a plain one."""
    if classes == 0:
        return BatchNorm2d(channels, eps, momentum)
    return ConditionalBatchNorm2d(channels, classes, eps, momentum)


def normalised(norm: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The output of a norm. One with `takes_labels` is called with the labels as well, any other with x alone."""
    y: Tensor = norm(x, labels) if getattr(type(norm), "takes_labels", False) else norm(x)
    return y


def rows(table: Tensor, labels: Tensor) -> Tensor:
    """Rows of `table` [K, C] for int64 labels [B], or their mixtures for class weights [B, K] -> [B, C]."""
    if not labels.is_floating_point():
        return F.embedding(labels, table)
    with full_precision(table.device):
        return labels.to(table.dtype) @ table


_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Conditioning(nn.Module):
    """How a discriminator learns the class. The backbone calls `join` after every block, then the module itself."""

    draws = couples_samples = False

    def extra_channels(self, after_block: int) -> int:
        """Channels that `join` adds to the output of block number `after_block` (the first is 1)."""
        return 0

    def join(self, after_block: int, x: Tensor, labels: Tensor) -> Tensor:
        """Called with every block's output x [B, C, H, W] -> [B, C + extra_channels, H, W]."""
        return x

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """Called with the pooled features [B, F] and the unconditional logits [B], both at least float32."""
        return DiscriminatorOutput(logits)


class Unconditional(Conditioning):
    """Labels are not looked at."""


class Projection(Conditioning):
    """`logit = psi(phi(x)) + <e_y, phi(x)>`, spectrally normalised e (Miyato & Koyama 2018, Eq. 3)."""

    draws = couples_samples = False

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.embedding = SpectralEmbedding(classes, features)

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(logits + (self.embedding(labels) * features).sum(1))


class Concat(Conditioning):
    """A class embedding of `dimension` entries, repeated over space, joins the channels of a hidden layer."""

    def __init__(self, classes: int, dimension: int, after_block: int) -> None:
        super().__init__()
        self.after_block = after_block
        self.dimension = dimension
        self.embedding = SpectralEmbedding(classes, dimension)

    def extra_channels(self, after_block: int) -> int:
        return self.dimension if after_block == self.after_block else 0

    def join(self, after_block: int, x: Tensor, labels: Tensor) -> Tensor:
        if after_block != self.after_block:
            return x
        embedded = self.embedding(labels).to(x.dtype)[:, :, None, None]
        return torch.cat([x, embedded.expand(-1, -1, *x.shape[2:])], dim=1)


class AuxiliaryClassifier(Conditioning):
    """A softmax classifier on the features that the adversarial logit reads (Odena et al. 2017, in this backbone)."""

    draws = couples_samples = False

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.classifier = SpectralLinear(features, classes)

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(logits, self.classifier(features))


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class UnconditionalConfig:
    name: Literal["none"] = "none"

    def build(self, classes: int, features: int, blocks: int) -> Conditioning:
        """The conditioning for a backbone of `blocks` blocks and pooled features [B, `features`]."""
        return Unconditional()


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ProjectionConfig:
    name: Literal["projection"] = "projection"

    def build(self, classes: int, features: int, blocks: int) -> Conditioning:
        """The conditioning for pooled features [B, `features`]. Raises SettingError without classes."""
        check_classes(self.name, classes)
        return Projection(classes, features)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ConcatConfig:
    name: Literal["concat"] = "concat"
    dimension: Annotated[int, Field(ge=1)] = 128
    """Width of the class embedding that is concatenated."""
    after_block: Annotated[int, Field(ge=1)] = 3
    """Number of the block whose output it joins. The official code has 3, the paper's first version says 4."""

    def build(self, classes: int, features: int, blocks: int) -> Conditioning:
        """The conditioning for `blocks` blocks. Raises SettingError without classes, or if none follows `after_block`."""
        check_classes(self.name, classes)
        if self.after_block >= blocks:
            raise SettingError(
                f"discriminator.conditioning.after_block: {self.after_block} has no block behind it; "
                f"this discriminator has {blocks}, so give 1 to {blocks - 1}"
            )
        return Concat(classes, self.dimension, self.after_block)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class AuxiliaryClassifierConfig:
    name: Literal["acgan"] = "acgan"

    @property
    def classifies(self) -> bool:
        """It gives class logits."""
        return True

    def build(self, classes: int, features: int, blocks: int) -> Conditioning:
        """The conditioning for pooled features [B, `features`]. Raises SettingError without classes."""
        check_classes(self.name, classes)
        return AuxiliaryClassifier(classes, features)


ConditioningConfig = Annotated[
    UnconditionalConfig | ProjectionConfig | ConcatConfig | AuxiliaryClassifierConfig, Choice(default="projection")
]
"""The discriminator's conditioning. Its settings say `classifies` (trainer/models/config.py) if it gives class logits."""


def check_classes(name: str, classes: int) -> None:
    """Raise SettingError for the conditioning `name`, which needs classes, if there are none."""
    if classes == 0:
        raise SettingError(
            f"discriminator.conditioning.name: {name} needs classes and model.classes is 0; "
            "set model.classes, or discriminator.conditioning.name to none"
        )
