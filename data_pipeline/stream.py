"""The stream of real batches: positions in, uint8 images out, the same for any number of threads and processes."""

import collections
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from data_pipeline import index
from data_pipeline.decode import Pixels, decode_into
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, load_index, load_manifest
from data_pipeline.order import Ids, Order
from data_pipeline.shard_files import LocalShards
from data_pipeline.storage import Folder

_PIECE = 32  # samples per task: 4 ms of decoding at 128 px, so threads end a batch together


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class DataConfig:
    """Where the real images come from, and how they are read."""

    shards: str
    """Path or fsspec URL (s3://...) of the folder that data_pipeline.make_shards wrote."""
    shuffle_window: Annotated[int, Field(ge=1)] | None = None
    """Samples that are shuffled among each other; null: the whole epoch is one uniform permutation."""
    decode_threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads per process that decode images."""
    prefetch_batches: Annotated[int, Field(ge=1, le=256)] = 4
    """Batches that are decoded ahead of need."""
    horizontal_flip: bool = False
    """Mirror each sample with probability 1/2, on the device, keyed by the sample."""
    dequantize: bool = True
    """Add U(0, 1/128) to the normalised images, on the device, as the official code does."""


class Batch(NamedTuple):
    """One batch of every replica that this process holds; the memory is valid until the next-but-one `next`."""

    images: torch.Tensor
    """uint8 [held, batch_size, H, W, C], 0..255."""
    labels: torch.Tensor
    """int64 [held, batch_size], 0..classes-1."""
    positions: torch.Tensor
    """int64 [held, batch_size]: the position of each sample in its replica's stream."""


class _Shards(Protocol):
    def read(self, shard: int, offset: int, size: int) -> memoryview: ...
    def spoiled(self, shard: int) -> bool: ...
    def name(self, shard: int) -> str: ...
    def close(self) -> None: ...


class _Slot:
    """One of the reused batches."""

    def __init__(self, held: int, batch_size: int, resolution: int, channels: int, pin_memory: bool) -> None:
        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)

        self.batch = Batch(
            images=empty(held, batch_size, resolution, resolution, channels, dtype=torch.uint8),
            labels=empty(held, batch_size, dtype=torch.int64),
            positions=empty(held, batch_size, dtype=torch.int64),
        )
        self.pixels: Pixels = self.batch.images.numpy().reshape(held * batch_size, resolution, resolution, channels)
        self.labels: Ids = self.batch.labels.numpy()
        self.positions: Ids = self.batch.positions.numpy()


