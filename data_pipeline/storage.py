"""Folders at a path or an fsspec URL: small whole-file reads and writes, with errors that say what to do.

Whole shards of remote folders go through `data_pipeline.cache`; this module holds what both need.
"""

import os
import re
import secrets
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from data_pipeline.errors import DataError

_SECRETS = (re.compile(r"(?<=://)[^/@\s]*@"), re.compile(r"\?[^\s\"']*"))


def redact(text: str) -> str:
    """The text without user names, passwords and query strings of any URL in it."""
    for pattern in _SECRETS:
        text = pattern.sub("", text) if "://" in text else text
    return text


class Folder:
    """A folder at a local path or an fsspec URL; credentials come from the usual environment and configuration
    files."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        self.local: Path | None
        if "://" in self.url and not self.url.startswith("file://"):
            self.local = None
            try:
                self.fs, self.root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as error:
                raise DataError(
                    f"{redact(self.url)}: cannot be opened ({redact(str(error))}); check the URL's scheme"
                ) from None
        else:
            self.local = Path(self.url.removeprefix("file://"))
            self.fs, self.root = fsspec.filesystem("file"), str(self.local.absolute())
        self.root = self.root.rstrip("/")

    def __str__(self) -> str:
        return redact(self.url.rstrip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url,)

    def path(self, name: str) -> str:
        """The name inside the folder as the file system wants it."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def open(self, name: str) -> IO[bytes]:
        """A file of the folder (or at an absolute path or a URL) for reading. Raises OSError."""
        if "://" in name:
            return cast(IO[bytes], fsspec.open(name, "rb").open())
        return cast(IO[bytes], self.fs.open(name if name.startswith("/") else self.path(name), "rb"))

    def read(self, name: str) -> bytes:
        """A small file's bytes. Raises DataError."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{self}/{name}: there is no such file; check the path") from None
        except PermissionError as error:
            raise DataError(
                f"{self}/{name}: access was refused ({redact(str(error))}); check the credentials or the permissions"
            ) from None
        except OSError as error:
            raise DataError(f"{self}/{name}: cannot be read ({redact(str(error))})") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file so that it is there whole or not at all."""
        if self.local is None:
            self.fs.pipe_file(self.path(name), data)  # object stores show an object only when its PUT is complete
            return
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def put(self, source: Path, name: str) -> None:
        """Move a finished local file into the folder, so that it is there whole or not at all."""
        if self.local is None:
            self.fs.put_file(str(source), self.path(name))
            source.unlink()
        else:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)
