"""`python -m trainer.extract_features`: features of images as vectors, in the images' order and with their classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig
from trainer import extract_features
from trainer.trained.real import real_chunks, real_vectors


class Mean:
    """A network whose features are the means of the four quarters of an image. It counts what it sees."""

    description, digest, identity, dimension, outputs = "means", "1234", "means", 4, 1

    def __init__(self) -> None:
        self.seen = 0

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        halves = images.double().mean(1).unflatten(1, (2, -1)).unflatten(3, (2, -1))
        return halves.mean((2, 4)).flatten(1).float(), torch.zeros(len(images), 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 pictures of 2 classes, of which 40 are different."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for number in range(70):
        place = folder / "in" / ("even", "odd")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number % 40]).save(place / f"{number:03d}.png")
    arguments = ["folder", str(folder / "in"), str(folder / "out"), "--size", "8", "--encoding", "png", "--jobs", "1"]
    assert make_shards.main([*arguments, "--samples-per-shard", "30"]) == 0
    return folder / "out"


def test_every_image_has_its_features_and_its_class(shards: Path) -> None:
    network = Mean()
    features, classes = extract_features.features_of(DataConfig(shards=str(shards)), network)
    assert network.seen == 40
    for chunk in real_chunks(DataConfig(shards=str(shards))):
        expected = Mean().both(chunk.images)[0].numpy()
        ids = chunk.ids.numpy()[: chunk.new]
        np.testing.assert_array_equal(features[ids], expected[: chunk.new])
        assert [classes[number] for number in ids] == chunk.labels[: chunk.new].tolist()


def test_the_command_writes_vectors_and_says_by_which_network(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extract_features, "open_features", lambda *_: Mean())
    assert extract_features.main(["any", str(shards), str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "70 vectors of 4 numbers, by means" in capsys.readouterr().out
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.class_names == ("even", "odd")
    notice = manifest.options["notice"]
    assert (notice["features"], notice["features_digest"]) == ("means", "1234")
    assert notice["images"] == load_manifest(str(shards)).fingerprint
    vectors, labels = real_vectors(DataConfig(shards=str(tmp_path / "out")))
    wanted, classes = extract_features.features_of(DataConfig(shards=str(shards)), Mean())
    rows = {(row.tobytes(), label) for row, label in zip(wanted, classes, strict=True)}
    assert {(row.tobytes(), int(label)) for row, label in zip(vectors.numpy(), labels, strict=True)} == rows
    # The same command finds its work done; vectors are no images.
    assert extract_features.main(["any", str(shards), str(tmp_path / "out"), "--device", "cpu"]) == 0
    with pytest.raises(DataError, match="holds vectors of 4 numbers, where images are needed"):
        extract_features.main(["any", str(tmp_path / "out"), str(tmp_path / "more"), "--device", "cpu"])
