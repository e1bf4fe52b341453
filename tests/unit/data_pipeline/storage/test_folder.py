"""Folders: exact names, whatever they look like, and errors that tell one file from the whole."""

import pickle
from pathlib import Path

import fsspec
import pytest

from data_pipeline.errors import DataError, FileError
from data_pipeline.storage.folder import Folder


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "exp[12]")
    fsspec.filesystem("memory").store.clear()
    return "memory://runs/exp[12]"


def beside(url: str, name: str) -> Folder:
    return Folder(url.replace("exp[12]", name))


def test_no_path_is_a_pattern(url: str) -> None:
    """Folders and files whose names are patterns: only what is called exactly so is read, listed and removed."""
    folder = Folder(url)
    names = ["a*", "a?", "a[bc]", "ab", "abc", "{x,y}", "x"]
    for name in names:
        folder.write(name, name.encode())
        for other in ("exp1", "exp2"):
            beside(url, other).write(name, b"theirs")
    assert folder.names() == sorted(names)
    assert [folder.read(name) for name in names] == [name.encode() for name in names]
    for name in ("a*", "a?", "a[bc]", "{x,y}"):
        folder.remove(name)
    assert folder.names() == ["ab", "abc", "x"]
    for other in ("exp1", "exp2"):
        assert beside(url, other).names() == sorted(names)
        assert beside(url, other).read("a*") == b"theirs"
    folder.remove("a*")  # is gone already


def test_names_are_those_of_files_directly_in_a_folder(url: str) -> None:
    folder = Folder(url)
    assert folder.names() == []
    assert folder.names("none") == []
    for name in ("b", "a", "sub/c", "sub/d/e"):
        folder.write(name, b"x")
    assert folder.names() == ["a", "b"]
    assert folder.names("sub") == ["c"]
    folder.remove_empty("sub")
    assert folder.names("sub") == ["c"]


def test_a_file_that_is_missing_is_that_files_error(url: str) -> None:
    folder = Folder(url)
    with pytest.raises(FileError, match="there is no such") as caught:
        folder.read("x/y")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.reason) == (FileError, str(caught.value), caught.value.reason)
    assert isinstance(again, DataError)
    assert "x/y" not in again.reason


def test_a_root_that_is_empty() -> None:
    fsspec.filesystem("memory").store.clear()
    folder = Folder("memory://")
    folder.write("a", b"1")
    folder.write("b/c", b"2")
    assert folder.names() == ["a"]
    assert folder.names("b") == ["c"]
    assert folder.read("b/c") == b"2"
