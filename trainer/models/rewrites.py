"""The same functions with fewer operations. Each is exact: in float64 it equals its plain form to rounding.

A 3x3 convolution beside a resampling by 2 is a convolution with a larger kernel at the lower resolution. All such
kernels are one small matrix times the 3x3 kernel: the full correlation of its taps with a 2x2 square, in one dimension
`[w0, w0 + w1, w1 + w2, w2]`. Gradients flow through that product, so parameters, checkpoints and optimizers know the
3x3 kernel alone.

Shapes: B batch, C channels, O and I output and input channels, H height, W width.
"""

from functools import cache
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

UpForm = Literal["plain", "transposed", "phases"]
"""How "nearest-neighbour upsampling by 2, then convolution 3x3" is computed."""


def _spread() -> Tensor:
    """[16, 9], float64: row (p, q) of a 4x4 kernel holds the 3x3 taps (u, v) with p - u and q - v in {0, 1}."""
    matrix = torch.zeros(4, 4, 3, 3, dtype=torch.float64, device="cpu")
    for u in range(3):
        for v in range(3):
            matrix[u : u + 2, v : v + 2, u, v] = 1
    return matrix.view(16, 9)


@cache
def _matrix(kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept for all callers, so made free of the contexts (inference, default device) that the first one may be in.
    with torch.inference_mode(False), torch.no_grad():
        return _oriented(kind).to(device=device, dtype=dtype)


def _oriented(kind: str) -> Tensor:
    spread = _spread()
    if kind == "pool":
        spread = spread / 4
    elif kind == "transposed":
        spread = spread.flip(1)  # a transposed convolution turns its kernel round
    elif kind == "phases":  # row (a, b, p, q): the phase (a, b) of the output, its tap (p, q); 4x4 tap (a + 2p, b + 2q)
        spread = spread.view(2, 2, 2, 2, 9).permute(1, 3, 0, 2, 4).reshape(16, 9)
    return spread


def expand(weight: Tensor, kind: Literal["pool", "transposed", "phases"]) -> Tensor:
    """The larger kernel of `weight` [O, I, 3, 3] as one matrix product in the memory order of channels_last.

    Returns
        "pool": [O, I, 4, 4]; `avg_pool2d(conv2d(x, weight, padding=1), 2)` is a convolution with it, stride 2 and padding
        1, for even H and W: 16 taps for each output in place of 36.
        "transposed": [I, O, 4, 4], for `conv_transpose2d`.
        "phases": [4 O, I, 2, 2], the phase varying slowest.

    Work in full precision: a product under autocast would round the kernel twice.
    """
    o, i = weight.shape[:2]
    taps = weight.permute(0, 2, 3, 1).reshape(o, 9, i)  # a view where the weight is channels_last
    large = _matrix(kind, weight.dtype, weight.device) @ taps
    if kind == "phases":
        return large.view(o, 4, 2, 2, i).transpose(0, 1).reshape(4 * o, 2, 2, i).permute(0, 3, 1, 2)
    large = large.view(o, 4, 4, i).permute(0, 3, 1, 2)
    return large.transpose(0, 1) if kind == "transposed" else large


def convolution_by_matrix(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`conv2d(x, kernel, bias, stride, padding)` as one matrix product over gathered patches, channels innermost.

    For small maps with many channels, whose weights cost more than their arithmetic: the kernel is used, and its gradient
    is made, as it lies in memory, where a convolution reorders both. x [B, I, H, W], kernel [O, I, K, K].
    """
    size = kernel.shape[-1]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    b = len(x)
    h, w = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    # One copy of whole rows of channels for each tap; `unfold` has a slower backward pass.
    taps = [
        padded[:, u : u + stride * h : stride, v : v + stride * w : stride] for u, v in product(range(size), repeat=2)
    ]
    rows = torch.stack(taps, 3).view(b * h * w, -1)
    y = F.linear(rows, kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1), bias)
    return y.view(b, h, w, -1).permute(0, 3, 1, 2)


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, *, stride: int = 1, padding: int = 0, by_matrix: bool = False
) -> Tensor:
    """`conv2d`, or the same as a matrix product."""
    if by_matrix:
        return convolution_by_matrix(x, kernel, bias, stride, padding)
    return F.conv2d(x, kernel, bias, stride, padding)


def double_and_convolution(
    x: Tensor, kernel: Tensor, bias: Tensor | None, form: UpForm, by_matrix: bool = False
) -> Tensor:
    """`conv2d(interpolate(x, 2, "nearest"), weight, bias, padding=1)` with `kernel = expand(weight, form)`.

    4 taps for each output in place of 9. "phases" computes the four outputs of every input position as channels of a
    2x2 convolution on a grid one position larger, and puts them in their places.
    """
    if form == "transposed":
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
    grid = convolve(x, kernel, None if bias is None else bias.repeat(4), padding=1, by_matrix=by_matrix)
    image: Tensor = _Interleave.apply(grid)
    return image


class _Interleave(torch.autograd.Function):
    """[B, 4 O, H + 1, W + 1], channels (a, b, o) -> [B, O, 2 H, 2 W], channels_last: output row 2 i + a is phase a of
    grid row i + a, columns alike. Linear; its transpose is `_Separate`, so any derivative exists."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor) -> Tensor:
        batch, channels, rows, columns = grid.shape
        h, w, o = rows - 1, columns - 1, channels // 4
        phases = grid.permute(0, 2, 3, 1).reshape(batch, rows, columns, 2, 2, o)
        result = grid.new_empty(batch, h, 2, w, 2, o)
        for a, b in product((0, 1), repeat=2):
            result[:, :, a, :, b] = phases[:, a : a + h, b : b + w, a, b]
        return result.view(batch, 2 * h, 2 * w, o).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Separate.apply(gradient)


class _Separate(torch.autograd.Function):
    """The transpose of `_Interleave`: grid positions that no output comes from get 0."""

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        batch, o, rows, columns = image.shape
        h, w = rows // 2, columns // 2
        image = image.permute(0, 2, 3, 1)
        grid = image.new_empty(batch, h + 1, w + 1, 2, 2, o)
        for a, b in product((0, 1), repeat=2):
            grid[:, a : a + h, b : b + w, a, b] = image[:, a::2, b::2]
            grid[:, h * (1 - a), :, a, b] = 0
            grid[:, :, w * (1 - b), a, b] = 0
        return grid.view(batch, h + 1, w + 1, 4 * o).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Interleave.apply(gradient)


def memory_matrix(tensor: Tensor) -> Tensor:
    """`tensor` [O, ...] as a matrix [O, I] whose columns follow its memory: no copy of a channels_last kernel.

    The columns' order does not matter to singular values, nor to `u`.
    """
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)
    return tensor.reshape(len(tensor), -1)


class NormalisedWeight(torch.autograd.Function):
    """(W / sigma, u') with one power iteration from u: sigma = u'^T W v', and u', v' constants of the backward pass.

    `dW = (g - <g, W / sigma> u' v'^T) / sigma` (Miyato et al. 2018, Eq. 12), in one step and without the intermediate
    matrices of the plain form; `W v'` is computed once. Can be differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        matrix = memory_matrix(weight)
        v = torch.mv(matrix.t(), u)
        v = v / (torch.linalg.vector_norm(v) + eps)
        image = torch.mv(matrix, v)
        u = image / (torch.linalg.vector_norm(image) + eps)
        sigma = torch.dot(u, image)
        normalised = weight / sigma
        ctx.save_for_backward(normalised, u, v, sigma)
        ctx.mark_non_differentiable(u)
        return normalised, u

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        normalised, u, v, sigma = ctx.saved_tensors
        if normalised.dim() == 4 and normalised.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        else:
            gradient = gradient.contiguous()
        rows = memory_matrix(gradient)
        share = torch.dot(rows.reshape(-1), memory_matrix(normalised).reshape(-1))
        result = gradient / sigma
        memory_matrix(result).addr_(u * (-share / sigma), v)
        return result, None, None
