"""Open shards of a local folder, for many threads, with a bounded number of open files."""

import io
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import Manifest

_OPEN_FILES = 256


class LocalShards:
    """Reads samples from shards on a local (or mounted) file system.

    These are somebody's files and can be cut or replaced under the run, where a mapped page would kill the process
    with SIGBUS; `pread` costs under 2% of a decode and turns that into an error. (The cache's own files are mapped,
    see `data_pipeline.reading.cache`.)
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._paths = [root / shard.name for shard in manifest.shards]  # an absolute name replaces the root
        self._sizes = [shard.bytes for shard in manifest.shards]
        self._open: dict[int, io.FileIO] = {}
        self._lock = threading.Lock()

    def _file(self, shard: int) -> io.FileIO:
        with self._lock:
            if (file := self._open.get(shard)) is None:
                path = self._paths[shard]
                try:
                    file = io.FileIO(path)
                except FileNotFoundError:
                    raise DataError(f"{path}: the shard is gone; bring it back or make the shards again") from None
                except OSError as error:
                    raise DataError(f"{path}: cannot be opened ({error.strerror})") from None
                size = os.fstat(file.fileno()).st_size
                if size != self._sizes[shard]:
                    raise DataError(
                        f"{path}: has {size} bytes, the manifest says {self._sizes[shard]}; "
                        "the shard was cut or replaced, copy it again"
                    )
                self._open[shard] = file
                if len(self._open) > _OPEN_FILES:  # the first opened goes: order by use would need a lock for each read
                    del self._open[next(iter(self._open))]  # closed when the last reading thread lets go of it
            return file

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a shard; may be fewer where the file was cut. Raises DataError."""
        file = self._open.get(shard) or self._file(shard)
        try:
            return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self._paths[shard]}: cannot be read ({error.strerror})") from None

    def plan(self, soon: Iterable[int], ahead: Sequence[int]) -> None:
        """What is needed next; a local folder has it all."""

    def spoiled(self, shard: int) -> bool:
        """Called when a sample's CRC is wrong: whether reading again may help. A local file is what it is."""
        return False

    def name(self, shard: int) -> str:
        return str(self._paths[shard])

    def close(self) -> None:
        with self._lock:
            self._open.clear()
