"""The order is part of the format: every sample once per epoch, local with a window, and the same bits for ever."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.reading.order import Order, keys

sizes_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=150, deadline=None)
@given(sizes=sizes_strategy, data=st.data())
def test_every_sample_once_per_epoch(sizes: list[int], data: st.DataObject) -> None:
    samples = sum(sizes)
    replicas = data.draw(st.integers(1, min(samples, 9)))
    window = data.draw(st.none() | st.integers(1, samples + 5))
    order = Order(sizes, seed=data.draw(st.integers(0, 2**64)), replicas=replicas, shuffle_window=window)
    for epoch in range(3):
        seen = []
        for replica in range(replicas):
            begin, end = order.segment(replica)
            assert samples // replicas <= end - begin <= samples // replicas + 1
            seen.append(order.sample_ids(replica, epoch * (end - begin), end - begin))
        assert sorted(np.concatenate(seen).tolist()) == list(range(samples))


@settings(max_examples=100, deadline=None)
@given(sizes=sizes_strategy, data=st.data())
def test_a_stream_is_the_same_however_it_is_cut(sizes: list[int], data: st.DataObject) -> None:
    replicas = data.draw(st.integers(1, min(sum(sizes), 4)))
    window = data.draw(st.none() | st.integers(1, 20))
    replica = data.draw(st.integers(0, replicas - 1))
    whole = Order(sizes, seed=5, replicas=replicas, shuffle_window=window).sample_ids(replica, 0, 200)
    cuts = sorted({0, 200, *data.draw(st.lists(st.integers(0, 200), max_size=6))})
    fresh = Order(sizes, seed=5, replicas=replicas, shuffle_window=window)
    parts = [fresh.sample_ids(replica, a, b - a) for a, b in itertools.pairwise(cuts)]
    assert np.concatenate(parts).tolist() == whole.tolist()


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(5, 30), min_size=2, max_size=12), window=st.integers(1, 60))
def test_a_window_needs_only_neighbouring_shards(sizes: list[int], window: int) -> None:
    order = Order(sizes, seed=3, shuffle_window=window)
    epoch = order.epoch(0)
    shards = np.searchsorted(order.starts, epoch, side="right") - 1
    for begin in range(0, order.samples, window):
        part = shards[begin : begin + window]
        assert len(set(part.tolist())) <= window // min(sizes) + 2


def test_epochs_seeds_and_windows_differ() -> None:
    orders = {
        tuple(Order([50, 50], seed=seed, shuffle_window=window).epoch(epoch).tolist())
        for seed in (0, 1)
        for window in (None, 10)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_the_permutation_is_uniform() -> None:
    """Each of 5 samples is at each place in a fifth of 4,000 epochs: chi-square of the 25 counts, 16 degrees of
    freedom."""
    order = Order([5], seed=11)
    counts = np.zeros((5, 5))
    for epoch in range(4000):
        counts[np.arange(5), order.epoch(epoch)] += 1
    chi_square = ((counts - 800) ** 2 / 800).sum()
    assert chi_square < 45  # the 99.98% quantile; the seed is fixed, so this is the same on every run


@pytest.mark.parametrize(
    ("window", "golden"),
    [
        (None, "bed72bcd8b28f2bf58a2e0b344f13fd11cac57533eb3608f3737916a1c64b4e1"),
        (1000, "40aa94c1d889295e613fb3afbb2a46cfa0c08c9ddaace4309e5aaf746937fac0"),
    ],
)
def test_golden_order(window: int | None, golden: str) -> None:
    """These hashes must never change: a change would make every run that resumes see other data."""
    order = Order([1000, 999, 1, 2000, 0, 500], seed=2018, replicas=3, shuffle_window=window)
    digest = hashlib.sha256()
    for replica in range(3):
        digest.update(order.sample_ids(replica, 0, 4000).astype("<i8").tobytes())
    assert digest.hexdigest() == golden


def test_golden_keys() -> None:
    """Worked out apart from the code, with Python's integers: see the module's docstring for the formula."""
    mask, gamma = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x &= mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    h = mix(mix(mix(123 + gamma) + gamma * (7 + 1)) + gamma * (1 + 1))
    assert keys(123, 7, 1, 50).tolist() == [mix(h + gamma * (i + 1)) for i in range(50)]
    assert mix(gamma) == 0xE220A8397B1DCDAF  # SplitMix64's first output for state 0, as published


def test_more_replicas_than_samples() -> None:
    with pytest.raises(DataError, match=r"batch\.replicas: 5 replicas cannot share the 4 samples of data\.shards"):
        Order([2, 2], seed=0, replicas=5)


def test_an_independent_order_draws_every_position_by_itself() -> None:
    order = Order([60, 40], seed=3, replicas=2, independent=True)
    whole = [order.sample_ids(replica, 0, 20_000) for replica in (0, 1)]
    assert order.sample_ids(1, 7_000, 3).tolist() == whole[1][7_000:7_003].tolist()
    assert [ids[:5].tolist() for ids in whole] == [[75, 83, 45, 14, 65], [52, 58, 8, 65, 5]]  # for ever
    for ids in whole:
        counts = np.bincount(ids, minlength=100)
        assert np.sum((counts - 200) ** 2 / 200) < 150  # chi square of 99 degrees: 150 is beyond 0.9993
        assert len(set(ids[:100].tolist())) < 75  # a permutation has 100, independent draws about 63
    assert np.mean(whole[0] == whole[1]) < 0.02
    with pytest.raises(DataError, match=r"^data\.shuffle_window: is 5, but data\.order is independent"):
        Order([60, 40], seed=3, shuffle_window=5, independent=True)
