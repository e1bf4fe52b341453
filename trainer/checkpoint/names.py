"""Names of checkpoints: what is committed in a run's folder, and `RUN@ITERATION`. Needs no torch."""

import re
from typing import NamedTuple

from trainer.foundation.errors import SettingError
from trainer.foundation.stores import Store

# The names of trainer.checkpoint.format, which needs torch, and seconds to load it.
_COMMITTED = re.compile(r"iteration-(\d{8,})-writer-(\d{5,})-[0-9a-f]{8}/manifest\.json")


class CommitName(NamedTuple):
    """A run, and which of its checkpoints is meant."""

    run: str
    """The run's folder or URL."""
    iteration: int | None
    """None: the newest."""


def parse_commit_name(text: str, setting: str) -> CommitName:
    """`RUN` or `RUN@ITERATION`. Raises `SettingError`, beginning with `setting`, for another word after the @."""
    run, at, number = text.rpartition("@")
    if not at:
        return CommitName(text, None)
    if not number.isdigit():
        raise SettingError(f"{setting}: is {text!r}; after @ comes the number of an iteration, as in RUN@400000")
    return CommitName(run, int(number))


def committed(folder: str) -> set[int]:
    """The iterations of all checkpoints whose manifest exists in the run's folder or URL."""
    found = Store(folder, "RUN or run.dir").below("checkpoints").find()
    return {int(match[1]) for path in found if (match := _COMMITTED.fullmatch(path))}
