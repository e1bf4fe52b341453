"""Batches of named fields, in memory that is used again and again."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import ImageField, Manifest
from data_pipeline.reading.order import Ids

_RECENT = 64  # batches whose largest decides how much memory is held


@dataclass(frozen=True)
class Batch:
    """One batch of every replica that this process holds: n samples of each. The memory is valid until the
    next-but-one `next`."""

    fields: Mapping[str, torch.Tensor]
    """`image`: uint8 [held, n, H, W, C], 0..255; or `vector`: float32 [held, n, D]. Where the samples have a class also
    `class`: int64 [held, n], 0..classes-1."""
    positions: torch.Tensor
    """int64 [held, n]: the position of each sample in its replica's stream."""
    section: str = "data"
    """The settings' section of the source, for errors."""

    @property
    def images(self) -> torch.Tensor:
        """The field `image`. Raises DataError where the samples have none."""
        return self._field("image")

    @property
    def vectors(self) -> torch.Tensor:
        """The field `vector`. Raises DataError where the samples have none."""
        return self._field("vector")

    @property
    def labels(self) -> torch.Tensor:
        """The field `class`. Raises DataError where the samples have none."""
        return self._field("class")

    def _field(self, name: str) -> torch.Tensor:
        if name not in self.fields:
            raise DataError(
                f"{self.section}.shards: its samples have no field `{name}`, only {', '.join(self.fields)}; give shards "
                "that have it"
            )
        return self.fields[name]


class Places(NamedTuple):
    """A batch, and where its samples are written to."""

    batch: Batch
    rows: list[npt.NDArray[Any]]
    """One of each sample, replica after replica: uint8 [H, W, C] or float32 [D]."""
    labels: Ids | None
    """int64 [held, n]."""
    positions: Ids
    """int64 [held, n]."""


class _Slot:
    """Memory for up to `capacity` samples of each replica."""

    def __init__(self, manifest: Manifest, held: int, capacity: int, pin_memory: bool) -> None:
        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)

        content, count = manifest.content, held * capacity
        self.capacity, self._held, self._name, self._section = capacity, held, content.name, manifest.section
        self._content = (
            empty(count, content.height, content.width, content.channels, dtype=torch.uint8)
            if isinstance(content, ImageField)
            else empty(count, content.length, dtype=torch.float32)
        )
        self._labels = empty(count, dtype=torch.int64) if manifest.labelled else None
        self._positions = empty(count, dtype=torch.int64)
        self._places: tuple[int, Places] | None = None

    def places(self, n: int) -> Places:
        """A batch of `n` samples of each replica, at the beginning of the memory."""
        if self._places is None or self._places[0] != n:
            self._places = n, self._cut(n)
        return self._places[1]

    def _cut(self, n: int) -> Places:
        count = self._held * n
        content = self._content[:count]
        fields = {self._name: content.view(self._held, n, *content.shape[1:])}
        if self._labels is not None:
            fields["class"] = self._labels[:count].view(self._held, n)
        positions = self._positions[:count].view(self._held, n)
        labels = fields["class"].numpy() if "class" in fields else None
        return Places(Batch(fields, positions, self._section), list(content.numpy()), labels, positions.numpy())


class Slots:
    """`count` batches in turn: the memory of a batch is used again for the `count`-th batch after it.

    Each slot has room for the largest of the last batches, so sizes that alternate allocate nothing, and memory that
    a past stage needed is given back.
    """

    def __init__(self, manifest: Manifest, held: int, count: int, pin_memory: bool) -> None:
        self._manifest, self._held, self._pin_memory = manifest, held, pin_memory
        self._slots: list[_Slot | None] = [None] * count
        self._taken = 0
        self._recent: collections.deque[int] = collections.deque(maxlen=max(_RECENT, 2 * count))

    def take(self, n: int) -> Places:
        """The batch whose turn it is, with `n` samples of each replica."""
        self._recent.append(n)
        capacity = max(self._recent)
        turn = self._taken % len(self._slots)
        self._taken += 1
        slot = self._slots[turn]
        if slot is None or slot.capacity != capacity:
            self._slots[turn] = None  # the old memory goes before the new one comes
            slot = self._slots[turn] = _Slot(self._manifest, self._held, capacity, self._pin_memory)
        return slot.places(n)
