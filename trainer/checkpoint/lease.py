"""One writer for a run: each start takes the next fencing token, and whoever holds the highest one is the writer.

A token is an object `checkpoints/writers/00000004.json` that is created exclusively (O_EXCL, or a conditional PUT), so
no two processes ever hold the same one. Nothing expires and no clock is compared: the newest start wins, and an older
writer finds out before its next commit. What it may still commit in that last moment carries its lower token, and
counts as older than anything the new writer commits (trainer.checkpoint.format.Commit.order).

The same files tell how often a run was started without getting any further.
"""

import json
import logging
import os
import re
import socket
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from trainer.foundation.errors import CheckpointError
from trainer.foundation.stores import Store

logger = logging.getLogger("menagerie.checkpoint")

FOLDER = "writers"
_TOKEN = re.compile(r"(\d{8,})\.json")
_RELEASED = re.compile(r"(\d{8,})\.released\.json")
_KEPT = 100  # writer files that stay as the run's history


class LeaseLost(CheckpointError):
    """A newer start of the same run has taken over: this process may write nothing more."""


class RestartLoop(CheckpointError):
    """The run was started again and again without ever getting to a new checkpoint."""


class Lease:
    """The right of this process to write one run's checkpoints. `store` is the run's folder `checkpoints`."""

    def __init__(self, store: Store, token: int) -> None:
        self.token = token
        self._store = store

    def check(self) -> None:
        """Raise LeaseLost if a later writer has started. One listing of a small folder."""
        newer = max(_tokens(self._store), default=0)
        if newer > self.token:
            raise LeaseLost(
                f"run.dir: {self._store.url}: writer {newer} ({_describe(self._store, newer)}) has taken over this "
                f"run; this process (writer {self.token}) stops and writes nothing more. If both were started "
                "by mistake, nothing is lost: the other one continues."
            )

    def release(self, reason: str, iteration: int) -> None:
        """Note that this writer ended in good order (complete, preempted, interrupted): it is no failed start."""
        note = {"reason": reason, "iteration": iteration, "when": _now()}
        self._store.put(f"{FOLDER}/{self.token:08d}.released.json", _encode(note))


def acquire(store: Store, committed: Collection[int], *, restart_limit: int = 0) -> Lease:
    """Become the writer of a run, from this moment on the only one.

    `store`: the run's folder `checkpoints`; `committed`: tokens of the writers whose checkpoints exist.
    With a `restart_limit` K > 0, raises RestartLoop if the last K starts neither committed anything nor were released.
    """
    while True:
        known = _tokens(store)
        if restart_limit:
            _check_restarts(store, known, committed, restart_limit)
        token = max([0, *known, *committed]) + 1
        note = {
            "token": token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _now(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT"),
        }
        # After a successful creation look again: a process that slept since its listing may have made up an old token.
        if store.create(f"{FOLDER}/{token:08d}.json", _encode(note)) and max(_tokens(store)) == token:
            _forget_old(store, token)
            return Lease(store, token)


def _check_restarts(store: Store, known: Collection[int], committed: Collection[int], limit: int) -> None:
    released = _tokens(store, _RELEASED)
    futile: list[int] = []
    for token in sorted(known, reverse=True):
        if token in released or token in committed:
            break
        futile.append(token)
    if len(futile) >= limit:
        last, first = _describe(store, futile[0]), _describe(store, futile[-1])
        raise RestartLoop(
            f"checkpoint.restart_limit: the last {len(futile)} starts of {store.url} ended without a new checkpoint "
            f"(first: {first}; last: {last}); look at log.txt for what ends them. To try again, delete "
            f"{store.describe(FOLDER)} or raise checkpoint.restart_limit (0: no limit)."
        )


def _tokens(store: Store, pattern: re.Pattern[str] = _TOKEN) -> set[int]:
    names = (path.rpartition("/")[2] for path in store.find(FOLDER))
    return {int(match[1]) for name in names if (match := pattern.fullmatch(name))}


def _forget_old(store: Store, token: int) -> None:
    try:
        old = [number for number in _tokens(store) | _tokens(store, _RELEASED) if number <= token - _KEPT]
        for number in sorted(old):
            store.delete([f"{FOLDER}/{number:08d}.json", f"{FOLDER}/{number:08d}.released.json"])
    except OSError as error:
        logger.warning("old writer files in %s could not be removed: %s", store.url, error)


def _describe(store: Store, token: int) -> str:
    try:
        note = json.loads(store.get(f"{FOLDER}/{token:08d}.json"))
        job = f", job {note['slurm_job_id']}" if note.get("slurm_job_id") else ""
        return f"process {note['pid']} on {note['host']}{job}, started {note['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "no details"


def _encode(note: Mapping[str, Any]) -> bytes:
    return (json.dumps(note, indent=2) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
