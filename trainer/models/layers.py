"""Layers of the networks: spectrally normalised convolution, linear and embedding layers, and batch normalisation.

Two layers change state while they compute: spectral norm moves its vector `u`, batch norm its running statistics. What
a pass changes must not depend on how many replicas one process holds, so both are `Effects` (trainer/models/traits.py).

Some layers know the same function in several forms (`form`, `fused`); all start in the plain one, the reference, and
`trainer.models.forms` puts them into faster ones. Parameters, buffers and their names do not know of it.

Shapes: B batch, C channels, H height, W width, K classes, F features.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.rewrites import NormalisedWeight, UpForm, convolve, double_and_convolution, expand

NORMALISE_EPS = 1e-12  # added to the length before the division, as in the official source/functions/max_sv.py


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which autocast is off on `device`; the place for norms, heads and logits."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def convolution_dtype(x: Tensor) -> torch.dtype:
    """What autocast would compute a convolution of `x` in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else x.dtype


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

    fuses = "spectral_norm"
    shared_buffers = ("u",)
    weight: nn.Parameter
    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("u", torch.randn(weight.shape[0], dtype=weight.dtype, device=weight.device))
        self.fused = False
        """Whether sigma, division and their backward pass are one function without intermediate matrices."""
        self._shared: list[Tensor] | None = None  # normalised weights of the passes so far, inside replica_passes
        self._pass = 0

    def begin_passes(self) -> None:
        """From now on the k-th call after each `start_replica` is pass k and shares one normalised weight."""
        if self._shared is not None:
            raise RuntimeError("replica_passes is open already for this layer; passes cannot be nested")
        self._shared, self._pass = [], 0

    def start_replica(self, number: int) -> None:
        """The next call is pass 0 again."""
        self._pass = 0

    def end_passes(self) -> None:
        """From now on every call is a pass, and nothing is kept."""
        self._shared, self._pass = None, 0

    def normalised_weight(self) -> Tensor:
        """The weight of this pass as `kernel` makes it, with its graph."""
        if self._shared is None:
            return self.kernel(self._normalise())
        if self._pass == len(self._shared):
            self._shared.append(self.kernel(self._normalise()))
        self._pass += 1
        return self._shared[self._pass - 1]

    def kernel(self, normalised: Tensor) -> Tensor:
        """What the layer computes with, made once a pass from the normalised weight, which is at least float32."""
        return normalised

    def _normalise(self) -> Tensor:
        with full_precision(self.weight.device):
            weight = at_least_float32(self.weight)
            if self.fused:
                normalised, u = NormalisedWeight.apply(weight, self.u.to(weight.dtype), NORMALISE_EPS)
                if self.training:
                    with torch.no_grad():
                        self.u.copy_(u)
                return cast(Tensor, normalised)
            matrix = weight.flatten(1)
            # New tensors: `u` may move again before this pass's backward.
            u, v = power_iteration(matrix, self.u.to(weight.dtype))
            if self.training:
                with torch.no_grad():
                    self.u.copy_(u)
            return weight / torch.dot(u, torch.mv(matrix, v))


