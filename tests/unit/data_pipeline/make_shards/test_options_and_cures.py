"""No option is ignored, every cure leads out; and smaller faults of the same kinds."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources import folder as folder_module
from data_pipeline.make_shards.sources.class_names import read_class_names
from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.storage.folder import Folder, split_url
from tests.support.lying_data import (
    contents,
    empty_memory,
    encoded,
    fill,
    jpeg,
    pack,
    picture,
    run,
    said,
    usual,
)


class TestNoOptionIsIgnored:
    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            (
                "shards",
                ["--size", "64"],
                "--size: means nothing to SOURCE shards, which knows --class-names, --dry-run,",
            ),
            ("shards", ["--part", "1/2"], "--part: means nothing to SOURCE shards"),
            ("shards", ["--grey"], "--grey: means nothing to SOURCE shards"),
            ("folder", ["--split", "test"], "--split: means nothing to SOURCE folder"),
            ("folder", ["--image-field", "jpg"], "--image-field: means nothing to SOURCE folder"),
            ("folder", ["--subset"], "--subset: means nothing without --class-names"),
            ("idx", ["--class-names", "x"], "--class-names: means nothing to SOURCE idx"),
            ("idx", ["--quality", "80"], "--quality: means nothing to PNG"),
            ("folder", ["--encoding", "png", "--chroma", "420"], "--chroma: means nothing to PNG"),
            ("cifar", ["--family", "mnist"], "--family: means nothing to SOURCE cifar"),
            ("folder", ["--unlabelled", "--class-names", "x"], "--class-names: means nothing with --unlabelled"),
            ("webdataset", ["--unlabelled", "--label-field", "x"], "--label-field: means nothing with --unlabelled"),
            (
                "imagenet",
                ["--samples-per-shard", "10", "--family", "mnist"],
                "--family: means nothing to SOURCE imagenet",
            ),
        ],
    )
    def test_refused(
        self, tmp_path: Path, source: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(source, tmp_path, tmp_path / "out", *options) == 1
        assert said(capsys).startswith(message)

    def test_the_defaults_may_be_said(self, tmp_path: Path) -> None:
        source = fill(tmp_path / "in")
        said_all = ["--size", 128, "--fit", "crop", "--encoding", "jpeg", "--quality", 95, "--chroma", "444"]
        said_all += ["--minimum-side", 1, "--max-unreadable", 0.01, "--samples-per-shard", 10000]
        assert run("folder", source, tmp_path / "a") == 0
        assert run("folder", source, tmp_path / "b", *said_all) == 0
        assert contents(tmp_path / "a") == contents(tmp_path / "b")


class TestEveryCureLeadsOut:
    def cured(self, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> Manifest:
        """Follow the advice `give X as INPUT` to its end."""
        for _ in range(3):
            if run("folder", source, tmp_path / "out", "--size", 16) == 0:
                return load_manifest(str(tmp_path / "out"))
            found = re.search(r"give (\S+) as INPUT", said(capsys))
            assert found is not None
            source = Path(found[1])
        raise AssertionError("the advice leads nowhere")

    @pytest.mark.parametrize("below", ["", "tiny-imagenet-200"])
    def test_a_level_of_the_same_name_in_every_class(
        self, tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "in" / below
        train = root / "train" if below else root
        for number, key in enumerate(("n01443537", "n01629819", "n01641577")):
            fill(train / key, "images")
            (train / key / f"{key}_boxes.txt").write_text(str(number))
        if below:
            for part in ("val", "test"):
                fill(root / part, "images", each=5)
        manifest = self.cured(tmp_path, tmp_path / "in", capsys)
        assert [entry.id for entry in manifest.classes] == ["n01443537", "n01629819", "n01641577"]

    def test_kaggles_tree(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
        fill(root / "train", "n01440764", "n01443537", "n01484850")
        fill(root, "val", "test", each=9)
        manifest = self.cured(tmp_path, tmp_path / "ILSVRC", capsys)
        assert [entry.id for entry in manifest.classes] == ["n01440764", "n01443537", "n01484850"]

    def test_one_classs_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        assert run("folder", source / "ant", tmp_path / "out") == 1
        assert "give the folder above if this is one class's folder, or give --unlabelled" in said(capsys)
        assert run("folder", source, tmp_path / "out") == 0
        assert run("folder", source / "ant", tmp_path / "out2", "--unlabelled") == 0

    def test_tars_of_many_sizes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        members = [*usual(6), ("x.jpg", jpeg(1, side=40)), ("x.cls", b"1"), ("y.jpg", encoded(picture(1, mode="L")))]
        pack(tmp_path / "in" / "a.tar", [*members, ("y.cls", b"0")])
        assert run("shards", tmp_path / "in", tmp_path / "out") == 1
        assert "SOURCE webdataset makes shards of one kind" in said(capsys)
        assert run("webdataset", tmp_path / "in", tmp_path / "out2", "--size", 16) == 0
        assert load_manifest(str(tmp_path / "out2")).samples == 8

    def test_one_class_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in", "only")
        assert run("folder", source, tmp_path / "out") == 1
        assert "complete the input (a folder holds one sub-folder per class), or give --unlabelled" in said(capsys)
        assert run("folder", source, tmp_path / "out", "--unlabelled") == 0


class TestMinor:
    def test_other_files_are_in_the_last_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        (source / "ant" / "x.svg").write_text("x")
        (source / "labels.csv").write_text("x")
        assert run("folder", source, tmp_path / "out") == 0
        assert "0 excluded, 2 other files; fingerprint" in said(capsys)

    @pytest.mark.parametrize("below", ["out", "a/b/out"])
    def test_output_in_input(self, tmp_path: Path, below: str) -> None:
        for source, options in (("folder", []), ("folder", ["--unlabelled", "--overwrite"])):
            folder = fill(tmp_path / f"in{len(options)}")
            for _ in range(2):
                assert run(source, folder, folder / below, *options) == 0
            assert load_manifest(str(folder / below)).samples == 6

    def test_output_is_input(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        before = contents(source)
        assert run("folder", source, tmp_path / "in" / ".." / "in") == 1
        assert said(capsys).startswith("OUTPUT: ")
        assert contents(source) == before

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("a ant\nb bee\n", {"a": "ant", "b": "bee"}),
            ("\ufeffa ant\r\nb bee, honey\r\n\r\n", {"a": "ant", "b": "bee, honey"}),
            ("a\tan ant\nb,bee\n", {"a": "an ant", "b": "bee"}),
        ],
    )
    def test_formats_of_class_names(self, tmp_path: Path, text: str, names: dict[str, str]) -> None:
        (tmp_path / "names").write_bytes(text.encode())
        assert read_class_names(tmp_path / "names") == names

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"a ant\na bee\n", r"^--class-names: line 2 of .* names the id 'a' again"),
            (b"a ant\nb\n", r"^--class-names: line 2 of .* holds no name after the id 'b'"),
            (b"", r"^--class-names: .* holds no line"),
            ("a ä".encode("latin-1"), r"^--class-names: .* cannot be read .*; give a text file in UTF-8"),
        ],
    )
    def test_class_names_that_are_none(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "names").write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_class_names(tmp_path / "names")

    def test_archives_in_the_root(self) -> None:
        for url, place in (("/x.tar", "/"), ("x.tar", "."), ("a/x.tar", "a"), ("s/../x.tar", "s/..")):
            folder, name = split_url(url)
            assert (folder.url, name) == (place, "x.tar")

    def test_file_systems_that_give_no_sizes(self, tmp_path: Path) -> None:
        memory = empty_memory()
        for name in ("a/0.jpg", "b/0.jpg"):
            memory.pipe_file(f"/{name}", jpeg(1))
        folder = Folder("memory://")
        find = folder.remote.call

        def without_sizes(what: str, method: str, *arguments: Any, **options: Any) -> Any:
            found = find(what, method, *arguments, **options)
            if method == "find":
                return {path: {**entry, "size": None} for path, entry in found.items()}
            return found

        folder.remote.call = without_sizes  # type: ignore[method-assign]
        listing = folder_module.FolderSource(folder).listing()
        assert [item.name for item in listing.items] == ["a/0.jpg", "b/0.jpg"]

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_sigterm_ends_the_workers_and_leaves_no_parts(self, tmp_path: Path, jobs: int) -> None:
        source = fill(tmp_path / "in", each=12)
        command = [sys.executable, "-m", "data_pipeline.make_shards", "folder", source, tmp_path / "out"]
        options = ["--samples-per-shard", 1, "--size", 900, "--jobs", jobs]
        process = subprocess.Popen([*map(str, command + options)], stderr=subprocess.PIPE, start_new_session=True)
        while not list((tmp_path / "out").glob("shard-*.tar")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert process.stderr is not None
        assert process.stderr.read().decode().endswith("interrupted; run the same command again to resume\n")
        assert not list((tmp_path / "out").glob(".menagerie-part-*"))
        end = time.monotonic() + 20
        while (
            left := _alive(process.pid)
        ) and time.monotonic() < end:  # Python's own helpers hear of it a little later
            time.sleep(0.05)
        assert not left
        assert run(*command[3:], *options[:-2]) == 0
        digest = hashlib.sha256((tmp_path / "out" / "manifest.json").read_bytes()).hexdigest()
        assert run("folder", source, tmp_path / "whole", *options[:-2]) == 0
        assert hashlib.sha256((tmp_path / "whole" / "manifest.json").read_bytes()).hexdigest() == digest


def _alive(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True
