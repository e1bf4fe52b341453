"""The trainer's command with a fault in process 1: `faulty_main.py FAULT CONFIG [settings]`, started by accelerate.

FAULT: `parameter` (after iteration 5 one weight is another one), `settings` (another seed), `data` (a DataError at iteration
3), `stuck` (iteration 3 never ends; the other process fails there).
"""

import os
import sys
import time
from typing import Any

import torch

from data_pipeline.errors import DataError
from trainer.foundation.commands import run_command
from trainer.main import main
from trainer.training import loop

RANK = int(os.environ["RANK"])
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


def start(arguments: list[str]) -> int:
    fault, *rest = arguments
    loop.run_iteration = faulty(fault)  # type: ignore[attr-defined]
    if fault == "settings" and RANK == 1:
        rest += ["--run.seed", "99"]
    return main(rest)


if __name__ == "__main__":
    sys.exit(run_command(start))