class SpectralConv2d(SpectralLayer):
    """Square convolution, stride 1, "same" padding; then, with `halve`, the mean of 2x2 squares.

    x [B, C_in, H, W] -> [B, C_out, H, W], or [B, C_out, H/2, W/2] with `halve`.
    """

    draws = couples_samples = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 1.0, halve: bool = False
    ) -> None:
        super().__init__(glorot_uniform(torch.empty(out_channels, in_channels, kernel_size, kernel_size), gain))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.halve = halve
        self.form: Literal["plain", "merged"] = "plain"
        """With `halve`: convolution, then mean; or both as one 4x4 convolution of stride 2 (3x3), or the mean first (1x1)."""
        self.by_matrix = False
        """Whether the convolution is a matrix product over gathered patches."""

    @property
    def forms(self) -> tuple[str, ...]:
        """The values of `form` that the layer can compute in."""
        return ("plain", "merged") if self.halve else ("plain",)

    def kernel(self, normalised: Tensor) -> Tensor:
        if self.halve and self.form == "merged" and normalised.shape[-1] == 3:
            with full_precision(normalised.device):
                normalised = expand(normalised, "pool")
        # Once for all replicas of this pass.
        return normalised.to(convolution_dtype(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.normalised_weight()
        size = kernel.shape[-1]
        merged = self.halve and self.form == "merged"
        if merged and size == 1:
            return F.conv2d(downsample(x), kernel, self.bias)
        if merged:
            return convolve(x, kernel, self.bias, stride=2, padding=1, by_matrix=self.by_matrix)
        y = convolve(x, kernel, self.bias, padding=size // 2, by_matrix=self.by_matrix)
        return downsample(y) if self.halve else y


class SpectralLinear(SpectralLayer):
    """x [B, I] -> [B, O], outside autocast."""

    draws = couples_samples = False

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(glorot_uniform(torch.empty(out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            bias = None if self.bias is None else at_least_float32(self.bias)
            return F.linear(at_least_float32(x), self.normalised_weight(), bias)


class SpectralEmbedding(SpectralLayer):
    """labels [B] -> rows [B, F] of the normalised table [K, F]; the norm is that of the whole table."""

    draws = couples_samples = False

    def __init__(self, classes: int, features: int) -> None:
        super().__init__(glorot_uniform(torch.empty(classes, features)))

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.normalised_weight())


class Convolution(nn.Conv2d):
    """With `doubles` nearest-neighbour upsampling by 2; then square convolution, stride 1, "same" padding.

    Glorot-uniform weights, zero bias. x [B, C_in, H, W] -> [B, C_out, H, W], or [B, C_out, 2H, 2W] with `doubles`.
    """

    draws = couples_samples = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 1.0, doubles: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        assert self.bias is not None
        glorot_uniform(self.weight, gain)
        nn.init.zeros_(self.bias)
        self.doubles = doubles
        self.form: UpForm = "plain"
        """With `doubles`, 3x3: how both are computed together; 1x1: any other than "plain" convolves first."""
        self.by_matrix = False
        """Whether the convolution is a matrix product over gathered patches."""
        self._kept: dict[torch.dtype, Tensor] | None = None  # expanded kernels, while the weight is known to stay

    @property
    def forms(self) -> tuple[str, ...]:
        """The values of `form` that the layer can compute in."""
        return ("plain", "transposed", "phases") if self.doubles else ("plain",)

    def forward(self, x: Tensor) -> Tensor:
        if not self.doubles:
            return self._convolve(x)
        if self.form == "plain":
            return self._convolve(upsample(x))
        if self.kernel_size == (1, 1):
            return upsample(self._convolve(x))
        return double_and_convolution(
            x, self._kernel(convolution_dtype(x)), self.bias, self.form, by_matrix=self.by_matrix
        )

    def _convolve(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, padding=self.kernel_size[0] // 2, by_matrix=self.by_matrix)

    def _kernel(self, dtype: torch.dtype) -> Tensor:
        keep = self._kept is not None and not torch.is_grad_enabled()
        if keep and self._kept and dtype in self._kept:
            return self._kept[dtype]
        assert self.form != "plain"
        with full_precision(self.weight.device):
            kernel = expand(at_least_float32(self.weight), self.form).to(dtype)
        if keep and self._kept is not None:
            self._kept[dtype] = kernel
        return kernel


@contextmanager
def kept_kernels(module: nn.Module) -> Iterator[None]:
    """While it is open the weights of `module` stay as they are, so that kernels made of them are kept."""
    layers = [layer for layer in module.modules() if isinstance(layer, Convolution)]
    for layer in layers:
        layer._kept = {}
    try:
        yield
    finally:
        for layer in layers:
            layer._kept = None


class BatchNorm2d(nn.Module):
    """Batch normalisation over B, H, W of x [B, C, H, W], with gain and bias per channel if `affine`.

    In training the batch's own statistics normalise (biased variance) and the running ones follow them
    (`running = (1 - momentum) running + momentum batch`, unbiased variance); in evaluation the running ones normalise.
    `update_statistics` switches the following off; inside `replica_passes` it is off for every replica but number 0.

    The official running variance starts at 0, here at 1: what the start leaves over after 300 passes is below 1e-13.
    """

    draws = False
    couples_samples = True
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
        self.normalise: Callable[..., Tensor] = F.batch_norm
        self.joined_passes = 1
        """Equal groups, one behind the other in the batch, that are normalised apart, as if each were a pass."""

    def begin_passes(self) -> None:
        """Nothing: what matters is which replica it is."""

    def start_replica(self, number: int) -> None:
        """Running statistics follow replica 0 alone."""
        self.update_statistics = number == 0

    def end_passes(self) -> None:
        """Every pass is followed again."""
        self.update_statistics = True

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.joined_passes > 1:
            return torch.cat([self._normalised(group) for group in x.chunk(self.joined_passes)])
        return self._normalised(x)

    def _normalised(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training and not self.update_statistics:
            # Copies rather than None: with low-precision x their float32 makes the kernel keep float32 statistics.
            mean, variance = mean.clone(), variance.clone()
        return self.normalise(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)


@contextmanager
def normalised_in_groups(module: nn.Module, groups: int) -> Iterator[None]:
    """While it is open, training passes of `module` are `groups` passes in one: batch norm takes each group alone."""
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "joined_passes")]
    for layer in layers:
        layer.joined_passes = groups
    try:
        yield
    finally:
        for layer in layers:
            layer.joined_passes = 1


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
