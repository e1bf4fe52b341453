"""A measurement with its small print, and the run's list of them (`measurements.jsonl`, one JSON object a line)."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from trainer.foundation.stores import Store

FILE = "measurements.jsonl"


@dataclass
class Measurement:
    """One value, and what must be known to compare it with another one."""

    measure: str
    value: float
    details: dict[str, Any] = field(default_factory=dict)
    """Number of samples, spread, values per class, which networks, which settings ..."""
    unit: str = ""
    """`%` for shares, empty for plain numbers: how it is shown."""
    better: str = ""
    """`higher`, `lower`, or empty where neither is better as such."""

    def record(self, small_print: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object; NaN and infinity, which JSON does not have, become null."""
        shown = {"unit": self.unit, "better": self.better}
        record = {"measure": self.measure, "value": self.value, **shown, **self.details, **small_print}
        plain: dict[str, Any] = _plain(record)
        return plain

    def text(self) -> str:
        """The value for a table."""
        if math.isnan(self.value):
            return "-"
        return f"{self.value:.1%}" if self.unit == "%" else f"{self.value:.4g}"


def by_name(names: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    """Values per class by name; classes of one name are told apart by their number."""
    unique = len(set(names)) == len(names)
    return {
        name if unique else f"{number} {name}": float(v)
        for number, (name, v) in enumerate(zip(names, values, strict=True))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_records(run: str) -> list[dict[str, Any]]:
    """All measurements of a run, a path or URL, oldest first; lines that are not whole are left out."""
    records = []
    with suppress(FileNotFoundError):
        for line in Store(run).get(FILE).decode(errors="replace").splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
    return records


def append_records(run: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Add measurements to a run's list: one write, which other writers of a local file do not tear."""
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    store = Store(run)
    if store.local:
        descriptor = os.open(os.path.join(store.root, FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    earlier = b""
    with suppress(FileNotFoundError):
        earlier = store.get(FILE)
    store.put(FILE, earlier + text)
