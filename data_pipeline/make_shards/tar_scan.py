"""Find the samples of a WebDataset tar, ours or foreign: the names' common part up to the first dot is a sample."""

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest.index import NO_LABEL, RECORD, Records

IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
_LABEL_FIELDS = ("label", "cls", "class", "class_id")


class TarSample(NamedTuple):
    """One sample of a tar: its image's place, the image's bytes, and its label."""

    key: str
    offset: int
    data: bytes
    label: int | None


def _label(suffix: str, data: bytes, where: str) -> int | None:
    try:
        if suffix == "cls":
            return int(data)
        if suffix == "json":
            document = json.loads(data)
            for name in _LABEL_FIELDS:
                if isinstance(document, dict) and isinstance(document.get(name), int):
                    return int(document[name])
    except ValueError:
        raise DataError(f"{where}.{suffix}: holds no class number") from None
    return None


def members(file: IO[bytes], name: str, begin: int = 0) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar that begins at `begin`. Raises DataError where it is damaged or cut,
    which tarfile alone passes over when the cut lies in a header."""
    file.seek(begin)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                if member.isreg():
                    yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{name}: has no end mark, so the tar is cut; copy it again")
    except tarfile.TarError as error:
        raise DataError(f"{name}: is not a whole uncompressed tar ({error}); unpack or copy it again") from None


def samples(file: IO[bytes], name: str) -> Iterator[TarSample]:
    """The samples of an uncompressed tar with an image, in order. Raises DataError where the tar is damaged."""
    key, image, label = "", None, None
    for member in members(file, name):
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        this = f"{folder}/{stem}" if folder else stem
        if this != key:
            if image is not None:
                yield TarSample(key, image[0], image[1], label)
            key, image, label = this, None, None
        if suffix not in (*IMAGE_SUFFIXES, "cls", "json"):
            continue
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) != member.size:
            raise DataError(f"{name}: ends inside {member.name}; the tar is cut, copy it again")
        if suffix in IMAGE_SUFFIXES:
            image = (member.offset_data, data)
        else:
            found = _label(suffix, data, f"{name}: {this}")
            label = label if found is None else found
    if image is not None:
        yield TarSample(key, image[0], image[1], label)


def build_index(file: IO[bytes], name: str, labelled: bool = True) -> Records:
    """The index of a tar of images; their labels are passed over where they are not wanted. Raises DataError."""
    rows = []
    for sample in samples(file, name):
        if labelled and sample.label is None:
            raise DataError(
                f"{name}: sample {sample.key} has no .cls file and no class number in a .json file; add it, or give "
                "--unlabelled"
            )
        label = sample.label if labelled and sample.label is not None else NO_LABEL
        rows.append((sample.offset, len(sample.data), label, zlib.crc32(sample.data)))
    return np.array(rows, dtype=RECORD)
