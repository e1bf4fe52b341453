"""Threads that read samples, check their CRC32 and decode them straight into a batch.

What is left beside the decoder's own work is about 4% of it: a piece of a batch is handed over as plain lists through
queues that are written in C, so a thread takes no lock of Python's and makes no object per sample but its bytes.
"""

import threading
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32  # zlib's polynomial, four to five times as fast as zlib's

from data_pipeline.errors import DataError
from data_pipeline.manifest.content import Decode
from data_pipeline.reading.order import Ids
from data_pipeline.storage.retrying import Counters


class Shards(Protocol):
    """Where the bytes come from. Threads share it."""

    def plan(self, soon: Iterable[int], ahead: Sequence[int]) -> None: ...
    def read(self, shard: int, offset: int, size: int) -> bytes | memoryview: ...
    def spoiled(self, shard: int) -> bool: ...
    def name(self, shard: int) -> str: ...
    def close(self) -> None: ...


class Piece(NamedTuple):
    """Samples for one thread: where each lies, and the row that it goes to."""

    rows: Sequence[npt.NDArray[Any]]
    """One uint8 [H, W, C] or float32 [D] each."""
    places: Ids
    """Of each sample in its shard, for errors."""
    shards: Ids
    offsets: list[int]
    sizes: list[int]
    crc32s: list[int]
    ended: SimpleQueue[BaseException | None]
    """Gets None when the piece is done, or why it cannot be."""


class Decoder:
    """`threads` threads that work on the pieces put to them, in that order; `decode` is for the samples' content."""

    def __init__(self, shards: Shards, decode: Decode, threads: int, counters: Counters) -> None:
        self._shards, self._decode_into, self._counters = shards, decode, counters
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"decode-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, piece: Piece) -> None:
        """Start on a piece as soon as a thread is free."""
        self._pieces.put(piece)

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                self._decode(piece)
            except BaseException as error:
                piece.ended.put(error)
            else:
                piece.ended.put(None)
            del piece  # an idle thread keeps no batch in memory

    def _decode(self, piece: Piece) -> None:
        read, decode_into = self._shards.read, self._decode_into
        wanted = zip(piece.rows, piece.shards.tolist(), piece.offsets, piece.sizes, piece.crc32s, strict=True)
        for number, (row, shard, offset, size, crc) in enumerate(wanted):
            data = read(shard, offset, size)
            if crc32(data) != crc:
                data = self._read_again(shard, offset, size, crc, piece.places[number])
            try:
                decode_into(data, row)
            except Exception as error:  # decoders of damaged bytes raise anything
                raise DataError(
                    f"{self._shards.name(shard)}: sample {piece.places[number]} at byte {offset} cannot be decoded "
                    f"({error}); make the shards again: make_shards leaves out what cannot be decoded"
                ) from None
        self._counters.add("samples", len(piece.sizes))
        self._counters.add("bytes", sum(piece.sizes))

    def _read_again(self, shard: int, offset: int, size: int, crc: int, place: np.int64) -> bytes | memoryview:
        """The sample's bytes after a wrong CRC, where the shard can be had anew; else the error that names it."""
        if self._shards.spoiled(shard):
            self._counters.add("wrong_samples")
            data = self._shards.read(shard, offset, size)
            if crc32(data) == crc:
                return data
        raise DataError(
            f"{self._shards.name(shard)}: sample {place} ({size} bytes at byte {offset}) has a wrong CRC32; "
            "the shard is damaged, run `python -m data_pipeline.manifest verify` on its folder and copy the "
            "shard again"
        )

    def close(self) -> None:
        """Drop what no thread has begun, wake the threads that wait for a shard, and end them. Can be called
        again."""
        try:
            while True:
                self._pieces.get_nowait()
        except Empty:
            pass
        for _ in self._threads:
            self._pieces.put(None)
        self._shards.close()
        for thread in self._threads:
            if thread is not threading.current_thread():  # the collector may run in any
                thread.join()
        self._threads.clear()
