"""The sources: what they read, what they refuse, and odd files as they are found in real data sets."""

import gzip
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import ImageOptions, open_image, prepare
from data_pipeline.make_shards.sources.cifar import load_plain
from data_pipeline.make_shards.sources.imagenet import readable_names
from data_pipeline.manifest.content import decode_image
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig, open_stream
from tests.support.lying_data import encoded, fill, picture, run, tar_bytes


def everything(folder: Path) -> dict[int, list[bytes]]:
    """Label -> the images' pixels, read through the stream."""
    samples = load_manifest(str(folder)).samples
    found: dict[int, list[bytes]] = {}
    with open_stream(DataConfig(shards=str(folder)), seed=0, replicas=1, held=[0], sizes=[samples]) as stream:
        batch = next(stream)
        for image, label in zip(batch.images[0], batch.labels[0].tolist(), strict=True):
            found.setdefault(label, []).append(image.numpy().tobytes())
    return {label: sorted(images) for label, images in sorted(found.items())}


class TestFolder:
    def test_classes_pixels_and_other_files(self, tmp_path: Path) -> None:
        source = fill(tmp_path / "in", "b", "a", "C", each=4)
        (source / "a" / "notes.txt").write_text("no image")
        (source / "a" / ".DS_Store").write_text("hidden")
        names = tmp_path / "names.txt"
        names.write_text("a apple, fruit\nb bear\nC Cello\nd unused\n")
        out = tmp_path / "out"
        assert run("folder", source, out, "--class-names", names) == 1  # INPUT has fewer classes
        assert run("folder", source, out, "--size", 16, "--encoding", "png", "--class-names", names, "--subset") == 0
        manifest = load_manifest(str(out))
        assert [(entry.name, entry.id, entry.samples) for entry in manifest.classes] == [
            ("Cello", "C", 4),
            ("apple, fruit", "a", 4),
            ("bear", "b", 4),
        ]
        assert manifest.report["other_files"] == 1
        options = ImageOptions(size=16)
        expected = [
            sorted(prepare(Image.open(path), options).tobytes() for path in (source / name).glob("*.jpg"))
            for name in ("C", "a", "b")
        ]
        assert list(everything(out).values()) == expected

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda f: fill(f / "train", "cat", "dog", each=4),
                "deeper than the sub-folder of a class .*; give .*in/train as INPUT, which has 2 classes",
            ),
            (lambda f: fill(f, "only", each=4), "belong to one class"),
            (
                lambda f: (fill(f, "cat", "dog", each=4), (f / "x.png").write_bytes(encoded(picture(1), "PNG"))),
                "1 images are in .* itself",
            ),
            (
                lambda f: fill(f, "cat", "dog", each=4) and fill(f / "cat" / "deeper", "cat", "dog", each=4),
                "deeper than the sub-folder of a class .*move them",
            ),
            (
                lambda f: (fill(f, "cat", "dog", each=4), (f / "empty").mkdir(), (f / "empty" / "x.txt").touch()),
                "empty of .* no images",
            ),
            (lambda f: f.mkdir(), "holds no images"),
            (lambda f: f.touch(), "is not a folder"),
        ],
    )
    def test_refusals(
        self, tmp_path: Path, make: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make(tmp_path / "in")
        assert run("folder", tmp_path / "in", tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert said.startswith("INPUT: ")
        assert said.count("\n") == 1
        assert re.search(message, said), said
        assert not (tmp_path / "out").exists()

    def test_odd_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """As in the real ImageNet: CMYK, a PNG named .JPEG, EXIF rotation, 16 bits, alpha, a palette, one pixel,
        broken ones."""
        source = fill(tmp_path / "in", "cat", "dog", each=1)
        odd = source / "cat"
        turned = Image.Exif()
        turned[0x0112] = 6
        good = {
            "cmyk.JPEG": encoded(picture(1, mode="CMYK")),
            "png.JPEG": encoded(picture(2), "PNG"),
            "turned.jpg": encoded(picture(3, 60, 30), exif=turned.tobytes()),
            "grey.jpg": encoded(picture(4, mode="L")),
            "deep.png": encoded(Image.fromarray((np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)), "PNG"),
            "alpha.png": encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG"),
            "palette.gif": encoded(picture(5, mode="P"), "GIF"),
            "pixel.png": encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"),
        }
        twelve_bits = bytearray(encoded(picture(6)))
        frame = twelve_bits.index(b"\xff\xc0")
        twelve_bits[frame + 1], twelve_bits[frame + 4] = 0xC1, 12
        bad = {
            "truncated.jpg": encoded(picture(7, 40, 30))[:-200],
            "twelve.jpg": bytes(twelve_bits),
            "text.jpg": b"<html>404</html>",
            "empty.jpg": b"",
        }
        for name, data in {**good, **bad}.items():
            (odd / name).write_bytes(data)
        out = tmp_path / "out"
        assert run("folder", source, out, "--size", 20, "--encoding", "png") == 1
        assert "4 images cannot be read (the first: cat/" in capsys.readouterr().err
        assert run("folder", source, out, "--size", 20, "--encoding", "png", "--max-unreadable", 0.5) == 0
        report = load_manifest(str(out)).report
        assert sorted(name for name, _ in report["unreadable"]) == sorted(f"cat/{name}" for name in bad)
        reasons = dict(report["unreadable"])
        assert reasons["cat/text.jpg"] == "not an image of a known format"
        assert "truncated" in reasons["cat/truncated.jpg"]
        assert report["written"] == len(good) + 2
        images = everything(out)[0]
        white, pixel = bytes([255] * 1200), bytes([9, 8, 7] * 400)
        assert white in images
        assert pixel in images
        upright = prepare(picture(3, 60, 30).rotate(-90, expand=True), ImageOptions(size=20)).astype(int)
        nearest = min(np.abs(np.frombuffer(image, np.uint8).reshape(20, 20, 3) - upright).mean() for image in images)
        assert nearest < 4  # JPEG's loss

    def test_minimum_side(self, tmp_path: Path) -> None:
        source = fill(tmp_path / "in", "cat", "dog", each=4)
        (source / "dog" / "large.jpg").write_bytes(encoded(picture(5, 64, 50)))
        (source / "cat" / "large.jpg").write_bytes(encoded(picture(6, 50, 64)))
        assert run("folder", source, tmp_path / "out", "--minimum-side", 50, "--size", 32) == 0
        report = load_manifest(str(tmp_path / "out")).report
        assert (report["too_small"], report["written"]) == (8, 2)

    def test_same_bytes_when_the_folder_moves(self, tmp_path: Path) -> None:
        for place in ("a", "b/c"):
            assert run("folder", fill(tmp_path / place, "cat", "dog", each=4), tmp_path / f"out-{place[0]}") == 0
        assert (tmp_path / "out-a" / "manifest.json").read_bytes() == (
            tmp_path / "out-b" / "manifest.json"
        ).read_bytes()


class TestImageNet:
    IDS = ("n02099601", "n01440764", "n15075141")

    @pytest.fixture
    def synsets(self) -> dict[str, dict[str, bytes]]:
        return {
            key: {f"{key}_{k}.JPEG": encoded(picture(10 * number + k)) for k in range(3)}
            for number, key in enumerate(self.IDS)
        }

    def test_all_forms_are_the_same(self, tmp_path: Path, synsets: dict[str, dict[str, bytes]]) -> None:
        inner = {f"{key}.tar": tar_bytes(files.items()) for key, files in synsets.items()}
        (tmp_path / "tar").mkdir()
        (tmp_path / "tar" / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner.items()))
        (tmp_path / "inner").mkdir()
        for name, data in inner.items():
            (tmp_path / "inner" / name).write_bytes(data)
        for key, files in synsets.items():
            (tmp_path / "unpacked" / key).mkdir(parents=True)
            for name, data in files.items():
                (tmp_path / "unpacked" / key / name).write_bytes(data)
        contents = []
        for number, form in enumerate(("tar/ILSVRC2012_img_train.tar", "tar", "inner", "unpacked")):
            assert run("imagenet", tmp_path / form, tmp_path / f"out{number}", "--size", 16) == 1  # 3 of 1000 classes
            assert run("imagenet", tmp_path / form, tmp_path / f"out{number}", "--size", 16, "--subset") == 0
            manifest = load_manifest(str(tmp_path / f"out{number}"))
            assert [entry.id for entry in manifest.classes] == sorted(self.IDS)
            contents.append((everything(tmp_path / f"out{number}"), manifest.report["written"]))
        assert all(content == contents[0] for content in contents)
        assert contents[0][1] == 9

    def test_standard_numbers_and_names(self) -> None:
        """1000 ids with the known ones at their places get torchvision's names; any other list none."""
        ids = [f"n{11_000_000 + k:08d}" for k in range(1000)]
        assert readable_names(ids) is None
        known = {0: "n01440764", 1: "n01443537", 207: "n02099601", 281: "n02123045", 340: "n02391049"}
        known |= {388: "n02510455", 999: "n15075141"}
        for place, key in known.items():
            ids[place] = key
        names = readable_names(ids)
        assert names is not None
        assert (names[ids[0]], names[ids[207]], names[ids[999]]) == ("tench", "golden retriever", "toilet tissue")
        assert readable_names(ids[:-1]) is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data[:-3000], "not a whole uncompressed tar|so the tar is cut"),
            (lambda data: tar_bytes([("val.txt", b"x")]), "holds val.txt, which is not the tar of a WordNet id"),
        ],
    )
    def test_refusals(
        self,
        tmp_path: Path,
        synsets: dict[str, dict[str, bytes]],
        change: Callable[[bytes], bytes],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        whole = tar_bytes((f"{key}.tar", tar_bytes(files.items())) for key, files in synsets.items()).rstrip(b"\0")
        (tmp_path / "x.tar").write_bytes(change(whole))
        assert run("imagenet", tmp_path / "x.tar", tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert re.search(message, said), said
        fill(tmp_path / "folders", "cat", "dog", each=4)
        assert run("imagenet", tmp_path / "folders", tmp_path / "out") == 1
        assert "cat of" in capsys.readouterr().err


class TestCifar:
    IMAGES = np.random.default_rng(3).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)

    def check(self, out: Path, classes: int) -> None:
        expected: dict[int, list[bytes]] = {}
        for number, image in enumerate(self.IMAGES):
            expected.setdefault(number % 2, []).append(image.transpose(1, 2, 0).tobytes())
        manifest = load_manifest(str(out))
        assert (manifest.channels, manifest.resolution, len(manifest.classes)) == (3, 32, classes)
        assert everything(out) == {label: sorted(images) for label, images in expected.items()}

    def test_binary(self, tmp_path: Path) -> None:
        rows = [bytes([k % 2]) + image.tobytes() for k, image in enumerate(self.IMAGES)]
        files = {f"cifar-10-batches-bin/data_batch_{k + 1}.bin": b"".join(rows[4 * k : 4 * k + 4]) for k in range(5)}
        files["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\nautomobile\n\n"
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar_bytes(files.items())))
        assert run("cifar", tmp_path / "cifar-10-binary.tar.gz", tmp_path / "out") == 0
        self.check(tmp_path / "out", 2)
        assert load_manifest(str(tmp_path / "out")).class_names == ("airplane", "automobile")
        assert run("cifar", tmp_path, tmp_path / "out2") == 0
        assert (tmp_path / "out2" / "manifest.json").read_bytes() == (tmp_path / "out" / "manifest.json").read_bytes()

    def test_cifar100_pickles(self, tmp_path: Path) -> None:
        """The real files are pickles of protocol 2, made by Python 2; numpy's arrays are taken apart, not unpickled."""
        train = {
            "data": self.IMAGES.reshape(20, -1),
            "fine_labels": [k % 2 for k in range(20)],
            "coarse_labels": [0] * 20,
        }
        (tmp_path / "train").write_bytes(pickle.dumps(train, protocol=2))
        (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bee"]}, protocol=2))
        assert run("cifar", tmp_path, tmp_path / "out") == 0
        self.check(tmp_path / "out", 2)

    def test_a_pickle_that_would_run_something(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (tmp_path / "ran",)

        with pytest.raises(DataError, match=r"x is not a published CIFAR file \(it asks for"):
            load_plain(pickle.dumps({"data": Evil()}), "x")
        assert not (tmp_path / "ran").exists()

    def test_labels_out_of_range(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = b"".join(bytes([0, k]) + image.tobytes() for k, image in enumerate(self.IMAGES))
        (tmp_path / "train.bin").write_bytes(rows)
        (tmp_path / "fine_label_names.txt").write_text("apple\nbee\n")
        assert run("cifar", tmp_path, tmp_path / "out") == 1
        assert "do not fit together" in capsys.readouterr().err


class TestForeignShards:
    def write(self, folder: Path, size: int = 16, labels: int = 3, style: str = "cls") -> Path:
        folder.mkdir()
        for shard in range(2):
            files = {}
            for k in range(6):
                name = f"{'long/' * 30}{shard}-{k}"
                files[f"{name}.jpg"] = encoded(picture(10 * shard + k, size, size))
                label = (k + shard) % labels
                if style == "cls":
                    files[f"{name}.cls"] = str(label).encode()
                else:
                    files[f"{name}.json"] = json.dumps({"label": label, "caption": "x"}).encode()
                files[f"{name}.txt"] = b"a caption"
            (folder / f"part-{shard}.tar").write_bytes(tar_bytes(files.items()))
        return folder

    @pytest.mark.parametrize("style", ["cls", "json"])
    def test_indexed_in_place(self, tmp_path: Path, style: str) -> None:
        from data_pipeline.manifest import __main__ as inspection

        source = self.write(tmp_path / "in", style=style)
        before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in source.iterdir()}
        assert run("shards", source, tmp_path / "out") == 0
        assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in source.iterdir()} == before
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "manifest.json",
            "part-0.idx",
            "part-1.idx",
        ]
        manifest = load_manifest(str(tmp_path / "out"))
        assert (manifest.base, manifest.resolution, [c.samples for c in manifest.classes]) == (
            str(source),
            16,
            [4, 4, 4],
        )
        assert inspection.main(["verify", str(tmp_path / "out")]) == 0
        images = everything(tmp_path / "out")
        expected = np.empty((16, 16, 3), np.uint8)
        decode_image(memoryview(encoded(picture(0, 16, 16))), expected)
        assert expected.tobytes() in images[0]
        assert run("shards", source, source) == 0
        assert load_manifest(str(source)).base == ""
        assert everything(source) == images

    def test_refusals(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = self.write(tmp_path / "in")
        (source / "part-2.tar").write_bytes(tar_bytes({"a.jpg": encoded(picture(1, 20, 20)), "a.cls": b"1"}.items()))
        assert run("shards", source, tmp_path / "out") == 1
        assert "are not of one size: " in capsys.readouterr().err
        (source / "part-2.tar").write_bytes(tar_bytes({"a.jpg": encoded(picture(1, 16, 16)), "a.cls": b"7"}.items()))
        assert run("shards", source, tmp_path / "out") == 1
        assert "labels up to 7 but none is 3" in capsys.readouterr().err
        names = tmp_path / "names"
        names.write_text("a A\nb B\nc C\n")
        assert run("shards", source, tmp_path / "out", "--class-names", names) == 1
        assert "the label 7, outside 0..2" in capsys.readouterr().err
        (source / "part-2.tar").write_bytes(tar_bytes({"a.jpg": encoded(picture(1, 16, 16))}.items()))
        assert run("shards", source, tmp_path / "out") == 1
        assert "sample a has no .cls file" in capsys.readouterr().err
        (source / "part-2.tar").write_bytes((source / "part-1.tar").read_bytes()[:5000])
        assert run("shards", source, tmp_path / "out") == 1
        assert "part-2.tar" in capsys.readouterr().err
        assert run("shards", self.write(tmp_path / "one", labels=1), tmp_path / "out") == 1
        assert "belong to one class" in capsys.readouterr().err
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_fast_decoding_gives_pillows_pixels() -> None:
    for seed, options in enumerate(({"quality": 95, "subsampling": 0}, {"quality": 75}, {"progressive": True})):
        data = encoded(picture(seed, 91, 67), **options)
        assert (np.asarray(open_image(data)) == np.asarray(Image.open(io.BytesIO(data)))).all()


def test_fits() -> None:
    image = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3))
    crop = prepare(image, ImageOptions(size=4, fit="crop"))
    assert (crop == np.asarray(image)[:, 1:5]).all()
    pad = prepare(image, ImageOptions(size=8, fit="pad"))
    assert (pad[2:6, 1:7] == np.asarray(image)).all()
    assert pad.sum() == np.asarray(image).sum()
    assert prepare(image, ImageOptions(size=3, fit="stretch")).shape == (3, 3, 3)
    assert prepare(image, ImageOptions(size=3, fit="pad", channels=1)).shape == (3, 3, 1)
