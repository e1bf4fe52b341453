"""A sample's fields: vectors with and without classes, images without classes, images that are not square."""

import hashlib
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards.images import ImageOptions, prepare
from data_pipeline.make_shards.vectors import write_vectors
from data_pipeline.manifest import __main__ as inspection
from data_pipeline.manifest.content import decode_vector, npy_header
from data_pipeline.manifest.format import (
    ClassInfo,
    ImageField,
    Manifest,
    ShardInfo,
    VectorField,
    load_manifest,
    parse_manifest,
)
from data_pipeline.reading.batches import Batch
from data_pipeline.reading.stream import DataConfig, open_stream

VECTORS = np.random.default_rng(0).normal(size=(130, 5)).astype(np.float32)
CLASSES = np.arange(130) % 3
NAMES = ("red", "green", "blue")


def run(*arguments: object) -> int:
    return make_shards.main([*(str(argument) for argument in arguments), "--jobs", "1"])


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def read_epoch(folder: Path, **settings: object) -> Batch:
    """One epoch as one batch; its memory stays valid."""
    config = DataConfig(shards=str(folder), **settings)  # type: ignore[arg-type]
    samples = load_manifest(str(folder)).samples
    with open_stream(config, seed=1, replicas=1, held=[0], sizes=[samples]) as stream:
        return next(stream)


