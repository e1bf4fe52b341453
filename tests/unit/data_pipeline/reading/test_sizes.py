"""A batch is n samples from position p, and n may change from batch to batch."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import ImageField, Manifest, load_manifest
from data_pipeline.reading import batches as batches_module
from data_pipeline.reading.batches import Slots
from data_pipeline.reading.order import Order
from data_pipeline.reading.stream import DataConfig, Stream, open_stream

REPLICAS = 3


def opened(url: object, sizes: Iterator[int] | list[int], position: int = 0, **settings: object) -> Stream:
    held = settings.pop("held", [0, 1, 2])
    config = DataConfig(shards=str(url), **settings)  # type: ignore[arg-type]
    return open_stream(config, seed=4, replicas=REPLICAS, held=held, sizes=sizes, first_position=position)  # type: ignore[arg-type]


def joined(stream: Stream) -> list[np.ndarray]:
    """Images, labels and positions of all batches, one after another: [held, samples, ...]."""
    parts = [[part.numpy().copy() for part in (batch.images, batch.labels, batch.positions)] for batch in stream]
    return [np.concatenate(part, 1) for part in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def whole(shards: Path) -> list[np.ndarray]:
    """300 samples of each of three replicas: three epochs."""
    with opened(shards, [300]) as stream:
        return joined(stream)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 4, 7, 8, 16, 60]), min_size=1, max_size=12),
    begin=st.integers(0, 40),
    prefetch=st.integers(1, 5),
    threads=st.integers(1, 3),
    held=st.sampled_from([[0, 1, 2], [1], [0, 2]]),
)
def test_samples_do_not_depend_on_how_they_are_cut(
    shards: Path, whole: list[np.ndarray], sizes: list[int], begin: int, prefetch: int, threads: int, held: list[int]
) -> None:
    sizes = list(itertools.takewhile(lambda n: n > 0, sizes))[: 300 // 60]
    end = begin + sum(sizes)
    with opened(shards, sizes, begin, held=held, prefetch_batches=prefetch, decode_threads=threads) as stream:
        got = joined(stream)
    for mine, expected in zip(got, whole, strict=True):
        assert (mine == expected[held, begin:end]).all()


def test_each_batch_has_its_size_and_the_stream_ends(shards: Path) -> None:
    with opened(shards, iter([8, 8, 4, 4, 16])) as stream:
        got = list(stream)
        assert [batch.images.shape for batch in got] == [(3, n, 8, 8, 1) for n in (8, 8, 4, 4, 16)]
        assert [batch.positions[0, 0].item() for batch in got] == [0, 8, 16, 20, 24]
        with pytest.raises(StopIteration):
            next(stream)


def test_an_endless_iterator_is_read_a_bounded_way_ahead(shards: Path) -> None:
    taken = itertools.count(1)
    with opened(shards, (next(taken) for _ in itertools.repeat(0)), prefetch_batches=3) as stream:
        for n in (1, 2, 3):
            assert next(stream).positions.shape == (3, n)
        assert next(taken) <= 3 + 3 + 1


def test_a_bad_size_closes_the_stream(shards: Path) -> None:
    with opened(shards, iter([8, 0]), prefetch_batches=1) as stream:
        with pytest.raises(DataError, match=r"^batch\.real_per_replica: 0 samples make no batch"):
            list(stream)
        with pytest.raises(DataError, match=r"^data: the stream is closed"):
            next(stream)


def test_memory_is_valid_until_the_next_but_one(shards: Path) -> None:
    sizes = itertools.cycle([8, 8, 4, 4, 16, 1])
    with opened(shards, sizes, decode_threads=3, prefetch_batches=2) as stream:
        before = next(stream)
        copy = before.images.clone()
        for _ in range(40):
            now = next(stream)
            for pending in stream._pending:  # all that may be written before the next call is written
                while pending.ended.qsize() < pending.pieces:
                    time.sleep(0.001)
            assert torch.equal(before.images, copy)
            before, copy = now, now.images.clone()


class TestSlots:
    MANIFEST = Manifest(classes=(), content=ImageField(2, 2, 1), shards=())

    def test_memory_is_used_again(self) -> None:
        slots = Slots(self.MANIFEST, 2, count=3, pin_memory=False)
        first = [slots.take(5).batch.images.data_ptr() for _ in range(3)]
        assert [slots.take(5).batch.images.data_ptr() for _ in range(6)] == first * 2
        assert len(set(first)) == 3

    def test_alternating_sizes_allocate_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slots = Slots(self.MANIFEST, 2, count=6, pin_memory=False)
        pattern = [4, 16, 16, 1, 8]
        for n in pattern * 4:
            slots.take(n)
        made = []
        monkeypatch.setattr(batches_module, "_Slot", lambda *arguments: made.append(arguments))
        for n in pattern * 20:
            assert slots.take(n).batch.positions.shape == (2, n)
        assert not made

    def test_memory_is_bounded_and_given_back(self) -> None:
        slots = Slots(self.MANIFEST, 1, count=4, pin_memory=False)

        def held_samples() -> int:
            return sum(slot.capacity for slot in slots._slots if slot is not None)

        for n in range(1, 200):
            slots.take(n)
            assert held_samples() <= 4 * n
        for _ in range(100):
            slots.take(3)
        assert held_samples() == 4 * 3

    def test_content_of_a_smaller_batch_is_contiguous(self) -> None:
        slots = Slots(self.MANIFEST, 3, count=1, pin_memory=False)
        slots.take(9)
        places = slots.take(4)
        assert places.batch.images.is_contiguous()
        assert len(places.rows) == 12
        assert places.labels is None
        assert "class" not in places.batch.fields


class TestRemote:
    """The same over a file system that is fetched from shard by shard."""

    @pytest.fixture
    def url(self, shards: Path) -> Iterator[str]:
        memory = fsspec.filesystem("memory")
        for path in shards.iterdir():
            memory.pipe_file(f"/sizes/{path.name}", path.read_bytes())
        yield "memory://sizes"
        memory.rm("/sizes", recursive=True)

    @pytest.mark.parametrize("window", [None, 40])
    def test_sizes_change(self, shards: Path, url: str, tmp_path: Path, window: int | None) -> None:
        sizes = [8, 8, 4, 4, 16, 1, 90, 2, 50, 30, 1, 1, 1, 5]
        largest = max(shard.bytes for shard in load_manifest(url).shards)
        with opened(shards, sizes, 11, shuffle_window=window) as stream:
            expected = joined(stream)
        settings = {"cache_dir": str(tmp_path), "shuffle_window": window, "prefetch_batches": 2}
        with opened(url, sizes, 11, **settings, cache_bytes=7 * largest) as stream:
            got = joined(stream)
            fetched = stream.statistics()["fetched_shards"]
        for mine, theirs in zip(got, expected, strict=True):
            assert (mine == theirs).all()
        assert fetched == 7

    def test_what_is_planned_is_what_is_read(self, shards: Path, url: str, tmp_path: Path) -> None:
        """Every batch's shards are among those that were planned when it was begun, also where sizes change."""
        sizes = itertools.cycle([2, 2, 2, 70, 1, 12])
        with opened(url, sizes, cache_dir=str(tmp_path), shuffle_window=40, held=[1]) as stream:
            planned: set[int] = set()
            plan = stream._shards.plan

            def record(soon: list[int], ahead: list[int]) -> None:
                planned.clear()
                planned.update(soon, ahead)
                plan(soon, ahead)

            stream._shards.plan = record  # type: ignore[method-assign]
            manifest = load_manifest(url)
            order = Order([s.samples for s in manifest.shards], seed=4, replicas=REPLICAS, shuffle_window=40)
            for _ in range(60):
                begun = stream._position
                next(stream)
                ids = order.sample_ids(1, begun, stream._position - begun)
                needed = set((np.searchsorted(order.starts, ids, side="right") - 1).tolist())
                assert needed <= planned
