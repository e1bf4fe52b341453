"""The stream: the same bytes for any threads and processes, resumable at any batch, and errors that name the sample."""

import hashlib
import itertools
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading import shard_files
from data_pipeline.reading import stream as stream_module
from data_pipeline.reading.batches import Batch
from data_pipeline.reading.order import Order
from data_pipeline.reading.stream import DataConfig, open_stream

REPLICAS, BATCH = 5, 7


def copy_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(part.numpy().copy() for part in (batch.images, batch.labels, batch.positions))


def collect(
    folder: Path,
    held: list[int],
    batches: int,
    first: int = 0,
    threads: int = 2,
    prefetch: int = 3,
    window: int | None = None,
    batch_size: int = BATCH,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [batches, held, batch, H, W, C], labels and positions [batches, held, batch]."""
    config = DataConfig(shards=str(folder), decode_threads=threads, prefetch_batches=prefetch, shuffle_window=window)
    sizes, position = itertools.repeat(batch_size), first * batch_size
    with open_stream(config, seed=3, replicas=REPLICAS, held=held, sizes=sizes, first_position=position) as stream:
        got = [copy_of(next(stream)) for _ in range(batches)]
    images, labels, positions = zip(*got, strict=True)
    return np.stack(images), np.stack(labels), np.stack(positions)


@pytest.fixture(scope="module")
def whole(shards: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return collect(shards, list(range(REPLICAS)), 30, threads=1, prefetch=1)


def test_content_is_the_source(shards: Path, whole: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Each image of the stream is the image of the source that the order names, with its label, for over three
    epochs."""
    images, labels, positions = whole
    numbers = images[..., 1, 1, 0].astype(int) + 256 * images[..., 1, 2, 0].astype(int)  # 6x6 pixels, padded by one
    assert (images[..., 0, :, :] == 0).all()
    assert (labels == numbers % 5).all()
    assert (positions == np.arange(30 * BATCH).reshape(30, 1, BATCH)).all()
    for replica in range(REPLICAS):
        stream = numbers[:, replica].reshape(-1)
        assert len(set(stream[:60].tolist())) == 60  # one epoch's segment of 300 samples and 5 replicas
        assert set(stream[:60].tolist()) != set(stream[60:120].tolist())
    first_epoch = numbers.transpose(1, 0, 2).reshape(REPLICAS, -1)[:, :60]
    assert sorted(first_epoch.reshape(-1).tolist()) == list(range(300))


@settings(max_examples=25, deadline=None)
@given(
    threads=st.integers(1, 6),
    prefetch=st.integers(1, 6),
    first=st.integers(0, 25),
    cut=st.integers(1, REPLICAS - 1),
)
def test_same_bytes_for_any_threads_processes_and_start(
    shards: Path, whole: tuple[np.ndarray, np.ndarray, np.ndarray], threads: int, prefetch: int, first: int, cut: int
) -> None:
    for held in (list(range(cut)), list(range(cut, REPLICAS))):
        got = collect(shards, held, 5, first=first, threads=threads, prefetch=prefetch)
        for mine, expected in zip(got, whole, strict=True):
            assert (mine == expected[first : first + 5][:, held]).all()


def test_batch_size_does_not_move_the_stream(shards: Path, whole: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images = collect(shards, [2], 21, batch_size=10)[0].reshape(210, 8, 8, 1)
    assert (images == whole[0][:, 2].reshape(210, 8, 8, 1)).all()


@pytest.mark.parametrize("block", [1, 35, 95])
def test_same_bytes_whatever_is_looked_up_at_once(
    shards: Path,
    whole: tuple[np.ndarray, np.ndarray, np.ndarray],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also across blocks, pieces and more shards than may be open."""
    monkeypatch.setattr(stream_module, "_BLOCK", block)
    monkeypatch.setattr(stream_module, "_PIECE", range(3, 5))
    monkeypatch.setattr(shard_files, "_OPEN_FILES", 2)
    for mine, expected in zip(collect(shards, [1, 3, 4], 20, first=2), whole, strict=True):
        assert (mine == expected[2:22][:, [1, 3, 4]]).all()


def test_a_stream_that_is_dropped_ends_its_threads(shards: Path) -> None:
    before = threading.active_count()
    dropped = open_stream(DataConfig(shards=str(shards)), seed=1, replicas=1, held=[0], sizes=itertools.repeat(16))
    next(dropped)
    assert threading.active_count() == before + 2
    del dropped
    assert threading.active_count() == before


def test_window_is_the_orders(shards: Path) -> None:
    manifest = load_manifest(str(shards))
    order = Order([s.samples for s in manifest.shards], seed=3, replicas=REPLICAS, shuffle_window=50)
    plain = Order([s.samples for s in manifest.shards], seed=3, replicas=REPLICAS)
    by_id = {}
    images = collect(shards, [0], 12, batch_size=5)[0].reshape(60, -1)
    others = collect(shards, [1, 2, 3, 4], 12, batch_size=5)[0].transpose(1, 0, 2, 3, 4, 5).reshape(240, -1)
    ids = np.concatenate([plain.sample_ids(replica, 0, 60) for replica in range(REPLICAS)])
    by_id = dict(zip(ids.tolist(), np.concatenate([images, others]), strict=True))
    windowed = collect(shards, [3], 20, window=50)[0].reshape(140, -1)
    expected = np.stack([by_id[k] for k in order.sample_ids(3, 0, 140).tolist()])
    assert (windowed == expected).all()


def test_memory_is_valid_until_the_next_but_one(shards: Path) -> None:
    config = DataConfig(shards=str(shards), decode_threads=3, prefetch_batches=2)
    with open_stream(config, seed=1, replicas=1, held=[0], sizes=itertools.repeat(16)) as stream:
        before = next(stream)
        copy = before.images.clone()
        for _ in range(40):
            now = next(stream)
            for pending in stream._pending:  # all that may be written before the next call is written
                while pending.ended.qsize() < pending.pieces:
                    time.sleep(0.001)
            assert torch.equal(before.images, copy)
            before, copy = now, now.images.clone()
        assert stream.statistics()["samples"] >= 41 * 16


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_a_wrong_byte_names_the_sample(copied: Path) -> None:
    from data_pipeline.manifest.format import load_index
    from data_pipeline.storage.folder import Folder

    manifest = load_manifest(str(copied))
    record = load_index(Folder(copied), manifest.shards[2])[11]
    path = copied / manifest.shards[2].name
    data = bytearray(path.read_bytes())
    data[int(record["offset"]) + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path}: sample 11 .* has a wrong CRC32; the shard is damaged, run .*verify"):
        collect(copied, list(range(REPLICAS)), 9)


def test_a_cut_or_missing_shard(copied: Path) -> None:
    path = copied / "shard-00003.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=rf"{path}: has \d+ bytes, the manifest says \d+; .* copy it again"):
        collect(copied, list(range(REPLICAS)), 9)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: the shard is gone"):
        collect(copied, list(range(REPLICAS)), 9)


def test_a_shard_cut_under_the_run(copied: Path) -> None:
    """A file that shrinks while it is read ends in an error, not in SIGBUS."""
    config = DataConfig(shards=str(copied), prefetch_batches=1)
    with open_stream(config, seed=3, replicas=1, held=[0], sizes=itertools.repeat(50)) as stream:
        next(stream)
        for path in copied.glob("*.tar"):
            with path.open("r+b") as file:
                file.truncate(1024)
        with pytest.raises(DataError, match="wrong CRC32"):
            list(itertools.islice(stream, 6))
        with pytest.raises(DataError, match="closed"):
            next(stream)


@pytest.mark.parametrize(
    ("held", "position", "sizes", "message"),
    [
        ([5], 0, [4], r"^batch\.replicas: the replicas \[5\] are not among 0\.\.4"),
        ([], 0, [4], r"^batch\.replicas: the replicas \[\] are not among 0\.\.4"),
        ([0], 0, [4, 0], r"^batch\.real_per_replica: 0 samples"),
        ([0], 0, [-3], r"^batch\.real_per_replica: -3 samples"),
        ([0], -1, [4], r"^data: a stream cannot begin at position -1"),
    ],
)
def test_impossible_requests(shards: Path, held: list[int], position: int, sizes: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(
            open_stream(
                DataConfig(shards=str(shards)), seed=0, replicas=5, held=held, sizes=sizes, first_position=position
            )
        )


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.shards: .* holds no manifest\.json; make the shards first"):
        open_stream(DataConfig(shards=str(tmp_path)), seed=0, replicas=1, held=[0], sizes=[4])


@pytest.mark.parametrize(
    ("window", "golden"),
    [
        (None, "f521124712096fa97302573e5e59693be8907bcb27b0d6d452cd13e7b2023e59"),
        (50, "be39f58c03dac2d6e9664c2100f1523f9300a8ff4c80487c72e04a6e44321082"),
    ],
)
def test_golden_batches(shards: Path, window: int | None, golden: str) -> None:
    """Pixels, labels and positions of 40 batches: taken before batches could change their size, and may never change."""
    digest = hashlib.sha256()
    for batch in zip(*collect(shards, [0, 2, 3], 40, first=4, window=window), strict=True):
        for part in batch:
            digest.update(np.ascontiguousarray(part).tobytes())
    assert digest.hexdigest() == golden
