"""Labels from a file: which image is of which class. CSV, TSV, JSON, lines of `name label`, and the ground truth of
ILSVRC2012's validation set."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.make_shards.sources.base import Item, Listing, Source, printable
from data_pipeline.make_shards.sources.class_names import named, numbered
from data_pipeline.make_shards.sources.imagenet import readable_names

_NAMES = frozenset(
    (
        "imageid",
        "image_id",
        "image",
        "image_path",
        "img",
        "filename",
        "file_name",
        "file",
        "fname",
        "path",
        "name",
        "id",
    )
)
_LABELS = frozenset(("label", "labels", "class", "class_id", "classid", "category", "target", "wnid", "synset"))
_KAGGLE = ("ImageId", "PredictionString")  # ILSVRC's: the second is the class, then its boxes
_BOX = 4  # numbers that tiny-imagenet's val_annotations.txt has after name and class
_DEVKIT = "meta.mat"


class Labels(NamedTuple):
    """What a file says: the label of each name; numbers, or words."""

    where: str
    """For errors."""
    of: dict[str, int] | dict[str, str]


class Labelled:
    """A source of images without classes, whose classes are in a file. `field`: which column or key has the label.
    `subset`: whether the file, and `names`, may say more than there is."""

    def __init__(
        self, source: Source, path: Path, names: dict[str, str] | None = None, *, field: str = "", subset: bool = False
    ) -> None:
        self.source, self.path, self.names, self.field, self.subset = source, path, names, field, subset

    def listing(self) -> Listing:
        """The source's listing with classes. Raises DataError."""
        return labelled(self.source.listing(), read_labels(self.path, self.field), self.names, self.subset)

    def image(self, item: Item) -> Image.Image:
        """As the source's."""
        return self.source.image(item)


def labelled(listing: Listing, labels: Labels, names: dict[str, str] | None, subset: bool) -> Listing:
    """The listing of images with the classes that the labels give; an item's path is the first of its `where`. Raises
    DataError where an image has no label, or a label no image."""
    found = _matched([str(item.where[0]) for item in listing.items], labels, subset)
    if texts := [label for label in found if isinstance(label, str)]:
        ids = sorted(set(texts))
        number = {key: place for place, key in enumerate(ids)}
        numbers = [number[text] for text in texts]
        classes = named(ids, names or readable_names(ids), subset)
    else:
        numbers = [label for label in found if isinstance(label, int)]
        classes = numbered(max(numbers, default=-1), names, labels.where)
    items = [item._replace(label=label) for item, label in zip(listing.items, numbers, strict=True)]
    return listing._replace(classes=classes, items=items)


def _matched(paths: Sequence[str], labels: Labels, subset: bool) -> Sequence[int | str]:
    """The label of each path: of its whole name, or its last part, with or without its suffix."""
    used: dict[str, str] = {}
    missing, found = [], []
    for path in paths:
        base = path.rsplit("/", 1)[-1]
        key = next((key for key in (path, base, _stem(path), _stem(base)) if key in labels.of), None)
        if key is None:
            missing.append(path)
        elif key in used:
            raise DataError(
                f"--labels: {labels.where} has one line for {key}, but INPUT has {printable(used[key])} and {printable(path)}; "
                "write their paths below INPUT"
            )
        else:
            used[key] = path
            found.append(labels.of[key])
    if missing:
        raise DataError(
            f"--labels: {labels.where} has no label of {printable(missing[0])} ({len(missing)} images have none); complete "
            "it, or move them out of INPUT"
        )
    if not subset and (absent := [name for name in labels.of if name not in used]):
        raise DataError(
            f"--labels: {labels.where} names {len(labels.of)} images, but INPUT has no {absent[0]} ({len(absent)} are "
            "missing); complete INPUT, or add --subset"
        )
    return found


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and "/" not in suffix else name


