"""Find the samples of a WebDataset tar, ours or foreign: the names' common part up to the first dot is a sample.

Nothing is guessed and nothing is passed over uncounted. A sample has one image and one label; members that are
neither are counted; what has two meanings is refused with the name of the member.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from data_pipeline.errors import DataError

STORED_IMAGES = frozenset(("jpg", "jpeg", "jpe", "jfif", "png"))
"""Suffixes of the images that training decodes."""
OTHER_IMAGES = frozenset(
    ("webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif", "jp2", "qoi", "heic", "jxl", "tga", "exr")
)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_LABEL_FIELDS = ("label", "cls", "class", "class_id")
_BLOCK = 1 << 20


class Fields(NamedTuple):
    """Which members of a sample are meant, by what follows the first dot of their names; empty: the only one."""

    image: str = ""
    label: str = ""


USUAL_FIELDS = Fields()


class TarSample(NamedTuple):
    """One sample of a tar: where its image is, and its label."""

    key: str
    image: str
    """The member's name."""
    offset: int
    size: int
    label: int | None


@dataclass
class Scan:
    """The samples of one tar, in order; `unused` counts the members that are no part of one, by their suffixes."""

    file: IO[bytes]
    name: str
    """For errors."""
    fields: Fields = USUAL_FIELDS
    unused: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[TarSample]:
        """Raises DataError where the tar is damaged, or a sample has two meanings."""
        seen: set[str] = set()
        key, group = "", list[tuple[str, tarfile.TarInfo]]()
        for member in members(self.file, self.name):
            folder, _, base = member.name.rpartition("/")
            if base.startswith(".") or "__MACOSX" in folder.split("/"):
                self.unused["hidden"] += 1
                continue
            stem, _, suffix = base.partition(".")
            this = f"{folder}/{stem}" if folder else stem
            if this != key:
                yield from self._sample(key, group)
                if this in seen:
                    raise DataError(
                        f"{self.name}: the sample {this} comes twice, or its members are not next to each other "
                        f"({member.name}); pack the tar again, sorted by name"
                    )
                seen.add(this)
                key, group = this, []
            group.append((suffix.lower(), member))
        yield from self._sample(key, group)

    def _sample(self, key: str, group: list[tuple[str, tarfile.TarInfo]]) -> Iterator[TarSample]:
        """The sample of the members that share a key; none where they are no sample."""
        if not group:
            return
        image = self._image(key, group)
        labels = self._labels(key, group)
        self._count(group, image)
        if image is None:
            if labels:
                names = ", ".join(member.name for _, member in group)
                raise DataError(f"{self.name}: the sample {key} has no image, only {names}; complete or remove it")
            return
        if len({value for _, value in labels}) > 1:
            said = " and ".join(f"{name} says {value}" for name, value in labels)
            raise DataError(
                f"{self.name}: the sample {key} has two labels: {said}; correct it, or choose the member that is right "
                "with --label-field"
            )
        yield TarSample(key, image.name, image.offset_data, image.size, labels[0][1] if labels else None)

    def _image(self, key: str, group: list[tuple[str, tarfile.TarInfo]]) -> tarfile.TarInfo | None:
        wanted = self.fields.image
        found = [
            (suffix, member)
            for suffix, member in group
            if (suffix == wanted if wanted else suffix in STORED_IMAGES or suffix in OTHER_IMAGES)
        ]
        if len(found) > 1:
            names = " and ".join(member.name for _, member in found)
            raise DataError(
                f"{self.name}: the sample {key} has two images: {names}; choose one with --image-field, as in "
                f"--image-field {found[0][0]}"
            )
        if found or wanted:
            return found[0][1] if found else None
        for suffix, member in group:
            last = suffix.rpartition(".")[2]
            if last in STORED_IMAGES or last in OTHER_IMAGES:
                raise DataError(
                    f"{self.name}: {member.name} has two dots in its name, so it is the member `{suffix}` of the sample "
                    f"{key}; say that it is the image with --image-field {suffix}, or rename it"
                )
        return None

    def _labels(self, key: str, group: list[tuple[str, tarfile.TarInfo]]) -> list[tuple[str, int]]:
        """(member, label) of everything that says one."""
        found = []
        for suffix, member in group:
            if self._says_label(suffix):
                data = self.read(member.offset_data, member.size, member.name)
                found += [
                    (f"{member.name}{place}", value)
                    for place, value in _labels(data, suffix.rpartition(".")[2], f"{self.name}: {member.name}")
                ]
        return found

    def _says_label(self, suffix: str) -> bool:
        return suffix == self.fields.label if self.fields.label else suffix in ("cls", "json")

    def _count(self, group: list[tuple[str, tarfile.TarInfo]], image: tarfile.TarInfo | None) -> None:
        for suffix, member in group:
            if member is not image and not self._says_label(suffix):
                self.unused[f".{suffix}"] += 1

    def read(self, offset: int, size: int, member: str) -> bytes:
        """The bytes of a member. Raises DataError where the tar is cut."""
        self.file.seek(offset)
        data = self.file.read(size)
        if len(data) != size:
            raise DataError(f"{self.name}: ends inside {member}; the tar is cut, copy it again")
        return data


def _labels(data: bytes, kind: str, where: str) -> list[tuple[str, int]]:
    """(place, label) of the labels in a member's bytes. Raises DataError where it holds none that is a number."""
    try:
        if kind != "json":
            found = [("", int(data))]
        else:
            document = json.loads(data)
            fields = document if isinstance(document, dict) else {}
            found = [
                (f" `{name}`", fields[name])
                for name in _LABEL_FIELDS
                if isinstance(fields.get(name), int) and not isinstance(fields[name], bool)
            ]
    except ValueError:
        raise DataError(f"{where} holds no class number; correct it") from None
    for _, value in found:
        if not -(2**31) <= value < 2**31:
            raise DataError(f"{where} holds {value}, which is no class number; correct it")
    return found


def members(file: IO[bytes], name: str, begin: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar in the bytes [begin, end) of a file. Raises DataError where it is
    damaged or cut, which tarfile alone passes over when the cut is in a header, and where it holds anything else."""
    file.seek(begin)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                if member.isreg() and not member.issparse():
                    yield member
                elif not member.isdir():
                    kind = "a link" if member.islnk() or member.issym() else "no plain file"
                    raise DataError(
                        f"{name}: {member.name} is {kind}; unpack the tar, and pack it again with --dereference and "
                        "without --sparse"
                    )
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{name}: has no end mark, so the tar is cut; copy it again")
    except tarfile.TarError as error:
        raise DataError(f"{name}: is not a whole uncompressed tar ({error}); unpack or copy it again") from None
    while block := file.read(_BLOCK if end is None else max(0, min(_BLOCK, end - file.tell()))):
        if block.count(0) != len(block):
            raise DataError(f"{name}: goes beyond its end mark, as tars that were joined do; take it apart again")
