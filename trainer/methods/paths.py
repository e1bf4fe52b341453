"""Ways between two latents on which images change little by little: what path lengths are measured on."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trainer.methods.protocol import Sampler
from trainer.methods.sampling import between


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
