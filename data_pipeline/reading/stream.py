"""The stream of real batches: positions in, named fields out, the same for any number of threads and processes.

A batch is the n samples of each replica from position p on; the next one begins at p + n, and n may change from batch
to batch. Where a run starts is one number, `first_position`.
"""

import collections
import os
import re
import time
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from data_pipeline.errors import DataError
from data_pipeline.manifest import index
from data_pipeline.manifest.content import DECODERS
from data_pipeline.manifest.format import Manifest, load_index, load_manifest
from data_pipeline.reading.batches import Batch, Slots
from data_pipeline.reading.cache import Cache
from data_pipeline.reading.decoding import Decoder, Piece, Shards
from data_pipeline.reading.order import MAIN_SOURCE, Ids, Order, source_seed
from data_pipeline.reading.remote_shards import RemoteShards, default_cache_dir
from data_pipeline.reading.selection import class_numbers, select_classes, select_per_class, select_records
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
    """Where the real samples come from, and how they are read."""

    shards: str
    """Path or fsspec URL (s3://...) of the folder that data_pipeline.make_shards wrote."""
    classes: tuple[int | str, ...] | str | None = None
    """Classes to use, by number, id or name, or `split i of n`; null: all. Labels are numbered anew."""
    labelled_per_class: Annotated[int, Field(ge=1)] | None = None
    """Samples of each class that are used, drawn once: a small labelled set; null: all."""
    subset_seed: Annotated[int, Field(ge=0)] = 0
    """Which samples these are. A smaller number of the same seed is a part of a larger one."""
    order: Literal["epochs", "independent"] = "epochs"
    """`epochs`: every sample once in each epoch. `independent`: each sample is drawn from all of them by itself, so that some
    come twice before others come once."""
    shuffle_window: Annotated[int, Field(ge=1)] | None = None
    """Samples that are shuffled among each other; null: the whole epoch is one uniform permutation."""
    cache_dir: str | None = None
    """Folder on the node's disk for fetched shards, shared by its processes; null: one under TMPDIR. Local shards
    need none."""
    cache_bytes: Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)] = 200 * 10**9
    """What that folder may hold: a number of bytes, or a text such as 200 GB."""
    fetch_deadline: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for one remote file, all retries together, and while bytes come, without a new one; keep it below the
    process group's timeout."""
    fetch_request_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for one request of at most 8 MiB to the remote store."""
    decode_threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads per process that decode images."""
    prefetch_batches: Annotated[int, Field(ge=1, le=256)] = 4
    """Batches that are decoded ahead of need."""
    horizontal_flip: bool = False
    """Mirror each sample with probability 1/2, on the device, keyed by the sample."""

    def selected(self, manifest: Manifest) -> Manifest:
        """The manifest as if the data had only the samples that are used. Raises DataError."""
        return select_per_class(select_classes(manifest, self.classes), self.labelled_per_class, self.subset_seed)


class _Block(NamedTuple):
    """The samples of consecutive positions, looked up at once: arrays [held, positions]."""

    first: int
    records: index.Records
    places: Ids
    shards: Ids


class _Pending(NamedTuple):
    """A batch under way: it is finished when `ended` holds as many entries as it has `pieces`."""

    batch: Batch
    position: int
    ended: SimpleQueue[BaseException | None]
    pieces: int


