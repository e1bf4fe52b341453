"""ILSVRC2012's training set: the tar of tars as it is published (read in place, nothing is unpacked), a folder of the
inner tars, or the unpacked folders. The standard class numbers 0-999 are the places of the WordNet ids in their
sorted list."""

import re
from typing import IO, cast

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards import tar_scan
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.make_shards.sources.folder import FolderSource
from data_pipeline.make_shards.sources.ranges import RangedFile, walked
from data_pipeline.storage.folder import Folder, split_url

ARCHIVE = "ILSVRC2012_img_train.tar"
_WORDNET = re.compile(r"n\d{8}")
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


def _members(
    folder: Folder, archive: str, where: str, begin: int = 0, end: int | None = None
) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the files of a tar in the bytes [begin, end) of a file. Raises DataError."""
    file = cast(IO[bytes], RangedFile(folder, archive))
    return [
        (member.name.rsplit("/", 1)[-1], member.offset_data, member.size)
        for member in tar_scan.members(file, f"INPUT: {where}", begin, end)
    ]


class ImageNetSource:
    """`folder` and `archive`: where the tar of tars is; an empty archive name: the folder holds the inner tars.
    `subset`: whether fewer than all classes will do."""

    def __init__(
        self, folder: Folder, archive: str, names: dict[str, str] | None = None, *, subset: bool = False
    ) -> None:
        self.folder, self.archive, self.names, self.subset = folder, archive, names, subset

    def _synsets(self) -> list[tuple[str, str, list[tuple[str, int, int]]]]:
        """(WordNet id, the file that holds it, its images' names, offsets and sizes), sorted by id."""
        tars: list[tuple[str, str, str, int, int | None]] = []  # WordNet id, file, for errors, where in the file
        if self.archive:
            for name, offset, size in _members(self.folder, self.archive, f"{self.folder}/{self.archive}"):
                key = name.removesuffix(".tar")
                if not name.endswith(".tar") or not _WORDNET.fullmatch(key):
                    raise DataError(
                        f"INPUT: {self.folder}/{self.archive} holds {name}, which is not the tar of a WordNet id; give "
                        f"{ARCHIVE} as it is published"
                    )
                tars.append((key, self.archive, f"{self.archive}: {name}", offset, offset + size))
        else:
            for name in self.folder.names():
                if _WORDNET.fullmatch(key := name.removesuffix(".tar")) and name.endswith(".tar"):
                    tars.append((key, name, f"{self.folder}/{name}", 0, None))
        images = walked(self.folder, _members, ((self.folder, *tar[1:]) for tar in tars))
        return sorted((key, file, found) for (key, file, *_), found in zip(tars, images, strict=True))

    def listing(self) -> Listing:
        synsets = self._synsets()
        ids = [key for key, _, _ in synsets]
        if len(set(ids)) != len(ids):
            raise DataError(f"INPUT: {self.folder}/{self.archive} holds a WordNet id twice; fetch it again")
        check_complete(str(self.folder), ids, self.subset)
        items = [
            Item(printable(name), label, (file, offset, size))
            for label, (_, file, images) in enumerate(synsets)
            for name, offset, size in images
        ]
        return Listing(named(ids, self.names or readable_names(ids), self.subset), items)

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
        check_complete(str(self.folder), ids, self.subset)
        return listing._replace(classes=named(ids, self.names or readable_names(ids), self.subset))


def check_complete(where: str, ids: list[str], subset: bool) -> None:
    """Refuse fewer than all classes of ILSVRC2012, whose numbers would then be others, unless that is wanted. Raises
    DataError."""
    if len(ids) != _CLASSES and not subset:
        raise DataError(
            f"INPUT: {where} has {len(ids)} of the {_CLASSES} classes of ILSVRC2012; complete it, or add --subset, which "
            "numbers the classes that there are anew"
        )


def imagenet_source(
    url: str, names: dict[str, str] | None, *, subset: bool = False, skip: str = ""
) -> ImageNetSource | FolderSource:
    """The source for any of the published and the unpacked forms; `skip`: a folder in it to pass over. Raises
    DataError."""
    if url.rstrip("/").endswith(".tar"):
        folder, name = split_url(url)
        return ImageNetSource(folder, name, names, subset=subset)
    folder = Folder(url)
    files = folder.names()
    if ARCHIVE in files:
        return ImageNetSource(folder, ARCHIVE, names, subset=subset)
    tars = [name for name in files if name.endswith(".tar") and _WORDNET.fullmatch(name[:-4])]
    halves = [name for name in files if _WORDNET.match(name) and name not in tars]
    unpacked = _Unpacked(folder, names, subset=subset, skip=skip)
    if not tars:
        return unpacked
    if not halves and folder.local is not None:
        halves = sorted(path.name for path in folder.local.iterdir() if path.is_dir() and _WORDNET.fullmatch(path.name))
    if halves:
        raise DataError(
            f"INPUT: {folder} holds {len(tars)} tars of WordNet ids and also {halves[0]} ({len(halves)} such); it is half "
            "unpacked or half fetched, so unpack all of it, or none of it"
        )
    return ImageNetSource(folder, "", names, subset=subset)
