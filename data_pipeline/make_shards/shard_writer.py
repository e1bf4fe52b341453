"""Write one shard: read, prepare and encode its items, write a WebDataset tar, index it. Runs in worker processes."""

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ImageFile
from zlib_ng.zlib_ng import crc32

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import TooSmall
from data_pipeline.make_shards.sources.base import Item, Samples, printable
from data_pipeline.manifest import index

ImageFile.LOAD_TRUNCATED_IMAGES = False


@dataclass
class ShardResult:
    """What became of one planned shard."""

    name: str
    index: str
    samples: int = 0
    size: int = 0
    sha256: str = ""
    index_sha256: str = ""
    labels: dict[int, int] = field(default_factory=dict)
    """Samples written per label."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of items that could not be decoded."""
    too_small: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    """What was done to values, and to how many samples."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ShardResult":
        document = json.loads(data)
        document["labels"] = {int(label): count for label, count in document["labels"].items()}
        document["unreadable"] = [tuple(entry) for entry in document["unreadable"]]
        return cls(**document)


class _Hashing(io.RawIOBase):
    """A file that takes the sha256 of what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def reason(error: BaseException) -> str:
    """Why an image cannot be read: one line, the same in every process and at every path."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split())) or type(error).__name__
    return printable("not an image of a known format" if text.startswith("cannot identify image file") else text[:200])


class ShardTar:
    """A shard that is being written: `add` its samples, then `finish`. Its bytes depend on the samples alone.

    They are those that webdataset's TarWriter writes with mtime=0 and no names. That is not used itself: it imports
    torch, which is 500 MB of memory and seconds in every worker.
    """

    def __init__(self, folder: Path, name: str, extension: str) -> None:
        self._folder, self._name, self._extension = folder, name, extension
        self._rows: list[tuple[int, int, int, int]] = []
        self._file = (folder / name).open("w+b")
        self._hashing = _Hashing(self._file)
        self._tar = tarfile.open(fileobj=self._hashing, mode="w|")  # noqa: SIM115

    def add(self, key: str, content: bytes, label: int | None) -> None:
        """Write a sample; without a label it has no `.cls` file."""
        if label is not None:
            self._member(f"{key}.cls", str(label).encode())
        self._member(f"{key}.{self._extension}", content)
        self._tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
        # The content is the sample's last file, as webdataset sorts them, and ends with its padding.
        begin = self._tar.offset + len(content) // -tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        self._rows.append((begin, len(content), index.NO_LABEL if label is None else label, crc32(content)))

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o444
        self._tar.addfile(member, io.BytesIO(data))

    def finish(self, result: ShardResult) -> None:
        """End the tar, write its index, and say in `result` what was written."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        packed = index.to_bytes(np.array(self._rows, dtype=index.RECORD))
        (self._folder / result.index).write_bytes(packed)
        result.samples, result.size = len(self._rows), (self._folder / self._name).stat().st_size
        result.sha256, result.index_sha256 = self._hashing.sha256.hexdigest(), hashlib.sha256(packed).hexdigest()

    def __enter__(self) -> "ShardTar":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of a disk that is full; whoever writes has heard of it
            self._tar.close()
        self._file.close()


def write_shard(samples: Samples, items: Sequence[tuple[int, Item]], name: str, folder: Path) -> ShardResult:
    """Write `folder`/NAME and its index from (ordinal, item) pairs; the bytes depend on the arguments alone."""
    result = ShardResult(name=name, index=name.removesuffix(".tar") + ".idx")
    with ShardTar(folder, name, samples.extension) as tar:
        for ordinal, item in items:
            try:
                content, note = samples.encode(item)
            except DataError:  # the source cannot be read at all: no property of this sample
                raise
            except TooSmall:
                result.too_small += 1
                continue
            except Exception as error:  # decoders of damaged files raise anything
                result.unreadable.append((item.name, reason(error)))
                continue
            tar.add(f"{ordinal:08d}", content, item.label)
            if note:
                result.notes[note] = result.notes.get(note, 0) + 1
            if item.label is not None:
                result.labels[item.label] = result.labels.get(item.label, 0) + 1
        tar.finish(result)
    return result
