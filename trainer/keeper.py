"""What the loop sees of checkpoints and stop requests: decisions on which all processes agree.

The main process holds the lease, the store and the saver; the others only take part in the agreements. Whatever goes
wrong in the main process's part is raised in every process, so that none is left waiting in a collective.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import torch

from trainer.checkpoint import CheckpointConfig, CheckpointStore, Commit, Restored
from trainer.errors import TrainerError
from trainer.launch import Launch, share_object, sum_over_processes
from trainer.preemption import StopRequest, clear_marker, grace_seconds, grace_warning, write_marker
from trainer.saver import Saver, SaverStatus

T = TypeVar("T")


class Agreement(NamedTuple):
    """What all processes do at the start of this iteration."""

    stop: bool
    """Somebody was asked to stop."""
    save: bool
    """A save is due and the store is free."""


class Keeper:
    """The keeper of one run's state, in every process. A context manager.

    `run_url`: the run's folder or URL; `about`: what every manifest tells (settings, strategy, world size ...).
    """

    def __init__(self, launch: Launch, run_url: str, config: CheckpointConfig, about: Mapping[str, Any]) -> None:
        self._launch = launch
        self._run_url = run_url
        self._config = config
        self._store = CheckpointStore(run_url, config, about=about) if launch.is_main else None
        self._request = StopRequest(run_url if launch.is_main else None)
        self._saver: Saver | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def restore(self, check: Callable[[Commit], None] = lambda commit: None) -> Restored | None:
        """Become the run's writer and read its newest sound checkpoint, in the main process; None elsewhere, or if new.

        `check` may refuse the commit by raising a TrainerError. Raises in every process what goes wrong in the main:
        RestartLoop, CheckpointError if there are commits but none is sound, what `check` raises.
        """

        def take_up(store: CheckpointStore) -> Restored | None:
            store.acquire()
            restored = store.restore(set_aside=True)
            if restored is not None:
                check(restored.commit)
            return restored

        return self._together(take_up)

    def begin(self, iteration: int, before_write: Callable[[], None] = lambda: None) -> None:
        """From here on states can be saved. `iteration`: that of the restored commit, 0 if there was none."""
        if self._store is not None:
            durable = iteration or None
            self._saver = self._stack.enter_context(Saver(self._store, durable_iteration=durable, before=before_write))
            clear_marker(self._run_url)

    def agree(self, iteration: int, scheduled: bool) -> Agreement:
        """One small reduction: whether to stop here, and whether to save here. Raises in every process what the main
        process's saver has run into (trainer.saver.Saver.poll)."""
        error: TrainerError | None = None
        save = False
        if self._saver is not None:
            try:
                self._saver.poll()
                save = self._saver.due(scheduled, iteration)
            except TrainerError as found:
                error = found
        stop = self._request.requested()
        if self._launch.world_size > 1:
            flags = torch.tensor([stop, save, error is not None], dtype=torch.float32, device=self._launch.device)
            stop, save, failed = (value > 0 for value in sum_over_processes(self._launch, flags).tolist())
            if failed:
                error = share_object(self._launch, error)
        if error is not None:
            raise error
        return Agreement(stop, save)

    def save(self, iteration: int, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]) -> None:
        """Copy the state for the saver's thread, in the main process; where `agree` said so."""
        if self._saver is not None:
            self._saver.save(iteration, tensors, info)

    def finish(self, iteration: int, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any], why: str) -> None:
        """The last save: returns, in every process, when the state is durable. `why`: "complete", or empty for a stop.

        A stop leaves the marker `preempted.json`; either way this start counts as one that ended in good order.
        """

        def conclude(store: CheckpointStore) -> None:
            assert self._saver is not None
            self._saver.finish(iteration, tensors, info)
            store.release(why or f"stopped: {self.reason}", iteration)
            if not why:
                seconds = {"save_seconds": round(self._saver.status().save_seconds, 3)}
                waited = {"seconds_since_request": round(self._request.seconds_since, 3)}
                write_marker(self._run_url, iteration=iteration, reason=self._request.reason, details=seconds | waited)

        self._together(conclude)

    @property
    def reason(self) -> str:
        """Why the run stops, as far as this process knows."""
        return self._request.reason or "another process was asked"

    def status(self) -> SaverStatus | None:
        """The saver's figures, in the main process once `begin` was called."""
        return self._saver.status() if self._saver is not None else None

    def grace_warning(self, iteration_seconds: float) -> str | None:
        """A sentence if a final save cannot fit into the time that a preempted process has left."""
        status = self.status()
        if status is None or not status.saves:
            return None
        return grace_warning(status.save_seconds, iteration_seconds, grace_seconds(self._config.grace_seconds))

    def _together(self, action: Callable[[CheckpointStore], T]) -> T | None:
        """Do something in the main process; every process waits for it, and raises what it raises."""
        result: T | None = None
        error: TrainerError | None = None
        if self._store is not None:
            try:
                result = action(self._store)
            except TrainerError as found:
                error = found
        error = share_object(self._launch, error)
        if error is not None:
            raise error
        return result
