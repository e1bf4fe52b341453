"""Layers of networks that grow: equalised learning rates, pixel norm, minibatch deviation, fading.

Karras et al. 2018 (arXiv 1710.10196), sections 2 to 4; what the paper leaves open is as in the official code. A network
that grows has all its layers from the start. Its stage (`Stage`) says which of them act: those up to a resolution, of
which the newest level may still fade in. The others are not computed, so they have no gradient and take no step.

Shapes: B batch, C channels, H height, W width, I and O input and output features.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.forms import Placed
from trainer.models.layers import (
    SQRT2,
    at_least_float32,
    convolution_dtype,
    downsample,
    full_precision,
    upsample,
)
from trainer.models.rewrites import UpForm, convolve, double_and_convolution, expand

SLOPE = 0.2
"""Of every leaky ReLU."""
SMALLEST = 4
"""Pixels of the first level."""


class Stage(NamedTuple):
    """Which levels act."""

    resolution: int
    """Pixels of the newest level that acts."""
    fade: float = 1.0
    """Its weight in [0, 1] against the level below; 1: it has faded in, and the level below is not looked at."""

    @classmethod
    def of(cls, form: Mapping[str, float]) -> "Stage":
        """The stage in a turn's `form`."""
        return cls(int(form["resolution"]), form["fade"])

    @property
    def form(self) -> dict[str, float]:
        """For a turn."""
        return {"resolution": float(self.resolution), "fade": self.fade}


def levels(resolution: int, first: int = SMALLEST) -> list[int]:
    """`first`, 2 first, ..., resolution. Raises ValueError, beginning with the setting, if there is no such list."""
    if resolution < SMALLEST or resolution & (resolution - 1):
        raise ValueError(
            f"model.resolution: is {resolution}, but networks that grow double their images from {SMALLEST} px on; give a "
            f"power of two, at least {SMALLEST}"
        )
    return [side for side in (2**k for k in range(2, resolution.bit_length())) if side >= first]


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean over channels of x^2 + eps) (section 4.2); x [B, C, ...]. At least float32."""
    with full_precision(x.device):
        x = at_least_float32(x)
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)


def minibatch_deviation(x: Tensor, group: int | None) -> Tensor:
    """x [B, C, H, W] with one channel more: the mean deviation over a group of samples (section 3). At least float32.

    Group m of M holds the samples m, m + M, m + 2M, ...; the variance is the biased one, sqrt(variance + 1e-8) is averaged
    over channels and positions. `group` is the samples of a group; None, or more than B: one group of all.

    Raises ValueError if groups do not divide B.
    """
    n, c, h, w = x.shape
    size = min(group or n, n)
    if n % size:
        raise ValueError(f"minibatch deviation: groups of {size} do not divide a batch of {n}; give a multiple")
    with full_precision(x.device):
        x = at_least_float32(x)
        grouped = x.view(size, n // size, c, h, w) if x.is_contiguous() else x.reshape(size, n // size, c, h, w)
        deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(n, 1, h, w)], 1)


def leaky_relu(x: Tensor) -> Tensor:
    """max(x, 0.2 x)."""
    return F.leaky_relu(x, SLOPE)


def enlarged(x: Tensor, resolution: int) -> Tensor:
    """Nearest-neighbour: [B, C, H, H] -> [B, C, resolution, resolution]."""
    factor = resolution // x.shape[-1]
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def reduced(x: Tensor, resolution: int) -> Tensor:
    """Means of squares: [B, C, H, H] -> [B, C, resolution, resolution]."""
    factor = x.shape[-1] // resolution
    return x if factor == 1 else F.avg_pool2d(x, factor)


def faded(old: Tensor, new: Tensor, fade: float) -> Tensor:
    """The newest level fades in: new + (old - new) (1 - fade) (the official code's form)."""
    return new + (old - new) * (1.0 - fade)


def real_level(images: Tensor, stage: Stage) -> Tensor:
    """Real images as they are at a stage: [B, C, R, R] -> [B, C, r, r], r = `stage.resolution`.

    `images` are uint8 values v as v / 127.5 - 1, without noise. The level is that of the official tool: means of squares,
    rounded half to even to whole values again. While a level fades in, it is mixed with its own means of 2x2 squares.
    Sums of whole numbers are exact in float32 up to 1024 px, so the rounding is, too.
    """
    if images.shape[-1] != stage.resolution:
        pixels = torch.round((images + 1.0) * 127.5)
        images = torch.round(reduced(pixels, stage.resolution)) / 127.5 - 1.0
    if stage.fade < 1.0:
        images = faded(upsample(downsample(images)), images, stage.fade)
    return images


class _Equalised(nn.Module):
    """A weight ~ N(0, 1) / m that is used times gain / sqrt(fan in) x m, m = `rate_multiplier` (section 4.1).

    The bias starts at 0 and is used times m alone.
    """

    weight: nn.Parameter

    def __init__(self, shape: tuple[int, ...], gain: float, rate_multiplier: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / rate_multiplier)
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.scale = gain / math.sqrt(math.prod(shape[1:])) * rate_multiplier
        self.rate_multiplier = rate_multiplier

    def scaled_bias(self) -> Tensor | None:
        """What is added."""
        if self.bias is None or self.rate_multiplier == 1.0:
            return self.bias
        return self.bias * self.rate_multiplier


class EqualisedLinear(_Equalised):
    """x [B, I] -> [B, O], outside autocast."""

    draws = couples_samples = False

    def __init__(
        self, inputs: int, outputs: int, gain: float = SQRT2, rate_multiplier: float = 1.0, bias: bool = True
    ) -> None:
        super().__init__((outputs, inputs), gain, rate_multiplier, bias)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            bias = self.scaled_bias()
            return F.linear(
                at_least_float32(x), at_least_float32(self.weight) * self.scale, None if bias is None else bias
            )


class EqualisedConvolution(_Equalised):
    """Square convolution, stride 1, "same" padding. With `doubles` nearest-neighbour upsampling by 2 comes before it,
    with `halves` the mean of 2x2 squares behind it.

    x [B, I, H, W] -> [B, O, H, W], or [B, O, 2H, 2W], or [B, O, H/2, W/2].
    """

    draws = couples_samples = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        gain: float = SQRT2,
        rate_multiplier: float = 1.0,
        bias: bool = True,
        *,
        doubles: bool = False,
        halves: bool = False,
    ) -> None:
        super().__init__((outputs, inputs, size, size), gain, rate_multiplier, bias)
        self.doubles, self.halves = doubles, halves
        self.form: UpForm | str = "plain"
        """How convolution and resampling are computed together (trainer/models/forms.py)."""
        self.by_matrix = False

    @property
    def forms(self) -> tuple[str, ...]:
        """The values of `form` that the layer can compute in."""
        if self.weight.shape[-1] != 3:
            return ("plain",)
        return ("plain", "transposed", "phases") if self.doubles else ("plain", "merged") if self.halves else ("plain",)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            weight = at_least_float32(self.weight) * self.scale
            if self.form != "plain":
                weight = expand(weight, "pool" if self.form == "merged" else self.form)  # type: ignore[arg-type]
        bias, kernel = self.scaled_bias(), weight.to(convolution_dtype(x))
        if self.form == "merged":
            return convolve(x, kernel, bias, stride=2, padding=1, by_matrix=self.by_matrix)
        if self.form != "plain":
            return double_and_convolution(x, kernel, bias, self.form, by_matrix=self.by_matrix)  # type: ignore[arg-type]
        y = convolve(
            upsample(x) if self.doubles else x, kernel, bias, padding=kernel.shape[-1] // 2, by_matrix=self.by_matrix
        )
        return downsample(y) if self.halves else y


