"""One input never ends the work, and values keep their range."""

import io
import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards import writing
from data_pipeline.make_shards.images import ImageOptions, to_mode
from data_pipeline.make_shards.sources import folder as folder_module
from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.storage.folder import Folder
from tests.support.lying_data import (
    encoded,
    fill,
    picture,
    run,
    said,
)

FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpg": lambda image: encoded(image, exif=_exif()),
    "jpeg": lambda image: encoded(image, progressive=True, quality=60),
    "png": lambda image: encoded(image, "PNG"),
    "gif": lambda image: encoded(image.convert("P"), "GIF"),
    "bmp": lambda image: encoded(image, "BMP"),
    "webp": lambda image: encoded(image, "WEBP"),
    "tif": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "tiff": lambda image: encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8), "TIFF"),
    "ppm": lambda image: encoded(image, "PPM"),
    "pgm": lambda image: encoded(image.convert("L"), "PPM"),
    "avif": lambda image: encoded(image, "AVIF"),
    "jfif": lambda image: encoded(image.convert("CMYK")),
}


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0131] = 6, "a maker", "a program"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    return exif.tobytes()


def mutated(data: bytes, chance: np.random.Generator) -> bytes:
    """Some bytes changed, most often in the headers; or cut, or with a part twice."""
    broken = bytearray(data)
    for _ in range(int(chance.integers(1, 9))):
        reach = len(broken) if chance.random() < 0.3 else min(len(broken), 300)
        broken[int(chance.integers(reach))] = int(chance.integers(256))
    if chance.random() < 0.2:
        del broken[int(chance.integers(len(broken))) :]
    if chance.random() < 0.1:
        begin = int(chance.integers(len(broken) + 1))
        broken[begin:begin] = broken[: int(chance.integers(64))]
    return bytes(broken)


def fuzz(folder: Path, count: int) -> Manifest:
    """Make shards of `count` mutated files and as many good ones, and say what became of them."""
    chance = np.random.default_rng(8)
    for name in ("good", "odd"):
        (folder / "in" / name).mkdir(parents=True)
    for k in range(count):
        extension, encode = list(FORMATS.items())[k % len(FORMATS)]
        data = encode(picture(k % 40))
        (folder / "in" / "good" / f"{k}.{extension}").write_bytes(data)
        (folder / "in" / "odd" / f"{k}.{extension}").write_bytes(mutated(data, chance))
    options = ("--size", 8, "--encoding", "png", "--max-unreadable", 1)
    assert run("folder", folder / "in", folder / "out", *options) == 0
    return load_manifest(str(folder / "out"))


def check_fuzzed(manifest: Manifest, count: int) -> None:
    assert manifest.classes[0].samples == count
    unreadable = manifest.report["unreadable"]
    assert manifest.classes[1].samples + len(unreadable) == count
    assert len(unreadable) > count // 10
    assert all(re.fullmatch(r"odd/\d+\.\w+", name) and why.strip() and "\n" not in why for name, why in unreadable)