class TestVectors:
    def test_every_vector_comes_with_its_class(self, tmp_path: Path) -> None:
        manifest = write_vectors(tmp_path, VECTORS, CLASSES, NAMES, samples_per_shard=30)
        assert (manifest.content, manifest.fields) == (VectorField(5), ("vector", "class"))
        assert (manifest.samples, len(manifest.shards), manifest.vector_length) == (130, 5, 5)
        assert [tuple(entry) for entry in manifest.classes] == [("red", "0", 44), ("green", "1", 43), ("blue", "2", 43)]
        batch = read_epoch(tmp_path)
        assert batch.vectors.dtype == torch.float32
        assert set(batch.fields) == {"vector", "class"}
        assert batch.vectors.shape == (1, 130, 5)
        found = {
            row.tobytes(): label for row, label in zip(batch.vectors[0].numpy(), batch.labels[0].tolist(), strict=True)
        }
        assert found == {row.tobytes(): label for row, label in zip(VECTORS, CLASSES.tolist(), strict=True)}

    def test_without_classes(self, tmp_path: Path) -> None:
        manifest = write_vectors(tmp_path, VECTORS)
        assert (manifest.classes, manifest.labelled, manifest.fields) == ((), False, ("vector",))
        assert manifest.samples == 130
        batch = read_epoch(tmp_path)
        assert sorted(row.tobytes() for row in batch.vectors[0].numpy()) == sorted(row.tobytes() for row in VECTORS)
        with pytest.raises(DataError, match=r"^data\.shards: its samples have no field `class`, only vector"):
            _ = batch.labels
        with pytest.raises(DataError, match=r"^data\.shards: its samples have no field `image`"):
            _ = batch.images
        with pytest.raises(DataError, match=r"^data\.classes: the samples of these shards have no class"):
            read_epoch(tmp_path, classes=(0,))

    def test_sizes_change_and_replicas_share(self, tmp_path: Path) -> None:
        write_vectors(tmp_path, VECTORS, CLASSES, samples_per_shard=17)
        config = DataConfig(shards=str(tmp_path), decode_threads=3, shuffle_window=40)
        rows = []
        with open_stream(config, seed=1, replicas=2, held=[0, 1], sizes=[8, 8, 4, 4, 16, 25]) as stream:
            for batch in stream:
                rows += [row.tobytes() for row in batch.vectors.numpy().reshape(-1, 5)]
        assert sorted(rows) == sorted(row.tobytes() for row in VECTORS)

    def test_the_bytes_depend_on_the_arguments_alone(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_vectors(tmp_path / name, VECTORS.copy(), CLASSES.tolist(), NAMES, samples_per_shard=30)
        assert digests(tmp_path / "a") == digests(tmp_path / "b")
        small = write_vectors(tmp_path / "c", np.arange(6, dtype=np.float32).reshape(2, 3))
        assert (
            small.fingerprint == "c68a9b882c614f3423f928b2cbb517f8452c571063cdf5e34ecf501cfc297ad1"
        )  # covers the shards' sha256

    def test_webdataset_reads_them(self, tmp_path: Path) -> None:
        manifest = write_vectors(tmp_path, VECTORS, CLASSES, samples_per_shard=50)
        tars = [str(tmp_path / shard.name) for shard in manifest.shards]
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
        assert len(samples) == 130
        for sample in samples:
            row = int(sample["__key__"].rsplit("/", 1)[-1])
            assert sample["npy"].dtype == np.float32
            assert (sample["npy"] == VECTORS[row]).all()
            assert sample["cls"] == CLASSES[row]
        assert [int(sample["__key__"]) for sample in samples[:20]] != sorted(int(s["__key__"]) for s in samples[:20])

    def test_show_and_verify(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_vectors(tmp_path, VECTORS, samples_per_shard=50)
        assert inspection.main(["show", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert "130 samples without classes, vectors of 5 numbers" in text
        assert "classes (number" not in text
        assert inspection.main(["verify", str(tmp_path)]) == 0
        path = tmp_path / "shard-00001.tar"
        data = bytearray(path.read_bytes())
        data[512 + 130] ^= 1  # in the first vector's numbers
        path.write_bytes(data)
        capsys.readouterr()
        assert inspection.main(["verify", str(tmp_path)]) == 1
        assert "shard-00001.tar: its sha256 is not the manifest's (wrong samples: 0)" in capsys.readouterr().err
        with pytest.raises(DataError, match=r"shard-00001\.tar: sample 0 .* has a wrong CRC32"):
            read_epoch(tmp_path)

    def test_the_same_again_is_kept_and_others_are_refused(self, tmp_path: Path) -> None:
        first = write_vectors(tmp_path, VECTORS)
        assert write_vectors(tmp_path, VECTORS).fingerprint == first.fingerprint
        with pytest.raises(DataError, match=r"^OUTPUT: .* holds shards of another input"):
            write_vectors(tmp_path, VECTORS + 1)
        assert write_vectors(tmp_path, VECTORS + 1, overwrite=True).fingerprint != first.fingerprint

    @pytest.mark.parametrize(
        ("vectors", "classes", "names", "message"),
        [
            (VECTORS.astype(np.float64), None, (), r"^vectors: is float64 of the shape \[130, 5\]"),
            (VECTORS[0], None, (), r"^vectors: is float32 of the shape \[5\]"),
            (VECTORS[:0], None, (), r"^vectors: is float32 of the shape \[0, 5\]"),
            (np.where(np.arange(130)[:, None] == 7, np.nan, VECTORS), None, (), r"^vectors: row 7 holds a number that"),
            (VECTORS, CLASSES[:5], (), r"^classes: is int64 of the shape \[5\]"),
            (VECTORS, CLASSES * 1.0, (), r"^classes: is float64"),
            (VECTORS, CLASSES - 1, (), r"^classes: holds -1, outside 0\.\.1"),
            (VECTORS, CLASSES, NAMES[:2], r"^classes: holds 2, outside 0\.\.1"),
            (VECTORS, CLASSES, (*NAMES, "violet"), r"^classes: no vector has the class 'violet'"),
            (VECTORS, CLASSES * 0, (), r"^classes: all vectors have one class"),
            (VECTORS, None, NAMES, r"^class_names: names classes, but `classes` is not given"),
        ],
    )
    def test_refusals(self, tmp_path: Path, vectors: np.ndarray, classes: object, names: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            write_vectors(tmp_path, vectors, classes, names)  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())

    def test_other_writers_headers_are_read(self) -> None:
        out = np.empty(5, np.float32)
        assert npy_header(5) == _npy(VECTORS[0])[:-20]
        for version in ((1, 0), (2, 0)):
            decode_vector(_npy(VECTORS[3], version), out)
            assert (out == VECTORS[3]).all()
            out[...] = 0
        for wrong in (VECTORS[0].astype(np.float64), VECTORS[0, :4], VECTORS[:1]):
            with pytest.raises(ValueError, match="the manifest says float32 of the shape"):
                decode_vector(_npy(wrong), out)
        with pytest.raises(ValueError, match="magic string"):
            decode_vector(b"no array", out)


def _npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve images of two classes, 20 pixels wide and 12 high."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(6):
            noise(10 * number + k, 20, 12).save(tmp_path / "in" / name / f"{k}.png")
    return tmp_path / "in"


class TestImages:
    def test_height_and_width_differ(self, pictures: Path, tmp_path: Path) -> None:
        assert run("folder", pictures, tmp_path / "out", "--size", "20x12", "--encoding", "png") == 0
        manifest = load_manifest(str(tmp_path / "out"))
        assert (manifest.height, manifest.width, manifest.channels) == (12, 20, 3)
        document = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
        assert (document["version"], document["fields"]) == (2, {"image": {"height": 12, "width": 20, "channels": 3}})
        assert "resolution" not in document
        with pytest.raises(DataError, match=r"^data\.shards: holds images of 20x12 pixels, where squares are needed"):
            _ = manifest.resolution
        batch = read_epoch(tmp_path / "out")
        assert batch.images.shape == (1, 12, 12, 20, 3)
        expected = {np.asarray(noise(10 * label + k, 20, 12)).tobytes(): label for label in range(2) for k in range(6)}
        assert {i.numpy().tobytes(): int(c) for i, c in zip(batch.images[0], batch.labels[0], strict=True)} == expected

    def test_one_number_twice_is_that_number(self, pictures: Path, tmp_path: Path) -> None:
        for name, size in (("a", "16"), ("b", "16x16")):
            assert run("folder", pictures, tmp_path / name, "--size", size) == 0
        assert digests(tmp_path / "a") == digests(tmp_path / "b")

    @pytest.mark.parametrize("size", ["0", "8x", "8x0", "8x8x8", "-4", "a"])
    def test_sizes_that_are_none(self, pictures: Path, tmp_path: Path, size: str) -> None:
        with pytest.raises(SystemExit):
            run("folder", pictures, tmp_path / "out", "--size", size)

    def test_fits(self) -> None:
        image = noise(1, 40, 12)
        crop = prepare(image, ImageOptions(size=(20, 12)))
        assert (crop == np.asarray(image)[:, 10:30]).all()
        tall = prepare(image.transpose(Image.Transpose.ROTATE_90), ImageOptions(size=(12, 20)))
        assert tall.shape == (20, 12, 3)
        assert (tall == np.asarray(image.transpose(Image.Transpose.ROTATE_90))[10:30]).all()
        pad = prepare(image, ImageOptions(size=(50, 16), fit="pad"))
        assert (pad[2:14, 5:45] == np.asarray(image)).all()
        assert pad.sum(dtype=np.int64) == np.asarray(image).sum(dtype=np.int64)
        assert prepare(image, ImageOptions(size=(7, 9), fit="stretch")).shape == (9, 7, 3)

    def test_unlabelled_folder_of_any_depth(self, pictures: Path, tmp_path: Path) -> None:
        (pictures / "cat" / "deeper").mkdir()
        noise(50, 20, 12).save(pictures / "cat" / "deeper" / "x.png")
        noise(51, 20, 12).save(pictures / "y.png")
        out = tmp_path / "out"
        assert run("folder", pictures, out, "--unlabelled", "--size", "20x12", "--encoding", "png") == 0
        manifest = load_manifest(str(out))
        assert (manifest.samples, manifest.classes, manifest.fields) == (14, (), ("image",))
        batch = read_epoch(out)
        assert set(batch.fields) == {"image"}
        seeds = [*range(6), *range(10, 16), 50, 51]
        expected = sorted(np.asarray(noise(seed, 20, 12)).tobytes() for seed in seeds)
        assert sorted(image.numpy().tobytes() for image in batch.images[0]) == expected
        with tarfile.open(out / "shard-00000.tar") as tar:
            assert {name.split(".")[-1] for name in tar.getnames()} == {"png"}
        assert inspection.main(["verify", str(out)]) == 0

    def test_squares_without_classes_are_version_2(self, idx_folder: Path, tmp_path: Path) -> None:
        assert run("idx", idx_folder, tmp_path, "--unlabelled", "--size", 8) == 0
        document = json.loads((tmp_path / "manifest.json").read_bytes())
        assert (document["version"], document["classes"], document["samples"]) == (2, [], 300)
        assert load_manifest(str(tmp_path)).resolution == 8

    def test_foreign_tars_without_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "in").mkdir()
        with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
            for k in range(4):
                buffer = io.BytesIO()
                noise(k, 20, 12).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{k}.png")
                member.size = len(buffer.getvalue())
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
        assert run("shards", tmp_path / "in", tmp_path / "out") == 1
        assert "the sample 0 has no .cls file and no class number in a .json file" in capsys.readouterr().err
        assert run("shards", tmp_path / "in", tmp_path / "out", "--unlabelled") == 0
        batch = read_epoch(tmp_path / "out")
        expected = sorted(np.asarray(noise(k, 20, 12)).tobytes() for k in range(4))
        assert sorted(image.numpy().tobytes() for image in batch.images[0]) == expected
        assert inspection.main(["verify", str(tmp_path / "out")]) == 0


SHARD = ShardInfo("s.tar", 5, 10240, "ab", "s.idx", "cd")
CATS = (ClassInfo("a cat", "n1", 3), ClassInfo("ö", "n2", 2))


class TestVersions:
    def test_version_1_has_the_bytes_that_it_had(self) -> None:
        """The golden hash was taken before version 2: a change would end every run that resumes."""
        manifest = Manifest(
            classes=CATS,
            content=ImageField(16, 16, 3),
            shards=(SHARD,),
            options={"size": 16, "fit": "crop"},
            report={"written": 5, "unreadable": [["x", "y"]]},
            base="s3://b",
            plan="pp",
        )
        assert hashlib.sha256(manifest.to_bytes()).hexdigest() == (
            "1e2c2e00ee63da4cfc555fc9d37282b82d83daff3dfbf2b9c95a102a7290d7a2"
        )

    @pytest.mark.parametrize(
        ("classes", "content", "version"),
        [
            (CATS, ImageField(16, 16, 1), 1),
            ((), ImageField(16, 16, 1), 2),
            (CATS, ImageField(16, 8, 1), 2),
            (CATS, VectorField(16), 2),
            ((), VectorField(1), 2),
        ],
    )
    def test_round_trip(self, classes: tuple[ClassInfo, ...], content: ImageField | VectorField, version: int) -> None:
        manifest = Manifest(classes=classes, content=content, shards=(SHARD,)).with_fingerprint()
        assert json.loads(manifest.to_bytes())["version"] == version
        assert parse_manifest(manifest.to_bytes(), "here") == manifest
        assert manifest.samples == 5

    def test_samples_must_agree_also_without_classes(self) -> None:
        document = json.loads(Manifest(classes=(), content=VectorField(3), shards=(SHARD,)).to_bytes())
        with pytest.raises(DataError, match="its shards hold 5 samples, its classes 5, it says 6"):
            parse_manifest(json.dumps(document | {"samples": 6}).encode(), "here")

    def test_the_wrong_kind_is_named_with_its_section(self, tmp_path: Path) -> None:
        write_vectors(tmp_path, VECTORS)
        manifest = load_manifest(str(tmp_path), "sources.tags")
        for name in ("height", "width", "channels", "resolution"):
            with pytest.raises(
                DataError, match=r"^sources\.tags\.shards: holds vectors of 5 numbers, where images are"
            ):
                getattr(manifest, name)
        with pytest.raises(DataError, match=r"^data\.shards: holds images, where vectors are needed"):
            _ = Manifest(classes=(), content=ImageField(1, 1, 1), shards=()).vector_length


class TestSourcesByName:
    def test_the_main_sources_order_is_the_seeds_and_others_differ(self, tmp_path: Path) -> None:
        write_vectors(tmp_path, VECTORS)
        config = DataConfig(shards=str(tmp_path))

        def order(seed: int, name: str) -> tuple[int, ...]:
            with open_stream(config, name=name, seed=seed, replicas=1, held=[0], sizes=itertools.repeat(4)) as stream:
                return tuple(stream.sample_ids(0, 130)[0].tolist())

        with open_stream(config, seed=3, replicas=1, held=[0], sizes=[1]) as stream:
            assert stream.seed == 3
            assert tuple(stream.sample_ids(0, 130)[0].tolist()) == order(3, "data")
        assert len({order(seed, name) for seed in (3, 4) for name in ("data", "a", "b")}) == 6
        assert order(3, "a") == order(3, "a")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"shards": "nowhere"}, r"^{section}\.shards: .*nowhere holds no manifest\.json"),
            ({"classes": (7,)}, r"^{section}\.classes: 7 is not a class number"),
            ({"classes": "split 9 of 4"}, r"^{section}\.classes: 'split 9 of 4' is none"),
            ({"classes": "gren"}, r"^{section}\.classes: there is no class 'gren'; did you mean 'green'"),
        ],
    )
    @pytest.mark.parametrize(("name", "section"), [("data", "data"), ("words", r"sources\.words")])
    def test_errors_begin_with_the_section(
        self, tmp_path: Path, settings: dict[str, object], message: str, name: str, section: str
    ) -> None:
        write_vectors(tmp_path, VECTORS, CLASSES, NAMES)
        config = DataConfig(**{"shards": str(tmp_path), **settings})  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message.format(section=section)):
            open_stream(config, name=name, seed=0, replicas=1, held=[0], sizes=[1])

    @pytest.mark.parametrize(("name", "section"), [("data", "data"), ("words", r"sources\.words")])
    def test_errors_of_a_remote_source_too(self, tmp_path: Path, name: str, section: str) -> None:
        write_vectors("memory://by-name", VECTORS, overwrite=True)

        def opened(**settings: object) -> None:
            config = DataConfig(shards="memory://by-name", **settings)  # type: ignore[arg-type]
            with open_stream(config, name=name, seed=0, replicas=1, held=[0], sizes=[1]) as stream:
                next(stream)
            next(stream)

        with pytest.raises(
            DataError, match=rf"^{section}\.cache_bytes: 9 bytes .* raise {section}\.cache_bytes, or set"
        ):
            opened(cache_bytes=9)
        with pytest.raises(DataError, match=rf"^{section}\.cache_dir: /proc/nowhere cannot be made"):
            opened(cache_dir="/proc/nowhere")
        with pytest.raises(DataError, match=rf"^{section}: the stream is closed"):
            opened(cache_dir=str(tmp_path))

    def test_golden_seed(self) -> None:
        """Worked out by hand: printf '3 faces' | sha256sum, its first 8 bytes turned round. It may never change."""
        from data_pipeline.reading.order import source_seed

        assert source_seed(3, "data") == 3
        assert source_seed(3, "faces") == int.from_bytes(hashlib.sha256(b"3 faces").digest()[:8], "little")
        assert f"{source_seed(3, 'faces'):016x}" == "86bf3ab64f51e122"
