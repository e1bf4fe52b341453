"""Saving off the critical path: the training thread copies the state to host memory, a thread does the rest.

At most one save is in flight. One that comes due meanwhile is postponed, visibly, until the store is free. A failing
store is tried again with growing pauses; it ends the run only when no save has become durable for
`checkpoint.stop_after_hours`. What goes wrong in the thread is raised from `poll`, in the training thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import Commit
from trainer.checkpoint.guards import check_finite
from trainer.checkpoint.lease import LeaseLost
from trainer.checkpoint.retention import clean
from trainer.foundation.errors import CheckpointError, TrainerError
from trainer.processes.preemption import grace_seconds, grace_warning

logger = logging.getLogger("menagerie.checkpoint")

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_LEASE_CHECK_SECONDS = 30.0  # how soon an idle writer notices that it was fenced off

_CLOSE_SECONDS = 30.0  # for a cleaning under way at the end


class StoreOverdue(CheckpointError):
    """Saves have been due for so long that continuing would only risk more work."""


class SaverStatus(NamedTuple):
    """For the status line and TensorBoard. Times in seconds."""

    durable_iteration: int | None
    """Iteration of the last durable commit, of this start or the one it resumed from."""
    age: float
    """Since the last durable commit, or since the start where there is none yet."""
    save_seconds: float
    """Duration of the last successful save, from request to commit."""
    stolen_seconds: float
    """Training time spent in `save`, in all: copies to host memory (and the writing, unless asynchronous)."""
    busy: bool
    postponed: bool
    saves: int
    failures: int

    def note(self) -> str:
        """For the end of a status line: the age of the last durable commit, and what is under way."""
        kept = (
            f"of {self.durable_iteration:,}, {self.age:.0f} s old" if self.durable_iteration is not None else "none yet"
        )
        state = ", postponed" if self.postponed else ", saving" if self.busy else ""
        failed = f", {self.failures} failed writes" if self.failures else ""
        return f"checkpoint {kept}{state}{failed}"

    def scalars(self) -> dict[str, float]:
        """The same as named numbers."""
        return {
            "checkpoint/age_seconds": self.age,
            "checkpoint/save_seconds": self.save_seconds,
            "checkpoint/stolen_seconds": self.stolen_seconds,
            "checkpoint/failures": float(self.failures),
        }


class _Job(NamedTuple):
    iteration: int
    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]
    requested: float


class Saver:
    """The asynchronous writer of one run's checkpoints, in the process that holds the lease. A context manager."""

    def __init__(
        self,
        checkpoints: CheckpointStore,
        *,
        durable_iteration: int | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """`durable_iteration`: that of the commit resumed from; `before`: called in the thread ahead of every write."""
        self._checkpoints = checkpoints
        self._before = before
        self._config = checkpoints.config
        self._buffers: dict[str, torch.Tensor] = {}
        self._state = threading.Condition()
        # All below is guarded by _state.
        self._job: _Job | None = None
        self._closing = False
        self._fatal: TrainerError | None = None
        self._durable = durable_iteration
        self._durable_at = time.monotonic()
        self._due_since: float | None = None
        self._postponed = False
        self._save_seconds = self._stolen = 0.0
        self._saves = self._failures = 0
        # Those below belong to the training thread.
        self._asked_at = self._iteration_seconds = 0.0
        self._saved_at = time.monotonic()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="checkpoint-saver", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def due(self, scheduled: bool, iteration: int) -> bool:
        """Whether to save now: a save is scheduled (or was postponed), or the last one is `every_minutes` ago, and none is in
        flight. For every iteration."""
        now, minutes = time.monotonic(), self._config.every_minutes
        scheduled = scheduled or (minutes is not None and now - self._saved_at >= 60 * minutes)
        self._iteration_seconds, self._asked_at = (now - self._asked_at if self._asked_at else 0.0), now
        self._warn_of_grace()
        with self._state:
            if scheduled:
                self._due_since = self._due_since if self._due_since is not None else time.monotonic()
            if self._job is not None:
                if scheduled and not self._postponed:
                    logger.warning(
                        "checkpoint of iteration %d postponed: the save of iteration %d is still running after %.0f s",
                        iteration,
                        self._job.iteration,
                        time.monotonic() - self._job.requested,
                    )
                self._postponed = self._postponed or scheduled
                return False
            return scheduled or self._postponed

    def save(self, iteration: int, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any] | None = None) -> None:
        """Copy the state and return; a thread writes it. Only while `due` is true: one save is in flight at most."""
        self.poll()
        self._saved_at = begun = time.monotonic()
        with self._state:
            if self._job is not None:
                raise RuntimeError(f"the save of iteration {self._job.iteration} is still running")
        copies = self._copy(tensors)
        with self._state:
            self._due_since = self._due_since if self._due_since is not None else begun
            self._postponed = False
            self._job = _Job(iteration, copies, dict(info or {}), begun)
            self._state.notify_all()
        if not self._config.asynchronous:
            self.wait()
        with self._state:
            self._stolen += time.monotonic() - begun

    def poll(self) -> None:
        """Raise, in the calling thread, what must end the run: a lost lease, NaN, a store that has failed too long."""
        with self._state:
            if self._fatal is not None:
                raise self._fatal
            limit = self._config.stop_after_hours * 3600
            waiting = time.monotonic() - self._due_since if self._due_since is not None else 0.0
            if waiting > limit:
                raise StoreOverdue(
                    f"checkpoint.stop_after_hours: no checkpoint has become durable in "
                    f"{self._checkpoints.store.url} for {waiting / 3600:.1f} h ({self._failures} failures; "
                    f"{self._durable_text()}); "
                    "repair the store or give another run.dir, and the same command resumes from there."
                )

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until no save is in flight; False if one still is after `seconds`. Raises as `poll`."""
        with self._state:
            idle = self._state.wait_for(lambda: self._job is None or self._fatal is not None, seconds)
        self.poll()
        return idle

    def finish(
        self, iteration: int, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any] | None = None
    ) -> None:
        """The last save: returns when the state of `iteration` is durable, raises CheckpointError if it cannot be."""
        self.wait()
        if self._durable == iteration:
            return
        self.save(iteration, tensors, info)
        self.wait()
        if self._durable != iteration:
            raise CheckpointError(
                f"{self._checkpoints.store.url}: the last checkpoint, of iteration {iteration}, could not be written; "
                f"{self._durable_text()}. Repair the store; the same command resumes from there."
            )

    def status(self) -> SaverStatus:
        """Figures of this moment."""
        with self._state:
            age = time.monotonic() - self._durable_at
            return SaverStatus(
                self._durable,
                age,
                self._save_seconds,
                self._stolen,
                self._job is not None,
                self._postponed,
                self._saves,
                self._failures,
            )

    def close(self) -> None:
        """End the thread, waiting for a cleaning but not for a save: without its manifest that one never existed."""
        with self._state:
            self._closing = True
            self._state.notify_all()
            saving = self._job is not None
        if not saving:
            self._thread.join(_CLOSE_SECONDS)

    # ---- the thread

    def _work(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closing or self._job is not None, _LEASE_CHECK_SECONDS)
                if self._closing or self._fatal is not None:
                    return
                job = self._job
            try:
                if job is None:
                    self._check_lease()
                else:
                    self._write(job)
            except TrainerError as error:
                with self._state:
                    self._fatal = error
                    self._job = None
                    self._state.notify_all()
                return
            except Exception as error:  # of the cleaning or the lease check: neither may end the run
                logger.warning("checkpoint store %s: %s", self._checkpoints.store.url, _text(error))

    def _check_lease(self) -> None:
        if self._checkpoints.lease is not None:
            self._checkpoints.lease.check()

    def _write(self, job: _Job) -> None:
        check_finite(job.tensors, job.iteration, self._durable)
        self._before()
        commit = self._commit(job)
        with self._state:
            if commit is not None:
                self._durable, self._durable_at = job.iteration, time.monotonic()
                # Counted from here on: what came due while this one was written is postponed, not lost.
                self._due_since = time.monotonic() if self._postponed else None
                self._save_seconds = time.monotonic() - job.requested
                self._saves += 1
            self._job = None
            self._state.notify_all()
        if commit is not None:
            # Still in this thread, so never beside a save: what has no manifest now is dead.
            clean(self._checkpoints)

    def _commit(self, job: _Job) -> Commit | None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._checkpoints.save(job.iteration, job.tensors, job.info)
            except LeaseLost:
                raise
            except Exception as error:
                tried = time.monotonic() - job.requested
                with self._state:
                    self._failures += 1
                    age = time.monotonic() - self._durable_at
                    give_up = self._closing or self._postponed or tried + pause > self._config.retry_minutes * 60
                logger.warning(
                    "checkpoint of iteration %d could not be written (%s); %s; last durable commit %.0f s ago",
                    job.iteration,
                    _text(error),
                    "given up, the next one is due" if give_up else f"next try in {pause:.0f} s",
                    age,
                )
                if give_up:
                    return None
            with self._state:
                self._state.wait_for(lambda: self._closing, pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state in host memory that is used again for every save, pinned where it comes from a GPU."""
        self._buffers = {name: buffer for name, buffer in self._buffers.items() if name in tensors}
        on_device = False
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            on_device = on_device or tensor.is_cuda
        if on_device:
            torch.cuda.synchronize()
        return dict(self._buffers)

    def _warn_of_grace(self) -> None:
        """Say once that the last save of a preempted run would not fit into the time it is given."""
        with self._state:
            save_seconds = self._save_seconds
        warning = grace_warning(save_seconds, self._iteration_seconds, grace_seconds(self._config.grace_seconds))
        if warning is not None and save_seconds and not self._warned:
            self._warned = True
            logger.warning("%s", warning)

    def _durable_text(self) -> str:
        if self._durable is None:
            return "there is no checkpoint yet"
        return f"the last durable one is of iteration {self._durable}"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