class Stream:
    """Consecutive batches from a position on; ends after the last of `sizes`. A fault of the data raises DataError
    from `next`."""

    def __init__(
        self,
        manifest: Manifest,
        records: index.Records,
        places: Ids,
        order: Order,
        shards: Shards,
        *,
        held: Sequence[int],
        sizes: Iterable[int],
        first_position: int = 0,
        decode_threads: int = 2,
        prefetch_batches: int = 4,
        pin_memory: bool = False,
        horizon: int = 0,
        ahead_bytes: int = 0,
        counters: Counters | None = None,
    ) -> None:
        """`records` and `places` (in their shards): of the samples that the order counts. `horizon`: positions of
        each replica that are planned in advance (0: none); `ahead_bytes`: how much of it."""
        self.manifest = manifest
        self.seed = order.seed
        self.wait_seconds = 0.0
        self.cache_dir: Path | None = None
        self.needed_shards: dict[str, int] = {}
        """Bytes, by sha256, of the shards that must be in `cache_dir` at a time."""
        self._records, self._places, self._order, self._shards = records, places, order, shards
        self._held, self._sizes = tuple(held), iter(sizes)
        self._position = first_position
        self._prefetch, self._threads = prefetch_batches, decode_threads
        # The consumer may hold two batches (the one it works on and the one before, whose copy may be under way).
        self._slots = Slots(manifest, len(self._held), prefetch_batches + 2, pin_memory)
        self._pending: collections.deque[_Pending] = collections.deque()
        self._counters = counters or Counters()
        nothing = np.empty((len(self._held), 0), dtype=np.int64)
        self._block = _Block(0, np.empty(nothing.shape, dtype=index.RECORD), nothing, nothing)
        self._horizon, self._ahead_bytes = horizon, ahead_bytes
        self._plan_again_at = first_position
        self._decoder = Decoder(shards, DECODERS[manifest.content.name], decode_threads, self._counters)
        self._finalizer = weakref.finalize(self, self._decoder.close)  # also when it is dropped, and at exit
        self._closed = False

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise DataError(f"{self.manifest.section}: the stream is closed")
        try:
            while len(self._pending) < self._prefetch and self._submit():
                pass
            if not self._pending:
                raise StopIteration
            batch = self._wait(self._pending.popleft())
            self._submit()
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise
        return batch

    def _wait(self, pending: _Pending) -> Batch:
        """The batch, when all of it is decoded."""
        began = time.perf_counter()
        try:
            for _ in range(pending.pieces):
                if (failure := pending.ended.get()) is not None:
                    raise failure
        finally:
            self.wait_seconds += time.perf_counter() - began
        return pending.batch

    def _submit(self) -> bool:
        """Start decoding the next batch into the slot whose turn it is; False after the last one."""
        if (n := next(self._sizes, None)) is None:
            return False
        if n < 1:
            setting = "batch.real_per_replica" if self.manifest.section == MAIN_SOURCE else self.manifest.section
            raise DataError(f"{setting}: {n} samples make no batch; use 1 or more")
        position = self._position
        if self._horizon and position + n > self._plan_again_at:
            self._plan(n)
        records, places, shards = self._look_up(n)
        batch, rows, labels, positions = self._slots.take(n)
        if labels is not None:
            labels[...] = records["label"].reshape(labels.shape)
        positions[...] = np.arange(position, position + n)
        offsets, sizes, crc32s = records["offset"].tolist(), records["size"].tolist(), records["crc32"].tolist()
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        share = min(max(-(-len(rows) // self._threads), _PIECE.start), _PIECE.stop - 1)
        pieces = range(0, len(rows), share)
        for a in pieces:
            b = a + share
            self._decoder.put(Piece(rows[a:b], places[a:b], shards[a:b], offsets[a:b], sizes[a:b], crc32s[a:b], ended))
        self._pending.append(_Pending(batch, position, ended, len(pieces)))
        self._position = position + n
        return True

    def _look_up(self, n: int) -> tuple[index.Records, Ids, Ids]:
        """Records, places and shards of the next `n` samples of each replica: [held * n]. Several batches are looked
        up at once, because one at a time costs 1% of decoding it."""
        held = len(self._held)
        begin = self._position - self._block.first
        if not 0 <= begin <= begin + n <= self._block.places.shape[1]:
            ids = self.sample_ids(self._position, max(1, _BLOCK // (n * held)) * n)
            shards = np.searchsorted(self._order.starts, ids, side="right") - 1
            self._block = _Block(self._position, self._records[ids], self._places[ids], shards)
            begin = 0
        block, part = self._block, slice(begin, begin + n)
        return (
            block.records[:, part].reshape(held * n),
            block.places[:, part].reshape(held * n),
            block.shards[:, part].reshape(held * n),
        )

    def _plan(self, n: int) -> None:
        """Tell the shards what the batches under way, the next `n` positions and the `horizon` after them need."""
        first = self._pending[0].position if self._pending else self._position
        soon = self._position + n - first
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
        self._plan_again_at = self._position + n + self._horizon // 4

    def sample_ids(self, position: int, count: int) -> Ids:
        """The samples at positions [position, position + count) of each held replica, int64 [held, count], by their
        place in the shards that are used."""
        return np.stack([self._order.sample_ids(replica, position, count) for replica in self._held])

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
    name: str = MAIN_SOURCE,
    seed: int,
    replicas: int,
    held: Sequence[int],
    sizes: Iterable[int],
    first_position: int = 0,
    pin_memory: bool = False,
    others: Iterable[Stream] = (),
) -> Stream:
    """Open the stream of the source called `name` for the replicas `held` (of 0 .. replicas-1). Raises DataError.

    `sizes` gives the number of samples of each replica in each batch, endless or not; `itertools.repeat(n)` is n for
    ever. It is read ahead of need. `first_position` is where the first batch begins in every replica's stream.
    `config` is the section `data` for the source `data`, else `sources.NAME`, and errors begin with that. `others`: the
    run's streams that are open already, which may share the cache.
    """
    section = MAIN_SOURCE if name == MAIN_SOURCE else f"sources.{name}"
    if not held or not all(0 <= replica < replicas for replica in held):
        raise DataError(f"batch.replicas: the replicas {list(held)} are not among 0..{replicas - 1}")
    if first_position < 0:
        raise DataError(f"{section}: a stream cannot begin at position {first_position}; use 0 or more")
    limits = Limits(
        deadline=config.fetch_deadline, request=config.fetch_request_timeout, setting=f"{section}.fetch_deadline"
    )
    folder = Folder(config.shards, limits)
    whole = load_manifest(folder, section)
    numbers, manifest = class_numbers(whole, config.classes), config.selected(whole)
    counters = Counters()
    with ThreadPoolExecutor(8 if folder.local is None else 1, thread_name_prefix="index") as pool:
        indexes = list(pool.map(lambda shard: load_index(folder, shard), whole.shards))
    records, shard_sizes, places = select_records(
        indexes, numbers, len(whole.classes), config.labelled_per_class, config.subset_seed
    )
    order = Order(
        shard_sizes,
        seed=source_seed(seed, name),
        replicas=replicas,
        shuffle_window=config.shuffle_window,
        section=section,
        independent=config.order == "independent",
    )
    holder = Folder(manifest.base, limits) if manifest.base else folder
    shards: Shards
    needed: dict[str, int] = {}
    cache_dir: Path | None = None
    room = config.cache_bytes
    if holder.local is not None:
        shards, horizon = LocalShards(holder.local.absolute(), manifest), 0
    else:
        horizon = min(config.shuffle_window or _HORIZON, -(-order.samples // replicas))
        cache_dir = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir()
        needed = _needed_shards(config, manifest, order, held)
        room -= _bytes_of_others(config, section, cache_dir, needed, others)
        shards = RemoteShards(holder, manifest, Cache(cache_dir, config.cache_bytes, counters, section), counters)
    total = sum(shard.bytes for shard, samples in zip(manifest.shards, order.sizes, strict=True) if samples)
    sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
    stream = Stream(
        manifest,
        records,
        places,
        order,
        shards,
        held=held,
        sizes=sizes,
        first_position=first_position,
        decode_threads=config.decode_threads,
        prefetch_batches=config.prefetch_batches,
        pin_memory=pin_memory,
        horizon=horizon,
        ahead_bytes=room if total <= room else room // sharing,
        counters=counters,
    )
    stream.cache_dir, stream.needed_shards = cache_dir, needed
    return stream


def shards_in_order(order: Order, held: Sequence[int], position: int, count: int) -> list[int]:
    """The shards of `count` positions of each held replica, in the order of their first need."""
    ids = np.stack([order.sample_ids(replica, position, count) for replica in held], axis=1).reshape(-1)
    shards, first = np.unique(np.searchsorted(order.starts, ids, side="right") - 1, return_index=True)
    return [int(shard) for shard in shards[np.argsort(first)]]


def _needed_shards(config: DataConfig, manifest: Manifest, order: Order, held: Sequence[int]) -> dict[str, int]:
    """Bytes, by sha256, of the shards that the cache must hold at a time. Raises DataError where it cannot."""
    setting, window = f"{manifest.section}.cache_bytes", f"{manifest.section}.shuffle_window"
    if config.shuffle_window is None:
        needed = [shard for shard, samples in enumerate(order.sizes) if samples]
    else:
        needed = shards_in_order(order, held, 0, min(config.shuffle_window, order.samples // order.replicas))
    size = sum(manifest.shards[shard].bytes for shard in needed)
    if size > config.cache_bytes and config.shuffle_window is None:
        raise DataError(
            f"{setting}: {config.cache_bytes} bytes cannot hold the {size} bytes of all shards, which an order "
            f"without a window needs; raise {setting}, or set {window} (a number of samples)"
        )
    if size > config.cache_bytes:
        raise DataError(
            f"{setting}: {config.cache_bytes} bytes cannot hold the {len(needed)} shards ({size} bytes) that a window "
            f"of {config.shuffle_window} samples needs; raise it, or set a smaller {window}"
        )
    return {manifest.shards[shard].sha256: manifest.shards[shard].bytes for shard in needed}


def _bytes_of_others(
    config: DataConfig, section: str, cache_dir: Path, needed: dict[str, int], others: Iterable[Stream]
) -> int:
    """Bytes that the run's other sources need in the same cache. Raises DataError where they do not fit together."""
    sharing = [stream for stream in others if stream.cache_dir == cache_dir]
    theirs = {key: size for stream in sharing for key, size in stream.needed_shards.items() if key not in needed}
    together = sum(needed.values()) + sum(theirs.values())
    if sharing and together > config.cache_bytes:
        raise DataError(
            f"{section}.cache_bytes: {config.cache_bytes} bytes cannot hold the {together} bytes that the {len(sharing) + 1} "
            f"sources of the run need in the cache that they share; raise it for each of them, or give {section}.cache_dir "
            "another folder"
        )
    return sum(theirs.values())
