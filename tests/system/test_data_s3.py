"""Reading from a real S3 server, with faults in front of it: every fault ends in the right bytes or in one clear
error."""

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest import __main__ as inspection
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading import cache
from data_pipeline.reading.stream import DataConfig, Stream, open_stream
from data_pipeline.storage import retrying as store
from tests.support.chaos_proxy import ChaosProxy, Fault, s3_behind_proxy
from tests.support.lying_data import jpeg

pytestmark = pytest.mark.xdist_group("data-s3")  # one server for all

SAMPLES, BATCH = 600, 20


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosProxy]:
    with s3_behind_proxy(tmp_path_factory.mktemp("s3")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IDX folder of noise, which does not compress: 600 images of 10 classes, 32x32."""
    import gzip
    import struct

    folder = tmp_path_factory.mktemp("idx")
    images = np.random.default_rng(1).integers(0, 256, (SAMPLES, 32, 32), dtype=np.uint8)
    labels = (np.arange(SAMPLES) % 10).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    return folder


@pytest.fixture(scope="module")
def url(proxy: ChaosProxy, photographs: Path) -> str:
    """Shards that make_shards wrote to the store: 12 of 50 samples."""
    where = "s3://runs/shards"
    assert make_shards.main(["idx", str(photographs), where, "--samples-per-shard", "50", "--jobs", "1"]) == 0
    return where


@pytest.fixture(scope="module")
def expected(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, str]:
    """The digest of 60 batches read from local shards, without and with a window."""
    folder = tmp_path_factory.mktemp("local")
    assert make_shards.main(["idx", str(photographs), str(folder), "--samples-per-shard", "50", "--jobs", "1"]) == 0
    return {window: digest(DataConfig(shards=str(folder), shuffle_window=window)) for window in (None, 120)}


@pytest.fixture(autouse=True)
def quiet(proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.clear()
    monkeypatch.setattr(store, "PIECE", 32 << 10)  # so that a shard of 90 KB comes in several ranges
    monkeypatch.setattr(store, "_SMALLEST_PIECE", 4 << 10)
    monkeypatch.setattr(store, "_LONGEST_PAUSE", 0.2)


def opened(config: DataConfig) -> Stream:
    return open_stream(config, seed=5, replicas=2, held=[0, 1], sizes=itertools.repeat(BATCH))


def digest(config: DataConfig, batches: int = 60) -> str:
    sha256 = hashlib.sha256()
    with opened(config) as stream:
        for batch in itertools.islice(stream, batches):
            for part in (*batch.fields.values(), batch.positions):
                sha256.update(part.numpy().tobytes())
    return sha256.hexdigest()


def config(url: str, cache_dir: Path, **settings: object) -> DataConfig:
    return DataConfig(
        # type: ignore[arg-type]
        **{"shards": url, "cache_dir": str(cache_dir), "fetch_deadline": 30, "fetch_request_timeout": 3, **settings}
    )


def test_the_store_holds_what_a_local_folder_holds(url: str, expected: dict[int | None, str], tmp_path: Path) -> None:
    with opened(config(url, tmp_path)) as stream:
        for _ in range(60):
            next(stream)
        counts = stream.statistics()
    assert counts["fetched_shards"] == 12
    assert "retries" not in counts
    assert digest(config(url, tmp_path)) == expected[None]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("status", 5, status=503)], id="503"),
        pytest.param([Fault("status", 5, status=500, match="")], id="500 also for manifest and indexes"),
        pytest.param([Fault("reset", 6, match="")], id="connection reset"),
        pytest.param([Fault("cut", 8)], id="body cut"),
        pytest.param([Fault("cut", 3, match=".idx")], id="index cut"),
        pytest.param([Fault("short", 4)], id="too few bytes"),
        pytest.param([Fault("flip", 2)], id="wrong byte"),
        pytest.param([Fault("stall", 1)], id="stalled connection"),
        pytest.param([Fault("drip", 1, rate=200)], id="slow drip"),
        pytest.param(
            [Fault(kind, probability=0.12) for kind in ("status", "cut", "short", "reset")], id="all the time"
        ),
    ],
)
@pytest.mark.parametrize("window", [None, 120])
def test_faults_that_pass(
    url: str,
    expected: dict[int | None, str],
    proxy: ChaosProxy,
    tmp_path: Path,
    faults: list[Fault],
    window: int | None,
) -> None:
    """The same batches as on a quiet network, and the fault was really there."""
    proxy.faults = [Fault(**vars(fault)) for fault in faults]
    assert digest(config(url, tmp_path, shuffle_window=window, fetch_request_timeout=1)) == expected[window]
    assert proxy.struck
    assert all(fault.count <= 0 for fault in proxy.faults)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", status=403), r"shard-\d+\.tar: access was refused \(403.*check the credentials"),
        (Fault("status", status=404), r"shard-\d+\.tar: there is no such object"),
        (Fault("status", status=503), r"shard-\d+\.tar: gave up 2 s after the first try \(\d+ failures.* raise data"),
        (Fault("stall"), r"shard-\d+\.tar: gave up 2 s .*no answer within.*\(\d+ of the object's bytes had come\)"),
        (Fault("drip", rate=50), r"shard-\d+\.tar: gave up 2 s"),
        (Fault("flip"), r"shard-\d+\.tar: \d+ bytes came as expected, but 3 times with a sha256 that is not"),
        (Fault("status", status=403, match="manifest"), r"manifest\.json: access was refused"),
        (Fault("status", status=404, match=".idx"), r"shard-\d+\.idx: there is no such object"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}{value.match}" if isinstance(value, Fault) else "",
)
def test_faults_that_stay(
    url: str, proxy: ChaosProxy, tmp_path: Path, fault: Fault, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One error that names the object and the cure, in bounded time, without a secret in it."""
    proxy.faults = [Fault(**vars(fault))]
    began = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        digest(config(url, tmp_path, fetch_deadline=2, fetch_request_timeout=0.7))
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    said = str(caught.value) + "".join(capfd.readouterr())
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said
    assert os.environ["AWS_ACCESS_KEY_ID"] not in said


def test_a_cut_body_goes_on_where_it_was(url: str, proxy: ChaosProxy, tmp_path: Path) -> None:
    """Bytes that came before the cut are not fetched again: the counted bytes are the shards' bytes."""
    proxy.faults = [Fault("cut", 10)]
    with opened(config(url, tmp_path)) as stream:
        for _ in range(40):
            next(stream)
        counts, total = stream.statistics(), sum(shard.bytes for shard in stream.manifest.shards)
    assert counts["fetched_bytes"] == total
    assert counts["retries"] == 10


def test_wrong_credentials(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(DataError, match="access was refused") as caught:
        opened(config(url, tmp_path))
    assert "a-wrong-secret" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_small_cache_with_a_window(url: str, expected: dict[int | None, str], tmp_path: Path) -> None:
    """A cache of less than half of the data: shards come and go, the folder never exceeds its bound."""
    manifest = load_manifest(url)
    limit = 8 * max(shard.bytes for shard in manifest.shards)
    assert limit < 0.7 * manifest.total_bytes
    settings = config(url, tmp_path, shuffle_window=60, cache_bytes=limit)
    sha256 = hashlib.sha256()
    with opened(settings) as stream:
        for batch in itertools.islice(stream, 60):
            sha256.update(batch.images.numpy().tobytes())
            assert sum(map(size_of, tmp_path.glob("*.tar"))) <= limit
        counts = stream.statistics()
    assert counts["evictions"] > 10
    whole = hashlib.sha256()
    with opened(config(url, tmp_path / "large", shuffle_window=60)) as stream:
        for batch in itertools.islice(stream, 60):
            whole.update(batch.images.numpy().tobytes())
    assert sha256.hexdigest() == whole.hexdigest()


def size_of(path: Path) -> int:
    """0 for a file that the cache has just evicted."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_cache_that_cannot_do(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.cache_bytes: 300000 bytes cannot hold the \d+ bytes of all shards"):
        opened(config(url, tmp_path, cache_bytes=300_000))
    with pytest.raises(DataError, match=r"data\.cache_bytes: 300000 bytes cannot hold the \d+ shards"):
        opened(config(url, tmp_path, cache_bytes=300_000, shuffle_window=300))
    with pytest.raises(DataError, match=r"data\.cache_dir: .* cannot be made"):
        opened(config(url, Path("/proc/nowhere")))


def test_cold_start_needs_only_the_first_windows(url: str, proxy: ChaosProxy, tmp_path: Path) -> None:
    """The first batch comes while most shards cannot be had."""
    manifest = load_manifest(url)
    with opened(config(url, tmp_path / "a", shuffle_window=50)) as stream:
        next(stream)
    needed = {path.stem for path in (tmp_path / "a").glob("*.tar")}
    missing = [shard.name for shard in manifest.shards if shard.sha256 not in needed]
    assert len(missing) >= 4
    proxy.faults = [Fault("stall", match=name) for name in missing]
    with opened(config(url, tmp_path / "b", shuffle_window=50)) as stream:
        next(stream)


def test_cache_is_never_trusted_after_a_crash(
    url: str, expected: dict[int | None, str], proxy: ChaosProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files damaged, cut, or left half written by a killed process or an earlier boot: checked, and fetched again."""
    assert digest(config(url, tmp_path)) == expected[None]
    files = sorted(tmp_path.glob("*.tar"))
    damaged = bytearray(files[0].read_bytes())
    damaged[700] ^= 1
    files[0].write_bytes(damaged)
    files[1].write_bytes(files[1].read_bytes()[:-512])
    files[2].unlink()
    (tmp_path / f"{files[3].stem}.ok").unlink()
    (tmp_path / f"{files[4].stem}.0badf00d.part").write_bytes(b"half")
    proxy.clear()
    with opened(config(url, tmp_path)) as stream:
        for _ in range(60):
            next(stream)
        counts = stream.statistics()
    assert (counts["cache_damaged"], counts["fetched_shards"], counts["cache_rechecked"]) == (2, 3, 1)
    monkeypatch.setattr(cache, "_boot", lambda: "another boot")
    with opened(config(url, tmp_path)) as stream:
        for _ in range(60):
            next(stream)
        assert stream.statistics()["cache_rechecked"] == 12
    assert digest(config(url, tmp_path)) == expected[None]


def test_bytes_that_go_bad_in_the_cache_under_the_run(
    url: str, expected: dict[int | None, str], tmp_path: Path
) -> None:
    """A wrong CRC in a cached shard: the file is removed and fetched again, the batches are the same."""
    sha256 = hashlib.sha256()
    with opened(config(url, tmp_path)) as stream:
        for number, batch in enumerate(itertools.islice(stream, 60)):
            for part in (*batch.fields.values(), batch.positions):
                sha256.update(part.numpy().tobytes())
            if number == 20:
                for path in sorted(tmp_path.glob("*.tar"))[:3]:
                    with path.open("r+b") as file:
                        file.write(b"\0" * path.stat().st_size)
        counts = stream.statistics()
    assert sha256.hexdigest() == expected[None]
    assert counts["wrong_samples"] >= 3
    assert counts["fetched_shards"] >= 15


def test_the_cache_folder_is_deleted_under_the_run(url: str, expected: dict[int | None, str], tmp_path: Path) -> None:
    sha256 = hashlib.sha256()
    with opened(config(url, tmp_path / "cache", shuffle_window=120)) as stream:
        for number, batch in enumerate(itertools.islice(stream, 60)):
            for part in (*batch.fields.values(), batch.positions):
                sha256.update(part.numpy().tobytes())
            if number in (3, 25, 40):
                shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert sha256.hexdigest() == expected[120]


def test_a_shard_replaced_under_the_run(url: str, photographs: Path, tmp_path: Path) -> None:
    """Other bytes, of the same and of another length, under the manifest's name: an error that says so."""
    import s3fs

    where = "s3://runs/replaced"
    fs = s3fs.S3FileSystem()
    fs.copy("runs/shards", "runs/replaced", recursive=True)
    name = load_manifest(where).shards[4].name
    data = bytearray(fs.cat_file(f"runs/replaced/{name}"))
    data[1000] ^= 1
    fs.pipe_file(f"runs/replaced/{name}", bytes(data))
    with pytest.raises(DataError, match=rf"{where}/{name}: \d+ bytes came as expected, but 3 times with a sha256"):
        digest(config(where, tmp_path))
    fs.pipe_file(f"runs/replaced/{name}", bytes(data) + b"more")
    with pytest.raises(DataError, match=rf"{where}/{name}: has \d+ bytes, the manifest says .* was replaced or cut"):
        digest(config(where, tmp_path))
    fs.rm(f"runs/replaced/{name}")
    with pytest.raises(DataError, match=rf"{where}/{name}: there is no such object"):
        digest(config(where, tmp_path))


def test_verify_and_resume_of_make_shards_in_the_store(
    url: str, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspection.main(["verify", url]) == 0
    assert make_shards.main(["idx", str(photographs), url, "--samples-per-shard", "50"]) == 0
    assert "is complete already" in capsys.readouterr().err
    assert make_shards.main(["idx", str(photographs), url, "--samples-per-shard", "60"]) == 1


def test_no_path_is_a_pattern(photographs: Path, proxy: ChaosProxy, tmp_path: Path) -> None:
    """`--overwrite` of exp[12] leaves exp1 and exp2 alone, also those of their objects that are called as ours."""
    import s3fs

    files = s3fs.S3FileSystem()
    base = "s3://runs/pattern"
    options = ["--samples-per-shard", "100", "--jobs", "1"]
    for name in ("exp1", "exp2", "exp[12]"):
        assert make_shards.main(["idx", str(photographs), f"{base}/{name}", *options]) == 0
    files.pipe_file("runs/pattern/exp[12]/theirs.txt", b"theirs")
    before = {name: files.find(f"runs/pattern/{name}", detail=True) for name in ("exp1", "exp2")}
    again = ["idx", str(photographs), f"{base}/exp[12]", *options, "--size", "16", "--overwrite"]
    assert make_shards.main(again) == 0
    files.invalidate_cache()
    after = {name: files.find(f"runs/pattern/{name}", detail=True) for name in ("exp1", "exp2")}
    for name in ("exp1", "exp2"):
        assert {k: v["ETag"] for k, v in after[name].items()} == {k: v["ETag"] for k, v in before[name].items()}
    assert files.cat_file("runs/pattern/exp[12]/theirs.txt") == b"theirs"
    assert load_manifest(f"{base}/exp[12]").resolution == 16


def test_somebodys_shard_is_kept(photographs: Path, proxy: ChaosProxy, capsys: pytest.CaptureFixture[str]) -> None:
    import s3fs

    files = s3fs.S3FileSystem()
    files.pipe_file("runs/kept/shard-00000.tar", b"theirs")
    assert make_shards.main(["idx", str(photographs), "s3://runs/kept", "--jobs", "1"]) == 1
    assert "holds shard-00000.tar, which no manifest speaks for" in capsys.readouterr().err
    assert files.cat_file("runs/kept/shard-00000.tar") == b"theirs"


def test_an_empty_class_on_s3(
    photographs: Path, proxy: ChaosProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A console's `new folder` is an object of no bytes whose name ends with a slash."""
    import s3fs

    files = s3fs.S3FileSystem()
    for name in ("a/0.jpg", "c/0.jpg"):
        files.pipe_file(f"runs/classes/{name}", jpeg(1))
    files.pipe_file("runs/classes/b/", b"")
    assert make_shards.main(["folder", "s3://runs/classes", str(tmp_path / "out"), "--jobs", "1"]) == 1
    assert "the sub-folder b of s3://runs/classes holds no images" in capsys.readouterr().err
    files.rm_file("runs/classes/b/")
    assert make_shards.main(["folder", "s3://runs/classes", str(tmp_path / "out"), "--jobs", "1"]) == 0


def test_a_missing_bucket_is_called_that(proxy: ChaosProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_shards.main(["folder", "s3://nobodys-bucket/x", str(tmp_path / "out"), "--jobs", "1"]) == 1
    assert "there is no such bucket (404); check the bucket's name" in capsys.readouterr().err


def test_a_slow_upload_is_no_fault(
    photographs: Path, proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard takes longer than a request may, as bytes move all the while."""
    monkeypatch.setitem(store.Limits.__init__.__kwdefaults__, "request", 1.0)
    proxy.faults = [Fault("slow", rate=200_000)]
    assert make_shards.main(["idx", str(photographs), "s3://runs/slow", "--jobs", "1"]) == 0
    assert proxy.struck == ["slow", "slow"]  # the shard and its record, each once
    assert "trying again" not in capsys.readouterr().err
    assert load_manifest("s3://runs/slow").shards[0].bytes > 800_000  # at least four seconds
