"""Small shards for the tests of this folder: 300 grey 8x8 images of 5 classes in 7 shards."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.make_shards.images import ImageOptions, ImageSamples
from data_pipeline.make_shards.sources.idx import IdxSource
from data_pipeline.make_shards.writing import make_shards
from data_pipeline.storage.folder import Folder


def write_idx(folder: Path, samples: int, classes: int = 5, side: int = 6, prefix: str = "train") -> Path:
    """A folder of IDX files; the pixels of image i tell i, its label is i modulo classes."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.arange(samples)
    images = np.random.default_rng(7).integers(0, 256, (samples, side, side), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = ids % 256, ids // 256
    labels = (ids % classes).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
    return folder


@pytest.fixture(scope="session")
def idx_writer() -> Callable[..., Path]:
    return write_idx


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"), 300)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Path:
    """A folder of shards that tests must not change (copy it first)."""
    output = tmp_path_factory.mktemp("shards")
    make_shards(
        ImageSamples(IdxSource(Folder(idx_folder)), ImageOptions(size=8, channels=1, fit="pad", encoding="png")),
        Folder(output),
        description="idx",
        where=idx_folder,
        samples_per_shard=47,
    )
    return output
