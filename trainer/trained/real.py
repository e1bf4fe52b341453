"""The real images that samples are compared with, or made of: each once, in an order that does not depend on the launch."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.reading.selection import class_numbers
from data_pipeline.reading.stream import DataConfig, open_stream
from trainer.methods.protocol import Sampler, Tensors
from trainer.methods.sampling import FromData
from trainer.trained.sampling import CHUNK, chunks_of

_WINDOW = 10_000  # samples: the shards are read one after another, whatever the run's own order is


class RealChunk(NamedTuple):
    """50 samples; at the end of the data the first are repeated, and only the first `new` count."""

    ids: Tensor
    """int64 [50]: place of the sample in the shards."""
    labels: Tensor
    """int64 [50]; 0 where the samples have no class."""
    images: Tensor
    """uint8 [50, c, h, w], or where the samples are vectors float32 [50, D]."""
    new: int


def manifest_of(data: DataConfig) -> Manifest:
    """Of the shards, with the selection of classes; raises DataError."""
    return data.selected(load_manifest(data.shards))


def real_chunks(data: DataConfig, first: int = 0, last: int | None = None) -> Iterator[RealChunk]:
    """The chunks number `first` to `last` (excluded; default: all) of all images, in the order of seed 0."""
    settings = replace(data, order="epochs", shuffle_window=_WINDOW)
    with open_stream(
        settings, seed=0, replicas=1, held=[0], sizes=itertools.repeat(CHUNK), first_position=first * CHUNK
    ) as stream:
        samples = stream.manifest.samples
        for number in range(first, chunks_of(samples) if last is None else last):
            ids = torch.from_numpy(stream.sample_ids(number * CHUNK, CHUNK)[0])
            batch = next(stream)
            vectors = batch.fields.get("vector")
            pixels = batch.images[0].permute(0, 3, 1, 2).clone() if vectors is None else vectors[0].clone()
            labels = batch.labels[0].clone() if stream.manifest.labelled else torch.zeros(CHUNK, dtype=torch.int64)
            yield RealChunk(ids, labels, pixels, min(CHUNK, samples - number * CHUNK))


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


def real_vectors(data: DataConfig) -> tuple[Tensor, Tensor]:
    """All vectors [N, D] and their classes [N], in the order of seed 0. Raises DataError where there are none."""
    assert manifest_of(data).vector_length
    chunks = list(real_chunks(data))
    parts = [(chunk.images[: chunk.new], chunk.labels[: chunk.new]) for chunk in chunks]
    return torch.cat([vectors for vectors, _ in parts]), torch.cat([labels for _, labels in parts])


class RealSamples:
    """The fields of real samples by their numbers in the order of `real_chunks`, which begins again after the last one.

    Reading on is cheap; another place opens the shards again.
    """

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._samples = 0
        self._chunks: Iterator[RealChunk] = iter(())
        self._number = -1
        self._newest: RealChunk | None = None

    def __call__(self, numbers: range) -> Tensors:
        """`image` float32 [n, C, H, W] in [-1, 1], or `vector` float32 [n, D], and `class` int64 [n] of the samples `numbers`.
        Raises DataError."""
        self._samples = self._samples or manifest_of(self._data).samples
        images, labels = [], []
        for number in numbers:
            chunk, row = divmod(number % self._samples, CHUNK)
            found = self._chunk(chunk)
            images.append(found.images[row])
            labels.append(found.labels[row])
        values = torch.stack(images)
        sample = {"vector": values} if values.is_floating_point() else {"image": values.float() / 127.5 - 1.0}
        return {**sample, "class": torch.stack(labels)}

    def _chunk(self, number: int) -> RealChunk:
        if number != self._number or self._newest is None:
            if number != self._number + 1 or self._newest is None:
                self._chunks = real_chunks(self._data, number)
            self._newest, self._number = next(self._chunks), number
        return self._newest


class _Fields(Mapping[str, Tensors]):
    """The fields of the samples `numbers` of each source, read where they are looked up."""

    def __init__(self, sources: Mapping[str, RealSamples], numbers: range) -> None:
        self._sources, self._numbers = sources, numbers

    def __getitem__(self, name: str) -> Tensors:
        return self._sources[name](self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def bind_data(sampler: Sampler, sources: Mapping[str, DataConfig]) -> Sampler:
    """The sampler itself, whose conditions can be made of the sources' real samples from now on, where they want it."""
    if isinstance(sampler.conditions, FromData):
        samples = {name: RealSamples(data) for name, data in sources.items()}
        sampler.conditions.bind(lambda numbers: _Fields(samples, numbers))
    return sampler
