"""What the last step cannot write is refused at the first, and an incomplete source never passes as complete."""

import os
import re
import shutil
from pathlib import Path

import pytest

from data_pipeline.manifest.format import load_manifest
from tests.support.lying_data import (
    empty_memory,
    fill,
    jpeg,
    pack,
    run,
    said,
    usual,
)


class TestWhatTheLastStepCannotWrite:
    @pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"tab\there", b"\xff\xfe"])
    def test_class_names(self, tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        folder = os.path.join(os.fsencode(source), name)
        os.mkdir(folder)
        Path(os.fsdecode(folder), "0.jpg").write_bytes(jpeg(1))
        assert run("folder", source, tmp_path / "out") == 1
        text = said(capsys)
        assert text.startswith("INPUT: the class ")
        assert "rename it" in text
        assert text.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_file_names_are_escaped(self, tmp_path: Path) -> None:
        """Good files with such names are used, and bad ones are called so in the report, also to exclude them."""
        source = fill(tmp_path / "in", each=30)
        for name, data in ((b"good\xe9.jpg", jpeg(7)), (b"bad\xe9.jpg", b"no image"), (b"bad\n2.jpg", b"no image")):
            Path(os.fsdecode(os.path.join(os.fsencode(source), b"ant", name))).write_bytes(data)
        assert run("folder", source, tmp_path / "out", "--max-unreadable", 0.1) == 0
        report = load_manifest(str(tmp_path / "out")).report
        assert sorted(name for name, _ in report["unreadable"]) == [r"ant/bad\n2.jpg", r"ant/bad\udce9.jpg"]
        assert report["written"] == 61
        exclude = tmp_path / "exclude.txt"
        exclude.write_text("\n".join(name for name, _ in report["unreadable"]))
        assert run("folder", source, tmp_path / "out2", "--exclude", exclude) == 0
        report = load_manifest(str(tmp_path / "out2")).report
        assert (report["excluded"], report["unreadable"], report["written"]) == (2, [], 61)

    @pytest.mark.parametrize("label", [2**31, -(2**31) - 1, 10**30])
    def test_labels_that_do_not_fit(self, tmp_path: Path, label: int, capsys: pytest.CaptureFixture[str]) -> None:
        pack(tmp_path / "in" / "a.tar", [*usual(), ("x.jpg", jpeg(1)), ("x.cls", str(label).encode())])
        for source in ("shards", "webdataset"):
            assert run(source, tmp_path / "in", tmp_path / "out") == 1
            assert f"x.cls holds {label}, which is no class number" in said(capsys)


class TestAnIncompleteSource:
    def test_an_empty_class(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for number, make in enumerate((lambda p: p.mkdir(), lambda p: (p / "inner").mkdir(parents=True))):
            source = fill(tmp_path / f"in{number}", "a", "c", "d")
            make(source / "b")
            assert run("folder", source, tmp_path / "out") == 1
            assert "the sub-folder b of " in said(capsys)
            shutil.rmtree(source / "b")
            assert run("folder", source, tmp_path / f"out{number}") == 0

    def test_an_empty_class_on_a_remote_file_system(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        memory = empty_memory()
        for name in ("a/0.jpg", "c/0.jpg"):
            memory.pipe_file(f"/lie/in/{name}", jpeg(1))
        memory.makedirs("/lie/in/b")
        assert run("folder", "memory://lie/in", tmp_path / "out") == 1
        assert "the sub-folder b of memory://lie/in holds no images" in said(capsys)
        memory.rmdir("/lie/in/b")
        assert run("folder", "memory://lie/in", tmp_path / "out") == 0

    def test_a_folder_that_may_not_be_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = fill(tmp_path / "in", "a", "b", "c")
        scandir = os.scandir

        def forbidden(path: str) -> object:
            if str(path).endswith("/b"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", forbidden)
        for options in ([], ["--unlabelled"]):
            assert run("folder", source, tmp_path / "out", *options) == 1
            assert re.search(r"^INPUT: .*/b cannot be listed \(Permission denied\)", said(capsys))

    @pytest.mark.parametrize("rest", ["n01491361.tar.gz", "n01491361.tar.part", "n01491361/"])
    def test_half_fetched_or_half_unpacked_imagenet(
        self, tmp_path: Path, rest: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for key in ("n01440764", "n01443537"):
            pack(tmp_path / "in" / f"{key}.tar", [(f"{key}_1.JPEG", jpeg(1))])
        if rest.endswith("/"):
            fill(tmp_path / "in", rest[:-1])
        else:
            (tmp_path / "in" / rest).write_bytes(b"x")
        assert run("imagenet", tmp_path / "in", tmp_path / "out", "--subset") == 1
        assert f"and also {rest.rstrip('/')} (1 such); it is half unpacked or half fetched" in said(capsys)

    def test_fewer_classes_than_the_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names = tmp_path / "names.txt"
        names.write_text("".join(f"{key} the {key}\n" for key in "abcd"))
        source = fill(tmp_path / "in", "a", "c", "d")
        assert run("folder", source, tmp_path / "out", "--class-names", names) == 1
        assert "names 4 classes, but INPUT has no b (1 are missing); complete INPUT, or add --subset" in said(capsys)
        assert run("folder", source, tmp_path / "out", "--class-names", names, "--subset") == 0

    @pytest.mark.parametrize("parts", [("train", "val"), ("Test", "Train"), ("training", "testing", "valid")])
    def test_parts_are_no_classes(
        self, tmp_path: Path, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("folder", fill(tmp_path / "in", *parts), tmp_path / "out") == 1
        assert "are parts of a data set, not classes; give one of them as INPUT" in said(capsys)

    def test_a_class_called_train_is_one_beside_others(self, tmp_path: Path) -> None:
        assert run("folder", fill(tmp_path / "in", "train", "bus", "test"), tmp_path / "out") == 0
