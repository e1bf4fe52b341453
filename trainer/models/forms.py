"""Which form of a function each layer computes (`trainer.models.rewrites` has the forms; all start as the plain one).

The tables come from timings of forward and backward pass, batches of 8 and 16, on one core of an AMD EPYC with AVX-512
and oneDNN 3.12 (PyTorch 2.14.1); README, "Speed". On a GPU nothing was measured, so there the plain forms stand until
`speed.autotune` times them.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from trainer.models.conditioning import ConditionalBatchNorm2d
from trainer.models.layers import Convolution, SpectralConv2d, SpectralLayer
from trainer.models.resnet import ResNetDiscriminator, ResNetGenerator
from trainer.models.rewrites import UpForm

PoolForm = Literal["plain", "merged"]


class Resampling(NamedTuple):
    """A 3x3 convolution beside a resampling by 2."""

    name: str
    """Of the layer in its network, as in the state's names."""
    layer: Convolution | SpectralConv2d
    side: int
    """Height and width of the map that goes in."""

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The forms that this layer knows."""
        return ("plain", "transposed", "phases") if isinstance(self.layer, Convolution) else ("plain", "merged")


def resamplings(network: nn.Module, resolution: int) -> list[Resampling]:
    """The 3x3 convolutions of a residual network that stand beside a resampling, from first to last; else none."""
    found = []
    if isinstance(network, ResNetGenerator):
        side = network.bottom_width
        for number, block in enumerate(network.blocks):
            found.append(Resampling(f"blocks.{number}.conv1", cast(Convolution, block.conv1), side))
            side *= 2
    elif isinstance(network, ResNetDiscriminator):
        side = resolution
        for number, block in enumerate(network.blocks):
            layer = cast(SpectralConv2d, block.conv2)
            if layer.halve:
                found.append(Resampling(f"blocks.{number}.conv2", layer, side))
                side //= 2
    return found


def fixed_up_form(side: int, dtype: torch.dtype, device: torch.device) -> UpForm:
    """The measured choice for a map of `side` going in."""
    if device.type == "cuda":
        return "plain"
    if side < 8:  # as costly as their weights
        return "plain" if dtype == torch.bfloat16 else "phases"
    return "transposed" if side < 32 else "phases"


def fixed_pool_form(side: int, dtype: torch.dtype, device: torch.device) -> PoolForm:
    """The measured choice for a map of `side` going in."""
    if device.type == "cuda" or (side <= 8 and dtype == torch.bfloat16):
        return "plain"
    return "merged"


def set_form(item: Resampling, form: str) -> None:
    """Let a layer compute in `form`, one of its alternatives."""
    if form not in item.alternatives:
        raise ValueError(f"{item.name}: has no form {form!r}, only {', '.join(item.alternatives)}")
    item.layer.form = form  # type: ignore[assignment]


def shortcuts(network: nn.Module) -> Iterator[Convolution | SpectralConv2d]:
    """The 1x1 convolutions beside a resampling."""
    for layer in network.modules():
        resampled = isinstance(layer, Convolution) and layer.double or isinstance(layer, SpectralConv2d) and layer.halve
        if resampled and layer.weight.shape[-1] == 1:
            yield cast(Convolution | SpectralConv2d, layer)


def set_fused(network: nn.Module, *, spectral_norm: bool, conditional_norm: bool, low_resolution: bool) -> None:
    """Put the other choices into the layers of `network`."""
    for layer in network.modules():
        if isinstance(layer, SpectralLayer):
            layer.fused = spectral_norm
        elif isinstance(layer, ConditionalBatchNorm2d):
            layer.fused = conditional_norm
    for shortcut in shortcuts(network):
        if isinstance(shortcut, Convolution):
            shortcut.form = "phases" if low_resolution else "plain"
        else:
            shortcut.form = "merged" if low_resolution else "plain"
