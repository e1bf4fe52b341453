"""How the networks learn which class is meant.

The generator has conditional batch norm. The discriminator has one of the classes below `Unconditional`, each usable
with every backbone that yields pooled features; to add one, write its settings and its class, and name it in
`build_conditioning`.

Shapes: B batch, C channels, K classes, F features.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.layers import BatchNorm2d, SpectralEmbedding, SpectralLinear, full_precision


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says of B images."""

    logits: Tensor
    """[B], float32: high for images taken as real."""
    class_logits: Tensor | None = None
    """[B, K], float32: the auxiliary classifier's logits; None where there is none."""


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm without gain and bias, then a gain and a bias per class (Dumoulin et al. 2017; de Vries et al. 2017).

    The gain table starts at 1, the bias table at 0, both [K, C].
    """

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


def rows(table: Tensor, labels: Tensor) -> Tensor:
    """Rows of `table` [K, C] for int64 labels [B], or their mixtures for class weights [B, K] -> [B, C]."""
    if not labels.is_floating_point():
        return F.embedding(labels, table)
    with full_precision(table.device):
        return labels.to(table.dtype) @ table


_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class UnconditionalConfig:
    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ProjectionConfig:
    name: Literal["projection"] = "projection"


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ConcatConfig:
    name: Literal["concat"] = "concat"
    dimension: Annotated[int, Field(ge=1)] = 128
    """Width of the class embedding that is concatenated."""
    after_block: Annotated[int, Field(ge=1)] = 3
    """Number of the block whose output it joins. The official code has 3, the paper's first version says 4."""


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class AuxiliaryClassifierConfig:
    name: Literal["acgan"] = "acgan"


ConditioningConfig = Annotated[
    UnconditionalConfig | ProjectionConfig | ConcatConfig | AuxiliaryClassifierConfig, Field(discriminator="name")
]


class Unconditional(nn.Module):
    """Labels are not looked at. The base of the other conditionings: what it does, they may do differently."""

    def extra_channels(self, after_block: int) -> int:
        """Channels that `join` adds to the output of block number `after_block` (the first is 1)."""
        return 0

    def join(self, after_block: int, x: Tensor, labels: Tensor) -> Tensor:
        """Called with every block's output x [B, C, H, W] -> [B, C + extra_channels, H, W]."""
        return x

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> DiscriminatorOutput:
        """Called with the pooled features [B, F] and the unconditional logits [B], both at least float32."""
        return DiscriminatorOutput(logits)


class Projection(Unconditional):
    """`logit = psi(phi(x)) + <e_y, phi(x)>`, spectrally normalised e (Miyato & Koyama 2018, Eq. 3)."""

    def __init__(self, config: ProjectionConfig, classes: int, features: int) -> None:
        super().__init__()
        self.embedding = SpectralEmbedding(classes, features)

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(logits + (self.embedding(labels) * features).sum(1))


class Concat(Unconditional):
    """A class embedding, repeated over space, joins the channels of a hidden layer."""

    def __init__(self, config: ConcatConfig, classes: int, features: int) -> None:
        super().__init__()
        self.after_block = config.after_block
        self.dimension = config.dimension
        self.embedding = SpectralEmbedding(classes, config.dimension)

    def extra_channels(self, after_block: int) -> int:
        return self.dimension if after_block == self.after_block else 0

    def join(self, after_block: int, x: Tensor, labels: Tensor) -> Tensor:
        if after_block != self.after_block:
            return x
        embedded = self.embedding(labels).to(x.dtype)[:, :, None, None]
        return torch.cat([x, embedded.expand(-1, -1, *x.shape[2:])], dim=1)


class AuxiliaryClassifier(Unconditional):
    """A softmax classifier on the features that the adversarial logit reads (Odena et al. 2017, in this backbone)."""

    def __init__(self, config: AuxiliaryClassifierConfig, classes: int, features: int) -> None:
        super().__init__()
        self.classifier = SpectralLinear(features, classes)

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(logits, self.classifier(features))


def build_conditioning(
    config: UnconditionalConfig | ProjectionConfig | ConcatConfig | AuxiliaryClassifierConfig,
    classes: int,
    features: int,
    blocks: int,
) -> Unconditional:
    """The conditioning that `config` names, for a backbone of `blocks` blocks with pooled features [B, `features`]."""
    if classes == 0 or isinstance(config, UnconditionalConfig):
        if not isinstance(config, UnconditionalConfig):
            raise SettingError(
                f"discriminator.conditioning.name: {config.name} needs classes and model.classes is 0; "
                "set model.classes, or discriminator.conditioning.name to none"
            )
        return Unconditional()
    if isinstance(config, ConcatConfig) and config.after_block >= blocks:
        raise SettingError(
            f"discriminator.conditioning.after_block: {config.after_block} has no block behind it; "
            f"this discriminator has {blocks}, so give 1 to {blocks - 1}"
        )
    if isinstance(config, ProjectionConfig):
        return Projection(config, classes, features)
    if isinstance(config, ConcatConfig):
        return Concat(config, classes, features)
    return AuxiliaryClassifier(config, classes, features)
