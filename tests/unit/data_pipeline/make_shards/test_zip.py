"""Zips: class folders and StyleGAN's form, the same as unpacked, and read in place also where they are remote."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.manifest.format import load_manifest
from data_pipeline.storage.folder import Folder
from tests.support.lying_data import contents, empty_memory, fill, jpeg, pixels, run, said


def packed(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def classes(*names: str, each: int = 3) -> dict[str, bytes]:
    return {f"{name}/{k}.jpg": jpeg(100 * n + k) for n, name in enumerate(names) for k in range(each)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_class_folders_are_as_when_unpacked(tmp_path: Path, method: int) -> None:
    source = fill(tmp_path / "in", "ant", "bee")
    (source / "ant" / "notes.txt").write_text("x")
    files = contents(source) | {
        "__MACOSX/ant/._0.jpg": b"x",
        "ant/.DS_Store": b"x",
        "ant/" + "long" * 90 + ".jpg": jpeg(7),
    }
    (source / "ant" / ("long" * 60 + ".jpg")).write_bytes(jpeg(7))
    archive = packed(tmp_path / "in.ZIP", files, method)
    for name, place in (("zip", archive), ("folder", source)):
        assert run(name, place, tmp_path / name, "--size", 16, "--encoding", "png") == 0
    assert pixels(tmp_path / "zip") == pixels(tmp_path / "folder")
    manifests = [load_manifest(str(tmp_path / name)) for name in ("zip", "folder")]
    assert manifests[0].classes == manifests[1].classes
    assert manifests[0].report == manifests[1].report


def test_a_remote_zip_is_read_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = classes("ant", "bee", each=20) | {"ant/film.mp4": bytes(9 << 20)}
    data = packed(tmp_path / "x.zip", files).read_bytes()
    empty_memory().pipe_file("/hub/x.zip", data)
    fetched = 0
    read_range = Folder.read_range

    def counting(self: Folder, *arguments: Any) -> bytes:
        nonlocal fetched
        part = read_range(self, *arguments)
        fetched += len(part) if self.local is None else 0
        return part

    monkeypatch.setattr(Folder, "read_range", counting)
    for name, place in (("near", tmp_path / "x.zip"), ("far", "memory://hub/x.zip")):
        assert run("zip", place, tmp_path / name, "--size", 16) == 0
    assert contents(tmp_path / "near") == contents(tmp_path / "far")
    assert fetched < 200_000


def stylegan(labels: Any) -> dict[str, bytes]:
    """The form of StyleGAN's dataset_tool: numbered chunks, which are no classes."""
    images = {f"0000{k // 4}/img{k:08d}.png": jpeg(k) for k in range(8)}
    return images | {"dataset.json": json.dumps({"labels": labels}).encode()}


def test_stylegans_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [[f"0000{k // 4}/img{k:08d}.png", (k + 1) % 3] for k in range(8)]
    assert run("zip", packed(tmp_path / "a.zip", stylegan(labels)), tmp_path / "a", "--size", 16) == 0
    assert [tuple(entry) for entry in load_manifest(str(tmp_path / "a")).classes] == [
        ("0", "0", 2),
        ("1", "1", 3),
        ("2", "2", 3),
    ]
    without = packed(tmp_path / "b.zip", stylegan(None))
    assert run("zip", without, tmp_path / "b", "--size", 16) == 1
    assert "says that there are no labels; give --unlabelled, or another file" in said(capsys)
    assert run("zip", without, tmp_path / "b", "--size", 16, "--unlabelled") == 0
    (tmp_path / "l.json").write_text(json.dumps(labels))
    assert run("zip", without, tmp_path / "c", "--size", 16, "--labels", tmp_path / "l.json") == 0
    assert pixels(tmp_path / "a") == pixels(tmp_path / "b") == pixels(tmp_path / "c")
    assert run("zip", packed(tmp_path / "d.zip", stylegan(labels[:-1])), tmp_path / "d", "--size", 16) == 1
    assert "has no label of 00001/img00000007.png" in said(capsys)


def test_the_advice_leads_into_the_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"data/{part}/{name}": data for part in ("train", "val") for name, data in classes("a", "b", "c").items()}
    archive = packed(tmp_path / "x.zip", files)
    assert run("zip", archive, tmp_path / "out", "--size", 16) == 1
    found = re.search(r"give (\S+) as INPUT", said(capsys))
    assert found is not None
    assert run("zip", found[1], tmp_path / "out", "--size", 16) == 0
    assert load_manifest(str(tmp_path / "out")).samples == 9


def test_damaged_members_are_listed(tmp_path: Path) -> None:
    archive = packed(tmp_path / "x.zip", classes("ant", "bee", each=30))
    data = bytearray(archive.read_bytes())
    place = data.index(jpeg(100))
    data[place + 60] ^= 1
    archive.write_bytes(data)
    assert run("zip", archive, tmp_path / "out", "--size", 16, "--max-unreadable", 0.1) == 0
    unreadable = load_manifest(str(tmp_path / "out")).report["unreadable"]
    assert unreadable == [["bee/0.jpg", "its bytes are not those that were packed (CRC-32)"]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def encrypted(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ant/0.jpg", b"another")


def other_method(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("ant/9.jpg", jpeg(9))


def empty_class(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cow/", b"")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "is not a whole zip"),
        (encrypted, r"ant/0\.jpg of .* is encrypted; unpack it, and use SOURCE folder"),
        (twice, r"holds ant/0\.jpg twice; pack it again"),
        (other_method, r"ant/9\.jpg of .* is packed by method 14; unpack it"),
        (empty_class, "the sub-folder cow of .* holds no images"),
        (lambda path: path.write_bytes(b"<html>"), "is not a whole zip"),
        (lambda path: path.unlink(), "there is no such file"),
    ],
)
def test_refusals(tmp_path: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    archive = packed(tmp_path / "x.zip", classes("ant", "bee"))
    change(archive)
    assert run("zip", archive, tmp_path / "out") == 1
    text = said(capsys)
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()


def test_what_is_no_zip_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("zip", tmp_path / "x.rar", tmp_path / "out") == 1
    assert "x.rar is not called .zip" in said(capsys)
