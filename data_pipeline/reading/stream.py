"""The stream of real batches: positions in, uint8 images out, the same for any number of threads and processes."""

import collections
import os
import re
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from data_pipeline.errors import DataError
from data_pipeline.manifest import index
from data_pipeline.manifest.format import Manifest, load_index, load_manifest
from data_pipeline.reading.cache import Cache
from data_pipeline.reading.decode import Pixels
from data_pipeline.reading.decoding import Decoder, Piece, Shards
from data_pipeline.reading.order import Ids, Order
from data_pipeline.reading.remote_shards import RemoteShards, default_cache_dir
from data_pipeline.reading.selection import class_numbers, select_classes, select_records
from data_pipeline.reading.shard_files import LocalShards
from data_pipeline.storage.folder import Folder
from data_pipeline.storage.retrying import Counters, Limits

_PIECE = range(32, 257)  # samples per piece of a batch: few enough that threads end together, and not in vain
_BLOCK = 4096  # samples that are looked up at once
_HORIZON = 1 << 14  # positions of each replica that are planned ahead where the whole epoch is one permutation
_UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(value: object) -> object:
    """A number of bytes from `200 GB`, `64MiB` or a plain number; anything else stays what it is."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)?\s*", value.lower())):
        return int(float(match[1]) * _UNITS[match[2] or ""])
    return value


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class DataConfig:
    """Where the real images come from, and how they are read."""

    shards: str
    """Path or fsspec URL (s3://...) of the folder that data_pipeline.make_shards wrote."""
    classes: tuple[int | str, ...] | str | None = None
    """Classes to use, by number, id or name, or `split i of n`; null: all. Labels are numbered anew."""
    shuffle_window: Annotated[int, Field(ge=1)] | None = None
    """Samples that are shuffled among each other; null: the whole epoch is one uniform permutation."""
    cache_dir: str | None = None
    """Folder on the node's disk for fetched shards, shared by its processes; null: one under TMPDIR. Local shards
    need none."""
    cache_bytes: Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)] = 200 * 10**9
    """What that folder may hold: a number of bytes, or a text such as 200 GB."""
    fetch_deadline: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for one remote file, all retries together; keep it below the process group's timeout."""
    fetch_request_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for one request of at most 8 MiB to the remote store."""
    decode_threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads per process that decode images."""
    prefetch_batches: Annotated[int, Field(ge=1, le=256)] = 4
    """Batches that are decoded ahead of need."""
    horizontal_flip: bool = False
    """Mirror each sample with probability 1/2, on the device, keyed by the sample."""


class Batch(NamedTuple):
    """One batch of every replica that this process holds; the memory is valid until the next-but-one `next`."""

    images: torch.Tensor
    """uint8 [held, batch_size, H, W, C], 0..255."""
    labels: torch.Tensor
    """int64 [held, batch_size], 0..classes-1."""
    positions: torch.Tensor
    """int64 [held, batch_size]: the position of each sample in its replica's stream."""


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
        self.rows = list(self.pixels)
        self.labels: Ids = self.batch.labels.numpy()
        self.positions: Ids = self.batch.positions.numpy()


class _Block(NamedTuple):
    """What several consecutive batches hold, looked up at once: shape [batches, samples of a batch]."""

    first: int
    records: index.Records
    places: Ids
    shards: Ids


