"""What a setting of any kind may not be: a truth for a number, NaN, infinity, an endless number, an empty text."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

LARGEST = 2**63 - 1


def truths(tree: Any, kinds: Mapping[str, str], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The settings that are true or false (or hold one) though their kind, by name in `kinds`, knows no truth."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from truths(value, kinds, f"{name}.")
        elif "bool" not in kinds.get(name, "bool"):
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, bool):
                    yield name, entry


def unusable(value: Any, name: str = "") -> Iterator[tuple[str, Any, str]]:
    """Of the finished settings what no setting can mean: its name, what it is, and what to do."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from unusable(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from unusable(entry, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from unusable(entry, name)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, value, "give a finite number"
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield name, value, f"give a number up to {LARGEST}"
    elif isinstance(value, str) and not value.strip():
        yield name, value, "give a text that is not empty, or leave the setting out"
    elif isinstance(value, str) and "\0" in value:
        yield name, value, "leave the zero byte out"
