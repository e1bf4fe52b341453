"""The trainer's command with a fault in process 1: `faulty_main.py FAULT CONFIG [settings]`, started by accelerate.

FAULT: `parameter` (after iteration 5 one weight is another one), `settings` (another seed), `data` (a DataError at iteration
3), `stuck` (iteration 3 never ends; the other process fails there).
Or HOW:RANK:SECTION: process RANK stands still in a section of iteration 3. HOW: `hangs` (its training thread sleeps), `locks`
(it also holds the interpreter's lock), `stops` (SIGSTOP). `slows:RANK:FACTOR`: its turns take so many times as long.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

import torch

from data_pipeline.errors import DataError
from trainer.foundation.commands import run_command
from trainer.main import main
from trainer.processes.progress import progress
from trainer.training import loop

RANK = int(os.environ.get("RANK", "0"))
run_iteration = loop.run_iteration  # type: ignore[attr-defined]


def faulty(fault: str) -> Any:
    done = 0

    def iteration(method: Any, players: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal done
        done += 1
        if fault == "data" and RANK == 1 and done == 3:
            raise DataError("data.shards: shard-000001.tar is not what it should be; make the shards again")
        if fault == "stuck" and done == 3:
            if RANK == 1:
                raise ValueError("a defect")
            time.sleep(600)  # as in a collective that never ends
        scalars = run_iteration(method, players, *arguments, **named)
        if fault == "parameter" and RANK == 1 and done == 5:
            with torch.no_grad():
                players["generator"].modules["generator"].blocks[1].conv1.weight[0, 0, 0, 0] += 1e-6
        return scalars

    return iteration


def stand_still(how: str, where: str) -> None:
    """In iteration 3, from the moment that the training enters the section."""
    enter = progress.enter

    def entered(section: str) -> None:
        enter(section)
        if section == where and progress.place.iteration == 3:
            if how == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif how == "locks":
                ctypes.PyDLL(None).sleep(600)
            else:
                time.sleep(600)

    progress.enter = entered  # type: ignore[method-assign]


def slow_down(factor: float) -> None:
    """Every turn of a player takes so many times as long as it would."""
    enter, begun = progress.enter, time.monotonic()

    def entered(section: str) -> None:
        nonlocal begun
        if section == "reduction":
            time.sleep((factor - 1) * (time.monotonic() - begun))
        enter(section)
        if section.endswith("turn"):
            begun = time.monotonic()

    progress.enter = entered  # type: ignore[method-assign]


def start(arguments: list[str]) -> int:
    fault, *rest = arguments
    if ":" in fault:
        how, rank, what = fault.split(":")
        if int(rank) == RANK:
            if how == "slows":
                slow_down(float(what))
            else:
                stand_still(how, what)
        return main(rest)
    loop.run_iteration = faulty(fault)  # type: ignore[attr-defined]
    if fault == "settings" and RANK == 1:
        rest += ["--run.seed", "99"]
    return main(rest)


if __name__ == "__main__":
    sys.exit(run_command(start))
