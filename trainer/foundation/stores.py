"""The few operations that checkpoints need from a store: a local folder or any fsspec URL (s3:// first).

Every object is written whole or not at all, and `put` returns only when it is durable: locally by
`data_pipeline.storage.files`, on object storage by one PUT, which the protocol makes atomic. Nothing is ever cached.

This is not `data_pipeline.storage.folder.Folder`, though both name objects below a URL. A checkpoint's caller decides
itself what a failure means: the saver tries again for hours, the lease may not try again at all. So `Store` raises
the file system's own errors, where `Folder` retries and ends in a sentence for the user. And only `Store` creates
exclusively, lists a whole tree, and deletes many objects; only `Folder` reads ranges.
"""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.storage.files import create_file, make_folder, replace_file, sync_folder
from trainer.foundation.errors import SettingError

# One PUT up to 5 GiB: a multipart upload of a killed process would stay open on the server, unseen and paid for.
_SINGLE_PUT_BYTES = 5 * 2**30
# Without time limits a stalled connection would be waited for without end.
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "default_fill_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2, "mode": "standard"}},
}


class Store:
    """Objects below one root, named by relative paths with forward slashes. Safe to use from several threads.

    Raises FileNotFoundError for an object that does not exist; other failures are those of the file system.
    """

    def __init__(self, url: str | os.PathLike[str], setting: str = "URL") -> None:
        """Raises `SettingError`, beginning with `setting`, for an empty place and for one of an unknown kind."""
        if not os.fspath(url).strip() or "\0" in os.fspath(url):
            raise SettingError(f"{setting}: is {os.fspath(url)!r}; give a folder or a URL")
        self.url = os.fspath(url).rstrip("/") or "/"
        self._s3 = self.url.startswith(("s3://", "s3a://"))
        options = _S3_OPTIONS if self._s3 else {}
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise SettingError(
                f"{setting}: {self.url} cannot be opened ({' '.join(str(error).split())}); give a folder or an s3:// URL, or "
                "install the package"
            ) from None
        self.local = isinstance(self._fs, LocalFileSystem)

    @property
    def root(self) -> str:
        """The folder as the file system knows it, without the protocol."""
        return str(self._root)

    def below(self, folder: str) -> "Store":
        """The store whose root is `folder` in this one."""
        return Store(f"{self.url}/{folder}")

    def describe(self, path: str) -> str:
        """The full path or URL of an object, for messages."""
        return f"{self.url}/{path}"

    def put(self, path: str, data: bytes) -> None:
        """Write an object whole and durably; an existing one is replaced at once."""
        if not self.local:
            self._pipe(path, data)
            return
        replace_file(self._path(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if none of this name exists; False where there is one. Atomic among rival writers."""
        if self.local:
            target = self._path(path)
            make_folder(target.parent)
            try:
                create_file(target, data)
            except FileExistsError:
                return False
            sync_folder(target.parent)
            return True
        try:
            self._pipe(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # Some servers answer a failed precondition without its name; s3fs then knows no better than EINVAL.
            if error.errno == errno.EINVAL and self.exists(path):
                return False
            raise
        return True

    def get(self, path: str) -> bytes:
        """The whole content of an object."""
        if self.local:
            return self._path(path).read_bytes()
        content: bytes = self._fs.cat_file(self._full(path))
        return content

    def exists(self, path: str) -> bool:
        """Whether an object of this name exists now."""
        if self.local:
            return self._path(path).exists()
        return bool(self._fs.exists(self._full(path)))

    def find(self, folder: str = "") -> dict[str, int]:
        """Every object below `folder` with its size in bytes, by relative path; empty where the folder is missing."""
        if self.local:
            return self._walk(folder)
        start = self._full(folder) if folder else self._root
        try:
            found = self._fs.find(start, detail=True)
        except FileNotFoundError:
            return {}
        prefix = self._root.rstrip("/") + "/"
        inside = start.rstrip("/") + "/"
        return {
            name[len(prefix) :]: int(entry["size"])
            for name, entry in found.items()
            if name.startswith(inside) and entry["type"] == "file" and not name.endswith("/")
        }

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects in the order given; those that are already gone are passed over."""
        for path in paths:
            if self.local:
                with suppress(FileNotFoundError):
                    self._path(path).unlink()
            else:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._full(path))

    def delete_folder(self, folder: str) -> None:
        """Remove what is left of an emptied local folder; object storage has no folders."""
        if self.local:
            for parent, _, _ in os.walk(self._path(folder), topdown=False):
                with suppress(OSError):
                    os.rmdir(parent)

    def _walk(self, folder: str) -> dict[str, int]:
        root = Path(self._root)
        found: dict[str, int] = {}
        for parent, _, names in os.walk(root / folder):
            for name in names:
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    found[path.relative_to(root).as_posix()] = path.stat().st_size
        return found

    def _pipe(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        options = {"chunksize": _SINGLE_PUT_BYTES} if self._s3 else {}
        if not self._s3:
            with suppress(OSError, NotImplementedError):
                self._fs.makedirs(self._fs._parent(self._full(path)), exist_ok=True)
        self._fs.pipe_file(self._full(path), data, mode=mode, **options)

    def _path(self, path: str) -> Path:
        return Path(self._root, path)

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"
