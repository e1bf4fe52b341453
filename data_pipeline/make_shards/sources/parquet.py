"""Parquet files with a column of image files and one of labels, as on model hubs: `image {bytes, path}`, `label`.

A row cannot be read alone, so the rows of a row group stay together in the shards, and each row group is read once,
from its first row on. What is in memory is a few rows.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.images import open_image
from data_pipeline.make_shards.sources.base import Item, Listing, printable
from data_pipeline.make_shards.sources.class_names import named, numbered
from data_pipeline.make_shards.sources.ranges import RangedFile, walked
from data_pipeline.make_shards.tar_scan import USUAL_FIELDS, Fields
from data_pipeline.storage.folder import Folder, split_url

_SUFFIX = ".parquet"
_ONE_OF_MANY = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What the names of a part's files begin with."""
_BUFFER = 1 << 20  # bytes that are read at once
_ROWS = 8  # that are decoded at once


def _pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises DataError where they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"SOURCE parquet: needs pyarrow ({error}); install it with pip install 'menagerie[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet


class _Columns(NamedTuple):
    """Where a file has its images and labels."""

    image: str
    """The path of the column of bytes."""
    label: str
    """Empty where the labels do not matter."""
    names: tuple[str, ...] | None
    """Of the classes, as the file's metadata says them."""


class _Rows:
    """Reads the images of one row group in ascending order. Each is decoded once."""

    def __init__(self, file: Any, place: tuple[str, int], column: str) -> None:
        self.place = place
        self._batches: Iterator[Any] = file.iter_batches(
            _ROWS, row_groups=[place[1]], columns=[column], use_threads=False
        )
        self._first, self._values = 0, list[bytes | None]()

    def reaches(self, place: tuple[str, int], row: int) -> bool:
        return self.place == place and row >= self._first

    def read(self, row: int) -> bytes | None:
        """The row's image file. Raises IndexError where the row group has become shorter."""
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(row)
            column = batch.column(0)
            pyarrow, _ = _pyarrow()
            self._values = (column.field(0) if pyarrow.types.is_struct(column.type) else column).to_pylist()
        return self._values[row - self._first]


class ParquetSource:
    """All `*.parquet` of a folder, or one file. `fields`: the columns; empty: the only one of its kind. `split`: which
    files, by the beginning of their names. Without `labelled` the samples have no class."""

    def __init__(
        self,
        url: str,
        names: dict[str, str] | None = None,
        *,
        fields: Fields = USUAL_FIELDS,
        split: str | None = None,
        labelled: bool = True,
    ) -> None:
        one = url.rstrip("/").endswith(_SUFFIX)
        self.folder, self.only = split_url(url) if one else (Folder(url), "")
        self.names, self.fields, self.split, self.labelled = names, fields, split, labelled
        self._rows: _Rows | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def _open(self, name: str) -> Any:
        """The file, of which nothing but the footer is read. Raises DataError."""
        pyarrow, parquet = _pyarrow()
        try:
            return parquet.ParquetFile(RangedFile(self.folder, name), buffer_size=_BUFFER, pre_buffer=False)
        except pyarrow.ArrowException as error:
            raise DataError(
                f"INPUT: {self.folder}/{name} is not a whole Parquet file ({' '.join(str(error).split())}); fetch it again"
            ) from None

    def files(self) -> list[str]:
        """The names of the files, sorted. Raises DataError where some are missing, or it is not clear which are
        wanted."""
        if self.only:
            return [self.only]
        found = [name for name in self.folder.names() if name.endswith(_SUFFIX) and not name.startswith(".")]
        if not found:
            below = "data" if any(name.endswith(_SUFFIX) for name in self.folder.names("data")) else ""
            raise DataError(
                f"INPUT: {self.folder} holds no {_SUFFIX} files; {f'give {self.folder}/data' if below else 'check the path'}"
            )
        parts = {name: _part(name) for name in found}
        if self.split is not None:
            found = [name for name in found if parts[name] == self.split]
            if not found:
                there = ", ".join(sorted({part or "files of no part" for part in parts.values()}))
                raise DataError(f"--split: {self.folder} holds no files of {self.split}, only {there}; choose another")
        elif len(set(parts.values())) > 1:
            there = " and ".join(sorted({part or "files of no part" for part in parts.values()}))
            raise DataError(f"INPUT: {self.folder} holds files of {there}; choose with --split, as in --split train")
        _check_numbers(str(self.folder), found)
        return found

    def listing(self) -> Listing:
        """The rows in the order of the files' names and of the files. Raises DataError."""
        items: list[Item] = []
        labels: list[int | str] = []
        columns: _Columns | None = None
        names = self.files()
        read = walked(self.folder, self._file, ((name,) for name in names))
        for name, (mine, found, labels_of_it) in zip(names, read, strict=True):
            if columns not in (None, mine):
                raise DataError(
                    f"INPUT: {self.folder}/{name} has other columns or classes than the files before it; give each kind alone"
                )
            columns = mine
            items += found
            labels += labels_of_it
        if not self.labelled or columns is None:
            return Listing((), items, together=2)
        classes, numbers = self._classes(labels, columns)
        items = [item._replace(label=label) for item, label in zip(items, numbers, strict=True)]
        return Listing(classes, items, together=2)

    def _file(self, name: str) -> tuple[_Columns, list[Item], list[int | str]]:
        """The columns, rows and labels of one file."""
        file, where = self._open(name), f"INPUT: {self.folder}/{name}"
        columns = _columns(file.schema_arrow, self.fields, self.labelled, where)
        items: list[Item] = []
        labels: list[int | str] = []
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            count, size = about.num_rows, about.total_byte_size  # the size: a changed file is another plan
            if self.labelled:
                labels += _labels(file, group, columns, len(items), where)
            items += [Item(printable(f"{name}/{len(items) + k}"), None, (name, group, k, size)) for k in range(count)]
        return columns, items, labels

    def _classes(
        self, labels: Sequence[int | str], columns: _Columns
    ) -> tuple[tuple[tuple[str, str], ...], Sequence[int]]:
        """The classes, and the label of each row."""
        if texts := [label for label in labels if isinstance(label, str)]:
            ids = sorted(set(texts))
            number = {key: label for label, key in enumerate(ids)}
            return named(ids, self.names), [number[text] for text in texts]
        numbers = [label for label in labels if isinstance(label, int)]
        names = self.names
        if names is None and columns.names is not None:
            names = {str(label): name for label, name in enumerate(columns.names)}
        return numbered(max(numbers, default=-1), names, str(self.folder)), numbers

    def image(self, item: Item) -> Image.Image:
        """Decode one item. Raises DataError where the file cannot be read, ValueError where the row has no image, and
        whatever the decoder raises."""
        name, group, row = str(item.where[0]), int(item.where[1]), int(item.where[2])
        pyarrow, _ = _pyarrow()
        try:
            if self._rows is None or not self._rows.reaches((name, group), row):
                file = self._open(name)
                columns = _columns(file.schema_arrow, self.fields, False, f"INPUT: {self.folder}/{name}")
                self._rows = _Rows(file, (name, group), columns.image)
            data = self._rows.read(row)
        except (pyarrow.ArrowException, OSError, IndexError) as error:
            self._rows = None
            raise DataError(
                f"INPUT: {self.folder}/{name} cannot be read at {item.name} ({' '.join(str(error).split())[:200]}); fetch it "
                "again"
            ) from None
        if data is None:
            raise ValueError("the row holds no bytes of an image")
        return open_image(data)


