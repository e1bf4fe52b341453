"""The images that are measured, and how the work is dealt to processes.

Sample number n is a function of (seed, n) alone, image n of a class one of (seed, class, n): the same for every number of
processes. Latents are drawn, and networks run, in chunks of 50, whatever the launch, since a convolution's last bits may
depend on its batch. Results come to the main process in the order of their numbers, so every sum is made in one order
and every value is the same, bit for bit, on one process and on many (of the same machine).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.pixels import to_uint8
from trainer.processes.launch import Launch
from trainer.trained.pretrained import Generator

CHUNK = 50
"""Images of one forward pass."""


def in_order(launch: Launch, count: int, shape: Sequence[int], work: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Results of `work(0)` .. `work(count - 1)`, dealt to the processes in turn; the main process gets them in order.

    Every process must exhaust the iterator; the others get nothing from it. Results have `shape` and come as float64 (exact
    for float32 and for counts) on the CPU. The main process holds one result of every process at a time.
    """
    if launch.world_size == 1:
        for number in range(count):
            yield work(number).cpu().double()
        return
    for first in range(0, count, launch.world_size):
        mine = first + launch.rank
        result = work(mine).double() if mine < count else torch.zeros(*shape, dtype=torch.float64)
        result = result.to(launch.device).contiguous()
        if tuple(result.shape) != tuple(shape):
            raise ValueError(f"a result of shape {tuple(shape)} was announced, {tuple(result.shape)} came")
        received = [torch.empty_like(result) for _ in range(launch.world_size)] if launch.is_main else None
        dist.gather(result, received, dst=0)
        for part in (received or [])[: count - first]:
            yield part.cpu()


@dataclass(frozen=True)
class Sampler:
    """Draws keyed samples from a generator in evaluation mode."""

    generator: Generator
    seed: int
    batch_statistics: bool = False
    """Batch norm normalises with the 50 images at hand instead of the running statistics."""

    @property
    def classes(self) -> int:
        """At least 1: an unconditional model has one class."""
        return max(self.generator.model.classes, 1)

    def labels(self, chunk: int) -> Tensor:
        """Labels [50] of the samples 50 * chunk + (0 .. 49): the classes in turn."""
        return torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK) % self.classes

    def images(self, chunk: int) -> Tensor:
        """uint8 images [50, c, h, w] of the samples 50 * chunk + (0 .. 49)."""
        return self._images(keys.generator(self.seed, "evaluation", chunk), self.labels(chunk))

    def of_class(self, label: int, chunk: int) -> Tensor:
        """uint8 images [50, c, h, w] number 50 * chunk + (0 .. 49) of one class."""
        source = keys.generator(self.seed, "evaluation of a class", chunk, replica=label)
        return self._images(source, torch.full((CHUNK,), label))

    def _images(self, source: torch.Generator, labels: Tensor) -> Tensor:
        model, device = self.generator.model, self.generator.device
        latents = keys.draw_latents(source, CHUNK, model.latent_dim, model.latent_distribution)
        made = self.generator.images(latents.to(device), labels.to(device), CHUNK, self.batch_statistics)
        return to_uint8(made)


def chunks_of(samples: int) -> int:
    """How many chunks hold so many samples."""
    return -(-samples // CHUNK)


def as_signed(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0
