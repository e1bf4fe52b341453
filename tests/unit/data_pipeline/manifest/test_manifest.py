"""Manifest and index: round trip, fingerprint, and `verify` that names what is wrong."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.manifest import __main__ as inspection
from data_pipeline.manifest import index
from data_pipeline.manifest.format import load_index, load_manifest, parse_manifest
from data_pipeline.storage.folder import Folder, redact


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_round_trip(shards: Path) -> None:
    data = (shards / "manifest.json").read_bytes()
    manifest = load_manifest(str(shards))
    assert manifest.to_bytes() == data
    assert manifest.fingerprint == hashlib.sha256(data).hexdigest()
    assert (manifest.samples, manifest.resolution, manifest.channels, len(manifest.shards)) == (300, 8, 1, 7)
    assert manifest.class_names == ("0", "1", "2", "3", "4")
    assert [entry.samples for entry in manifest.classes] == [60] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a manifest of shards"),
        ({"version": 3}, "is a manifest of version 3, this program reads versions 1 and 2"),
        ({"version": 2}, "is not a manifest of shards .'fields'."),
        ({"version": 2, "fields": {"sound": {"length": 3}}}, "its samples have the unknown field 'sound'"),
        ({"version": 2, "fields": {"vector": {"length": 0}}}, "its samples are vectors of 0 numbers"),
        ({"version": 2, "fields": {"image": {"length": 1}}}, "is not a manifest of shards"),
        ({"resolution": 0}, "its samples are 0x0 grey"),
        ({"samples": 301}, "hold 300 samples, its classes 300, it says 301"),
        ({"shards": [{}]}, "is not a manifest of shards"),
    ],
)
def test_bad_manifest(shards: Path, change: dict[str, object], message: str) -> None:
    document = json.loads((shards / "manifest.json").read_bytes()) | change
    with pytest.raises(DataError, match=message):
        parse_manifest(json.dumps(document).encode(), "here")
    with pytest.raises(DataError, match="here: is not a manifest of shards"):
        parse_manifest(b"{", "here")


def test_index_round_trip() -> None:
    records = np.array([(512, 100, 3, 0xFFFFFFFF), (2**40, 2**31, 0, 1)], dtype=index.RECORD)
    data = index.to_bytes(records)
    assert len(data) == 16 + 2 * 20
    assert (index.from_bytes(data, "x") == records).all()
    for broken in (b"", data[:-1], b"X" + data[1:], data[:8] + b"\x02" + data[9:]):
        with pytest.raises(DataError, match=r"^x: "):
            index.from_bytes(broken, "x")


def test_index_agrees_with_the_tar(shards: Path) -> None:
    """The webdataset library reads the same bytes and labels from the tar as the index points at."""
    import webdataset

    manifest = load_manifest(str(shards))
    for shard in manifest.shards[:2]:
        records = load_index(Folder(shards), shard)
        data = (shards / shard.name).read_bytes()
        ours = [(data[r["offset"] : r["offset"] + r["size"]], int(r["label"])) for r in records]
        dataset = webdataset.WebDataset(str(shards / shard.name), shardshuffle=False)
        theirs = [(sample["png"], int(sample["cls"])) for sample in dataset]
        assert ours == theirs


def test_show(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspection.main(["show", str(shards)]) == 0
    text = capsys.readouterr().out
    assert "300 samples of 5 classes, 8x8 grey" in text
    assert "shard-00006.tar  18 samples" in text
    assert "####" in text


def test_verify(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspection.main(["verify", str(copied)]) == 0
    assert "300 samples in 7 shards" in capsys.readouterr().out

    path = copied / "shard-00001.tar"
    data = bytearray(path.read_bytes())
    record = load_index(Folder(copied), load_manifest(str(copied)).shards[1])[5]
    data[int(record["offset"])] ^= 255
    path.write_bytes(data)
    (copied / "shard-00002.tar").unlink()
    cut = copied / "shard-00003.tar"
    cut.write_bytes(cut.read_bytes()[:-1])
    bad_index = copied / "shard-00004.idx"
    bad_index.write_bytes(bad_index.read_bytes()[:-1] + b"x")
    header = copied / "shard-00005.tar"
    data = bytearray(header.read_bytes())
    data[0] ^= 1  # in a member's name: no sample is damaged
    header.write_bytes(data)

    assert inspection.main(["verify", str(copied)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert f"{path}: its sha256 is not the manifest's (wrong samples: 5)" in said[0]
    assert "shard-00002.tar: there is no such file" in said[1]
    assert "shard-00003.tar: has" in said[2]
    assert "shard-00004.idx: its sha256 is not the manifest's" in said[3]
    assert "shard-00005.tar: its sha256 is not the manifest's (no sample is damaged)" in said[4]


def test_no_secrets_in_messages() -> None:
    text = "s3://KEY:SECRET@bucket/a failed, see https://host/x?X-Amz-Signature=abc for more"
    assert redact(text) == "s3://bucket/a failed, see https://host/x for more"
    assert str(Folder("memory://user:pass@x/y")) == "memory://x/y"
