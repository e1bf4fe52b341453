"""What a report shows of a run, read from its folder (a path or URL): measurements, curves, settings, pictures."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from trainer.foundation.errors import TrainerError
from trainer.foundation.stores import Store
from trainer.metrics.measures import outcomes
from trainer.metrics.publish import PICTURES
from trainer.metrics.records import FILE, read_records

Record = dict[str, Any]
_INCIDENTAL = {
    "value", "iteration", "state_sha256", "seconds", "when", "device", "processes", "warning", "settings_digest",
    "code_version", "measure", "unit", "better", "classifier", "features",
    "hardware",
}  # fmt: skip
"""What may differ between two measurements that can be compared all the same, whatever the measure."""


@dataclass
class RunData:
    """One run."""

    name: str
    url: str
    records: list[Record]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Scalars of metrics.jsonl by name, over iterations."""
    settings: dict[str, Any] = field(default_factory=dict)
    """By dotted name."""
    pictures: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The newest of each kind: iteration and data URI."""

    def newest(self) -> dict[str, Record]:
        """The last record of each measure at its highest iteration."""
        found: dict[str, Record] = {}
        for record in self.records:
            measure = str(record.get("measure"))
            if measure not in found or record.get("iteration", 0) >= found[measure].get("iteration", 0):
                found[measure] = record
        return found

    def history(self, measure: str) -> list[tuple[float, float]]:
        """(iteration, value) of the measurements that were made as the newest one was."""
        newest = self.newest().get(measure)
        if newest is None:
            return []
        points = {
            float(record["iteration"]): float(record["value"])
            for record in self.records
            if record.get("measure") == measure
            and record.get("value") is not None
            and not differences([record, newest])
        }
        return sorted(points.items())


def read_run(url: str) -> RunData:
    """Everything of one run; raises TrainerError if nothing was measured nor logged."""
    store = Store(url)
    records = [record for record in read_records(url) if "measure" in record and "iteration" in record]
    run = RunData(url.rstrip("/").rsplit("/", 1)[-1], url, records)
    with suppress(FileNotFoundError):
        run.curves = _curves(store.get("metrics.jsonl").decode(errors="replace"))
    with suppress(FileNotFoundError, yaml.YAMLError):
        run.settings = _flat(yaml.safe_load(store.get("config.yaml")))
    if not run.records and not run.curves:
        raise TrainerError(
            f"RUN: {url} has neither {FILE} nor metrics.jsonl; give a run's folder, and measure it with "
            "`python -m trainer.evaluate` first"
        )
    for kind, (number, path) in _newest_pictures([*store.find("samples"), *store.find(PICTURES)]).items():
        run.pictures[kind] = (number, data_uri(store.get(path)))
    return run


def _newest_pictures(paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Of samples/00000600.png and evaluation/00000600/morph.png the newest of each kind: iteration and path."""
    found: dict[str, tuple[int, str]] = {}
    for path in paths:
        *folders, name = path.removesuffix(".png").split("/")
        number, kind = (name, folders[-1]) if folders[0] == "samples" else (folders[-1], name)
        if path.endswith(".png") and number.isdigit():
            found[kind] = max(found.get(kind, (-1, "")), (int(number), path))
    return found


def data_uri(png: bytes) -> str:
    """A PNG inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _curves(text: str) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, dict[float, float]] = {}
    for line in text.splitlines():
        with suppress(ValueError, KeyError):
            values = json.loads(line)
            iteration = float(values.pop("iteration"))
            for name, value in values.items():
                if isinstance(value, int | float):
                    curves.setdefault(name, {})[iteration] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def differences(records: Sequence[Record]) -> list[str]:
    """The small print in which records differ, and which makes their values incomparable; empty if they can be compared."""
    names = sorted({name for record in records for name in record} - _INCIDENTAL - outcomes())
    return [name for name in names if len({json.dumps(record.get(name), sort_keys=True) for record in records}) > 1]


def differing_settings(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, by name, a value per run; where a run lives does not count."""
    names = sorted({name for run in runs for name in run.settings} - {"run.dir"})
    table = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: values for name, values in table.items() if len({json.dumps(v) for v in values}) > 1}
