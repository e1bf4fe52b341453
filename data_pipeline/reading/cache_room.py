"""Which shards must be in the cache at a time, and whether they have room in it."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import Manifest
from data_pipeline.reading.order import Order


def shards_in_order(order: Order, held: Sequence[int], position: int, count: int) -> list[int]:
    """The shards of `count` positions of each held replica, in the order of their first need."""
    ids = np.stack([order.sample_ids(replica, position, count) for replica in held], axis=1).reshape(-1)
    shards, first = np.unique(np.searchsorted(order.starts, ids, side="right") - 1, return_index=True)
    return [int(shard) for shard in shards[np.argsort(first)]]


def needed_shards(
    cache_bytes: int, shuffle_window: int | None, manifest: Manifest, order: Order, held: Sequence[int]
) -> dict[str, int]:
    """Bytes, by sha256, of the shards that the cache must hold at a time. Raises DataError where it cannot."""
    setting, window = f"{manifest.section}.cache_bytes", f"{manifest.section}.shuffle_window"
    if shuffle_window is None:
        needed = [shard for shard, samples in enumerate(order.sizes) if samples]
    else:
        needed = shards_in_order(order, held, 0, min(shuffle_window, order.samples // order.replicas))
    size = sum(manifest.shards[shard].bytes for shard in needed)
    if size > cache_bytes and shuffle_window is None:
        raise DataError(
            f"{setting}: {cache_bytes} bytes cannot hold the {size} bytes of all shards, which an order "
            f"without a window needs; raise {setting}, or set {window} (a number of samples)"
        )
    if size > cache_bytes:
        raise DataError(
            f"{setting}: {cache_bytes} bytes cannot hold the {len(needed)} shards ({size} bytes) that a window "
            f"of {shuffle_window} samples needs; raise it, or set a smaller {window}"
        )
    return {manifest.shards[shard].sha256: manifest.shards[shard].bytes for shard in needed}


def bytes_of_others(
    cache_bytes: int, section: str, needed: Mapping[str, int], others: Sequence[Mapping[str, int]]
) -> int:
    """Bytes that the run's other sources need in the same cache; `others` has the shards of each. Raises DataError where
    they do not fit together."""
    theirs = {key: size for shards in others for key, size in shards.items() if key not in needed}
    together = sum(needed.values()) + sum(theirs.values())
    if others and together > cache_bytes:
        raise DataError(
            f"{section}.cache_bytes: {cache_bytes} bytes cannot hold the {together} bytes that the {len(others) + 1} "
            f"sources of the run need in the cache that they share; raise it for each of them, or give {section}.cache_dir "
            "another folder"
        )
    return sum(theirs.values())
