"""Readable class names from a file: one class a line, its id first, then its name (as ImageNet's
LOC_synset_mapping.txt)."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError


def read_class_names(path: Path) -> dict[str, str]:
    """The name of each id. The id ends at the line's first space, tab or comma. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--class-names: {path} cannot be read ({error}); give a text file in UTF-8") from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, name = _split(line.strip())
            if not name:
                raise DataError(
                    f"--class-names: line {number} of {path} holds no name after the id {key!r}; write `id name`"
                )
            if key in names:
                raise DataError(f"--class-names: line {number} of {path} names the id {key!r} again; name each id once")
            names[key] = name
    if not names:
        raise DataError(f"--class-names: {path} holds no line; write `id name`, one class a line")
    return names


def _split(line: str) -> tuple[str, str]:
    """The id and the name of a line."""
    end = min((line.index(mark) for mark in " \t," if mark in line), default=len(line))
    return line[:end], line[end + 1 :].strip()


def named(ids: Sequence[str], names: dict[str, str] | None, subset: bool = True) -> tuple[tuple[str, str], ...]:
    """(name, id) of each class; without names an id is its own name. Raises DataError where an id has no name, and
    without `subset` where there is a name of a class that is not among the ids."""
    if names is None:
        return tuple((key, key) for key in ids)
    if missing := [key for key in ids if key not in names]:
        raise DataError(
            f"--class-names: has no line for the class {missing[0]} ({len(missing)} are missing); complete the file"
        )
    if not subset and (absent := [key for key in names if key not in set(ids)]):
        raise DataError(
            f"--class-names: names {len(names)} classes, but INPUT has no {absent[0]} ({len(absent)} are missing); complete "
            "INPUT, or add --subset, which numbers the classes that there are anew"
        )
    return tuple((names[key], key) for key in ids)


def numbered(highest: int, names: dict[str, str] | None, where: str) -> tuple[tuple[str, str], ...]:
    """(name, id) of the classes that the labels 0 .. highest number: `names` in its order; without names a number is its
    own name. Raises DataError where there are fewer names."""
    ids = list(names) if names is not None else [str(label) for label in range(highest + 1)]
    if highest >= len(ids):
        raise DataError(
            f"INPUT: {where} holds the label {highest}, outside 0..{len(ids) - 1}; correct --class-names or the labels"
        )
    return named(ids, names)
