"""Counter-based randomness: every draw of a training step is a function of (seed, purpose, iteration, sub-step, replica).

No generator lives longer than one draw and nothing is drawn from a shared stream, so an iteration can be computed again
alone, and a resumed run needs no generator state.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LatentDistribution = Literal["normal", "uniform", "unit_uniform"]


def key(seed: int, purpose: str, iteration: int = 0, sub_step: int = 0, replica: int = 0) -> int:
    """A 63-bit key for one draw: the first 8 bytes of BLAKE2b over the counters, top bit cleared."""
    text = f"{seed}/{purpose}/{iteration}/{sub_step}/{replica}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int,
    purpose: str,
    iteration: int = 0,
    sub_step: int = 0,
    replica: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """A fresh generator for one draw. On the CPU its numbers are the same whatever the training device is."""
    return torch.Generator(device).manual_seed(key(seed, purpose, iteration, sub_step, replica))


def draw_latents(source: torch.Generator, count: int, latent_dim: int, distribution: LatentDistribution) -> Tensor:
    """Latents [count, latent_dim], N(0, 1) or U(-1, 1) (both coded in the official `sample_continuous`), or U(0, 1)."""
    if distribution == "normal":
        return torch.randn(count, latent_dim, generator=source)
    unit = torch.rand(count, latent_dim, generator=source)
    return unit if distribution == "unit_uniform" else unit * 2 - 1


def draw_labels(source: torch.Generator, count: int, classes: int) -> Tensor:
    """Labels int64 [count], uniform over the classes; zeros for an unconditional model (`classes` = 0)."""
    return torch.randint(max(classes, 1), (count,), generator=source)


@dataclass(frozen=True)
class Keys:
    """The keys of one replica's draws in one turn."""

    seed: int
    iteration: int
    turn: int
    """The turn's number in its iteration."""
    replica: int
    rollbacks: int = 0
    """How often the run has gone back; after each time the draws are others."""

    def key(self, purpose: str) -> int:
        """The key of the draw of this purpose."""
        name = f"{purpose} after rollback {self.rollbacks}" if self.rollbacks else purpose
        return key(self.seed, name, self.iteration, self.turn, self.replica)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh generator on the CPU for the draw of this purpose."""
        return torch.Generator().manual_seed(self.key(purpose))
