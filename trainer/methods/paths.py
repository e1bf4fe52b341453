"""Ways from one latent to another: what interpolations show, and what path lengths are measured on."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trainer.methods.protocol import Sampler


@runtime_checkable
class Interpolating(Protocol):
    """A sampler with its own way from one latent vector to another. Those of other samplers are straight."""

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Latents [n, s, ...] on the ways from `first` [n, ...] to `last` [n, ...]; `shares` [s] go from 0 to 1."""
        ...


def between(sampler: Sampler, first: Tensor, last: Tensor, shares: Tensor) -> Tensor | None:
    """Latents [n, s, ...] on the ways from `first` [n, ...] to `last` [n, ...]; `shares` [s] go from 0 to 1.

    None for a sampler whose latents are no vectors.
    """
    if not first.numel() or not first.is_floating_point():
        return None
    if isinstance(sampler, Interpolating):
        return sampler.between(first, last, shares)
    share = shares.view(1, -1, *[1] * (first.dim() - 1))
    return (1 - share) * first[:, None] + share * last[:, None]


@runtime_checkable
class Paths(Protocol):
    """A sampler that knows ways in several spaces."""

    spaces: Sequence[str]
    """Their names, such as `z` and `w`."""

    def on_path(self, space: str, latents: Tensor, conditions: Tensor, shares: Tensor) -> Tensor:
        """Images [n, C, H, W] on the way from the first of two latents [n, 2, ...] to the second, at `shares` [n].

        What is drawn for a sample, such as noise, depends on the latents alone and is the same for all of them.
        """
        ...


def spaces_of(sampler: Sampler) -> Sequence[str]:
    """The spaces in which the sampler knows ways; `z` alone for most."""
    return sampler.spaces if isinstance(sampler, Paths) else ("z",)


def on_path(sampler: Sampler, space: str, latents: Tensor, conditions: Tensor, shares: Tensor) -> Tensor | None:
    """Images at `shares` [n] on the ways between latents [n, 2, ...]; None for a sampler whose latents are no vectors."""
    if isinstance(sampler, Paths):
        return sampler.on_path(space, latents, conditions, shares)
    points = [between(sampler, pair[:1], pair[1:], share[None]) for pair, share in zip(latents, shares, strict=True)]
    if not points or any(point is None for point in points):
        return None
    return sampler.sample(torch.cat([point[:, 0] for point in points if point is not None]), conditions)
