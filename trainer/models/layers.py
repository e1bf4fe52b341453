"""Layers of the networks: spectrally normalised convolution, linear and embedding layers, and batch normalisation.

Two layers change state while they compute: spectral norm moves its vector `u`, batch norm its running statistics. What
a pass changes must not depend on how many replicas one process holds, so both obey `trainer.models.replicas`.

Shapes: B batch, C channels, H height, W width, K classes, F features.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMALISE_EPS = 1e-12  # added to the length before the division, as in the official source/functions/max_sv.py


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which autocast is off on `device`; the place for norms, heads and logits."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself in float32 or float64, a float32 copy of lower precisions."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalise(vector: Tensor) -> Tensor:
    """`vector / (|vector| + 1e-12)`."""
    length: Tensor = torch.linalg.vector_norm(vector)
    return vector / (length + NORMALISE_EPS)


def power_iteration(matrix: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """One step towards the leading singular vectors (Miyato et al. 2018, Algorithm 1).

    Args:
        matrix: [O, I].
        u: [O], the last estimate of the left singular vector.

    Returns:
        The next (u [O], v [I]), without a graph: `v = normalise(W^T u)`, then `u = normalise(W v)`.
    """
    with torch.no_grad():
        v = normalise(torch.mv(matrix.t(), u))
        return normalise(torch.mv(matrix, v)), v


class SpectralLayer(nn.Module):
    """A layer whose weight is used divided by an estimate of its largest singular value, `sigma = u^T W v`.

    u and v are constants of the backward pass. In training every pass does one power iteration and keeps the new `u`;
    in evaluation sigma comes from the same formula and `u` stays (the official SNLinear and SNEmbedID move it there
    too, which no official run depends on: its discriminator only ever works in training mode).
    """

    weight: nn.Parameter
    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("u", torch.randn(weight.shape[0], dtype=weight.dtype, device=weight.device))
        self._shared: list[Tensor] | None = None  # normalised weights of the passes so far, inside replica_passes
        self._pass = 0

    def begin_passes(self) -> None:
        """From now on the k-th call after each `start_replica` is pass k and shares one normalised weight."""
        if self._shared is not None:
            raise RuntimeError("replica_passes is open already for this layer; passes cannot be nested")
        self._shared, self._pass = [], 0

    def start_replica(self) -> None:
        self._pass = 0

    def end_passes(self) -> None:
        self._shared, self._pass = None, 0

    def normalised_weight(self) -> Tensor:
        """The weight of this pass, of the weight's shape, at least float32, with its graph."""
        if self._shared is None:
            return self._normalise()
        if self._pass == len(self._shared):
            self._shared.append(self._normalise())
        self._pass += 1
        return self._shared[self._pass - 1]

    def _normalise(self) -> Tensor:
        with full_precision(self.weight.device):
            weight = at_least_float32(self.weight)
            matrix = weight.flatten(1)
            # New tensors: `u` may move again before this pass's backward.
            u, v = power_iteration(matrix, self.u.to(weight.dtype))
            if self.training:
                with torch.no_grad():
                    self.u.copy_(u)
            return weight / torch.dot(u, torch.mv(matrix, v))


class SpectralConv2d(SpectralLayer):
    """Square convolution, stride 1, "same" padding. x [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 1.0) -> None:
        super().__init__(glorot_uniform(torch.empty(out_channels, in_channels, kernel_size, kernel_size), gain))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.normalised_weight().to(self.weight.dtype)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class SpectralLinear(SpectralLayer):
    """x [B, I] -> [B, O], outside autocast."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(glorot_uniform(torch.empty(out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            bias = None if self.bias is None else at_least_float32(self.bias)
            return F.linear(at_least_float32(x), self.normalised_weight(), bias)


class SpectralEmbedding(SpectralLayer):
    """labels [B] -> rows [B, F] of the normalised table [K, F]; the norm is that of the whole table."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__(glorot_uniform(torch.empty(classes, features)))

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.normalised_weight())


class Convolution(nn.Conv2d):
    """Square convolution, stride 1, "same" padding, Glorot-uniform weights, zero bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        assert self.bias is not None
        glorot_uniform(self.weight, gain)
        nn.init.zeros_(self.bias)


class BatchNorm2d(nn.Module):
    """Batch normalisation over B, H, W of x [B, C, H, W], with gain and bias per channel if `affine`.

    In training the batch's own statistics normalise (biased variance) and the running ones follow them
    (`running = (1 - momentum) running + momentum batch`, unbiased variance); in evaluation the running ones normalise.
    `update_statistics` switches the following off; `trainer.models.replicas` does so for every replica but number 0.

    The official running variance starts at 0, here at 1: what the start leaves over after 300 passes is below 1e-13.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 2e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.update_statistics = True

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training and not self.update_statistics:
            # Copies rather than None: with low-precision x their float32 makes the kernel keep float32 statistics.
            mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)


def glorot_uniform(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fills `weight` [O, I, ...] with U(-a, a), a = gain sqrt(6 / ((I + O) receptive field)); returns it."""
    with torch.no_grad():
        return nn.init.xavier_uniform_(weight, gain)


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour: [B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Mean of 2x2 squares: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return F.avg_pool2d(x, 2)


SQRT2 = math.sqrt(2)
