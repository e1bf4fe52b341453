"""Trainings that are killed and resumed, in copies of this process, which have nothing to import."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import Config
from trainer.processes.launch import read_launch
from trainer.training import loop


def state_of(run: str | Path) -> dict[str, Tensor]:
    """The newest checkpoint's tensors."""
    restored = CheckpointStore(str(run)).restore()
    assert restored is not None
    return restored.tensors


def train_and_be_killed(config: Config, iteration: int) -> None:
    """Train in a copy of this process; SIGKILL strikes in the middle of its `iteration`-th iteration (from 1)."""
    in_a_killed_copy(lambda: _struck(iteration, lambda: loop.train(config, read_launch())))


def _struck(iteration: int, work: Callable[[], object]) -> None:
    calls, run_iteration = 0, vars(loop)["run_iteration"]

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        scalars = run_iteration(*arguments, **named)
        if calls == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return scalars

    vars(loop)["run_iteration"] = counting
    work()


def in_a_killed_copy(work: Callable[[], object]) -> None:
    """Do the work in a copy of this process, which must end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
