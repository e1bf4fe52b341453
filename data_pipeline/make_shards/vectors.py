"""Shards of vectors, from arrays in memory: word vectors, features, tags. A sample is `KEY.npy`, and `KEY.cls` where it
has a class; any reader of WebDataset tars understands both."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources.base import Item, Listing
from data_pipeline.make_shards.writing import make_shards
from data_pipeline.manifest.content import npy_header
from data_pipeline.manifest.format import Manifest, VectorField
from data_pipeline.storage.folder import Folder


def write_vectors(
    output: str | os.PathLike[str] | Folder,
    vectors: npt.NDArray[np.float32],
    classes: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    class_names: Sequence[str] = (),
    *,
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
    notice: Mapping[str, str] | None = None,
    part: bool = False,
) -> Manifest:
    """Write float32 vectors [N, D] as shards with indexes and a manifest to a path or an fsspec URL. Raises DataError.

    `classes`: the class number of each vector, 0 .. number of classes - 1; None: the vectors have none. `class_names`:
    of all classes; without them a class is called by its number. The files depend on the arguments alone. Vector i
    has the key `%08d` of i; as with images, neighbours in the array are apart in the shards. `notice`: what the manifest
    says to whoever has them, such as a licence. `part`: a class may have no vector, because another part of the data
    has it.
    """
    vectors = _checked(vectors)
    names = _class_names(len(vectors), classes, class_names, part)
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard: {samples_per_shard} samples make no shard; use 1 or more")
    labels = None if classes is None else np.asarray(classes)
    samples = _VectorSamples(vectors, labels, names, tuple((notice or {}).items()), part)
    folder = output if isinstance(output, Folder) else Folder(output)
    manifest = make_shards(
        samples,
        folder,
        description="vectors",
        where="the array",
        samples_per_shard=samples_per_shard,
        overwrite=overwrite,
    )
    assert manifest is not None  # it is None for a dry run and for a part alone
    return manifest


def _checked(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The array, contiguous. Raises DataError unless it is float32 [N, D] of finite numbers."""
    if vectors.dtype != np.float32 or vectors.ndim != 2 or 0 in vectors.shape:
        raise DataError(
            f"vectors: is {vectors.dtype} of the shape {list(vectors.shape)}; give float32 of the shape "
            "[samples, numbers], both 1 or more"
        )
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise DataError(
            f"vectors: row {int(np.argmin(finite))} holds a number that is not finite ({int((~finite).sum())} rows "
            "do); correct it"
        )
    return np.ascontiguousarray(vectors)


def _class_names(
    samples: int, classes: Sequence[int] | npt.NDArray[np.integer[Any]] | None, class_names: Sequence[str], part: bool
) -> tuple[str, ...]:
    """Of all classes; none where the vectors have no class. Raises DataError where the arguments do not fit together."""
    if classes is None:
        if class_names:
            raise DataError("class_names: names classes, but `classes` is not given; give it, or leave the names out")
        return ()
    labels = np.asarray(classes)
    if labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"classes: is {labels.dtype} of the shape {list(labels.shape)}; give one whole number of each of the "
            f"{samples} vectors"
        )
    names = tuple(class_names) or tuple(str(number) for number in range(int(labels.max()) + 1))
    counts = np.bincount(labels.clip(0, len(names)), minlength=len(names))
    if labels.min() < 0 or labels.max() >= len(names):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"classes: holds {wrong}, outside 0..{len(names) - 1}; correct it, or complete class_names")
    if len(names) < 2:
        raise DataError("classes: all vectors have one class; leave `classes` out")
    if 0 in counts and not part:
        raise DataError(f"classes: no vector has the class {names[int(np.argmin(counts))]!r}; correct class_names")
    return names


@dataclass(frozen=True)
class _VectorSamples:
    """The samples of arrays in memory."""

    vectors: npt.NDArray[np.float32]
    labels: npt.NDArray[np.integer[Any]] | None
    class_names: tuple[str, ...]
    notice: tuple[tuple[str, str], ...]
    part: bool

    extension = "npy"

    @property
    def content(self) -> VectorField:
        """What a sample is."""
        return VectorField(self.vectors.shape[1])

    def listing(self) -> Listing:
        """The rows of the array, in their order."""
        digest = hashlib.sha256(self.vectors.astype("<f4", copy=False).tobytes()).hexdigest()
        items = [
            Item(str(row), None if self.labels is None else int(self.labels[row]), (row, digest if row == 0 else ""))
            for row in range(len(self.vectors))
        ]
        names = tuple((name, str(number)) for number, name in enumerate(self.class_names))
        return Listing(names, items, notice=self.notice, part=self.part)

    def describe(self) -> dict[str, Any]:
        """For the manifest: what decides the bytes."""
        return {"source": "vectors", "encoding": "npy"}

    def encode(self, item: Item) -> tuple[bytes, str]:
        """A row as a `.npy` file, unchanged."""
        row = self.vectors[int(item.where[0])]
        return npy_header(len(row)) + bytes(row.astype("<f4", copy=False).tobytes()), ""