class Reached(nn.Module):
    """The stage of the last training pass: part of a generator, so that whoever samples it knows how far it has grown.

    It is a function of the iteration, and the same on every process and for every replica.
    """

    draws = couples_samples = False
    moves_state = True
    shared_buffers = ("resolution", "fade")
    resolution: Tensor
    fade: Tensor

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.register_buffer("resolution", torch.tensor(resolution))
        self.register_buffer("fade", torch.ones((), dtype=torch.float64))

    def begin_passes(self) -> None:
        """Nothing: every pass of an iteration has the same stage."""

    def start_replica(self, number: int) -> None:
        """Nothing."""

    def end_passes(self) -> None:
        """Nothing."""

    @torch.no_grad()
    def forward(self, stage: Stage | None) -> Stage:
        """Note the stage of a training pass; None: the stage that was noted last."""
        if stage is None:
            return Stage(int(self.resolution), float(self.fade))
        if self.training:
            self.resolution.fill_(stage.resolution)
            self.fade.fill_(stage.fade)
        return stage


def placed_blocks(blocks: Iterable[tuple[str, nn.Module]], *, doubled: bool) -> list[Placed]:
    """The 3x3 convolutions `conv1` and `conv2` of blocks, which are named by the side of their larger map.

    `doubled`: the block's first convolution gets a map of half that side, as in a generator.
    """
    found = []
    for name, block in blocks:
        side = int(name)
        found.append(Placed(f"blocks.{name}.conv1", block.conv1, side // 2 if doubled else side))  # type: ignore[arg-type]
        found.append(Placed(f"blocks.{name}.conv2", block.conv2, side))  # type: ignore[arg-type]
    return found
