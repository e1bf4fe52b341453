"""The explicit draws of an iteration, made from the keys: functions of (seed, iteration, turn, replica)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.reading.stream import Stream
from trainer.foundation import keys
from trainer.foundation.keys import Keys
from trainer.foundation.pixels import flip_half, normalise
from trainer.methods.protocol import Method, Tensors, Turn


@dataclass(frozen=True)
class Source:
    """A named source and how its images come to the networks."""

    name: str
    stream: Stream
    dequantize: bool
    horizontal_flip: bool

    def purpose(self, name: str) -> str:
        """A key's purpose for this source. The source `data` came first and has the plain one."""
        return name if self.name == "data" else f"{name} of {self.name}"


@dataclass(frozen=True)
class Draws:
    """The draws of one iteration. Each source's stream is at the iteration's first batch."""

    method: Method
    sources: Mapping[str, Source]
    seed: int
    iteration: int
    rollbacks: int
    """Part of a run's state: after each rollback the method's draws are others."""
    held: Sequence[int]
    """The replicas of this process."""
    device: torch.device

    def of(self, turn: Turn) -> list[dict[str, Tensor]]:
        """The draw of each held replica for a turn, on the device. Takes a batch from every source that the turn reads."""
        real: list[dict[str, Tensors]] = [{} for _ in self.held]
        for name, samples in turn.reads.items():
            if samples:
                for fields, batch in zip(real, self._read(self.sources[name], turn), strict=True):
                    fields[name] = batch
        draws = []
        for replica, fields in zip(self.held, real, strict=True):
            found = self.method.draw(turn, self.keys(turn, replica), fields)
            draws.append({name: value.to(self.device) for name, value in found.items()})
        return draws

    def keys(self, turn: Turn, replica: int) -> Keys:
        """The keys of one replica's draw for a turn."""
        return Keys(self.seed, self.iteration, turn.number, replica, self.rollbacks)

    def seed_layers(self, turn: Turn, replica: int) -> None:
        """Seed torch's default generators, for layers that draw inside a forward pass (dropout, activation noise)."""
        torch.manual_seed(self.keys(turn, replica).key("layers"))

    def _read(self, source: Source, turn: Turn) -> list[dict[str, Tensor]]:
        """The next batch of a source: the fields of each held replica, on the device, images normalised."""
        batch = next(source.stream)
        found = []
        for row, replica in enumerate(self.held):
            images = batch.images[row].to(self.device)
            noise = None
            if source.dequantize:
                purpose = source.purpose("dequantization")
                noise = keys.generator(self.seed, purpose, self.iteration, turn.number, replica, self.device)
            image = normalise(images, noise)
            if source.horizontal_flip:
                image = flip_half(image, batch.positions[row], self.seed, replica)
            # A copy: the stream's memory is filled again.
            found.append({"image": image, "class": batch.labels[row].to(self.device, copy=True)})
        return found