def read_labels(path: Path, field: str = "") -> Labels:
    """The labels in a file. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--labels: {path} cannot be read ({error}); give a text file in UTF-8") from None
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return json_labels(text, str(path), field)
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(line.strip().isdigit() for line in lines):
        return Labels(str(path), _ground_truth(path, [int(line) for line in lines]))
    first = lines[0] if lines else ""
    mark = "\t" if "\t" in first else "," if "," in first else ""
    rows = list(csv.reader(io.StringIO(text), delimiter=mark)) if mark else [line.split() for line in lines]
    return _labels(_columns([row for row in rows if row], str(path), field), str(path))


def _columns(rows: list[list[str]], where: str, field: str) -> list[tuple[str, str]]:
    """(name, label) of every row after the header, if there is one."""
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]] if rows[0][0].strip().lower() in _NAMES else []
    body = rows[1:] if header else rows
    width = len(rows[0])
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) != width]:
        raise DataError(
            f"--labels: row {wrong[0]} of {where} has {len(rows[wrong[0] - 1])} columns, the first has {width}; correct it "
            "(names or labels with spaces need a CSV file)"
        )
    likely = [place for place, cell in enumerate(header) if cell.lower() in _LABELS]
    if field:
        if field not in header:
            raise DataError(f"--label-field: {where} has no column {field}, only {', '.join(header) or 'no header'}")
        place = header.index(field)
    elif len(likely) == 1 or width == 2:
        place = likely[0] if len(likely) == 1 else 1
    elif not header and width == 2 + _BOX and all(cell.strip().isdigit() for row in rows for cell in row[2:]):
        place = 1
    else:
        raise DataError(
            f"--labels: {where} has {width} columns, and it is not clear which is the label; write `name,label`, or choose a "
            "column of the header with --label-field"
        )
    kaggle = tuple(header) == _KAGGLE
    return [(row[0].strip(), row[place].split()[0] if kaggle and row[place] else row[place].strip()) for row in body]


def json_labels(text: str, where: str, field: str = "") -> Labels:
    """The labels in StyleGAN's `dataset.json`, in a list of [name, label] or of objects, in an object from name to label,
    or in lines of objects. Raises DataError."""
    try:
        try:
            document = json.loads(text)
        except ValueError:
            document = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"--labels: {where} is not JSON ({error}); correct it") from None
    if isinstance(document, dict) and "labels" in document:
        document = document["labels"]
        if document is None:
            raise DataError(f"--labels: {where} says that there are no labels; give --unlabelled, or another file")
    entries = list(document.items()) if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise DataError(f"--labels: {where} is no list of names and labels; write [[name, label], ...]")
    return _labels([_pair(entry, where, field) for entry in entries], where)


def _pair(entry: Any, where: str, field: str) -> tuple[str, int | str]:
    """(name, label) of an entry of a JSON file."""
    if isinstance(entry, dict):
        names = [key for key in entry if key.lower() in _NAMES and isinstance(entry[key], str)]
        labels = [key for key in entry if (key == field if field else key.lower() in _LABELS)]
        entry = [entry[names[0]], entry[labels[0]]] if len(names) == len(labels) == 1 else None
    if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str):
        name, label = entry
        if isinstance(label, int | str) and not isinstance(label, bool):
            return name, label
    raise DataError(
        f"--labels: {where} has an entry without one name and one label that is a number or a word; write "
        "[[name, label], ...], or choose the key with --label-field"
    )


def _labels(pairs: Sequence[tuple[str, int | str]], where: str) -> Labels:
    """Numbers where all labels are, else words. Raises DataError where a name has two labels, or a label is none."""
    words: dict[str, str] = {}
    for name, label in pairs:
        name, word = name.removeprefix("./"), str(label)
        if words.setdefault(name, word) != word:
            raise DataError(f"--labels: {where} says that {name} is {words[name]} and {word}; correct it")
        if not word:
            raise DataError(f"--labels: {where} has no label of {name}; complete it")
    if not words:
        raise DataError(f"--labels: {where} holds no labels; write `name,label`, one image a line")
    try:
        numbers = {name: int(word) for name, word in words.items()}
    except ValueError:
        return Labels(where, words)
    if wrong := [name for name, label in numbers.items() if not 0 <= label < 2**31]:
        raise DataError(f"--labels: {where} says that {wrong[0]} is {words[wrong[0]]}, which is no class; correct it")
    return Labels(where, numbers)


def _ground_truth(path: Path, numbers: list[int]) -> dict[str, str]:
    """The WordNet id of each image of ILSVRC2012's validation set. The numbers are the development kit's, in an order of
    its own; its meta.mat has the ids. Raises DataError."""
    meta = path.with_name(_DEVKIT)
    if not meta.is_file():
        raise DataError(
            f"--labels: {path} holds only numbers, without names; write `name,label`, or, if it is the ground truth of "
            f"ILSVRC2012, give the file in the unpacked development kit, with {_DEVKIT} next to it"
        )
    try:
        from scipy.io import loadmat

        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        ids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
        return {f"ILSVRC2012_val_{k:08d}.JPEG": ids[number] for k, number in enumerate(numbers, 1)}
    except ImportError as error:
        raise DataError(
            f"--labels: {meta} needs SciPy ({error}); install it with pip install 'menagerie[evaluation]'"
        ) from None
    except Exception as error:  # a damaged file makes SciPy raise anything
        raise DataError(
            f"--labels: {meta} does not say what the numbers of {path.name} mean ({type(error).__name__}: {error}); unpack "
            "the development kit of ILSVRC2012 again"
        ) from None
