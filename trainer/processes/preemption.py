"""Asking a run to stop: signals and a stop file. A handler only sets a flag; the loop decides when to look.

| asked by | what happens | marker says requeue |
|---|---|---|
| SIGTERM, SIGUSR1 (a scheduler) | stop at the next agreed iteration, commit, exit 0 | yes |
| SIGHUP (a terminal or connection that is gone) | the same; under `nohup` it is ignored, as asked | yes |
| SIGINT (Ctrl-C) once | the same | no |
| SIGINT twice | the process dies at once, nothing is saved | no marker |
| file `STOP` in the run's folder | as SIGTERM; the file is removed when the stop is done | no |

The marker is `preempted.json` in the run's folder: exit codes do not survive the launchers, it does.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any, Self

from trainer.foundation.errors import TrainerError
from trainer.foundation.stores import Store

logger = logging.getLogger("menagerie")

STOP_FILE = "STOP"
MARKER = "preempted.json"
LAUNCHER_GRACE_SECONDS = 30.0
"""Between SIGTERM and SIGKILL under torchelastic, which accelerate's launcher uses and does not let one change."""
_ASKED_BY_A_PERSON = ("SIGINT", f"file {STOP_FILE}")
_LOCAL_POLL_SECONDS = 1.0
_REMOTE_POLL_SECONDS = 5.0


class StopRequest:
    """Whether this process was asked to stop. A context manager: handlers stand inside it and are put back after it.

    `run_url` is the run's folder for the process that looks for the stop file (rank 0), None for the others. Looking
    costs one stat a second for a local folder; for a remote one a thread asks in the background.
    """

    def __init__(self, run_url: str | None = None) -> None:
        self._store = Store(run_url) if run_url is not None else None
        self._reason = ""
        self._asked_at: float | None = None
        self._next_poll = 0.0
        self._previous: dict[int, Any] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._previous[number] = signal.signal(number, self._handle)
        if self._store is not None and not self._store.local:
            self._thread = threading.Thread(target=self._watch, name="stop-file", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def requested(self) -> bool:
        """True from the moment this process was asked to stop. Cheap enough for every iteration."""
        if not self._reason and self._store is not None and self._store.local:
            now = time.monotonic()
            if now >= self._next_poll:
                self._next_poll = now + _LOCAL_POLL_SECONDS
                with suppress(OSError):  # a disk that cannot be asked now is asked again
                    if self._store.exists(STOP_FILE):
                        self._ask(f"file {STOP_FILE}")
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """What asked first: a signal's name or the stop file; empty if nothing did in this process."""
        return self._reason

    @property
    def seconds_since(self) -> float:
        """Seconds since the request, 0 without one."""
        return time.monotonic() - self._asked_at if self._asked_at is not None else 0.0

    def _ask(self, reason: str) -> None:
        if not self._reason:
            self._asked_at = time.monotonic()
            self._reason = reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._ask(signal.Signals(number).name)
        if number == signal.SIGINT:
            # Set by the kernel, so that a second Ctrl-C works even while this thread waits inside a collective.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _watch(self) -> None:
        assert self._store is not None
        while not self._ended.is_set() and not self._reason:
            with suppress(Exception):  # a store that cannot be asked now is asked again
                if self._store.exists(STOP_FILE):
                    self._ask(f"file {STOP_FILE}")
            self._ended.wait(_REMOTE_POLL_SECONDS)


def write_marker(run_url: str, *, iteration: int, reason: str, details: Mapping[str, Any] | None = None) -> None:
    """Say that the run stopped cleanly and can be resumed; after the final commit, by rank 0. Removes the stop file.

    `reason` is StopRequest.reason, or says that another process of the launch was asked: only a scheduler's signal
    reaches one without reaching rank 0. Raises `TrainerError` where it cannot be said.
    """
    store = Store(run_url)
    marker = {
        "resumable": True,
        "iteration": iteration,
        "reason": reason,
        "requeue": reason not in _ASKED_BY_A_PERSON,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        **(details or {}),
    }
    try:
        store.put(MARKER, (json.dumps(marker, indent=2) + "\n").encode())
        store.delete([STOP_FILE])
    except Exception as error:
        raise TrainerError(
            f"run.dir: the run stopped at iteration {iteration} and is saved, but {store.describe(MARKER)} cannot be written "
            f"({error}); the same command resumes from there, yet nothing starts it by itself"
        ) from None


def clear_marker(run_url: str) -> None:
    """Remove the marker when the run has been taken up again."""
    store = Store(run_url)
    try:
        store.delete([MARKER])
    except Exception as error:
        logger.warning("%s is left from the last stop, and cannot be removed (%s)", store.describe(MARKER), error)


def grace_seconds(configured: float | None = None) -> float | None:
    """Time between SIGTERM and SIGKILL: as configured, 30 s under accelerate's or torch's launcher, else not known."""
    if configured is not None:
        return configured
    return LAUNCHER_GRACE_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else None


def grace_warning(save_seconds: float, iteration_seconds: float, grace: float | None) -> str | None:
    """A sentence if the rest of an iteration and a save cannot fit into the grace period, else None."""
    needed = save_seconds + iteration_seconds
    if grace is None or needed <= grace:
        return None
    return (
        f"checkpoint: a save takes {save_seconds:.1f} s and an iteration {iteration_seconds:.1f} s, but a process is "
        f"killed {grace:.0f} s after SIGTERM: the final checkpoint of a preempted run cannot be relied on. Save more "
        "often (run.checkpoint_every), ask for the stop earlier (Slurm --signal) or give more time "
        "(checkpoint.grace_seconds)."
    )