class Stream:
    """Consecutive batches from `first_batch` on, without end. Batch n of replica c holds the stream positions
    [n * batch_size, (n + 1) * batch_size) of c. A fault of the data raises DataError from `next`."""

    def __init__(
        self,
        manifest: Manifest,
        records: index.Records,
        order: Order,
        shards: _Shards,
        *,
        held: Sequence[int],
        batch_size: int,
        first_batch: int = 0,
        decode_threads: int = 2,
        prefetch_batches: int = 4,
        pin_memory: bool = False,
    ) -> None:
        self.manifest = manifest
        self.wait_seconds = 0.0
        self._records, self._order, self._shards = records, order, shards
        self._held, self._batch_size = tuple(held), batch_size
        self._next_batch = first_batch
        self._prefetch = prefetch_batches
        # The consumer may hold two batches (the one it works on and the one before, whose copy may be under way).
        self._slots = [
            _Slot(len(self._held), batch_size, manifest.resolution, manifest.channels, pin_memory)
            for _ in range(prefetch_batches + 2)
        ]
        self._submitted = 0
        self._pending: collections.deque[tuple[_Slot, list[Future[None]]]] = collections.deque()
        self._counts = {"samples": 0.0, "bytes": 0.0, "refetched_samples": 0.0}
        self._counts_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._closed = False

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise DataError("data: the stream is closed")
        while len(self._pending) < self._prefetch:
            self._submit()
        slot, futures = self._pending.popleft()
        began = time.perf_counter()
        try:
            for future in futures:
                future.result()
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - began
        self._submit()
        return slot.batch

    def _submit(self) -> None:
        """Start decoding the next batch into the slot whose turn it is."""
        slot = self._slots[self._submitted % len(self._slots)]
        size, total = self._batch_size, self._batch_size * len(self._held)
        first = self._next_batch * size
        ids = np.concatenate([self._order.sample_ids(replica, first, size) for replica in self._held])
        records = self._records[ids]
        slot.labels[...] = records["label"].reshape(slot.labels.shape)
        slot.positions[...] = np.arange(first, first + size)
        shards = np.searchsorted(self._order.starts, ids, side="right") - 1
        piece = max(1, min(_PIECE, total))
        futures = [
            self._pool.submit(self._decode, slot.pixels[a : a + piece], ids[a : a + piece], shards[a : a + piece])
            for a in range(0, total, piece)
        ]
        self._pending.append((slot, futures))
        self._submitted += 1
        self._next_batch += 1

    def _decode(self, out: Pixels, ids: Ids, shards: Ids) -> None:
        """Read, check and decode samples into `out`, uint8 [n, H, W, C]."""
        records = self._records[ids]
        read, crc32 = self._shards.read, zlib.crc32
        offsets, sizes, crcs = records["offset"].tolist(), records["size"].tolist(), records["crc32"].tolist()
        for row, (shard, offset, size, crc) in enumerate(zip(shards.tolist(), offsets, sizes, crcs, strict=True)):
            data = read(shard, offset, size)
            if crc32(data) != crc:
                data = self._read_again(shard, offset, size, crc, int(ids[row]))
            try:
                decode_into(data, out[row])
            except (ValueError, OSError) as error:
                raise DataError(
                    f"{self._shards.name(shard)}: sample {self._place(shard, int(ids[row]))} at byte {offset} "
                    "cannot be decoded "
                    f"({error}); make the shard again"
                ) from None
        with self._counts_lock:
            self._counts["samples"] += len(ids)
            self._counts["bytes"] += float(sum(sizes))

    def _read_again(self, shard: int, offset: int, size: int, crc: int, sample: int) -> memoryview:
        """The sample's bytes after a wrong CRC, where the shard can be had anew; else the error that names it."""
        if self._shards.spoiled(shard):
            with self._counts_lock:
                self._counts["refetched_samples"] += 1
            data = self._shards.read(shard, offset, size)
            if zlib.crc32(data) == crc:
                return data
        raise DataError(
            f"{self._shards.name(shard)}: sample {self._place(shard, sample)} ({size} bytes at byte {offset}) "
            "has a wrong CRC32; "
            "the shard is damaged, run `python -m data_pipeline.manifest verify` on its folder and copy the "
            "shard again"
        )

    def _place(self, shard: int, sample: int) -> int:
        return int(sample - self._order.starts[shard])

    def statistics(self) -> dict[str, float]:
        """Counters since the start, for TensorBoard."""
        with self._counts_lock:
            counts = dict(self._counts)
        counts["wait_seconds"] = self.wait_seconds
        return counts

    def close(self) -> None:
        """Stop the threads and let go of the files. Can be called again."""
        if self._closed:
            return
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._shards.close()
        self._pending.clear()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stream(
    config: DataConfig,
    *,
    seed: int,
    replicas: int,
    held: Sequence[int],
    batch_size: int,
    first_batch: int = 0,
    pin_memory: bool = False,
) -> Stream:
    """Open the stream of the replicas `held` (of 0 .. replicas-1), each with `batch_size` samples a batch. Raises
    DataError."""
    if not held or not all(0 <= replica < replicas for replica in held):
        raise DataError(f"batch.replicas: the replicas {list(held)} are not among 0..{replicas - 1}")
    if batch_size < 1:
        raise DataError(f"batch.real_per_replica: {batch_size} samples make no batch; use 1 or more")
    folder = Folder(config.shards)
    manifest = load_manifest(config.shards)
    records = np.concatenate([load_index(folder, shard) for shard in manifest.shards])
    order = Order(
        [shard.samples for shard in manifest.shards],
        seed=seed,
        replicas=replicas,
        shuffle_window=config.shuffle_window,
    )
    if folder.local is None:
        raise DataError(f"data.shards: {folder} is not a local path; reading from object storage is not built yet")
    return Stream(
        manifest,
        records,
        order,
        LocalShards(Path(folder.root), manifest),
        held=held,
        batch_size=batch_size,
        first_batch=first_batch,
        decode_threads=config.decode_threads,
        prefetch_batches=config.prefetch_batches,
        pin_memory=pin_memory,
    )
