"""Real processes, killed and started again in other numbers, on a bad network: nothing is lost, nothing is repeated."""

import gzip
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.reading.order import Order
from tests.support.chaos_proxy import ChaosProxy, Fault, s3_behind_proxy
from tests.support.checkout import environment, program

pytestmark = pytest.mark.xdist_group("data-exactness")  # one server for all

SAMPLES, REPLICAS, BATCH, SEED = 500, 4, 6, 9
URL = "s3://runs/exact"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosProxy]:
    """500 images that tell their number, in 20 shards on a real S3 server behind a proxy."""
    folder = tmp_path_factory.mktemp("idx")
    ids = np.arange(SAMPLES)
    images = np.random.default_rng(2).integers(0, 256, (SAMPLES, 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = ids % 256, ids // 256
    for kind, array in (("images-idx3", images), ("labels-idx1", (ids % 3).astype(np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    with s3_behind_proxy(tmp_path_factory.mktemp("s3"), seed=4) as proxy:
        assert make_shards.main(["idx", str(folder), URL, "--samples-per-shard", "25", "--jobs", "1"]) == 0
        proxy.clear()
        yield proxy


def start(folder: Path, number: int, held: list[int], first: int, last: int, **data: Any) -> subprocess.Popen[bytes]:
    job = {
        "data": {"shards": URL, "fetch_deadline": 60, "fetch_request_timeout": 5, **data},
        "seed": SEED,
        "replicas": REPLICAS,
        "held": held,
        "batch_size": BATCH,
        "first_batch": first,
        "last_batch": last,
        "log": str(folder / f"{number}.log"),
    }
    path = folder / f"{number}.json"
    path.write_text(json.dumps(job))
    return subprocess.Popen([sys.executable, program("chaos_consumer.py"), str(path)], env=environment())


def read(path: Path) -> tuple[dict[tuple[int, int], list[int]], dict[str, float]]:
    """(batch, replica) -> samples, and the statistics of a process that ended by itself. Half a line is not counted."""
    rows, statistics = {}, {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.startswith("#"):
            statistics = json.loads(line[1:])
        elif line.endswith("\n"):
            batch, replica, samples = line.split()
            rows[int(batch), int(replica)] = [int(sample) for sample in samples.split(",")]
    return rows, statistics


def golden(manifest: Manifest, window: int | None, replica: int, count: int) -> list[int]:
    """The numbers of the samples of a replica's stream: the order's ids, through the plan of make_shards."""
    from data_pipeline.reading.order import keys

    order = Order([s.samples for s in manifest.shards], seed=SEED, replicas=REPLICAS, shuffle_window=window)
    shuffled = np.argsort(keys(0, 0, 2, SAMPLES), kind="stable")
    return [int(shuffled[k]) for k in order.sample_ids(replica, 0, count)]


@pytest.mark.timeout(600)
def test_kills_and_changes_of_processes(store: ChaosProxy, tmp_path: Path) -> None:
    """Launches with 1, 2 or 3 processes, other threads and other cache folders, SIGKILLed at random; what all
    processes of a launch have committed counts, as a checkpoint would have it. Two epochs: every sample exactly
    twice, in the golden sequence."""
    store.clear()
    store.faults = [Fault(kind, probability=0.05) for kind in ("status", "cut", "short", "reset", "flip")]
    window, last = 30, 2 * SAMPLES // REPLICAS // BATCH + 1  # one batch beyond the second epoch
    manifest = load_manifest(URL)
    limit = 14 * max(shard.bytes for shard in manifest.shards)
    chance = random.Random(20)
    done: dict[tuple[int, int], list[int]] = {}
    committed = kills = 0
    for launches, processes in enumerate((3, 1, 2), 1):
        folder = tmp_path / f"launch-{launches}"
        folder.mkdir()
        blocks = [block.tolist() for block in np.array_split(np.arange(REPLICAS), processes)]
        settings = {
            "shuffle_window": window,
            "cache_dir": str(tmp_path / f"cache-{launches % 2}"),
            "cache_bytes": limit,
            "decode_threads": chance.randint(1, 4),
            "prefetch_batches": chance.randint(1, 5),
        }
        started = [start(folder, k, held, committed, last, **settings) for k, held in enumerate(blocks)]
        kill_at = committed + chance.randint(5, 12) if launches < 3 else last
        while kill_at < last and all(process.poll() is None for process in started):
            if any((kill_at, held[0]) in read(folder / f"{k}.log")[0] for k, held in enumerate(blocks)):
                kills += 1
                break
            time.sleep(0.01)
        for process in started:
            if kill_at < last:
                process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=120) in (0, -signal.SIGKILL)
        rows = {key: row for k in range(processes) for key, row in read(folder / f"{k}.log")[0].items()}
        while all((committed, replica) in rows for replica in range(REPLICAS)):
            done |= {(committed, replica): rows[committed, replica] for replica in range(REPLICAS)}
            committed += 1
    assert (committed, kills) == (last, 2)
    assert len(set(store.struck)) >= 4
    streams = [[sample for batch in range(last) for sample in done[batch, c]] for c in range(REPLICAS)]
    for replica, stream in enumerate(streams):
        assert stream == golden(manifest, window, replica, last * BATCH)
    seen = Counter(sample for stream in streams for sample in stream[: 2 * SAMPLES // REPLICAS])
    assert seen == dict.fromkeys(range(SAMPLES), 2)
    size = sum(path.stat().st_size for path in (tmp_path / "cache-0").iterdir() if path.suffix in (".tar", ".part"))
    assert size <= limit


def test_processes_of_a_node_fetch_each_shard_once(store: ChaosProxy, tmp_path: Path) -> None:
    """Two processes with one cache folder: together they fetch exactly the bytes that there are.

    Each reads from all 20 shards: one that needs fewer may still fetch ahead when it writes its counts.
    """
    store.clear()
    cache = tmp_path / "cache"
    order = Order([25] * 20, seed=SEED, replicas=REPLICAS, shuffle_window=None)
    batches = SAMPLES // REPLICAS // BATCH
    for replica in range(2):
        assert len({sample // 25 for sample in order.sample_ids(replica, 0, batches * BATCH)}) == 20
    started = [start(tmp_path, k, [k], 0, batches, cache_dir=str(cache)) for k in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    total = sum(shard.bytes for shard in load_manifest(URL).shards)
    counts = [read(tmp_path / f"{k}.log")[1] for k in range(2)]
    assert sum(count.get("fetched_shards", 0) for count in counts) == 20
    assert sum(count.get("fetched_bytes", 0) for count in counts) == total
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in "".join(path.read_text() for path in cache.glob("*.ok"))
