"""Weight normalisation (Salimans & Kingma 2016) with scales and biases that begin from data.

A layer computes with scale * weight / |weight|, one length and one scale for each output channel. Scales are constant but
where `trained`. At the start a batch passes through the network once: each layer is given the scale and the bias that make
its outputs mean 0 and deviation `start_std` on it (section 3 of the paper).
Shapes: B batch, C channels, H = W side, F features.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""Added to the squared length of a weight."""
Kind = Literal["linear", "convolution", "transposed"]


class WeightNorm(nn.Module):
    """A linear layer, a convolution or a transposed one (twice the side), whose weight is normalised.

    x [B, F] -> [B, O], or [B, C, H, W] -> [B, O, H', W'].
    """

    draws = couples_samples = moves_state = False
    scale: Tensor

    def __init__(
        self,
        kind: Kind,
        before: int,
        after: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        *,
        trained: bool = False,
        start_std: float = 1.0,
        weight_std: float = 0.05,
        starts: bool = True,
    ) -> None:
        """`trained`: whether the scale is a parameter. `starts`: whether data give scale and bias at the start."""
        super().__init__()
        self.kind, self.stride, self.padding, self.start_std, self.starts = kind, stride, padding, start_std, starts
        shape = (before, after) if kind == "transposed" else (after, before)
        sides = () if kind == "linear" else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(*shape, *sides) * weight_std)
        self.bias = nn.Parameter(torch.zeros(after))
        if trained:
            self.scale = nn.Parameter(torch.ones(after))
        else:
            self.register_buffer("scale", torch.ones(after))
        self._starting = False

    def forward(self, x: Tensor) -> Tensor:
        if self._starting:
            return self._start(x)
        return self._apply_to(x, self.bias)

    def _apply_to(self, x: Tensor, bias: Tensor | None) -> Tensor:
        channel = 1 if self.kind == "transposed" else 0
        others = [d for d in range(self.weight.dim()) if d != channel]
        lengths = torch.sqrt(EPS + self.weight.square().sum(others, keepdim=True))
        weight = self.weight * (self.scale.view(lengths.shape) / lengths)
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        if self.kind == "convolution":
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        return F.conv_transpose2d(x, weight, bias, 2, self.padding, output_padding=1)

    @torch.no_grad()
    def _start(self, x: Tensor) -> Tensor:
        y = self._apply_to(x, None)
        others = [d for d in range(y.dim()) if d != 1]
        mean = y.mean(others)
        factor = self.start_std / torch.sqrt((y - mean.view(1, -1, *[1] * (y.dim() - 2))).square().mean(others))
        self.scale.mul_(factor)
        self.bias.copy_(-mean * factor)
        return self._apply_to(x, self.bias)


@torch.no_grad()
def start_from(network: nn.Module, *inputs: Tensor) -> None:
    """One pass of the network, in training mode, in which every layer that starts from data does so; none if there is none."""
    layers = [layer for layer in network.modules() if isinstance(layer, WeightNorm) and layer.starts]
    if not layers:
        return
    for layer in layers:
        layer._starting = True
    try:
        network(*inputs)
    finally:
        for layer in layers:
            layer._starting = False
