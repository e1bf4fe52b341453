"""A folder with one sub-folder per class, local or at an fsspec URL."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from data_pipeline.errors import DataError, FileError
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.class_names import named
from data_pipeline.storage.folder import Folder

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
_PARTS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"))
"""Names of parts of a data set, which are no classes."""
LABELS = "dataset.json"
"""Where StyleGAN's tools write the labels; the sub-folders next to it are no classes."""


class FolderSource:
    """`names`: readable names of the sub-folders; their labels are their places in the sorted list. `flat`: images at
    any depth, without classes. `subset`: whether `names` may name more. `skip`: a folder in it to pass over."""

    def __init__(
        self,
        folder: Folder,
        names: dict[str, str] | None = None,
        *,
        flat: bool = False,
        subset: bool = False,
        skip: str = "",
    ) -> None:
        self.folder, self.names, self.flat, self.subset, self.skip = folder, names, flat, subset, skip
        self.where = str(folder)

    def files(self) -> tuple[list[tuple[str, int]], set[str]]:
        """(path below the folder, size) of every file, sorted; and the paths of the folders. What is hidden is left
        out. Raises DataError."""
        if self.folder.local is not None:
            if not self.folder.local.is_dir():
                raise DataError(
                    f"INPUT: {self.where} is not a folder; give the folder that holds one sub-folder per class"
                )
            files, folders = _walk(self.folder.local)
        else:
            files, folders = self._find()
        above = {str(path) for path in PurePosixPath(self.skip).parents}
        seen = {path for path in folders if self._seen(path)}
        return sorted(entry for entry in files if self._seen(entry[0])), seen - above

    def _find(self) -> tuple[list[tuple[str, int]], list[str]]:
        """As `_walk`, of a remote folder."""
        root = self.folder.root
        entries = self.folder.remote.call(str(self.folder), "find", root, detail=True, withdirs=True)
        files, folders = [], []
        for path, entry in entries.items():
            below = path[len(root) :].strip("/")
            if entry["type"] == "directory" or path.endswith("/"):
                folders.append(below)
            else:
                files.append((below, int(entry.get("size") or 0)))
        return files, [path for path in folders if path]

    def _seen(self, path: str) -> bool:
        hidden = any(part.startswith(".") for part in path.split("/"))
        return not hidden and not (self.skip and f"{path}/".startswith(f"{self.skip}/"))

    def listing(self) -> Listing:
        """List the folder. Raises DataError."""
        files, folders = self.files()
        images = [(path, size) for path, size in files if os.path.splitext(path)[1].lower() in SUFFIXES]
        if not images:
            raise DataError(f"INPUT: {self.where} holds no images (of {len(files)} files); check the path")
        return self.without_classes(images, files) if self.flat else self.by_class(images, files, folders)

    def without_classes(self, images: list[tuple[str, int]], files: list[tuple[str, int]]) -> Listing:
        """The images at any depth; `files`: all files."""
        items = [Item(printable(path), None, (path, size)) for path, size in images]
        return Listing((), items, len(files) - len(images))

    def by_class(self, images: list[tuple[str, int]], files: list[tuple[str, int]], folders: set[str]) -> Listing:
        """The images of the classes' sub-folders. Raises DataError."""
        if any(path == LABELS for path, _ in files):
            raise DataError(
                f"INPUT: {self.where} holds {LABELS}, so its sub-folders may be no classes; give --labels "
                f"{self.where}/{LABELS}, or --unlabelled, or move the file away"
            )
        self._check_levels([path for path, _ in images])
        ids = sorted({path.split("/")[0] for path, _ in images})
        self._check_classes(ids, folders | {path.rpartition("/")[0] for path, _ in files})
        number = {key: label for label, key in enumerate(ids)}
        items = [Item(printable(path), number[path.split("/")[0]], (path, size)) for path, size in images]
        return Listing(named(ids, self.names, self.subset), items, len(files) - len(images))

    def _check_levels(self, paths: list[str]) -> None:
        """Refuse images that are not in CLASS/IMAGE, or, as in tiny-imagenet, all in CLASS/images/IMAGE."""
        if flat := [path for path in paths if "/" not in path]:
            raise DataError(
                f"INPUT: {len(flat)} images are in {self.where} itself ({printable(flat[0])}), not in the sub-folder of a "
                "class; move each into its class's sub-folder, give the folder above if this is one class's folder, or "
                "give --unlabelled"
            )
        if all(path.count("/") == 1 for path in paths) or (
            all(path.count("/") == 2 for path in paths) and _inner(paths) is not None
        ):
            return
        deep = next(path for path in paths if path.count("/") > 1)
        raise DataError(
            f"INPUT: some images of {self.where} are deeper than the sub-folder of a class ({printable(deep)}); "
            f"{self._advice(paths)}"
        )

    def _advice(self, paths: list[str]) -> str:
        """What to do about images at several levels: the folder below with the most classes."""
        inner = _inner([path for path in paths if path.count("/") > 1])
        classes: defaultdict[str, set[str]] = defaultdict(set)
        for path in paths:
            parts = path.split("/")[:-1]
            if inner is not None and len(parts) > 1 and parts[-1] == inner:
                parts = parts[:-1]
            classes["/".join(parts[:-1])].add(parts[-1])
        best = max(sorted(classes), key=lambda root: len(classes[root]))
        if best and len(classes[best]) > 1:
            return f"give {self.where}/{printable(best)} as INPUT, which has {len(classes[best])} classes"
        return "move them up, or away"

    def _check_classes(self, ids: list[str], folders: Iterable[str]) -> None:
        """Refuse sub-folders that are no classes, and classes without images."""
        if set(map(str.lower, ids)) <= _PARTS:
            raise DataError(
                f"INPUT: the sub-folders of {self.where} ({', '.join(ids)}) are parts of a data set, not classes; give one "
                "of them as INPUT"
            )
        empty = {path.split("/")[0] for path in folders if path} - set(ids)
        if empty:
            raise DataError(
                f"INPUT: the sub-folder {printable(min(empty))} of {self.where} holds no images ({len(empty)} such "
                "sub-folders); complete it, or remove it if it is no class"
            )

    def image(self, item: Item) -> Image.Image:
        """Decode one item. Raises DataError where the folder cannot be read, OSError where this file cannot, and
        whatever the decoder raises."""
        path, size = item.where
        try:
            return open_image(self.folder.read(str(path), int(size)))
        except FileError as error:
            raise OSError(error.reason) from None


def _inner(paths: list[str]) -> str | None:
    """The name of the folders that the images are in, if it is the same in two or more folders."""
    names = Counter(path.split("/")[-2] for path in paths)
    above = {path.rsplit("/", 2)[0] for path in paths}
    return next(iter(names)) if len(names) == 1 and len(above) > 1 else None


def _walk(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(path below the folder, size) of every file, and the paths of the folders. Raises DataError where one cannot be
    listed, because its files would be missing."""
    files, folders = [], []

    def refuse(error: OSError) -> None:
        raise DataError(
            f"INPUT: {printable(str(error.filename))} cannot be listed ({error.strerror}); repair it or remove it"
        ) from None

    for place, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        below.sort()
        folders += [os.path.relpath(os.path.join(place, name), folder) for name in below]
        for name in names:
            path = os.path.join(place, name)
            try:
                size = os.stat(path).st_size
            except OSError:
                size = 0  # what is wrong is in the report when it is read
            files.append((os.path.relpath(path, folder), size))
    return files, folders
