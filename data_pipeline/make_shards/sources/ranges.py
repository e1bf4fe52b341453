"""A file of a folder as a Python file object, also where it is remote."""

import io

from data_pipeline.storage.folder import Folder

_BLOCK = 8 << 20


class RangedFile(io.RawIOBase):
    """Reads large blocks, so that a scan of headers does not make a request for each."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name, self.position = folder, name, 0
        self.size = folder.size(name) or 0
        self._begin, self._data = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        size = self.size - self.position if size < 0 else min(size, self.size - self.position)
        if size <= 0:
            return b""
        if not (self._begin <= self.position and self.position + size <= self._begin + len(self._data)):
            self._begin = self.position
            length = min(max(size, _BLOCK if self.folder.local is None else size), self.size - self.position)
            self._data = self.folder.read_range(self.name, self.position, length)
        start = self.position - self._begin
        data = self._data[start : start + size]
        self.position += len(data)
        return data
