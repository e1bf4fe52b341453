"""A part of the samples: some classes, by number, id or name, or as `split i of n`; or so many samples of each class.

Labels of selected classes are numbered anew, in the manifest's order.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import Manifest
from data_pipeline.manifest.index import Records
from data_pipeline.reading.order import Ids, keys

Classes = Sequence[int | str] | str | None

_PURPOSE = 2  # of the keys, next to the order's own
_SPLIT = re.compile(r"split (\d+) of (\d+)")


def class_numbers(manifest: Manifest, selection: Classes) -> list[int]:
    """The selected classes' numbers in the manifest, ascending. Raises DataError."""
    count = len(manifest.classes)
    if selection is None:
        return list(range(count))
    if not manifest.labelled:
        raise DataError(f"{manifest.section}.classes: the samples of these shards have no class; leave it out")
    if isinstance(selection, str) and (match := _SPLIT.fullmatch(selection.strip())):
        part, parts = int(match[1]), int(match[2])
        if not 1 <= part <= parts <= count:
            raise DataError(
                f"{manifest.section}.classes: {selection!r} is none of the splits 1 to n of at most {count} classes"
            )
        return list(range((part - 1) * count // parts, part * count // parts))
    wanted = [selection] if isinstance(selection, str) else list(selection)
    numbers = [_number(manifest, entry) for entry in wanted]
    if not numbers:
        raise DataError(f"{manifest.section}.classes: selects no class; leave it out to use all of them")
    for entry, number in zip(wanted, numbers, strict=True):
        if numbers.count(number) > 1:
            raise DataError(f"{manifest.section}.classes: {entry!r} is selected twice; name each class once")
    return sorted(numbers)


def _number(manifest: Manifest, entry: int | str) -> int:
    if isinstance(entry, int):
        if not 0 <= entry < len(manifest.classes):
            raise DataError(
                f"{manifest.section}.classes: {entry} is not a class number; they are 0..{len(manifest.classes) - 1}"
            )
        return entry
    for place in (1, 0):  # an id is unique; a name may not be
        found = [number for number, info in enumerate(manifest.classes) if info[place] == entry]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(manifest.classes[number].id for number in found)
            raise DataError(
                f"{manifest.section}.classes: {entry!r} is the name of {len(found)} classes ({ids}); give the id"
            )
    known = [text for info in manifest.classes for text in (info.name, info.id)]
    near = difflib.get_close_matches(entry, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; see `python -m data_pipeline.manifest show`"
    raise DataError(f"{manifest.section}.classes: there is no class {entry!r}{hint}")


def select_classes(manifest: Manifest, selection: Classes) -> Manifest:
    """The manifest as if the data had only the selected classes. Its fingerprint covers the selection. Raises
    DataError."""
    numbers = class_numbers(manifest, selection)
    if len(numbers) == len(manifest.classes):
        return manifest
    text = f"{manifest.fingerprint} classes {numbers}"
    return replace(
        manifest,
        classes=tuple(manifest.classes[number] for number in numbers),
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


def select_per_class(manifest: Manifest, per_class: int | None, seed: int) -> Manifest:
    """The manifest as if every class had only `per_class` samples (None: all). Its fingerprint covers which ones. Raises
    DataError."""
    if per_class is None:
        return manifest
    setting = f"{manifest.section}.labelled_per_class"
    if not manifest.labelled:
        raise DataError(f"{setting}: the samples of these shards have no class; leave it out, or give labelled shards")
    least = min(manifest.classes, key=lambda entry: entry.samples)
    if least.samples < per_class:
        raise DataError(
            f"{setting}: is {per_class}, but the class {least.name!r} has {least.samples} samples; give at most that many"
        )
    text = f"{manifest.fingerprint} per class {per_class} seed {seed}"
    return replace(
        manifest,
        classes=tuple(entry._replace(samples=per_class) for entry in manifest.classes),
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


def select_records(
    records: Sequence[Records], numbers: Sequence[int], classes: int, per_class: int | None = None, seed: int = 0
) -> tuple[Records, list[int], Ids]:
    """The selected samples of all shards: their records with new labels, [selected]; how many each shard has; and the
    place of each in its shard, int64 [selected]. Without classes all samples are selected.

    With `per_class`: of each class those with the smallest keys of (seed, place among all samples). So a smaller number
    is a part of a larger one, and other classes or another order of reading change nothing.
    """
    relabel = np.full(classes, -1, dtype=np.int32)
    relabel[list(numbers)] = np.arange(len(numbers))
    total = sum(map(len, records))
    kept = np.ones(total, dtype=bool)
    if per_class is not None:
        all_labels = np.concatenate([shard["label"] for shard in records])
        order, kept[:] = keys(seed, 0, _PURPOSE, total), False
        for number in numbers:
            places = np.flatnonzero(all_labels == number)
            kept[places[np.argsort(order[places], kind="stable")[:per_class]]] = True
    parts, sizes, found, begin = [], [], [], 0
    for shard in records:
        labels = relabel[shard["label"]] if classes else np.zeros(len(shard), dtype=np.int32)
        keep = np.flatnonzero((labels >= 0) & kept[begin : begin + len(shard)])
        part = shard[keep]
        part["label"] = labels[keep]
        parts.append(part)
        sizes.append(len(part))
        found.append(keep)
        begin += len(shard)
    return np.concatenate(parts), sizes, np.concatenate(found).astype(np.int64)