class Stream:
    """Consecutive batches from `first_batch` on, without end. Batch n of replica c holds the stream positions
    [n * batch_size, (n + 1) * batch_size) of c. A fault of the data raises DataError from `next`."""

    def __init__(
        self,
        manifest: Manifest,
        records: index.Records,
        places: Ids,
        order: Order,
        shards: Shards,
        *,
        held: Sequence[int],
        batch_size: int,
        first_batch: int = 0,
        decode_threads: int = 2,
        prefetch_batches: int = 4,
        pin_memory: bool = False,
        horizon: int = 0,
        ahead_bytes: int = 0,
        counters: Counters | None = None,
    ) -> None:
        """`records` and `places` (in their shards): of the samples that the order counts. `horizon`: positions of
        each replica that the shards are told of in advance (0: none), `ahead_bytes`: how much of it."""
        self.manifest = manifest
        self.wait_seconds = 0.0
        self._records, self._places, self._order, self._shards = records, places, order, shards
        self._held, self._batch_size = tuple(held), batch_size
        self._next_batch = first_batch
        self._prefetch = prefetch_batches
        # The consumer may hold two batches (the one it works on and the one before, whose copy may be under way).
        self._slots = [
            _Slot(len(self._held), batch_size, manifest.resolution, manifest.channels, pin_memory)
            for _ in range(prefetch_batches + 2)
        ]
        self._submitted = 0
        self._pending: collections.deque[tuple[_Slot, SimpleQueue[BaseException | None], int]] = collections.deque()
        self._counters = counters or Counters()
        self._block = _Block(0, records[:0], places[:0], places[:0])
        share = -(-batch_size * len(self._held) // decode_threads)
        self._piece = min(max(share, _PIECE.start), _PIECE.stop - 1)
        self._horizon, self._ahead_bytes = horizon, ahead_bytes
        self._plan_again_at = first_batch
        self._decoder = Decoder(shards, decode_threads, self._counters)
        self._finalizer = weakref.finalize(self, self._decoder.close)  # also when it is dropped, and at exit
        self._closed = False

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise DataError("data: the stream is closed")
        while len(self._pending) < self._prefetch:
            self._submit()
        slot, ended, pieces = self._pending.popleft()
        began = time.perf_counter()
        try:
            for _ in range(pieces):
                if (failure := ended.get()) is not None:
                    raise failure
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - began
        self._submit()
        return slot.batch

    def _submit(self) -> None:
        """Start decoding the next batch into the slot whose turn it is."""
        if self._horizon and self._next_batch >= self._plan_again_at:
            self._plan()
        if not 0 <= self._next_batch - self._block.first < len(self._block.records):
            self._block = self._look_up()
        number = self._next_batch - self._block.first
        slot = self._slots[self._submitted % len(self._slots)]
        records, places, shards = (part[number] for part in self._block[1:])
        slot.labels[...] = records["label"].reshape(slot.labels.shape)
        slot.positions[...] = np.arange(self._next_batch * self._batch_size, (self._next_batch + 1) * self._batch_size)
        offsets, sizes, crc32s = records["offset"].tolist(), records["size"].tolist(), records["crc32"].tolist()
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        pieces = range(0, len(slot.rows), self._piece)
        for a in pieces:
            b = a + self._piece
            piece = Piece(slot.rows[a:b], places[a:b], shards[a:b], offsets[a:b], sizes[a:b], crc32s[a:b], ended)
            self._decoder.put(piece)
        self._pending.append((slot, ended, len(pieces)))
        self._submitted += 1
        self._next_batch += 1

    def _look_up(self) -> _Block:
        """The next batches' records: looking up one batch at a time costs 1% of decoding it."""
        size, held = self._batch_size, len(self._held)
        count = max(1, _BLOCK // (size * held))
        first = self._next_batch * size
        ids = np.stack([self._order.sample_ids(c, first, count * size).reshape(count, size) for c in self._held], 1)
        ids = ids.reshape(count, held * size)
        shards = np.searchsorted(self._order.starts, ids, side="right") - 1
        return _Block(self._next_batch, self._records[ids], self._places[ids], shards)

    def _plan(self) -> None:
        """Tell the shards what the batches under way and the next `horizon` positions need."""
        size = self._batch_size
        first = max(0, self._next_batch - self._prefetch) * size
        soon = (self._next_batch + 1) * size - first
        needed = shards_in_order(self._order, self._held, first, soon + self._horizon)
        must = set(shards_in_order(self._order, self._held, first, soon))
        taken = sum(self.manifest.shards[shard].bytes for shard in must)
        ahead = []
        for shard in needed:
            if shard not in must:
                taken += self.manifest.shards[shard].bytes
                if taken > self._ahead_bytes:
                    break
                ahead.append(shard)
        self._shards.plan(sorted(must, key=needed.index), ahead)
        self._plan_again_at = self._next_batch + max(1, self._horizon // (4 * size))

    def sample_ids(self, batch: int) -> Ids:
        """The samples of batch number `batch`, int64 [held, batch_size], by their place in the shards that are used."""
        first, size = batch * self._batch_size, self._batch_size
        return np.stack([self._order.sample_ids(replica, first, size) for replica in self._held])

    def statistics(self) -> dict[str, float]:
        """Counters since the start, for TensorBoard."""
        return {"samples": 0.0, "bytes": 0.0, **self._counters.values(), "wait_seconds": self.wait_seconds}

    def close(self) -> None:
        """Stop the threads and let go of the files. Can be called again."""
        self._closed = True
        self._finalizer()
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
    limits = Limits(deadline=config.fetch_deadline, request=config.fetch_request_timeout)
    folder = Folder(config.shards, limits)
    whole = load_manifest(folder)
    numbers, manifest = class_numbers(whole, config.classes), select_classes(whole, config.classes)
    counters = Counters()
    with ThreadPoolExecutor(8 if folder.local is None else 1, thread_name_prefix="index") as pool:
        indexes = list(pool.map(lambda shard: load_index(folder, shard), whole.shards))
    records, sizes, places = select_records(indexes, numbers, len(whole.classes))
    order = Order(sizes, seed=seed, replicas=replicas, shuffle_window=config.shuffle_window)
    holder = Folder(manifest.base, limits) if manifest.base else folder
    shards: Shards
    if holder.local is not None:
        shards, horizon = LocalShards(holder.local.absolute(), manifest), 0
    else:
        horizon = min(config.shuffle_window or _HORIZON, -(-order.samples // replicas))
        _check_cache_size(config, manifest, order, held)
        cache_dir = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir()
        shards = RemoteShards(holder, manifest, Cache(cache_dir, config.cache_bytes, counters), counters)
    total = _needed_bytes(manifest, order)
    sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
    return Stream(
        manifest,
        records,
        places,
        order,
        shards,
        held=held,
        batch_size=batch_size,
        first_batch=first_batch,
        decode_threads=config.decode_threads,
        prefetch_batches=config.prefetch_batches,
        pin_memory=pin_memory,
        horizon=horizon,
        ahead_bytes=config.cache_bytes if total <= config.cache_bytes else config.cache_bytes // sharing,
        counters=counters,
    )


def _needed_bytes(manifest: Manifest, order: Order) -> int:
    return sum(shard.bytes for shard, samples in zip(manifest.shards, order.sizes, strict=True) if samples)


def shards_in_order(order: Order, held: Sequence[int], position: int, count: int) -> list[int]:
    """The shards of `count` positions of each held replica, in the order of their first need."""
    ids = np.stack([order.sample_ids(replica, position, count) for replica in held], axis=1).reshape(-1)
    shards, first = np.unique(np.searchsorted(order.starts, ids, side="right") - 1, return_index=True)
    return [int(shard) for shard in shards[np.argsort(first)]]


def _check_cache_size(config: DataConfig, manifest: Manifest, order: Order, held: Sequence[int]) -> None:
    """Refuse a cache that cannot hold what one window needs. Raises DataError."""
    total = _needed_bytes(manifest, order)
    if config.shuffle_window is None:
        if total > config.cache_bytes:
            raise DataError(
                f"data.cache_bytes: {config.cache_bytes} bytes cannot hold the {total} bytes of all shards, "
                "which an order without "
                "a window needs; raise data.cache_bytes, or set data.shuffle_window (a number of samples)"
            )
        return
    needed = shards_in_order(order, held, 0, min(config.shuffle_window, order.samples // order.replicas))
    size = sum(manifest.shards[shard].bytes for shard in needed)
    if size > config.cache_bytes:
        raise DataError(
            f"data.cache_bytes: {config.cache_bytes} bytes cannot hold the {len(needed)} shards ({size} bytes) "
            "that a window of "
            f"{config.shuffle_window} samples needs; raise it, or set a smaller data.shuffle_window"
        )
