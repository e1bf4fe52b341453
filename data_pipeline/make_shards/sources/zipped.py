"""A zip of class folders, or StyleGAN's zip, whose labels are in its `dataset.json`. It is read in place."""

import re
import zipfile
import zlib
from typing import IO, NamedTuple, cast

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.folder import LABELS, FolderSource
from data_pipeline.make_shards.sources.labels import json_labels, labelled
from data_pipeline.make_shards.sources.ranges import RangedFile
from data_pipeline.storage.folder import split_url

_ARCHIVE = re.compile(r"(.*?\.zip)(?:/(.*))?", re.IGNORECASE | re.DOTALL)
_HEADER = 30  # bytes of a member's header before its name
_ENCRYPTED = 1


class _Member(NamedTuple):
    """Where a member is, and how it is packed."""

    offset: int
    """Of its header."""
    packed: int
    size: int
    method: int
    crc32: int


class ZipSource(FolderSource):
    """`url`: of the archive, and maybe of a folder in it, `pictures.zip/train`. `names`, `flat` and `subset` as
    FolderSource's."""

    def __init__(
        self, url: str, names: dict[str, str] | None = None, *, flat: bool = False, subset: bool = False
    ) -> None:
        match = _ARCHIVE.fullmatch(url.rstrip("/"))
        if match is None:
            raise DataError(
                f"INPUT: {url} is not called .zip; give the archive, or a folder in it (pictures.zip/train)"
            )
        folder, self.archive = split_url(match[1])
        super().__init__(folder, names, flat=flat, subset=subset)
        self.below = match[2] or ""
        self.where = f"{folder}/{self.archive}" + (f"/{self.below}" if self.below else "")
        self._members: dict[str, _Member | None] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_members": {}}

    def _list(self) -> dict[str, _Member | None]:
        """Every file by its path, and every folder with None. Raises DataError."""
        found: dict[str, _Member | None] = {}
        begins = f"{self.below}/" if self.below else ""
        for info in self._directory():
            if not info.filename.startswith(begins) or info.filename == begins:
                continue
            path = info.filename[len(begins) :]
            if path in found:
                raise DataError(f"INPUT: {self.where} holds {printable(path)} twice; pack it again")
            if path.endswith("/"):
                found[path.rstrip("/")] = None
                continue
            if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if info.flag_bits & _ENCRYPTED else f"packed by method {info.compress_type}"
                raise DataError(f"INPUT: {printable(path)} of {self.where} is {how}; unpack it, and use SOURCE folder")
            found[path] = _Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        return found

    def _directory(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(cast(IO[bytes], RangedFile(self.folder, self.archive))) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"INPUT: {self.where} is not a whole zip ({error}); fetch it again") from None

    def files(self) -> tuple[list[tuple[str, int]], set[str]]:
        """As FolderSource's."""
        members = self._members = self._list()
        files = [(path, member.size) for path, member in members.items() if member is not None]
        above = {path.rpartition("/")[0] for path, _ in files}
        folders = {path for path, member in members.items() if member is None} | above - {""}
        return sorted(entry for entry in files if self._seen(entry[0])), {path for path in folders if self._seen(path)}

    def _seen(self, path: str) -> bool:
        return super()._seen(path) and "__MACOSX" not in path.split("/")

    def listing(self) -> Listing:
        """List the archive; its dataset.json, if it has one, says the classes. Raises DataError."""
        try:
            listing = super().listing()
            items = [item._replace(where=(item.where[0], *self._member(str(item.where[0])))) for item in listing.items]
            listing = listing._replace(items=items)
            if self.flat or LABELS not in self._members:
                return listing
            said = self._unpacked(self._member(LABELS)).decode(errors="replace")
            return labelled(listing, json_labels(said, f"{self.where}/{LABELS}"), self.names, self.subset)
        finally:
            self._members = {}

    def by_class(self, images: list[tuple[str, int]], files: list[tuple[str, int]], folders: set[str]) -> Listing:
        """As FolderSource's; without classes where dataset.json says them."""
        if LABELS in self._members:
            return self.without_classes(images, files)
        return super().by_class(images, files, folders)

    def _member(self, path: str) -> _Member:
        member = self._members[path]
        assert member is not None
        return member

    def image(self, item: Item) -> Image.Image:
        """Decode one item. Raises DataError where the archive has changed, ValueError where the member is damaged, and
        whatever the decoder raises."""
        return open_image(self._unpacked(_Member(*map(int, item.where[1:]))))

    def _unpacked(self, member: _Member) -> bytes:
        guess = _HEADER + 300  # its name and what else its header has are nearly always shorter
        data = self.folder.read_range(self.archive, member.offset, guess + member.packed)
        begin = _HEADER + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        if begin > guess:
            data += self.folder.read_range(self.archive, member.offset + len(data), begin - guess)
        packed = data[begin : begin + member.packed]
        if len(packed) != member.packed or data[:4] != b"PK\3\4":
            raise DataError(f"INPUT: {self.where} has changed since it was listed; run the command again")
        if member.method == zipfile.ZIP_DEFLATED:
            packed = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
        if len(packed) != member.size or zlib.crc32(packed) != member.crc32:
            raise ValueError("its bytes are not those that were packed (CRC-32)")
        return packed
