"""The samples that are measured, and how the work is dealt to processes.

Sample number n is a function of (seed, n) alone, sample n of a condition one of (seed, condition, n): the same for every
number of processes. Latents are drawn, and networks run, in chunks of 50, whatever the launch. Results come to the main
process in the order of their numbers, so every sum is made in one order and every value is the same, bit for bit, on one
process and on many (of the same machine).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.pixels import to_uint8
from trainer.methods.protocol import Sampler
from trainer.methods.sampling import number_of
from trainer.processes.launch import Launch
from trainer.trained.sampling import CHUNK, chunks_of, samples_of


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
class Samples:
    """The keyed samples of a sampler: images as uint8 [n, c, h, w], vectors as float32 [n, D], on the CPU."""

    sampler: Sampler
    seed: int
    batch_statistics: bool = False
    """Batch norm normalises with the current 50 samples instead of the running statistics."""

    def conditions(self, chunk: int) -> Tensor:
        """Conditions [50, ...] of the samples 50 * chunk + (0 .. 49), in turn."""
        return self.sampler.conditions.in_turn(range(chunk * CHUNK, (chunk + 1) * CHUNK))

    def chunk(self, chunk: int) -> Tensor:
        """The samples [50, ...] number 50 * chunk + (0 .. 49)."""
        return self._made(keys.generator(self.seed, "evaluation", chunk), self.conditions(chunk))

    def of_condition(self, condition: Tensor, chunk: int) -> Tensor:
        """The samples [50, ...] number 50 * chunk + (0 .. 49) of one condition [...]."""
        source = keys.generator(self.seed, "evaluation of a class", chunk, replica=number_of(condition))
        return self._made(source, torch.stack([condition] * CHUNK))

    def first(self, count: int) -> Tensor:
        """The samples [count, ...] number 0 .. count - 1."""
        return torch.cat([self.chunk(chunk) for chunk in range(chunks_of(count))])[:count]

    def first_of_condition(self, condition: Tensor, count: int) -> Tensor:
        """The samples [count, ...] number 0 .. count - 1 of one condition [...]."""
        return torch.cat([self.of_condition(condition, chunk) for chunk in range(chunks_of(count))])[:count]

    def _made(self, source: torch.Generator, conditions: Tensor) -> Tensor:
        latents = self.sampler.draw(source, CHUNK)
        made = samples_of(self.sampler, latents, conditions, CHUNK, self.batch_statistics)
        return to_uint8(made) if self.sampler.output == "image" else made.float().cpu()


def generate(sampler: Sampler, conditions: Tensor, seed: int) -> Tensor:
    """Samples [n, ...] for `conditions` [n, ...] on the networks' device, at least float32, images in [-1, 1].

    Latents are those of the samples 0 .. n - 1 of `Samples`, so a sample depends on its number and condition alone.
    """
    made = []
    for chunk, part in enumerate(torch.split(conditions, CHUNK)):
        latents = sampler.draw(keys.generator(seed, "evaluation", chunk), CHUNK)[: len(part)]
        made.append(samples_of(sampler, latents, part))
    return torch.cat(made)


def as_signed(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0