def _part(name: str) -> str:
    """The part of a data set that a file belongs to, by the beginning of its name; empty where it says none."""
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return next((split for split, words in SPLITS.items() if word in words), "")


def _check_numbers(folder: str, found: Sequence[str]) -> None:
    """Refuse files called `NAME-00003-of-00294.parquet` that are not all there. Raises DataError."""
    there: dict[tuple[str, int], set[int]] = {}
    for name in found:
        if match := _ONE_OF_MANY.fullmatch(name):
            there.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in there.items():
        if missing := set(range(count)) - numbers:
            raise DataError(
                f"INPUT: {folder} holds {len(numbers)} of the {count} files {stem}-*-of-{count:05d}{_SUFFIX}, but not number "
                f"{min(missing)}; fetch the rest, or give a folder with other names if a part of them will do"
            )


def _columns(schema: Any, fields: Fields, labelled: bool, where: str) -> _Columns:
    """The columns of a file with this Arrow schema. Raises DataError."""
    pyarrow, _ = _pyarrow()
    kinds = {field.name: field.type for field in schema}
    images = [name for name, kind in kinds.items() if _holds_images(pyarrow, kind)]
    features = _features(schema.metadata or {})
    classes = [name for name in kinds if features.get(name, {}).get("_type") == "ClassLabel"]
    image = _chosen("--image-field", fields.image, kinds, images, "image", where)
    if image not in images:
        raise DataError(f"{where}: the column {image} is {kinds[image]}, not image files; choose with --image-field")
    path = f"{image}.bytes" if pyarrow.types.is_struct(kinds[image]) else image
    if not labelled:
        return _Columns(path, "", None)
    label = _chosen("--label-field", fields.label, kinds, classes, "label", where)
    names = features.get(label, {}).get("names")
    return _Columns(path, label, tuple(map(str, names)) if isinstance(names, list) else None)


def _holds_images(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(pyarrow, field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What Hugging Face's metadata says of each column; nothing where there is none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def _chosen(option: str, wanted: str, there: dict[str, Any], likely: list[str], usual: str, where: str) -> str:
    """The column that is wanted, or the usual one, or the only likely one. Raises DataError."""
    if wanted or usual in there:
        if (wanted or usual) in there:
            return wanted or usual
    elif len(likely) == 1:
        return likely[0]
    what = f"no column {wanted}" if wanted else f"no column {usual}"
    raise DataError(
        f"{where} has {what}, only {', '.join(there)}; choose one with {option}"
        + (", or give --unlabelled" if usual == "label" else "")
    )


def _labels(file: Any, group: int, columns: _Columns, row: int, where: str) -> list[int | str]:
    """The labels of a row group. Raises DataError where one is none."""
    pyarrow, _ = _pyarrow()
    try:
        column = file.read_row_group(group, columns=[columns.label], use_threads=False).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{where} cannot be read ({' '.join(str(error).split())[:200]}); fetch it again") from None
    labels: list[int | str | None] = column.to_pylist()
    for k, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, int | str) or (isinstance(label, int) and label < 0):
            raise DataError(
                f"{where}: row {row + k} has {label!r} in the column {columns.label}, which is no class; choose the column of "
                "the labels with --label-field, or give --unlabelled"
            )
    return [label for label in labels if label is not None]
