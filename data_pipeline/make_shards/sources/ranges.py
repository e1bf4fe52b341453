"""Files of a folder as Python file objects, also where they are remote, and many of them at a time."""

import errno
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from data_pipeline.storage.folder import Folder

T = TypeVar("T")

_AT_ONCE = 16  # remote files that are walked at a time; an answer takes milliseconds to come
_FIRST, _LARGEST = 4 << 10, 8 << 20  # bytes of a remote file that are fetched at once


class RangedFile(io.RawIOBase):
    """Reads ahead of a remote file's reader, twice as far each time that one read follows another. So a walk over
    headers fetches headers, and a scan fetches large blocks."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name, self.position = folder, name, 0
        self.size = folder.size(name) or 0
        self._begin, self._data, self._ahead = 0, b"", _FIRST

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + (0, self.position, self.size)[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "a place before the file's begin")
        self.position = place
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        size = self.size - self.position if size < 0 else min(size, self.size - self.position)
        if size <= 0:
            return b""
        end = self._begin + len(self._data)
        if not (self._begin <= self.position and self.position + size <= end):
            follows = self._data and self._begin <= self.position <= end
            self._ahead = min(2 * self._ahead, _LARGEST) if follows else _FIRST
            length = min(max(size, self._ahead if self.folder.local is None else size), self.size - self.position)
            self._begin, self._data = self.position, self.folder.read_range(self.name, self.position, length)
        start = self.position - self._begin
        data = self._data[start : start + size]
        self.position += len(data)
        return data


def walked(folder: Folder, function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """The function's results in the calls' order; of a remote folder several calls run at a time. Raises what the
    function raises."""
    if folder.local is not None:
        for arguments in calls:
            yield function(*arguments)
        return
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="walk") as pool:
        try:
            yield from pool.map(lambda arguments: function(*arguments), calls)
        except BaseException:
            folder.remote.stop.set()  # the other threads end at once
            raise
