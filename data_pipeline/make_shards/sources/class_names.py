"""Readable class names from a file: one class a line, its id first, then its name (as ImageNet's
LOC_synset_mapping.txt)."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError


def read_class_names(path: Path) -> dict[str, str]:
    """The name of each id. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--class-names: {path} cannot be read ({error})") from None
    names = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, _, name = line.strip().partition(" ")
            if not name.strip():
                raise DataError(
                    f"--class-names: line {number} of {path} holds no name after the id {key!r}; write `id name`"
                )
            names[key] = name.strip()
    return names


def named(ids: Sequence[str], names: dict[str, str] | None) -> tuple[tuple[str, str], ...]:
    """(name, id) of each class; without names an id is its own name. Raises DataError where an id has none."""
    if names is None:
        return tuple((key, key) for key in ids)
    if missing := [key for key in ids if key not in names]:
        raise DataError(
            f"--class-names: has no line for the class {missing[0]} ({len(missing)} are missing); complete the file"
        )
    return tuple((names[key], key) for key in ids)
