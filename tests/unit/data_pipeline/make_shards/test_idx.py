"""make_shards from the MNIST family: the same bytes every time, resumable, and refusals with the cure."""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards import tar_scan, writing
from data_pipeline.make_shards.sources import fashion_mnist
from data_pipeline.manifest import index
from data_pipeline.manifest.format import load_manifest


def digests(folder: Path) -> dict[str, str]:
    assert all(path.is_file() for path in folder.iterdir()), "something unfinished was left behind"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def run(*arguments: object) -> int:
    jobs = [] if "--jobs" in arguments else ["--jobs", "1"]
    return make_shards.main([str(argument) for argument in arguments] + jobs)


def test_same_bytes_for_any_jobs_and_again(
    idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--size", 8, "--samples-per-shard", 47]
    for jobs in (1, 2):
        assert run("idx", idx_folder, tmp_path / f"jobs{jobs}", *common, "--jobs", jobs) == 0
    assert digests(tmp_path / "jobs1") == digests(tmp_path / "jobs2")
    assert len(digests(tmp_path / "jobs1")) == 15
    for path in (tmp_path / "jobs1").glob("*.tar"):  # the index that was made while writing is what is found in the tar
        with path.open("rb") as file:
            scan = tar_scan.Scan(file, path.name)
            rows = [(s.offset, s.size, s.label, zlib.crc32(scan.read(s.offset, s.size, s.image))) for s in scan]
        scanned = np.array(rows, dtype=index.RECORD)
        assert index.to_bytes(scanned) == path.with_suffix(".idx").read_bytes()
    capsys.readouterr()
    assert run("idx", idx_folder, tmp_path / "jobs1", *common) == 0
    assert "is complete already" in capsys.readouterr().err
    with tarfile.open(tmp_path / "jobs1" / "shard-00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_other_options_are_refused_and_overwrite_works(
    idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("idx", idx_folder, tmp_path, "--size", 8) == 0
    assert run("idx", idx_folder, tmp_path, "--size", 16) == 1
    assert "OUTPUT: " in capsys.readouterr().err
    assert run("idx", idx_folder, tmp_path, "--size", 16, "--samples-per-shard", 100, "--overwrite") == 0
    manifest = load_manifest(str(tmp_path))
    assert (manifest.resolution, len(manifest.shards)) == (16, 3)
    assert len(digests(tmp_path)) == 7


def test_an_interrupted_run_goes_on(idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["idx", idx_folder]
    options = ["--size", 8, "--samples-per-shard", 47, "--jobs", 1]
    assert run(*common, tmp_path / "whole", *options) == 0
    write, written = writing.write_shard, []

    def interrupted(*arguments: object) -> object:
        written.append(arguments[2])
        if len(written) == 4:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "write_shard", interrupted)
    assert run(*common, tmp_path / "cut", *options) == 130
    assert not (tmp_path / "cut" / "manifest.json").exists()
    (tmp_path / "cut" / ".menagerie-part-0a1b2c3d_killed").mkdir()
    (tmp_path / "cut" / "shard-00001.tar").write_bytes(b"damaged since")
    assert run(*common, tmp_path / "cut", "--size", 16) == 1  # other options must not mix in
    assert run(*common, tmp_path / "cut", *options) == 0
    assert written[4:] == [f"shard-{k:05d}.tar" for k in (1, 3, 4, 5, 6)]
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_dry_run_writes_nothing(idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("idx", idx_folder, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert "300 images of 5 classes -> 1 shards" in capsys.readouterr().err


def test_exclusion_list(idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("train-00003\ntrain-00299\n")
    assert run("idx", idx_folder, tmp_path / "out", "--exclude", names) == 0
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.samples == 298
    assert (manifest.report["excluded"], manifest.report["listed"]) == (2, 300)
    names.write_text("train-00300\n")
    assert run("idx", idx_folder, tmp_path / "other", "--exclude", names) == 1
    assert "--exclude: train-00300 is not in INPUT" in capsys.readouterr().err


def test_jpeg(idx_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    assert run("idx", idx_folder, tmp_path, "--encoding", "jpeg", "--size", 16) == 0
    with tarfile.open(tmp_path / "shard-00000.tar") as tar:
        names = tar.getnames()[:2]
        image = Image.open(io.BytesIO(tar.extractfile(names[1]).read()))  # type: ignore[union-attr]
    assert [name.split(".")[1] for name in names] == ["cls", "jpg"]
    assert (image.format, image.size, image.mode) == ("JPEG", (16, 16), "L")


def test_one_class_is_refused(
    idx_writer: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("idx", idx_writer(tmp_path / "in", 20, classes=1), tmp_path / "out") == 1
    assert "belong to one class" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9], "cannot be unpacked"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "its header asks for"),
        (lambda data: gzip.compress(b"\0" + gzip.decompress(data)), "is not an IDX file"),
    ],
)
def test_damaged_input(
    idx_writer: Callable[..., Path],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = idx_writer(tmp_path / "in", 20)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert run("idx", folder, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith("INPUT: ")
    assert message in said


def test_missing_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("idx", tmp_path, tmp_path / "out", "--split", "test") == 1
    assert "holds neither t10k-labels-idx1-ubyte nor" in capsys.readouterr().err


class TestFashionMnist:
    def files(self, folder: Path) -> dict[str, bytes]:
        return {name: (folder / f"{name}.gz").read_bytes() for name in fashion_mnist.SHA256}

    @pytest.fixture
    def pinned(self, idx_writer: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Stand-ins for the four files, with their own pins."""
        folder = idx_writer(tmp_path / "package", 20)
        idx_writer(folder, 10, prefix="t10k")
        pins = {name: hashlib.sha256(gzip.decompress(data)).hexdigest() for name, data in self.files(folder).items()}
        monkeypatch.setattr(fashion_mnist, "SHA256", pins)
        return folder

    def test_from_the_package(self, pinned: Path, tmp_path: Path) -> None:
        fashion_mnist.bring(tmp_path / "out", debian_folder=pinned, address="http://127.0.0.1:9/")
        assert self.files(tmp_path / "out") == self.files(pinned)

    def test_from_the_address(self, pinned: Path, tmp_path: Path) -> None:
        fashion_mnist.bring(tmp_path / "out", debian_folder=tmp_path / "none", address=pinned.as_uri())
        assert self.files(tmp_path / "out") == self.files(pinned)

    def test_changed_files_are_refused(self, pinned: Path, tmp_path: Path) -> None:
        path = pinned / "train-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(b"other"))
        with pytest.raises(DataError, match=r"sha256 is .*, not .*; it was changed or damaged"):
            fashion_mnist.bring(tmp_path / "out", debian_folder=pinned)
        assert not (tmp_path / "out" / path.name).exists()

    def test_no_network(self, pinned: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot be fetched .* install Debian's package dataset-fashion-mnist"):
            fashion_mnist.bring(tmp_path / "out", debian_folder=tmp_path, address=(tmp_path / "none").as_uri())
