"""Others' files are sacred: what make_shards did not write is never written over or removed."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources import fashion_mnist
from data_pipeline.make_shards.vectors import write_vectors
from data_pipeline.manifest.format import load_manifest
from data_pipeline.storage.folder import Folder
from tests.support.lying_data import (
    contents,
    empty_memory,
    fill,
    pack,
    run,
    said,
    usual,
)


class TestOthersFilesAreSacred:
    @pytest.mark.parametrize("name", ["shard-00001.tar", "shard-00000.idx", "shard-123456.tar"])
    @pytest.mark.parametrize("remote", [False, True])
    def test_files_called_as_ours(
        self, tmp_path: Path, name: str, remote: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = fill(tmp_path / "in")
        empty_memory()
        url = "memory://sacred/out" if remote else str(tmp_path / "out")
        output = Folder(url)
        output.write(name, b"theirs")
        output.write("notes.txt", b"theirs")
        assert run("folder", source, url) == 1
        assert f"holds {name}, which no manifest speaks for; give an empty folder, or add --overwrite" in said(capsys)
        assert (output.names(), output.read(name)) == (sorted([name, "notes.txt"]), b"theirs")
        assert run("folder", source, url, "--overwrite") == 0
        assert output.read("notes.txt") == b"theirs"
        assert sorted(output.names()) == ["manifest.json", "notes.txt", "shard-00000.idx", "shard-00000.tar"]

    @pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
    @pytest.mark.parametrize(
        "theirs", [b'{"name": "a web app"}', b"not even JSON", b'{"format": "other", "version": 1}']
    )
    def test_a_manifest_that_is_none_of_ours(
        self, tmp_path: Path, overwrite: list[str], theirs: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = fill(tmp_path / "in")
        pack(tmp_path / "tars" / "a.tar", usual())
        for place, arguments in (
            (tmp_path / "out", ("folder", source)),
            (tmp_path / "out2", ("shards", tmp_path / "tars")),
        ):
            place.mkdir()
            (place / "manifest.json").write_bytes(theirs)
            assert run(*arguments, place, *overwrite) == 1
            assert "holds a manifest.json that make_shards cannot replace" in said(capsys)
            assert contents(place) == {"manifest.json": theirs}

    def test_what_is_in_the_folders_that_we_use(self, tmp_path: Path) -> None:
        """Somebody's folder `unfinished`, and folders that are called nearly as ours."""
        out = tmp_path / "out"
        theirs = {
            "unfinished/thesis.txt": b"1",
            ".part-of-my-plan/x": b"2",
            "shard-notes.tar": b"3",
            "shard-1.idx": b"4",
        }
        for name, data in theirs.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        for options in ([], ["--overwrite"]):
            assert run("folder", fill(tmp_path / f"in{len(options)}"), out, *options) == 0
            found = contents(out)
            assert {name: found[name] for name in theirs} == theirs
            assert "unfinished/plan" not in found

    @pytest.mark.parametrize("theirs", [b"v1.2 4\n0 512", b"", b"MENAGER"])
    def test_indexes_of_other_programs(self, tmp_path: Path, theirs: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        tars = tmp_path / "tars"
        pack(tars / "one.tar", usual())
        pack(tars / "two.tar", usual())
        (tars / "two.idx").write_bytes(theirs)
        for options in ([], ["--overwrite"]):
            assert run("shards", tars, tars, *options) == 1
            assert "two.idx is not an index of make_shards and would be replaced; give another folder" in said(capsys)
            assert sorted(contents(tars)) == ["one.tar", "two.idx", "two.tar"]
        assert run("shards", tars, tmp_path / "out") == 0
        assert run("shards", tars, tmp_path / "out", "--overwrite") == 0
        assert (tars / "two.idx").read_bytes() == theirs

    def test_mnist_is_not_replaced_by_fashion_mnist(self, tmp_path: Path) -> None:
        """Both call their files the same."""
        name = "train-images-idx3-ubyte.gz"
        (tmp_path / name).write_bytes(b"digits")
        with pytest.raises(
            DataError, match=rf"^OUTPUT_DIR: .*{name} is not Fashion-MNIST's file and would be replaced"
        ):
            fashion_mnist.bring(tmp_path, debian_folder=tmp_path / "none", address="http://127.0.0.1:9")
        assert contents(tmp_path) == {name: b"digits"}

    def test_paths_that_look_like_patterns(self, tmp_path: Path) -> None:
        for other in ("out1", "out2"):
            assert run("folder", fill(tmp_path / f"in-{other}"), tmp_path / other) == 0
        before = {other: contents(tmp_path / other) for other in ("out1", "out2")}
        source = fill(tmp_path / "in[ab]*", "c?t", "[dog]")
        assert run("folder", source, tmp_path / "out[12]") == 0
        assert run("folder", source, tmp_path / "out[12]", "--size", 16, "--overwrite") == 0
        assert [entry.id for entry in load_manifest(str(tmp_path / "out[12]")).classes] == ["[dog]", "c?t"]
        assert {other: contents(tmp_path / other) for other in ("out1", "out2")} == before

    def test_vectors_too(self, tmp_path: Path) -> None:
        (tmp_path / "shard-00000.tar").write_bytes(b"theirs")
        with pytest.raises(DataError, match=r"^OUTPUT: .* holds shard-00000\.tar, which no manifest speaks for"):
            write_vectors(tmp_path, np.zeros((3, 2), np.float32))
        assert contents(tmp_path) == {"shard-00000.tar": b"theirs"}
