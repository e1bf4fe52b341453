"""A folder with one sub-folder per class, local or at an fsspec URL."""

import os
from collections import Counter
from pathlib import Path

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.storage.folder import Folder

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


class FolderSource:
    """`names`: readable names of the sub-folders; their labels are their places in the sorted list. `flat`: images at
    any depth, without classes."""

    def __init__(self, folder: Folder, names: dict[str, str] | None = None, *, flat: bool = False) -> None:
        self.folder, self.names, self.flat = folder, names, flat

    def files(self) -> list[tuple[str, int]]:
        """(path below the folder, size) of every file that is not hidden, sorted. Raises DataError."""
        if self.folder.local is not None:
            if not self.folder.local.is_dir():
                raise DataError(
                    f"INPUT: {self.folder} is not a folder; give the folder that holds one sub-folder per class"
                )
            found = [(os.path.relpath(path, self.folder.local), size) for path, size in _walk(self.folder.local)]
        else:
            entries = self.folder.remote.call(str(self.folder), "find", self.folder.root, detail=True)
            found = [(path[len(self.folder.root) + 1 :], int(entry["size"])) for path, entry in entries.items()]
        return sorted(entry for entry in found if not any(part.startswith(".") for part in entry[0].split("/")))

    def listing(self) -> Listing:
        files = self.files()
        images = [(path, size) for path, size in files if os.path.splitext(path)[1].lower() in SUFFIXES]
        depths = Counter(path.count("/") for path, _ in images)
        if not images:
            raise DataError(f"INPUT: {self.folder} holds no images (of {len(files)} files); check the path")
        if self.flat:
            return Listing((), [Item(path, None, (path, size)) for path, size in images], len(files) - len(images))
        if depths[0]:
            name = next(path for path, _ in images if "/" not in path)
            raise DataError(
                f"INPUT: {depths[0]} images lie in {self.folder} itself ({name}); give each class a sub-folder "
                "of its own, "
                "and if this is one class's folder, give the folder above it"
            )
        if not depths[1]:
            deeper = images[0][0].split("/")[0]
            raise DataError(
                f"INPUT: the images of {self.folder} lie a level too deep ({images[0][0]}); give one folder "
                "below it as INPUT "
                f"(such as {self.folder}/{deeper})"
            )
        if len(depths) > 1:
            name = next(path for path, _ in images if path.count("/") > 1)
            raise DataError(
                f"INPUT: some images of {self.folder} lie deeper than the sub-folder of a class ({name}); move "
                "them up, or away"
            )
        ids = sorted({path.split("/")[0] for path, _ in images})
        empty = {path.split("/")[0] for path, _ in files if "/" in path} - set(ids)
        if empty:
            raise DataError(
                f"INPUT: the sub-folder {min(empty)} of {self.folder} holds no images; fill it or remove it"
            )
        number = {key: label for label, key in enumerate(ids)}
        items = [Item(path, number[path.split("/")[0]], (path, size)) for path, size in images]
        return Listing(named(ids, self.names), items, ignored=len(files) - len(images))

    def image(self, item: Item) -> Image.Image:
        return open_image(self.folder.read(str(item.where[0])))


def _walk(folder: Path) -> list[tuple[str, int]]:
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in names:
            path = os.path.join(place, name)
            try:
                found.append((path, os.stat(path).st_size))
            except OSError as error:
                raise DataError(f"INPUT: {path} cannot be read ({error.strerror}); repair it or remove it") from None
    return found
