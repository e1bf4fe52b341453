"""Two sources of one run share the cache: what both need has to fit, not only what each needs."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards.vectors import write_vectors
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, Stream, open_stream
from tests.support.lying_data import empty_memory


@pytest.fixture
def size() -> Iterator[int]:
    """Bytes of each of the two sources, memory://one and memory://two."""
    empty_memory()
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        write_vectors(f"memory://{name}", random.normal(size=(60, 8)).astype(np.float32))
    sizes = {sum(shard.bytes for shard in load_manifest(f"memory://{name}").shards) for name in ("one", "two")}
    assert len(sizes) == 1
    yield sizes.pop()
    empty_memory()


def open_all(stack: ExitStack, **sources: DataConfig) -> list[Stream]:
    streams: list[Stream] = []
    for name, config in sources.items():
        stream = open_stream(config, name=name, seed=0, replicas=1, held=[0], sizes=[60, 60], others=list(streams))
        streams.append(stack.enter_context(stream))
    return streams


def config(name: str, cache: Path, limit: int) -> DataConfig:
    return DataConfig(shards=f"memory://{name}", cache_dir=str(cache), cache_bytes=limit)


def test_what_both_need_has_to_fit(tmp_path: Path, size: int) -> None:
    message = (
        f"sources.other.cache_bytes: {2 * size - 1} bytes cannot hold the {2 * size} bytes that the 2 sources of the run "
        "need in the cache that they share; raise it for each of them, or give sources.other.cache_dir another folder"
    )
    with ExitStack() as stack, pytest.raises(DataError, match=re.escape(message)):
        open_all(stack, data=config("one", tmp_path, 2 * size - 1), other=config("two", tmp_path, 2 * size - 1))
    for cures in ((tmp_path, 2 * size), (tmp_path / "another", size)):
        with ExitStack() as stack:
            streams = open_all(stack, data=config("one", tmp_path, cures[1]), other=config("two", *cures))
            assert all(len(list(stream)) == 2 for stream in streams)


def test_the_same_shards_count_once(tmp_path: Path, size: int) -> None:
    with ExitStack() as stack:
        streams = open_all(stack, data=config("one", tmp_path, size), other=config("one", tmp_path, size))
        assert all(len(list(stream)) == 2 for stream in streams)
