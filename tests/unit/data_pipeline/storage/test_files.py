"""Local files: whole or not at all, and nothing is left behind."""

import errno
import os
from pathlib import Path

import pytest

from data_pipeline.storage import files
from data_pipeline.storage.files import create_file, move_file, replace_file, written_aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file"
    replace_file(target, b"one")
    replace_file(target, b"two")
    assert target.read_bytes() == b"two"
    assert names(target.parent) == ["file"]


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "file"
    replace_file(target, b"old")
    with written_aside(target) as part:
        part.write_bytes(b"half of the n")
        assert target.read_bytes() == b"old"
        assert part.parent == target.parent
        assert part.name.startswith(".file.")
        part.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file"
    replace_file(target, b"old")

    def fail() -> None:
        with written_aside(target) as part:
            part.write_bytes(b"new")
            raise error

    with pytest.raises(type(error)):
        fail()
    with pytest.raises(FileNotFoundError), written_aside(target):
        pass  # a block that writes nothing replaces nothing
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: the file is synced, renamed, and its folder is synced."""
    done: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        done.append("renamed")
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", replace)
    replace_file(tmp_path / "file", b"x")
    assert done[0].startswith(".file.")
    assert done[-2:] == ["renamed", tmp_path.name]
    done.clear()
    with written_aside(tmp_path / "file") as part:
        part.write_bytes(b"y")
    assert done == [part.name, "renamed", tmp_path.name]


def test_create_is_exclusive_and_move_replaces(tmp_path: Path) -> None:
    create_file(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "a", b"2")
    replace_file(tmp_path / "x" / "b", b"3")
    move_file(tmp_path / "a", tmp_path / "x" / "b")
    assert (tmp_path / "x" / "b").read_bytes() == b"1"
    assert names(tmp_path) == ["x"]


def test_nobody_else_renames_files() -> None:
    """Whoever replaces a local file uses data_pipeline.storage.files; the two exceptions are named there."""
    root = Path(files.__file__).parents[2]
    allowed = {"data_pipeline/storage/files.py", "data_pipeline/reading/cache.py", "trainer/metrics/reference.py"}
    words = ("os.replace(", "os.rename(", "shutil.move(", ".rename(", "part.replace(", "temporary.replace(")
    found = {
        path.relative_to(root).as_posix()
        for package in ("data_pipeline", "trainer")
        for path in (root / package).rglob("*.py")
        if any(word in path.read_text() for word in words)
    }
    assert found == allowed
