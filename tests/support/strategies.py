"""Runs the cells of strategy_cells.py on several processes and in this one, and compares what they find."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.checkout import ROOT, environment, program
from tests.support.strategy_cells import default_dtype, train
from trainer.config import load_config
from trainer.processes.launch import Launch
from trainer.training.state import State as TrainingState

State = dict[str, torch.Tensor]


def run_cells(path: Path, out: Path, processes: int, *cells: str) -> dict[str, dict[str, Any]]:
    """What strategy_cells.py finds, by cell."""
    out.mkdir(exist_ok=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, program("strategy_cells.py"), str(path), str(out), *cells]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-3000:]
    return {cell: torch.load(out / f"{cell}.pt") for cell in cells}


def in_this_process(path: Path, precision: str, *settings: str) -> State:
    """The final state of the same iterations on one process."""
    config = load_config(str(path), settings)
    launch = Launch(0, 1, 0, torch.device("cpu"), "bf16" if precision == "bf16" else "fp32", "single")
    with default_dtype(torch.float64 if precision == "fp64" else torch.float32):
        return train(config, launch, None, 0, (config.run.iterations,))[0]


def seeds_state(path: Path) -> State:
    """What a run begins with."""
    launch = Launch(0, 1, 0, torch.device("cpu"), "fp32", "single")
    config = load_config(str(path))
    state = TrainingState(config, config.objective.build(config.problem()), launch)
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def difference(found: State, expected: State, exact: State) -> float:
    """The largest relative L2 difference of a network's tensor, without those that `exact` (float64) leaves at 0."""
    worst = 0.0
    for name, tensor in expected.items():
        if name.startswith(("generator/", "discriminator/")) and exact[name].norm() > 1e-9:
            distance = (found[name].double() - tensor.double()).norm() / tensor.double().norm()
            worst = max(worst, distance.item())
    return worst


def apart(found: State, expected: State, start: State) -> float:
    """The distance of all parameters together, relative to how far training has moved them."""
    names = [name for name in expected if name.startswith(("generator/", "discriminator/"))]

    def distance(a: State, b: State) -> float:
        return sum((a[name].double() - b[name].double()).square().sum().item() for name in names) ** 0.5

    return distance(found, expected) / distance(expected, start)
