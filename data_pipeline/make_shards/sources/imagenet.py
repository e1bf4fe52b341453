"""ILSVRC2012's training set: the tar of tars as it is published (read in place, nothing is unpacked), a folder of the
inner tars, or the unpacked folders. The standard class numbers 0-999 are the places of the WordNet ids in their
sorted list."""

import io
import re
from typing import IO, cast

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards import tar_scan
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.make_shards.sources.folder import FolderSource
from data_pipeline.storage.folder import Folder

ARCHIVE = "ILSVRC2012_img_train.tar"
_WORDNET = re.compile(r"n\d{8}")
_BLOCK = 8 << 20
_CLASSES = 1000
_KNOWN = {
    0: "n01440764",
    1: "n01443537",
    207: "n02099601",
    281: "n02123045",
    340: "n02391049",
    388: "n02510455",
    999: "n15075141",
}
"""Some of the standard numbers (tench, goldfish, golden retriever, tabby, zebra, giant panda, toilet tissue)."""


def readable_names(ids: list[str]) -> dict[str, str] | None:
    """The names that torchvision ships in the standard order, if these are the 1000 ids of ILSVRC2012."""
    if len(ids) != _CLASSES or any(ids[place] != key for place, key in _KNOWN.items()):
        return None
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES as names
    except ImportError:
        return None
    return dict(zip(ids, names, strict=True))


class _Ranges(io.RawIOBase):
    """A file of a folder, read in large blocks, so that a scan of headers does not make a request for each."""

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


def _members(file: IO[bytes], where: str, begin: int = 0) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the files of a tar that begins at `begin`. Raises DataError."""
    return [
        (member.name.rsplit("/", 1)[-1], member.offset_data, member.size)
        for member in tar_scan.members(file, f"INPUT: {where}", begin)
    ]


class ImageNetSource:
    """`folder` and `archive`: where the tar of tars is; an empty archive name: the folder holds the inner tars."""

    def __init__(self, folder: Folder, archive: str, names: dict[str, str] | None = None) -> None:
        self.folder, self.archive, self.names = folder, archive, names

    def _synsets(self) -> list[tuple[str, str, list[tuple[str, int, int]]]]:
        """(WordNet id, the file it lies in, its images' names, offsets and sizes), sorted by id."""
        found = []
        if self.archive:
            file = cast(IO[bytes], _Ranges(self.folder, self.archive))
            for name, offset, _ in _members(file, f"{self.folder}/{self.archive}"):
                key = name.removesuffix(".tar")
                if not name.endswith(".tar") or not _WORDNET.fullmatch(key):
                    raise DataError(
                        f"INPUT: {self.folder}/{self.archive} holds {name}, which is not the tar of a WordNet id; give "
                        f"{ARCHIVE} as it is published"
                    )
                found.append((key, self.archive, _members(file, f"{self.archive}: {name}", begin=offset)))
        else:
            for name in self.folder.names():
                if _WORDNET.fullmatch(key := name.removesuffix(".tar")) and name.endswith(".tar"):
                    file = cast(IO[bytes], _Ranges(self.folder, name))
                    found.append((key, name, _members(file, f"{self.folder}/{name}")))
        return sorted(found)

    def listing(self) -> Listing:
        synsets = self._synsets()
        ids = [key for key, _, _ in synsets]
        if len(set(ids)) != len(ids):
            raise DataError(f"INPUT: {self.folder}/{self.archive} holds a WordNet id twice; fetch it again")
        items = [
            Item(name, label, (file, offset, size))
            for label, (_, file, images) in enumerate(synsets)
            for name, offset, size in images
        ]
        return Listing(named(ids, self.names or readable_names(ids)), items)

    def image(self, item: Item) -> Image.Image:
        file, offset, size = item.where
        data = self.folder.read_range(str(file), int(offset), int(size))
        if len(data) != int(size):
            raise DataError(f"INPUT: {self.folder}/{file} has become shorter than {item.name} needs; fetch it again")
        return open_image(data)


class _Unpacked(FolderSource):
    def listing(self) -> Listing:
        listing = super().listing()
        ids = [key for _, key in listing.classes]
        if wrong := [key for key in ids if not _WORDNET.fullmatch(key)]:
            raise DataError(
                f"INPUT: {wrong[0]} of {self.folder} is not a WordNet id (n and eight digits); for other "
                "folders use SOURCE folder"
            )
        return Listing(named(ids, self.names or readable_names(ids)), listing.items, listing.ignored)


def imagenet_source(url: str, names: dict[str, str] | None) -> ImageNetSource | FolderSource:
    """The source for any of the published and the unpacked forms. Raises DataError."""
    if url.rstrip("/").endswith(".tar"):
        parent, _, name = url.rstrip("/").rpartition("/")
        return ImageNetSource(Folder(parent or "."), name, names)
    folder = Folder(url)
    files = folder.names()
    if ARCHIVE in files:
        return ImageNetSource(folder, ARCHIVE, names)
    if any(name.endswith(".tar") and _WORDNET.fullmatch(name[:-4]) for name in files):
        return ImageNetSource(folder, "", names)
    return _Unpacked(folder, names)
