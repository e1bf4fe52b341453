"""What is listed in a store is walked over: headers come, images do not."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources.imagenet import ImageNetSource
from data_pipeline.make_shards.sources.ranges import RangedFile, walked
from data_pipeline.make_shards.sources.webdataset import WebDatasetSource
from data_pipeline.storage.folder import Folder
from tests.support.lying_data import empty_memory, pack


def counted(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the ranges that are fetched from now on."""
    sizes: list[int] = []
    read_range = Folder.read_range

    def counting(self: Folder, *arguments: Any) -> bytes:
        data = read_range(self, *arguments)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(Folder, "read_range", counting)
    return sizes


@pytest.fixture
def photographs() -> list[tuple[str, bytes]]:
    return [(f"{k}.JPEG", bytes(100_000 + k)) for k in range(40)]


def test_a_tar_of_tars(tmp_path: Path, photographs: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    inner = [(f"n0144376{k}.tar", pack(tmp_path / "x.tar", photographs).read_bytes()) for k in range(3)]
    data = pack(tmp_path / "ILSVRC2012_img_train.tar", inner).read_bytes()
    empty_memory().pipe_file("/bucket/ILSVRC2012_img_train.tar", data)
    sizes = counted(Folder("memory://bucket"), monkeypatch)
    listings = [
        ImageNetSource(Folder(place), "ILSVRC2012_img_train.tar", subset=True).listing()
        for place in ("memory://bucket", str(tmp_path))
    ]
    assert listings[0] == listings[1]
    far = [size for size in sizes if size >= 4096]
    assert len(listings[0].items) == 120
    assert sum(far) < len(data) / 15


def test_tars_of_samples(tmp_path: Path, photographs: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    members = [m for name, image in photographs for m in ((name, image), (name.replace("JPEG", "cls"), b"1"))]
    members = [(name.replace("JPEG", "jpg"), data) for name, data in members]
    memory = empty_memory()
    for k in range(3):
        memory.pipe_file(f"/bucket/{k}.tar", pack(tmp_path / f"{k}.tar", members).read_bytes())
    near = WebDatasetSource(Folder(tmp_path)).listing()
    sizes = counted(Folder("memory://bucket"), monkeypatch)
    assert WebDatasetSource(Folder("memory://bucket")).listing() == near
    assert len(near.items) == 120
    assert sum(sizes) < 3 * 40 * 100_000 / 10
    assert len(sizes) < 3 * 40 * 1.3  # about one request a sample


def test_a_scan_from_begin_to_end_fetches_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(5_000_000)
    empty_memory().pipe_file("/bucket/file", data)
    folder = Folder("memory://bucket")
    sizes = counted(folder, monkeypatch)
    file = RangedFile(folder, "file")
    assert b"".join(iter(lambda: file.read(1000), b"")) == data
    assert len(sizes) < 15
    assert sum(sizes) < 1.01 * len(data)


def test_a_fault_in_one_file_ends_the_walk() -> None:
    empty_memory()
    folder = Folder("memory://bucket")

    def function(number: int) -> int:
        if number == 3:
            raise DataError("INPUT: number 3")
        return number

    with pytest.raises(DataError, match="number 3"):
        list(walked(folder, function, ((k,) for k in range(50))))
    assert folder.remote.stop.is_set()


def test_tarfile_reads_the_same_through_ranges(tmp_path: Path, photographs: list[tuple[str, bytes]]) -> None:
    data = pack(tmp_path / "a.tar", photographs).read_bytes()
    empty_memory().pipe_file("/bucket/a.tar", data)
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as near,
        tarfile.open(fileobj=RangedFile(Folder("memory://bucket"), "a.tar")) as far,  # type: ignore[arg-type]
    ):
        for one, other in zip(near.getmembers(), far.getmembers(), strict=True):
            assert (one.name, one.offset_data) == (other.name, other.offset_data)
