"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the published archives, binary or Python version, packed or not."""

import functools
import hashlib
import io
import pickle
import tarfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources.base import Item, Listing
from data_pipeline.storage.folder import Folder, split_url

_PIXELS = 3 * 32 * 32
# file names of each split; bytes before the pixels; which of them is the label; the file of the class names
_BINARY = {
    10: ({"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}, 1, 0, "batches.meta.txt"),
    100: ({"train": ["train.bin"], "test": ["test.bin"]}, 2, 1, "fine_label_names.txt"),
}
_PICKLED = {
    10: (
        {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]},
        "labels",
        "batches.meta",
        "label_names",
    ),
    100: ({"train": ["train"], "test": ["test"]}, "fine_labels", "meta", "fine_label_names"),
}


class _Array:
    """Stands for a numpy array in a pickle: keeps the state, runs nothing."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _Dtype(_Array):
    name = ""


def _make_array(*_: object) -> _Array:
    return _Array()


def _make_dtype(name: str, *_: object) -> _Dtype:
    made = _Dtype()
    made.name = name
    return made


def _to_bytes(text: str, *_: object) -> bytes:
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Loads containers, numbers and strings; numpy's names become stand-ins, every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _make_array
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _make_dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in the old protocols
            return _to_bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_plain(data: bytes, where: str) -> dict[str, Any]:
    """A pickled dictionary of plain containers and byte arrays; nothing in it is run. Raises DataError."""
    try:
        loaded = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(loaded, dict):
            raise pickle.UnpicklingError("it is not a dictionary")
        return {str(key): _to_numpy(value) if isinstance(value, _Array) else value for key, value in loaded.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"INPUT: {where} is not a published CIFAR file ({error}); fetch the archive again") from None


def _to_numpy(array: _Array) -> npt.NDArray[np.uint8]:
    _, shape, dtype, fortran, data = array.state
    if not isinstance(dtype, _Dtype) or dtype.name != "u1" or fortran:
        raise pickle.UnpicklingError("its array is not of bytes")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


class CifarSource:
    """INPUT is the archive, or a folder with it, or the unpacked files' folder; `split` is train or test."""

    channels = 3

    def __init__(self, url: str, *, split: str = "train") -> None:
        self.url, self.split = url.rstrip("/"), split

    def _files(self) -> dict[str, bytes]:
        """Name -> bytes of the files at INPUT."""
        if self.url.endswith((".tar.gz", ".tgz", ".tar")):
            return self._unpack(*split_url(self.url))
        folder = Folder(self.url)
        names = folder.names()
        archives = [
            name for name in names if name.startswith("cifar-10") and name.endswith((".tar.gz", ".tgz", ".tar"))
        ]
        if len(archives) > 1:
            raise DataError(
                f"INPUT: {folder} holds {len(archives)} CIFAR archives; give the path of the one that is meant"
            )
        if archives:
            return self._unpack(folder, archives[0])
        known = {
            name for table in (*_BINARY.values(), *_PICKLED.values()) for files in table[0].values() for name in files
        }
        known |= {"batches.meta.txt", "fine_label_names.txt", "batches.meta", "meta"}
        return {name: folder.read(name) for name in names if name in known}

    @staticmethod
    def _unpack(folder: Folder, name: str) -> dict[str, bytes]:
        files = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(folder.read(name))) as tar:
                for member in tar:
                    if member.isreg() and (file := tar.extractfile(member)) is not None:
                        files[member.name.rsplit("/", 1)[-1]] = file.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DataError(f"INPUT: {folder}/{name} cannot be unpacked ({error}); fetch the archive again") from None
        return files

    @functools.cached_property
    def _loaded(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
        """Images [samples, 32, 32, 3], labels [samples], class names."""
        files = self._files()
        for classes, (splits, before, place, meta) in _BINARY.items():
            if all(name in files for name in splits[self.split]):
                data = b"".join(files[name] for name in splits[self.split])
                if not data or len(data) % (before + _PIXELS):
                    raise DataError(f"INPUT: {self.url}: {splits[self.split][0]} is cut; fetch the archive again")
                rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, before + _PIXELS)
                names = files[meta].decode().split() if meta in files else [str(k) for k in range(classes)]
                return _planes(rows[:, before:]), rows[:, place].astype(np.int64), names
        for classes, (pickles, key, meta, names_key) in _PICKLED.items():
            if all(name in files for name in pickles[self.split]):
                parts = [load_plain(files[name], f"{self.url}/{name}") for name in pickles[self.split]]
                names = load_plain(files[meta], meta)[names_key] if meta in files else [str(k) for k in range(classes)]
                try:
                    pixels = np.concatenate([part["data"].reshape(-1, _PIXELS) for part in parts])
                    labels = np.array([label for part in parts for label in part[key]], dtype=np.int64)
                except (KeyError, AttributeError, ValueError, TypeError) as error:
                    raise DataError(
                        f"INPUT: {self.url} is not a published CIFAR archive ({error}); fetch it again"
                    ) from None
                return _planes(pixels), labels, [str(name) for name in names]
        raise DataError(
            f"INPUT: {self.url} holds no CIFAR-10 or CIFAR-100 {self.split} files; give a published archive or "
            "its unpacked folder"
        )

    def listing(self) -> Listing:
        images, labels, names = self._loaded
        if len(images) != len(labels) or not len(labels) or labels.min() < 0 or labels.max() >= len(names):
            raise DataError(
                f"INPUT: {self.url} has {len(images)} images, {len(labels)} labels and {len(names)} class "
                "names, which do not "
                "fit together; fetch the archive again"
            )
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        items = [
            Item(f"{self.split}-{k:05d}", int(label), (k, digest if k == 0 else "")) for k, label in enumerate(labels)
        ]
        return Listing(tuple((name, str(k)) for k, name in enumerate(names)), items)

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "split": self.split}

    def image(self, item: Item) -> Image.Image:
        return Image.fromarray(self._loaded[0][int(item.where[0])])


def _planes(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Red, green and blue planes [n, 3072] to pixels [n, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
