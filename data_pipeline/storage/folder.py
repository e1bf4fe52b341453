"""Folders at a path or an fsspec URL: small whole-file reads and writes, with errors that say what to do.

Local folders are read and written directly, remote ones through `data_pipeline.storage.retrying`. Whole shards of
remote folders go through `data_pipeline.reading.cache`.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from data_pipeline.errors import FileError
from data_pipeline.storage.files import move_file, replace_file
from data_pipeline.storage.retrying import Limits, RetryingFileSystem, open_filesystem, redact


def split_url(url: str) -> tuple["Folder", str]:
    """The folder that the file at a path or an fsspec URL is in, and the file's name in it."""
    parent, slash, name = url.rstrip("/").rpartition("/")
    return Folder(parent or slash or "."), name


class Folder:
    """A folder at a local path or an fsspec URL; credentials come from the usual environment and configuration
    files."""

    def __init__(self, url: str | os.PathLike[str], limits: Limits | None = None) -> None:
        self.url = os.fspath(url)
        self.limits = limits or Limits()
        self.local: Path | None
        if "://" in self.url and not self.url.startswith("file://"):
            self.local = None
            self.fs, self.root = open_filesystem(self.url, self.limits)
        else:
            self.local = Path(self.url.removeprefix("file://"))
            self.fs, self.root = fsspec.filesystem("file"), str(self.local.absolute())
        self.remote = RetryingFileSystem(self.fs, self.limits)

    def __str__(self) -> str:
        return redact(self.url.rstrip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url, self.limits)

    def path(self, name: str) -> str:
        """The name inside the folder as the file system wants it; absolute names stay what they are."""
        return name if name.startswith("/") else f"{self.root}/{name}"

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            where = self.path(name)
            raise FileError(f"{where}: there is no such file; check the path", "there is no such file") from None
        except OSError as error:
            why = error.strerror or str(error)
            raise FileError(f"{self.path(name)}: cannot be read ({why}); check the file", why) from None

    def exists(self, name: str) -> bool:
        if self.local is not None:
            return os.path.exists(self.path(name))
        return bool(self.remote.call(f"{self}/{name}", "exists", self.path(name)))

    def size(self, name: str) -> int | None:
        """The file's size in bytes. Raises DataError."""
        if self.local is not None:
            with self._errors(name):
                return os.path.getsize(self.path(name))
        return self.remote.size(f"{self}/{name}", self.path(name))

    def read(self, name: str, size: int | None = None) -> bytes:
        """A file's bytes; its size, where it is known, spares a remote folder a request. Raises DataError."""
        if self.local is not None:
            with self._errors(name):
                return Path(self.path(name)).read_bytes()
        return self.remote.read(f"{self}/{name}", self.path(name), size)

    def read_range(self, name: str, begin: int, size: int) -> bytes:
        """Bytes [begin, begin + size) of a file; fewer only at its end. Raises DataError."""
        if self.local is not None:
            with self._errors(name), open(self.path(name), "rb") as file:
                return os.pread(file.fileno(), size, begin)
        return self.remote.read_range(f"{self}/{name}", self.path(name), begin, size)

    @contextlib.contextmanager
    def open_local(self, name: str) -> Iterator[IO[bytes]]:
        """A whole file to read: itself where it is local, else a temporary copy on this machine's disk. Raises
        DataError."""
        if self.local is not None:
            with self._errors(name):
                file = io.FileIO(self.path(name))
            with io.BufferedReader(file) as reader:
                yield reader
            return
        with tempfile.TemporaryFile() as copy:
            where, path = f"{self}/{name}", self.path(name)
            size = self.remote.size(where, path)
            if size is None:
                copy.write(self.remote.read(where, path))
            else:
                self.remote.download(where, path, size, lambda data, at: os.pwrite(copy.fileno(), data, at))
            copy.seek(0)
            yield copy

    def write(self, name: str, data: bytes) -> None:
        """Write a small file so that it is there whole or not at all."""
        if self.local is None:
            # Object stores show an object only when its PUT is complete.
            self.remote.send(f"{self}/{name}", len(data), "pipe_file", self.path(name), data)
            return
        replace_file(self.local / name, data)

    def put(self, source: Path, name: str) -> None:
        """Move a finished local file into the folder, so that it is there whole or not at all."""
        if self.local is None:
            size = source.stat().st_size
            self.remote.send(f"{self}/{name}", size, "put_file", str(source), self.path(name))
            source.unlink()
        else:
            move_file(source, self.local / name)

    def names(self, below: str = "") -> list[str]:
        """The names of the files that are directly in the folder, or in the folder `below` in it, sorted; none where
        there is no such folder. Raises DataError."""
        if self.local is not None:
            place = Path(self.path(below))
            if not place.is_dir():
                return []
            with self._errors(below):
                return sorted(entry.name for entry in os.scandir(place) if entry.is_file())
        place_in_it = f"{self.root}/{below}".rstrip("/")
        try:
            found = self.remote.call(f"{self}/{below}".rstrip("/"), "ls", place_in_it, detail=True)
        except FileError as error:
            if "no such object" in error.reason:
                return []
            raise
        files = [str(entry["name"]) for entry in found if entry["type"] == "file"]
        return sorted(path.rsplit("/", 1)[-1] for path in files if not path.endswith("/"))

    def folders(self) -> list[str]:
        """The names of the folders that are directly in the folder, sorted. Raises DataError."""
        if self.local is not None:
            with self._errors(""):
                return sorted(entry.name for entry in os.scandir(self.local) if entry.is_dir())
        found = self.remote.call(str(self), "ls", self.root, detail=True)
        return sorted(
            str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in found if entry["type"] == "directory"
        )

    def remove(self, name: str) -> None:
        """Remove one file, by its exact name; no name is a pattern. One that is gone is passed over. Raises
        DataError."""
        if self.local is not None:
            with self._errors(name), contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))
            return
        if self.exists(name):
            self.remote.call(f"{self}/{name}", "rm_file", self.path(name))

    def remove_empty(self, below: str) -> None:
        """Remove a local folder in this one if it is empty. Object storage has no folders."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self.path(below))
