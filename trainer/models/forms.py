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

PoolForm = Literal["plain", "merged"]
MATRIX = " by matrix"


class Placed(NamedTuple):
    """A 3x3 convolution of a residual block."""

    name: str
    """Of the layer in its network, as in the state's names."""
    layer: Convolution | SpectralConv2d
    side: int
    """Height and width of the map that goes in."""

    @property
    def resampling(self) -> tuple[str, ...]:
        """How the layer can be computed together with the resampling beside it; "plain" alone where there is none."""
        if isinstance(self.layer, Convolution):
            return ("plain", "transposed", "phases") if self.layer.doubles else ("plain",)
        return ("plain", "merged") if self.layer.halve else ("plain",)

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Every form: the above, and those of them that are convolutions once more as a matrix product."""
        return (*self.resampling, *(form + MATRIX for form in self.resampling if form != "transposed"))


def placed_convolutions(network: nn.Module, resolution: int) -> list[Placed]:
    """The 3x3 convolutions of a residual network's blocks, from first to last; none of other networks."""
    found = []
    if isinstance(network, ResNetGenerator):
        side = network.bottom_width
        for number, block in enumerate(network.blocks):
            found.append(Placed(f"blocks.{number}.conv1", cast(Convolution, block.conv1), side))
            side *= 2
            found.append(Placed(f"blocks.{number}.conv2", cast(Convolution, block.conv2), side))
    elif isinstance(network, ResNetDiscriminator):
        side = resolution
        for number, block in enumerate(network.blocks):
            last = cast(SpectralConv2d, block.conv2)
            found.append(Placed(f"blocks.{number}.conv1", cast(SpectralConv2d, block.conv1), side))
            found.append(Placed(f"blocks.{number}.conv2", last, side))
            side = side // 2 if last.halve else side
    return found


def fixed_form(item: Placed, device: torch.device) -> str:
    """The measured choice, the same in fp32 and bf16."""
    if device.type == "cuda":
        return "plain"
    # Where the map that comes out has 4 x 4 positions, weights cost more than arithmetic.
    if isinstance(item.layer, SpectralConv2d):
        if item.layer.halve:
            return "merged" + (MATRIX if item.side <= 8 else "")
        return "plain" + (MATRIX if item.side <= 4 else "")
    if not item.layer.doubles:
        return "plain" + (MATRIX if item.side <= 4 else "")
    if item.side < 8:
        return "phases" + MATRIX
    return "transposed" if item.side < 32 else "phases"


def set_form(item: Placed, form: str) -> None:
    """Let a layer compute in `form`, one of its alternatives."""
    if form not in item.alternatives:
        raise ValueError(f"{item.name}: has no form {form!r}, only {', '.join(item.alternatives)}")
    item.layer.form = form.removesuffix(MATRIX)  # type: ignore[assignment]
    item.layer.by_matrix = form.endswith(MATRIX)


def shortcuts(network: nn.Module) -> Iterator[Convolution | SpectralConv2d]:
    """The 1x1 convolutions beside a resampling."""
    for layer in network.modules():
        if not isinstance(layer, Convolution | SpectralConv2d) or layer.weight.shape[-1] != 1:
            continue
        if layer.doubles if isinstance(layer, Convolution) else layer.halve:
            yield layer


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
