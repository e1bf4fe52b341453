"""Batch norm over several processes. PyTorch's own refuses the CPU; this one runs on every device.

Over all processes (`batch.synchronised_norm`), or over those that share a replica. Each gives what it has as one batch;
counts, means and variances are then shared. Processes may hold different numbers of samples. Only in training mode: in
evaluation the running statistics normalise.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.models.traits import couples_samples


def synchronise_norms(*modules: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Let every batch norm of `modules` take its statistics over the processes of `group`; None: over all.

    Raises SettingError for another layer that couples samples: it would couple those of one process.
    """
    others = coupling_layers(*modules)
    if others:
        raise SettingError(
            f"batch.synchronised_norm: is true, but the layer {others[0]} couples the samples of a pass, or does not say that "
            "it does not (trainer/models/traits.py); set it to false"
        )
    layers: list[Any] = [layer for module in modules for layer in module.modules()]
    for layer in layers:
        if hasattr(layer, "normalise"):
            layer.normalise = GroupNormalise(group)


class GroupNormalise:
    """`synchronised_batch_norm` over the processes of a group. A copy of a network keeps the group: there is one of it."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    def __call__(self, x: Tensor, *arguments: Any) -> Tensor:
        """As `F.batch_norm`."""
        return synchronised_batch_norm(self.group, x, *arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GroupNormalise":
        return self


def coupling_layers(*modules: nn.Module) -> list[str]:
    """The classes of layers that couple samples, or do not say that they do not, and cannot do so over processes."""
    layers = [layer for module in modules for layer in module.modules()]
    return sorted({type(m).__qualname__ for m in layers if couples_samples(m) and not hasattr(m, "normalise")})


def synchronised_batch_norm(
    group: dist.ProcessGroup | None,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`F.batch_norm` with the statistics of all the group's `x` [B, C, H, W]; each of its processes must call it."""
    if not (training and dist.is_initialized() and dist.get_world_size(group) > 1):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y: Tensor
    y, mean, variance, count = _Normalise.apply(x, eps, group)
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    if weight is not None:
        y = y * weight.to(y.dtype)[:, None, None]
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return y


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) over the group's processes; also gives mean, biased variance [C] and the count."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channels, count = x.shape[1], x.numel() // x.shape[1]
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        # One row per process, all others 0: the sum is exact, and the rows are then combined in the same order everywhere
        # (Chan et al. 1979), without the cancellation of a sum of squares.
        rows = torch.zeros(dist.get_world_size(group), 2 * channels + 1, dtype=wide.dtype, device=x.device)
        rows[dist.get_rank(group)] = torch.cat(
            [mean, variance, torch.full_like(mean[:1], count)]
        )  # no copy from the host
        dist.all_reduce(rows, group=group)
        means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        scale = torch.rsqrt(variance + eps)
        normalised = (wide - mean[:, None, None]) * scale[:, None, None]
        ctx.group = group
        ctx.save_for_backward(normalised, scale, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return normalised.to(x.dtype), mean, variance, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        normalised, scale, total = ctx.saved_tensors
        wide = gradient.to(normalised.dtype)
        sums = torch.stack([wide.sum(dim=(0, 2, 3)), (wide * normalised).sum(dim=(0, 2, 3))])
        dist.all_reduce(sums, group=ctx.group)
        plain, projected = (sums / total)[:, :, None, None]
        return ((wide - plain - normalised * projected) * scale[:, None, None]).to(gradient.dtype), None, None
