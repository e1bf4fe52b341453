"""The real images that measures compare with, chunk by chunk: each once, in an order that does not depend on the launch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.reading.selection import class_numbers, select_classes
from data_pipeline.reading.stream import DataConfig, open_stream
from trainer.metrics.samples import chunks_of, in_order
from trainer.processes.launch import Launch
from trainer.trained.sampling import CHUNK

_WINDOW = 10_000  # samples: the shards are read one after another, whatever the run's own order is


class RealChunk(NamedTuple):
    """50 images; at the end of the data the first are repeated, and only the first `new` count."""

    ids: Tensor
    """int64 [50]: place of the sample in the shards."""
    labels: Tensor
    """int64 [50]."""
    images: Tensor
    """uint8 [50, c, h, w]."""
    new: int


def manifest_of(data: DataConfig) -> Manifest:
    """Of the shards, with the selection of classes; raises DataError."""
    return select_classes(load_manifest(data.shards), data.classes)


def real_chunks(data: DataConfig, first: int = 0, last: int | None = None) -> Iterator[RealChunk]:
    """The chunks number `first` to `last` (excluded; default: all) of all images, in the order of seed 0."""
    settings = replace(data, shuffle_window=_WINDOW)
    with open_stream(settings, seed=0, replicas=1, held=[0], batch_size=CHUNK, first_batch=first) as stream:
        samples = stream.manifest.samples
        for number in range(first, chunks_of(samples) if last is None else last):
            ids = torch.from_numpy(stream.sample_ids(number)[0])
            images, labels, _positions = next(stream)
            pixels = images[0].permute(0, 3, 1, 2).clone()
            yield RealChunk(ids, labels[0].clone(), pixels, min(CHUNK, samples - number * CHUNK))


def images_of_class(data: DataConfig, label: int, count: int) -> Tensor:
    """The first `count` (or all, if there are fewer) images of a class in the order of seed 0: uint8 [n, c, h, w]."""
    number = class_numbers(load_manifest(data.shards), data.classes)[label]
    parts: list[Tensor] = []
    settings = replace(data, classes=(number,))
    available = manifest_of(settings).samples
    wanted = min(count, available)
    for chunk in real_chunks(settings, 0, chunks_of(wanted)):
        parts.append(chunk.images[: chunk.new])
    return torch.cat(parts)[:wanted]


class RealRows(NamedTuple):
    """What was computed of up to 50 real images."""

    ids: Tensor
    """int64 [n]."""
    labels: Tensor
    """int64 [n]."""
    values: Tensor
    """float64 [n, columns]."""


def over_real_images(
    launch: Launch, data: DataConfig, chunks: int, columns: int, work: Callable[[RealChunk], Tensor]
) -> Iterator[RealRows]:
    """`work(chunk)` [50, columns] of the first `chunks` chunks, dealt to the processes in contiguous blocks.

    The main process gets the rows of new images, chunk by chunk; every process must exhaust the iterator.
    """
    share = -(-chunks // launch.world_size)
    own = real_chunks(data, min(launch.rank * share, chunks), min((launch.rank + 1) * share, chunks))

    def next_rows(_number: int) -> Tensor:
        rows = torch.full((CHUNK, 2 + columns), -1.0, dtype=torch.float64)
        chunk = next(own, None)
        if chunk is not None:
            rows[:, 0], rows[:, 1], rows[:, 2:] = chunk.ids, chunk.labels, work(chunk)
            rows[chunk.new :, 0] = -1
        return rows

    for rows in in_order(launch, share * launch.world_size, (CHUNK, 2 + columns), next_rows):
        new = rows[rows[:, 0] >= 0]
        yield RealRows(new[:, 0].long(), new[:, 1].long(), new[:, 2:])
