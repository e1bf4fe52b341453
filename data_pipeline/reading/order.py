"""The global order of samples: a pure function of (seed, epoch, shard sizes, window), and part of the format.

The algorithm is fixed here, depends on no library's random stream, and is tested by golden hashes:

- `mix(x)` is SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
- The key of item i is `mix(h + G * (i + 1))` with `h = mix(mix(mix(seed + G) + G * (epoch + 1)) + G * (purpose + 1))`,
  all modulo 2**64; G is SplitMix64's gamma. Purpose 0 orders samples, purpose 1 orders shards.
- Items are sorted by key; equal keys stay in their original order (a stable sort).

Without a window the whole epoch is sorted by the samples' keys: one uniform permutation. With a window of W samples,
shards are sorted by the shards' keys and laid end to end, that sequence is cut into windows of W samples (the last
may be shorter), and the samples of each window are sorted by their keys.

Epoch e of N samples is cut into one contiguous segment per replica: replica c of R has the places [c*N//R,
(c+1)*N//R). A replica's stream is the endless concatenation of its segments of epoch 0, 1, 2, ..., so position p of
replica c is found by arithmetic.

An independent order has no epochs: position p of replica c is the sample `mix(h + G * (p + 1)) mod N` of all N, where h
has the purpose 2, and c in place of the epoch.

A run may read several sources by name. The source `data` is ordered by the run's seed; any other source by the first
8 bytes, little-endian, of the SHA-256 of the text `SEED NAME`, so two sources of one size do not share a permutation.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

Ids = npt.NDArray[np.int64]

MAIN_SOURCE = "data"

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_SAMPLES, _SHARDS, _INDEPENDENT = 0, 1, 2
_EPOCHS_KEPT = 3


def _mix(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser, in place: uint64 [n] -> uint64 [n]."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def keys(seed: int, epoch: int, purpose: int, count: int, first: int = 0) -> npt.NDArray[np.uint64]:
    """The keys of items first .. first+count-1: uint64 [count]."""
    h = _mix(_mix(_mix(seed + _GAMMA) + _GAMMA * (epoch + 1)) + _GAMMA * (purpose + 1))
    x = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    x *= np.uint64(_GAMMA)  # unsigned arrays wrap modulo 2**64, which is what is meant
    x += np.uint64(h)
    return mix(x)


def source_seed(seed: int, name: str) -> int:
    """The seed of the order of the source called `name`, in a run with the seed `seed`."""
    if name == MAIN_SOURCE:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


class Order:
    """Which sample is at which position of which replica's stream.

    Samples have global ids: shard k's samples are `sum(shard_sizes[:k]) + 0, 1, ...`, in the order of its index.
    Threads may share one Order.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        replicas: int = 1,
        shuffle_window: int | None = None,
        section: str = "data",
        independent: bool = False,
    ) -> None:
        """`section`: the settings' section of the source, for errors. Raises DataError.

        `independent`: every position is drawn from all samples by itself.
        """
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts: Ids = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.samples = int(self.starts[-1])
        self.seed, self.replicas, self.window = int(seed), int(replicas), shuffle_window
        if self.replicas < 1 or self.samples < self.replicas:
            raise DataError(
                f"batch.replicas: {self.replicas} replicas cannot share the {self.samples} samples of {section}.shards; "
                "each needs at least one sample per epoch, so use fewer replicas or more data"
            )
        if self.window is not None and self.window < 1:
            raise DataError(
                f"{section}.shuffle_window: {self.window} is not a number of samples; use 1 or more, or null"
            )
        if independent and self.window is not None:
            raise DataError(
                f"{section}.shuffle_window: is {self.window}, but {section}.order is independent, which draws from all "
                "samples; leave one of them out"
            )
        self.independent = independent
        self._epochs: OrderedDict[int, Ids] = OrderedDict()
        self._lock = threading.Lock()

    def epoch(self, epoch: int) -> Ids:
        """The sample ids of one epoch in their order: int64 [samples]. Not to be written to."""
        with self._lock:
            if epoch in self._epochs:
                self._epochs.move_to_end(epoch)
                return self._epochs[epoch]
            made = self._make_epoch(epoch)
            made.flags.writeable = False
            self._epochs[epoch] = made
            while len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
            return made

    def _make_epoch(self, epoch: int) -> Ids:
        sample_keys = keys(self.seed, epoch, _SAMPLES, self.samples)
        if self.window is None:
            return np.argsort(sample_keys, kind="stable").astype(np.int64)
        shards = np.argsort(keys(self.seed, epoch, _SHARDS, len(self.sizes)), kind="stable")
        line = np.concatenate([np.arange(self.starts[k], self.starts[k + 1]) for k in shards])
        windows = np.arange(self.samples) // self.window
        return np.asarray(line[np.lexsort((sample_keys[line], windows))], dtype=np.int64)

    def segment(self, replica: int) -> tuple[int, int]:
        """The places [begin, end) of every epoch that belong to this replica."""
        return replica * self.samples // self.replicas, (replica + 1) * self.samples // self.replicas

    def sample_ids(self, replica: int, position: int, count: int) -> Ids:
        """Global ids of the samples at positions [position, position + count) of the replica's stream: int64
        [count]."""
        if self.independent:
            drawn = keys(self.seed, replica, _INDEPENDENT, count, position)
            return (drawn % np.uint64(self.samples)).astype(np.int64)
        begin, end = self.segment(replica)
        length = end - begin
        ids = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            epoch, offset = divmod(position + filled, length)
            take = min(count - filled, length - offset)
            ids[filled : filled + take] = self.epoch(epoch)[begin + offset : begin + offset + take]
            filled += take
        return ids
