"""Write one shard: read, prepare and encode its items, write the tar with webdataset, index it. Runs in worker
processes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile
from zlib_ng.zlib_ng import crc32

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import ImageOptions, TooSmall, encode, prepare
from data_pipeline.make_shards.sources.base import Item, Source
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
    text = " ".join(str(error).split())
    return "not an image of a known format" if text.startswith("cannot identify image file") else text[:200]


def write_shard(
    source: Source, items: Sequence[tuple[int, Item]], options: ImageOptions, name: str, folder: Path
) -> ShardResult:
    """Write `folder`/NAME and its index from (ordinal, item) pairs; the bytes depend on the arguments alone."""
    import webdataset  # here: it takes seconds to import, and readers do not need it

    path = folder / name
    result = ShardResult(name=name, index=name.removesuffix(".tar") + ".idx")
    rows: list[tuple[int, int, int, int]] = []
    extension = "jpg" if options.encoding == "jpeg" else "png"
    with path.open("w+b") as file:
        hashing = _Hashing(file)
        with webdataset.TarWriter(hashing, user="", group="", encoder=False, mtime=0, compress=False) as writer:
            for ordinal, item in items:
                try:
                    sample = encode(prepare(source.image(item), options), options)
                except DataError:  # the source cannot be read at all: no property of this image
                    raise
                except TooSmall:
                    result.too_small += 1
                    continue
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    result.unreadable.append((item.name, reason(error)))
                    continue
                writer.write({"__key__": f"{ordinal:08d}", extension: sample, "cls": str(item.label).encode()})
                writer.tarstream.members = []  # else every header stays in memory
                # The image is the sample's last file, and ends with its padding.
                begin = writer.tarstream.offset + len(sample) // -tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
                rows.append((begin, len(sample), item.label, crc32(sample)))
                result.labels[item.label] = result.labels.get(item.label, 0) + 1
        file.flush()
        os.fsync(file.fileno())
        result.size = path.stat().st_size
    packed = index.to_bytes(np.array(rows, dtype=index.RECORD))
    (folder / result.index).write_bytes(packed)
    result.samples, result.sha256 = len(rows), hashing.sha256.hexdigest()
    result.index_sha256 = hashlib.sha256(packed).hexdigest()
    return result
