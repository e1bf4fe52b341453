"""The binary index of each shard: where every sample's content is in the tar, its label, and its CRC32.

The content is an image's file, or a vector's `.npy` file. Layout, little-endian: 8 bytes `MENAGIDX`, uint32 version
(1), uint32 count, then `count` records of 20 bytes (uint64 offset of the content's bytes in the tar, uint32 size, int32
label, uint32 CRC32 of the content's bytes). The label is -1 where the samples have no class.
"""

import struct

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

MAGIC = b"MENAGIDX"
VERSION = 1
NO_LABEL = -1
RECORD = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("crc32", "<u4")])
_HEADER = struct.Struct("<8sII")

Records = npt.NDArray[np.void]


def to_bytes(records: Records) -> bytes:
    """The index file of structured records of dtype RECORD, shape [samples]."""
    return _HEADER.pack(MAGIC, VERSION, len(records)) + records.astype(RECORD, copy=False).tobytes()


def from_bytes(data: bytes, name: str) -> Records:
    """The records of an index file; `name` is for the error. Raises DataError."""
    if len(data) < _HEADER.size or data[:8] != MAGIC:
        raise DataError(f"{name}: is not a shard index; make the shards again")
    _, version, count = _HEADER.unpack_from(data)
    if version != VERSION:
        raise DataError(f"{name}: has index version {version}, this program reads {VERSION}; make the shards again")
    if len(data) != _HEADER.size + count * RECORD.itemsize:
        raise DataError(f"{name}: has {len(data)} bytes, {count} samples need {_HEADER.size + count * RECORD.itemsize}")
    return np.frombuffer(data, dtype=RECORD, offset=_HEADER.size)
