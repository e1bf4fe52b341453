"""The MNIST family: four IDX files (LeCun, Cortes, Burges: The MNIST database), gzipped or not, in one folder."""

import functools
import gzip
import hashlib
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources import fashion_mnist
from data_pipeline.make_shards.sources.base import Item, Listing
from data_pipeline.storage.folder import Folder

CLASS_NAMES = {
    "fashion-mnist": fashion_mnist.CLASS_NAMES,
    "mnist": tuple(str(digit) for digit in range(10)),
}
_PREFIXES = {"train": "train", "test": "t10k"}


def _read(folder: Folder, name: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """One IDX file of unsigned bytes with the given number of dimensions."""
    found = next((n for n in (name, name + ".gz", name.replace("-idx", ".idx")) if folder.exists(n)), None)
    if found is None:
        raise DataError(f"INPUT: {folder} holds neither {name} nor {name}.gz; give the folder of the four IDX files")
    data = folder.read(found)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"INPUT: {folder}/{found} cannot be unpacked ({error}); fetch the file again") from None
    if data[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"INPUT: {folder}/{found} is not an IDX file of {dimensions}-dimensional bytes; fetch it again")
    header = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:header], dtype=">u4").astype(np.int64)
    if len(data) != header + shape.prod():
        raise DataError(
            f"INPUT: {folder}/{found} has {len(data)} bytes, its header asks for {header + shape.prod()}; fetch "
            "the file again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


class IdxSource:
    """`split` is train or test; `family` names the classes (None: Fashion-MNIST's files are known by their digest)."""

    channels = 1

    def __init__(self, folder: Folder, *, split: str = "train", family: str | None = None) -> None:
        self.folder, self.split, self.family = folder, split, family

    def listing(self) -> Listing:
        labels = _read(self.folder, f"{_PREFIXES[self.split]}-labels-idx1-ubyte", 1)
        images = self._images
        if len(labels) != len(images):
            raise DataError(f"INPUT: {self.folder} holds {len(images)} images but {len(labels)} labels; fetch it again")
        classes = int(labels.max()) + 1 if len(labels) else 0
        family = self.family
        if family is None and hashlib.sha256(labels.tobytes()).hexdigest() in fashion_mnist.LABELS_SHA256:
            family = "fashion-mnist"
        names = CLASS_NAMES[family] if family else tuple(str(k) for k in range(classes))
        if classes > len(names):
            raise DataError(
                f"--family: {family} has {len(names)} classes, {self.folder} has labels up to {classes - 1}"
            )
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        items = [
            Item(f"{self.split}-{i:05d}", int(label), (i, digest if i == 0 else "")) for i, label in enumerate(labels)
        ]
        return Listing(tuple((name, str(k)) for k, name in enumerate(names)), items)

    @functools.cached_property
    def _images(self) -> npt.NDArray[np.uint8]:
        return _read(self.folder, f"{_PREFIXES[self.split]}-images-idx3-ubyte", 3)

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "split": self.split, "family": self.family}

    def image(self, item: Item) -> Image.Image:
        return Image.fromarray(self._images[int(item.where[0])])
