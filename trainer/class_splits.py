"""The study of class splits: one model for each of N parts of the classes, and one table of them all.

`python -m trainer.class_splits settings I N CONFIG [--section.key value ...]` prints the settings of part I, one word a line;
`... table N CONFIG [...]` sums up what the parts have reached and what `trainer.evaluate` measured of each. The parts' folders
lie below the experiment's `run.dir`. AC-GAN's study (Odena et al. 2017, section 4) is 100 parts of ImageNet's 1000 classes.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.reading.selection import class_numbers, select_classes
from trainer.checkpoint.names import committed
from trainer.config import Config, load_config
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.stores import Store
from trainer.metrics.records import read_records


@dataclass(frozen=True)
class Part:
    """One row of the table."""

    number: int
    classes: tuple[str, ...]
    run: str
    iteration: int
    """Of the newest checkpoint; 0 without one."""
    complete: bool
    values: Mapping[str, float] = field(default_factory=dict)
    """The newest value of each measure, for this part's newest checkpoint or an earlier one."""


def part_folder(base: str, number: int, parts: int) -> str:
    """The run's folder of one part."""
    return f"{base.rstrip('/')}/split-{number:03d}-of-{parts:03d}"


def part_settings(config: Config, manifest: Manifest, number: int, parts: int) -> list[str]:
    """The command-line words that make `config` the experiment of part `number` (from 1). Raises DataError."""
    selection = f"split {number} of {parts}"
    settings = {
        "run.dir": part_folder(config.run.dir, number, parts),
        "data.classes": selection,
        "model.classes": len(class_numbers(manifest, selection)) if config.model.classes else 0,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def gather(config: Config, manifest: Manifest, parts: int) -> list[Part]:
    """What every part has reached; a part that never ran is there as well. Raises DataError."""
    rows = []
    for number in range(1, parts + 1):
        run = part_folder(config.run.dir, number, parts)
        newest = max(committed(run), default=0)
        names = select_classes(manifest, f"split {number} of {parts}").class_names
        done = newest >= config.run.iterations
        rows.append(Part(number, tuple(names), run, newest, done, _measured(run)))
    return rows


def _measured(run: str) -> dict[str, float]:
    """The last value of every measure."""
    values: dict[str, float] = {}
    for record in read_records(run):
        name, value = record.get("measure"), record.get("value")
        if isinstance(name, str) and isinstance(value, int | float):
            values[name] = float(value)
    return values


def as_table(rows: Sequence[Part]) -> str:
    """A Markdown table, one line for each part, and below it mean and standard deviation over those that have a value."""
    measures = sorted({name for row in rows for name in row.values})
    lines = [["split", "classes", "iteration", *measures]]
    for row in rows:
        state = f"{row.iteration:,}" if row.complete else f"{row.iteration:,} (not complete)"
        values = [f"{row.values[name]:.4g}" if name in row.values else "-" for name in measures]
        lines.append([str(row.number), ", ".join(row.classes), state, *values])
    summary = []
    for name in measures:
        found = [row.values[name] for row in rows if name in row.values]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        summary.append(f"{statistics.mean(found):.4g} +- {spread:.2g}")
    complete = sum(row.complete for row in rows)
    classes = sum(len(row.classes) for row in rows)
    lines.append([f"{complete} of {len(rows)}", f"{classes} classes", "mean +- deviation over splits", *summary])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> int:
    """Exit status 1 if a part of the table is not complete."""
    parser = argparse.ArgumentParser(prog="python -m trainer.class_splits", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    settings, table = verbs.add_parser("settings"), verbs.add_parser("table")
    settings.add_argument("number", type=int, metavar="I")
    for verb in (settings, table):
        verb.add_argument("parts", type=int, metavar="N")
        verb.add_argument("config", metavar="CONFIG")
        verb.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--section.key value")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    if config.data.classes is not None and not str(config.data.classes).startswith("split "):
        raise SettingError(
            f"data.classes: is {config.data.classes!r}, but the splits select the classes themselves; leave it out"
        )
    manifest = load_manifest(config.data.shards)
    if options.verb == "settings":
        print("\n".join(part_settings(config, manifest, options.number, options.parts)))
        return 0
    rows = gather(config, manifest, options.parts)
    text = as_table(rows)
    print(text)
    if "://" not in config.run.dir:
        Path(config.run.dir).mkdir(parents=True, exist_ok=True)
    store = Store(config.run.dir)
    store.put("splits.md", f"{text}\n".encode())
    store.put("splits.json", (json.dumps([asdict(row) for row in rows], indent=2) + "\n").encode())
    return 0 if all(row.complete for row in rows) else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
