"""A disk that is really full (a small tmpfs, where root may mount one): what can continue continues, the rest ends in one
clear error."""

import hashlib
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading import cache
from data_pipeline.reading.stream import DataConfig, open_stream

URL = "memory://full-disk/shards"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`disk(n)`: a file system of n bytes; called again, it has the new size."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: int) -> Path:
        remount = ["-o", f"size={size},remount"] if os.path.ismount(place) else ["-o", f"size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *remount, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        return place

    yield sized
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images of noise, which does not compress, of 10 classes."""
    import gzip
    import struct

    import numpy as np

    folder = tmp_path_factory.mktemp("idx")
    images = np.random.default_rng(1).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", (np.arange(600) % 10).astype(np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    return folder


def made(idx: Path, output: object) -> int:
    return make_shards.main(["idx", str(idx), str(output), "--samples-per-shard", "50", "--jobs", "1"])


@pytest.fixture(scope="module")
def shards(idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 shards, in a folder and in a remote store."""
    folder = tmp_path_factory.mktemp("shards")
    assert made(idx, folder) == 0
    fsspec.filesystem("memory").put(str(folder) + "/", URL.removeprefix("memory:/"), recursive=True)
    return folder


def digest(config: DataConfig, counts: dict[str, float] | None = None) -> str:
    sha256 = hashlib.sha256()
    with open_stream(config, seed=5, replicas=2, held=[0, 1], sizes=itertools.repeat(10)) as stream:
        for batch in itertools.islice(stream, 60):
            sha256.update(batch.images.numpy().tobytes())
        if counts is not None:
            counts.update(stream.statistics())
    return sha256.hexdigest()


def remote(disk: Path, **settings: object) -> DataConfig:
    return DataConfig(
        **{"shards": URL, "cache_dir": str(disk / "cache"), "shuffle_window": 60, **settings}  # type: ignore[arg-type]
    )


def fill(disk: Path, but: int = 0) -> Path:
    """Take all room but that many bytes."""
    junk = disk / "junk"
    with junk.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - but))
    return junk


def test_make_shards_on_a_full_disk(
    idx: Path, shards: Path, disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops with one sentence at whichever file meets the end of the disk, and resumes when there is room."""
    size = sum(path.stat().st_size for path in shards.iterdir())
    for part in (0.0, 0.3, 0.95):
        output = disk(max(8192, int(part * size))) / "out"
        capsys.readouterr()
        assert made(idx, output) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("OUTPUT: ")
        assert "cannot be written (No space left on device); make room" in said
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.tar")}
    assert len(kept) >= 8
    disk(2 * size + (1 << 20))
    assert made(idx, output) == 0
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in shards.iterdir()
    }


def test_the_cache_evicts_where_the_disk_is_smaller_than_its_bound(
    shards: Path, disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with the disk's free room looked at in time, and once not: the kernel's ENOSPC comes in mid-shard."""
    expected = digest(DataConfig(shards=str(shards), shuffle_window=60))
    room = 9 * max(shard.bytes for shard in load_manifest(str(shards)).shards)
    for margin in (cache._DISK_MARGIN, -(1 << 40)):
        monkeypatch.setattr(cache, "_DISK_MARGIN", margin)
        counts: dict[str, float] = {}
        place = disk(room + max(0, margin))
        assert digest(remote(place), counts) == expected
        assert counts["evictions"] > 0
        assert counts["fetched_shards"] > 12


@pytest.mark.parametrize("margin", [1 << 16, -(1 << 40)])
def test_a_disk_that_somebody_else_filled(
    shards: Path, disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, margin: int
) -> None:
    """One error that tells how much is missing; and where room comes in time, the run continues."""
    monkeypatch.setattr(cache, "_DISK_MARGIN", margin)
    place = disk(4 << 20)
    junk = fill(place, but=16384)
    with pytest.raises(DataError, match=r"data\.cache_dir: no room in .*shard-\d+\.tar \(\d+ bytes more; \d+ bytes"):
        digest(remote(place, fetch_deadline=1.0))

    def tidy() -> None:
        while not list((place / "cache").glob("*.lock")):
            time.sleep(0.01)
        junk.unlink()

    for lock in (place / "cache").glob("*.lock"):
        lock.unlink()
    thread = threading.Thread(target=tidy)
    thread.start()
    assert digest(remote(place)) == digest(DataConfig(shards=str(shards), shuffle_window=60))
    thread.join()