class TestOneInputNeverEndsTheWork:
    @pytest.mark.filterwarnings("ignore")
    def test_mutated_files_of_twelve_formats(self, tmp_path: Path) -> None:
        check_fuzzed(fuzz(tmp_path, 480), 480)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_data_proof_fuzz(self, tmp_path: Path) -> None:
        manifest = fuzz(tmp_path, 5000)
        check_fuzzed(manifest, 5000)
        print(
            f"PROOF data-fuzz: PASS files=5000 formats=12 unreadable={len(manifest.report['unreadable'])} tracebacks=0"
        )

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_with_exif_that_cannot_be_written_again(self, orientation: int) -> None:
        """A rational of -1/0, which Pillow reads and cannot write: the pixels are turned all the same."""
        image = picture(orientation, 20, 12)
        exif = Image.Exif()
        exif[0x0112], exif[0x829A] = orientation, 0.5
        data = exif.tobytes().replace(struct.pack("<II", 1, 2), struct.pack("<ii", -1, 0))
        data = data.replace(struct.pack(">II", 1, 2), struct.pack(">ii", -1, 0))
        opened = Image.open(io.BytesIO(encoded(image, "PNG", exif=data)))
        plain = Image.open(io.BytesIO(encoded(image, "PNG", exif=_only(orientation))))
        from PIL import ImageOps

        expected = np.asarray(ImageOps.exif_transpose(plain))
        assert (np.asarray(to_mode(opened, 3)) == expected).all()

    def test_whatever_a_decoder_raises(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        errors = [
            struct.error("odd"),
            TypeError("odd"),
            RuntimeError("odd"),
            AttributeError(),
            MemoryError(),
            KeyError(7),
        ]
        source = fill(tmp_path / "in", each=10)
        opened = folder_module.open_image
        left = list(errors)

        def fail(data: bytes) -> Image.Image:
            if left:
                raise left.pop()
            return opened(data)

        monkeypatch.setattr(folder_module, "open_image", fail)
        assert run("folder", source, tmp_path / "out", "--max-unreadable", 0.5) == 0
        reasons = [why for _, why in load_manifest(str(tmp_path / "out")).report["unreadable"]]
        assert sorted(reasons) == ["7", "AttributeError", "MemoryError", "odd", "odd", "odd"]

    def test_a_file_that_is_gone_or_leads_nowhere(self, tmp_path: Path) -> None:
        source = fill(tmp_path / "in", each=10)
        (source / "ant" / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
        (source / "ant" / "folder.jpg").mkdir()
        (source / "ant" / "folder.jpg" / ".hidden").touch()
        assert run("folder", source, tmp_path / "out", "--max-unreadable", 0.1) == 0
        assert load_manifest(str(tmp_path / "out")).report["unreadable"] == [["ant/link.jpg", "there is no such file"]]

    def test_a_worker_that_dies(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in", each=4)
        samples = _Deadly(tmp_path / "in")
        with pytest.raises(
            DataError, match=r"^--jobs: a worker process died, .* run the same command again with fewer"
        ):
            writing.make_shards(
                samples, Folder(tmp_path / "out"), description="x", where=source, samples_per_shard=2, jobs=2
            )
        assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".menagerie")]


def _only(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


class _Deadly:
    """Samples whose encoding kills the process."""

    extension = "png"

    def __init__(self, folder: Path) -> None:
        from data_pipeline.make_shards.images import ImageSamples
        from data_pipeline.make_shards.sources.folder import FolderSource

        self.samples = ImageSamples(FolderSource(Folder(folder)), ImageOptions(size=8))
        self.content = self.samples.content
        self.listing, self.describe = self.samples.listing, self.samples.describe

    def encode(self, item: object) -> tuple[bytes, str]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def _tiff(values: np.ndarray, **tags: Any) -> bytes:
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=tags.get("tiffinfo", {}))


def _unsigned(tiff: bytes) -> bytes:
    """A little-endian TIFF whose tag SampleFormat says 1, unsigned, instead of 2."""
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, value, 0) for value in (2, 1))
    assert tiff.count(signed) == 1
    return tiff.replace(signed, unsigned)


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


class TestValuesKeepTheirRange:
    def grey(self, data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        image.load()
        return np.asarray(to_mode(image, 1)).astype(int)

    @pytest.mark.parametrize(
        "data",
        [
            encoded(Image.fromarray((RAMP * 255).round().astype(np.uint8)), "PNG"),
            encoded(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "PNG"),
            _tiff((RAMP * 65535).round().astype(np.uint16)),
            b"P5\n8 8\n65535\n" + (RAMP * 65535).round().astype(">u2").tobytes(),
            b"P5\n8 8\n1023\n" + (RAMP * 1023).round().astype(">u2").tobytes(),
            b"P5\n8 8\n100\n" + (RAMP * 100).round().astype(np.uint8).tobytes(),
            b"P6\n8 8\n65535\n" + np.repeat((RAMP * 65535).round().astype(">u2")[..., None], 3, 2).tobytes(),
            encoded(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "JPEG2000", irreversible=False),
        ],
        ids=["8 bits", "PNG 16", "TIFF 16", "PGM 16", "PGM 10", "PGM 100", "PPM 16", "JPEG2000 16"],
    )
    def test_black_stays_black_and_white_white(self, data: bytes) -> None:
        assert np.abs(self.grey(data) - RAMP * 255).max() < 2.6

    @pytest.mark.parametrize(
        "data",
        [
            _tiff(RAMP.astype(np.float32)),
            _tiff((RAMP * 65535).astype(np.int32)),
            _tiff((RAMP * 2**31 - 1).astype(np.int32)),
            _unsigned(_tiff((RAMP * 65535).astype(np.int32))),
            b"Pf\n8 8\n-1.0\n" + RAMP.astype("<f4").tobytes(),
        ],
        ids=["TIFF float", "TIFF int32", "TIFF large int32", "TIFF uint32", "PFM"],
    )
    def test_what_cannot_be_known_is_refused(self, tmp_path: Path, data: bytes) -> None:
        source = fill(tmp_path / "in", each=10)
        (source / "ant" / "odd.tif").write_bytes(data)
        assert run("folder", source, tmp_path / "out", "--max-unreadable", 0.1) == 0
        ((name, why),) = load_manifest(str(tmp_path / "out")).report["unreadable"]
        assert name == "ant/odd.tif"
        assert "of an unknown range; convert it to 8 or 16 unsigned bits" in why

    def test_it_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        for k in range(2):
            deep = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
            (source / "ant" / f"deep{k}.png").write_bytes(encoded(deep, "PNG"))
        assert run("folder", source, tmp_path / "out") == 0
        assert load_manifest(str(tmp_path / "out")).report["notes"] == {"16-bit greys scaled to 8": 2}
        assert ", 2 with 16-bit greys scaled to 8;" in said(capsys)
