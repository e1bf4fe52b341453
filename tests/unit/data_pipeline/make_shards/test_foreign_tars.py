"""Tars that somebody else made: nothing is passed over uncounted, nothing ambiguous is guessed, all is decoded once."""

import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import ImageOptions, prepare
from data_pipeline.manifest import __main__ as inspection
from data_pipeline.manifest.format import load_manifest
from tests.support.lying_data import (
    Members,
    contents,
    empty_memory,
    encoded,
    jpeg,
    pack,
    picture,
    pixels,
    run,
    said,
    usual,
)


class TestForeignTars:
    """Used, counted and named, or refused; the same by both sources that read tars."""

    @pytest.fixture(params=["shards", "webdataset"])
    def source(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([("photo.final.png", b"I"), ("photo.final.cls", b"1")], r"photo\.final\.png has two dots in its name"),
            ([("x.jpg", b"I"), ("x.jpeg", b"I"), ("x.cls", b"1")], r"the sample x has two images: x\.jpg and x\.jpeg"),
            ([("x.jpg", b"I"), ("x.webp", b"I"), ("x.cls", b"1")], r"the sample x has two images: x\.jpg and x\.webp"),
            ([("x.jpg", b"I"), ("x.json", b'{"label": 1, "class_id": 0}')], r"two labels: x\.json `label` says 1 and"),
            (
                [("x.jpg", b"I"), ("x.cls", b"1"), ("x.json", b'{"cls": 0}')],
                r"two labels: x\.cls says 1 and x\.json `cls`",
            ),
            ([("x.jpg", b"I"), ("x.json", b'{"label": true}')], "the sample x has no .cls file and no class number"),
            ([("x.jpg", b"I"), ("x.cls", b"cat")], r"x\.cls holds no class number"),
            ([("x.cls", b"1"), ("x.txt", b"lost")], r"the sample x has no image, only x\.cls, x\.txt"),
            ([("000.jpg", b"I"), ("000.cls", b"1")], "the sample 000 comes twice, or its members are not next to each"),
            ([("x.jpg", b"I"), ("y.jpg", b"I"), ("x.cls", b"1"), ("y.cls", b"1")], "the sample x has no .cls file"),
        ],
    )
    def test_what_has_two_meanings_is_refused(
        self, tmp_path: Path, source: str, members: Members, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        members = [(name, jpeg(5) if data == b"I" else data) for name, data in members]
        pack(tmp_path / "in" / "a.tar", usual())
        pack(tmp_path / "in" / "b.tar", usual() + members)
        assert run(source, tmp_path / "in", tmp_path / "out") == 1
        text = said(capsys)
        assert re.search(message, text), text
        assert "b.tar" in text
        assert not (tmp_path / "out" / "manifest.json").exists()

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices(
        self, tmp_path: Path, source: str, kind: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = pack(tmp_path / "in" / "a.tar", usual())
        with tarfile.open(path, "a") as tar:
            member = tarfile.TarInfo("900.jpg")
            member.type, member.linkname = kind, "000.jpg"
            tar.addfile(member)
        assert run(source, tmp_path / "in", tmp_path / "out") == 1
        assert "900.jpg is " in said(capsys)

    def test_sparse_members(self, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "in").mkdir()
        with (tmp_path / "900.jpg").open("wb") as file:
            file.truncate(1 << 20)
            file.write(b"x")
        (tmp_path / "900.cls").write_bytes(b"1")
        command = ["tar", "--sparse", "--format=gnu", "-C", str(tmp_path), "-cf", str(tmp_path / "in/a.tar")]
        subprocess.run([*command, "900.cls", "900.jpg"], check=True)
        assert run(source, tmp_path / "in", tmp_path / "out") == 1
        assert "900.jpg is no plain file" in said(capsys)

    @pytest.mark.parametrize("padding", [0, 512, 20 * 512])
    def test_tars_that_were_joined(
        self, tmp_path: Path, source: str, padding: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = pack(tmp_path / "in" / "a.tar", usual())
        more = pack(tmp_path / "b.tar", usual(2, begin=50)).read_bytes()
        path.write_bytes(path.read_bytes() + bytes(padding) + more)
        assert run(source, tmp_path / "in", tmp_path / "out") == 1
        assert "a.tar: goes beyond its end mark, as tars that were joined do" in said(capsys)

    def test_long_padding_is_none_of_that(self, tmp_path: Path, source: str) -> None:
        path = pack(tmp_path / "in" / "a.tar", usual())
        path.write_bytes(path.read_bytes() + bytes(3 << 20))
        assert run(source, tmp_path / "in", tmp_path / "out") == 0

    @pytest.mark.parametrize("name", ["b.tgz", "b.tar.zst", "b.tar.xz"])
    def test_compressed_tars(self, tmp_path: Path, source: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        pack(tmp_path / "in" / "a.tar", usual())
        (tmp_path / "in" / name).write_bytes(b"x")
        assert run(source, tmp_path / "in", tmp_path / "out") == 1
        assert f"holds {name}, which is compressed (1 such files); decompress it" in said(capsys)
        (tmp_path / "in" / name).unlink()
        assert run(source, tmp_path / "in", tmp_path / "out") == 0

    def test_a_macs_files_and_other_members_are_counted(
        self, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        members: Members = [("README", b"x"), ("__MACOSX/._000.jpg", b"x"), ("info.yaml", b"x")]
        for name, data in usual():
            members += [(f"._{name}", b"\0\5\x16\7"), (name, data)]
            if name.endswith("cls"):
                members.append((name.replace("cls", "txt"), b"a caption"))
        pack(tmp_path / "in" / "a.tar", members)
        assert run(source, tmp_path / "in", tmp_path / "out") == 0
        assert "not used: 1 ., 6 .txt, 1 .yaml, 13 hidden members" in said(capsys)
        assert load_manifest(str(tmp_path / "out")).samples == 6

    def test_fields_are_chosen(self, tmp_path: Path, source: str) -> None:
        members: Members = []
        for k in range(6):
            members += [(f"{k}.depth.png", encoded(picture(90 + k), "PNG")), (f"{k}.rgb.jpg", jpeg(k))]
            members += [(f"{k}.coarse.cls", b"0"), (f"{k}.fine.cls", b"%d" % (k % 3))]
        pack(tmp_path / "in" / "a.tar", members)
        fields = ("--image-field", "rgb.jpg", "--label-field", "fine.cls")
        assert run(source, tmp_path / "in", tmp_path / "out", *fields) == 0
        manifest = load_manifest(str(tmp_path / "out"))
        assert [entry.samples for entry in manifest.classes] == [2, 2, 2]
        assert manifest.channels == 3

    def test_the_same_key_in_two_tars_is_usual(self, tmp_path: Path, source: str) -> None:
        for name in "ab":
            pack(tmp_path / "in" / f"{name}.tar", usual())
        assert run(source, tmp_path / "in", tmp_path / "out") == 0
        assert load_manifest(str(tmp_path / "out")).samples == 12


class TestWebDataset:
    def test_images_of_any_size_and_kind(self, tmp_path: Path) -> None:
        """The layout of ImageNet on model hubs: jpg, cls, json; and pictures of other kinds among them."""
        kinds = {"jpg": {}, "webp": {"format": "WEBP"}, "png": {"format": "PNG"}, "tif": {"format": "TIFF"}}
        expected = set()
        for shard in range(3):
            members: Members = []
            for k in range(8):
                extension, options = list(kinds.items())[(k + shard) % 4]
                data = encoded(picture(10 * shard + k, 20 + 9 * k, 50 - 3 * k), **options)
                members += [(f"n0{shard}/{k:04d}.{extension}", data), (f"n0{shard}/{k:04d}.cls", b"%d" % (k % 2))]
                members += [(f"n0{shard}/{k:04d}.json", json.dumps({"label": k % 2, "filename": "x"}).encode())]
                expected.add(prepare(Image.open(io.BytesIO(data)), ImageOptions(size=16)).tobytes())
            pack(tmp_path / "in" / f"imagenet1k-train-{shard:04d}.tar", members)
        names = tmp_path / "names"
        names.write_text("0 tench\n1 goldfish\n")
        options = ("--size", 16, "--encoding", "png", "--class-names", names)
        assert run("webdataset", tmp_path / "in", tmp_path / "out", *options) == 0
        manifest = load_manifest(str(tmp_path / "out"))
        assert [tuple(entry) for entry in manifest.classes] == [("tench", "0", 12), ("goldfish", "1", 12)]
        assert pixels(tmp_path / "out") == expected

    def test_bad_images_are_listed_and_excluded(self, tmp_path: Path) -> None:
        pack(tmp_path / "in" / "a.tar", [*usual(20), ("bad/x.jpg", jpeg(1)[:-99]), ("bad/x.cls", b"1")])
        assert run("webdataset", tmp_path / "in", tmp_path / "out", "--max-unreadable", 0.1) == 0
        assert [name for name, _ in load_manifest(str(tmp_path / "out")).report["unreadable"]] == ["a.tar/bad/x"]

    def test_without_labels(self, tmp_path: Path) -> None:
        pack(tmp_path / "in" / "a.tar", [member for member in usual() if not member[0].endswith("cls")])
        assert run("webdataset", tmp_path / "in", tmp_path / "out", "--unlabelled") == 0
        assert load_manifest(str(tmp_path / "out")).fields == ("image",)

    def test_remote_tars_give_the_same_shards(self, tmp_path: Path) -> None:
        memory = empty_memory()
        data = pack(tmp_path / "in" / "a.tar", usual(9)).read_bytes()
        memory.pipe_file("/hub/a.tar", data)
        for name, source in (("near", tmp_path / "in"), ("far", "memory://hub")):
            assert run("webdataset", source, tmp_path / name) == 0
        assert contents(tmp_path / "near") == contents(tmp_path / "far")


class TestNothingUnreadableIsCalledReadable:
    @pytest.mark.parametrize(
        "bad",
        [
            jpeg(1)[: len(jpeg(1)) // 2],
            encoded(picture(2), "PNG")[:-40],
            b"<html>404</html>",
            b"",
            encoded(picture(3), "PNG").replace(b"IDAT", b"IDAX", 1),
            encoded(picture(4, mode="P"), "PNG"),
        ],
        ids=["cut JPEG", "cut PNG", "a page", "empty", "damaged PNG", "palette"],
    )
    def test_shards(self, tmp_path: Path, bad: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        pack(tmp_path / "in" / "a.tar", [*usual(8), ("bad.jpg", bad), ("bad.cls", b"1")])
        assert run("shards", tmp_path / "in", tmp_path / "out") == 1
        assert "1 images cannot be read (the first: a.tar/bad: " in said(capsys)
        assert run("shards", tmp_path / "in", tmp_path / "out", "--max-unreadable", 0.2) == 0
        manifest = load_manifest(str(tmp_path / "out"))
        assert (manifest.samples, [name for name, _ in manifest.report["unreadable"]]) == (8, ["a.tar/bad"])
        assert "1 unreadable" in said(capsys)
        assert inspection.main(["verify", str(tmp_path / "out")]) == 0
        (tmp_path / "exclude").write_text("a.tar/bad\n")
        assert run("shards", tmp_path / "in", tmp_path / "out2", "--exclude", tmp_path / "exclude") == 0
        report = load_manifest(str(tmp_path / "out2")).report
        assert (report["written"], report["excluded"], report["unreadable"]) == (8, 1, [])
        assert len(pixels(tmp_path / "out2")) == 8
        (tmp_path / "exclude").write_text("a.tar/bid\n")
        assert run("shards", tmp_path / "in", tmp_path / "out3", "--exclude", tmp_path / "exclude") == 1

    def test_verify_decodes_what_an_earlier_version_indexed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from data_pipeline.make_shards import foreign_shards

        cut = encoded(picture(2))[:-100]
        pack(tmp_path / "in" / "a.tar", [*usual(8), ("bad.jpg", cut), ("bad.cls", b"1")])
        with monkeypatch.context() as patch:
            patch.setattr(foreign_shards, "decode_image", lambda data, out: None)
            assert run("shards", tmp_path / "in", tmp_path / "out") == 0
        assert inspection.main(["verify", str(tmp_path / "out")]) == 1
        text = said(capsys)
        assert "1 samples cannot be decoded, the first is sample 8 (" in text
        assert "make the shards again: make_shards leaves out what cannot be decoded" in text
        with pytest.raises(DataError, match="make the shards again: make_shards leaves out what cannot be decoded"):
            pixels(tmp_path / "out")
