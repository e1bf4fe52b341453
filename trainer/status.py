"""`python -m trainer.status CONFIG [--section.key value ...]`: how far the run is and how it last stopped, for batch scripts.

It takes the very words of the training command, reads only names and the small marker, never tensors, and starts in a
third of a second: a batch script asks it before and after every start.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Literal, NamedTuple

from trainer.checkpoint.names import committed, parse_commit_name
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError, TrainerError
from trainer.foundation.options import number
from trainer.foundation.settings import Tree, apply_overrides, read_yaml
from trainer.foundation.stores import Store
from trainer.processes.preemption import MARKER

Stop = Literal["none", "requeue", "person"]
"""How the last start ended: `requeue`, it was asked to by a scheduler and saved; `person`, a person asked; `none`, no
marker tells that it stopped cleanly, so it is at work, has ended, or failed."""


class Status(NamedTuple):
    """What a batch script has to know of a run."""

    run: str
    iteration: int
    """Of the newest checkpoint; 0 without one."""
    stop: Stop
    ready: bool
    """False while `run.initialize_from` names a checkpoint that does not exist yet, and the run has none of its own."""


def read_status(config: str, overrides: Sequence[str], since: float = 0.0) -> Status:
    """The run's state as its folder tells it; a marker older than `since` (seconds of the epoch) is an earlier start's.

    Raises SettingError for a wrong command line and OSError for a store that cannot be read.
    """
    tree = _settings(config, overrides)
    run = tree.get("run")
    folder = run.get("dir") if isinstance(run, dict) else None
    if not isinstance(run, dict) or not isinstance(folder, str):
        raise SettingError(f"run.dir: is {folder!r} in {config}; it must be the run's folder or URL")
    iterations = committed(folder)
    newest = max(iterations, default=0)
    return Status(folder, newest, _stop(folder, since), bool(iterations) or _initial_exists(run.get("initialize_from")))


def _settings(config: str, overrides: Sequence[str]) -> Tree:
    tree, origins = read_yaml(config)
    apply_overrides(tree, origins, overrides)
    return tree


def _stop(folder: str, since: float) -> Stop:
    with suppress(FileNotFoundError):
        marker = json.loads(Store(folder).get(MARKER))
        # The marker's clock has whole seconds.
        if datetime.fromisoformat(marker["when"]).timestamp() >= int(since):
            return "requeue" if marker["requeue"] else "person"
    return "none"


def _initial_exists(initial: object) -> bool:
    if not isinstance(initial, str):
        return True
    source = parse_commit_name(initial, "run.initialize_from")
    found = committed(source.run)
    return bool(found) if source.iteration is None else source.iteration in found


def main(arguments: list[str]) -> int:
    """Print run, iteration, stop and readiness in one line, separated by tabs; exit status 1 if the store cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m trainer.status", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--since", type=number(), default=0.0, metavar="SECONDS", help="ignore a marker older than this"
    )
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--section.key value", help="as for training")
    options = parser.parse_args(arguments)
    try:
        status = read_status(options.config, options.overrides, options.since)
    except OSError as error:
        raise TrainerError(f"run.dir: the run's folder cannot be read ({error})") from None
    print(status.run, status.iteration, status.stop, "ready" if status.ready else "waiting", sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
