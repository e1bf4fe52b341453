"""The explicit draws of an iteration, made from the keys: functions of (seed, iteration, turn, replica)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipeline.reading.stream import Stream
from trainer.foundation import keys
from trainer.foundation.keys import Keys
from trainer.foundation.pixels import flip_half, normalise
from trainer.foundation.transfer import to_device
from trainer.methods.protocol import Method, Tensors, Turn
from trainer.models.traits import draws_inside
from trainer.processes.progress import progress


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


def anything_draws(method: Method, networks: Iterable[nn.Module]) -> bool:
    """Whether a pass may draw from torch's default generators: a layer, or the method, unless it says `draws = False`."""
    return bool(getattr(method, "draws", True)) or any(draws_inside(network) for network in networks)


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
    seeded: bool = True
    """Whether anything draws inside a pass; else seeding, which takes a while for many passes, is left out."""
    part: int = 0
    """Which part of the held replica's batches this process computes."""
    parts: int = 1
    """Into how many its batches are cut: the processes that share it."""

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
            own = {name: own_part(value, self.part, self.parts) for name, value in found.items()}
            draws.append({name: to_device(value, self.device) for name, value in own.items()})
        return draws

    def keys(self, turn: Turn, replica: int) -> Keys:
        """The keys of one replica's draw for a turn."""
        return Keys(self.seed, self.iteration, turn.number, replica, self.rollbacks)

    def seed_layers(self, turn: Turn, replica: int) -> None:
        """Seed torch's default generators, for layers that draw inside a forward pass (dropout, activation noise).

        These draw on the device, so they are the one kind of draw that differs between a CPU, a GPU and another model of GPU.
        """
        if self.seeded:
            torch.manual_seed(self.keys(turn, replica).key("layers"))

    def _read(self, source: Source, turn: Turn) -> list[dict[str, Tensor]]:
        """The next batch of a source: the fields of each held replica, on the device, images normalised."""
        progress.enter("data")
        batch = next(source.stream)
        progress.enter("draws")
        # One copy for all replicas. The stream's memory is filled again: images become new ones below.
        moved = {
            name: to_device(value if name == "image" else value.clone(), self.device)
            for name, value in batch.fields.items()
        }
        found = []
        for row, replica in enumerate(self.held):
            fields = {name: value[row] for name, value in moved.items() if name != "image"}
            if "image" in moved:
                fields["image"] = self._images(source, turn, replica, moved["image"][row], batch.positions[row])
            for name, value in fields.items():
                if self.parts > 1 and name != "class":
                    # Only its own part was read. A method that mixes samples in its draw must not go on in silence.
                    own = own_part(value, self.part, self.parts).clone()
                    own_part(value.fill_(float("nan")), self.part, self.parts).copy_(own)
            found.append(fields)
        return found

    def _images(self, source: Source, turn: Turn, replica: int, pixels: Tensor, positions: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1] on the device, dequantized and mirrored by the keys.

        The noise comes from a generator on the CPU, whatever the device, so that it is the same on all of them. It costs a
        GPU's host a draw and a copy of 4 bytes for each value: for 16 images of 128 px 7 ms of one core (measured) and 3 MB.
        """
        noise = None
        if source.dequantize:
            purpose = source.purpose("dequantization")
            noise = keys.generator(self.seed, purpose, self.iteration, turn.number, replica)
        images = normalise(pixels, noise)
        if source.horizontal_flip:
            images = flip_half(images, positions, self.seed, replica, source.purpose("flip"))
        return images


def own_part(value: Tensor, part: int, parts: int) -> Tensor:
    """One of `parts` equal parts of a draw's tensor [B, ...]; a scalar is everybody's."""
    return value if parts == 1 or value.dim() == 0 else value.chunk(parts)[part]
