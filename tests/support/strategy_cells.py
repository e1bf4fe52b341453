"""Run by torchrun: trains the same few iterations once per CELL on the processes at hand, straight and resumed.

usage: tests/support/strategy_cells.py CONFIG OUT CELL...

CELL is STRATEGY-PRECISION, as in zero2-bf16; fp64 only without ZeRO. Three more STRATEGIES: `deterministic` is
run.deterministic, `synchronised` is batch.synchronised_norm, `halved` is speed.bf16_gradients, all with DDP.
OUT/CELL.pt: `half` and `final`, the states after half and all of the iterations; `resumed_equal`: whether a run resumed from
`half` has the same bits at the end. OUT/CELL.start.pt, where it is there, is what the resumed run begins with instead.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.config import Config, load_config
from trainer.processes.launch import Launch, share_from_main, start_processes
from trainer.training.draws import Draws
from trainer.training.iteration import run_iteration
from trainer.training.loop import open_source
from trainer.training.state import State

SWITCHES = {
    "deterministic": "run.deterministic",
    "synchronised": "batch.synchronised_norm",
    "halved": "speed.bf16_gradients",
}


def main(config_path: str, out: str, *cells: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cpu = torch.device("cpu")
    start_processes(Launch(rank, world, rank, cpu, "fp32", "ddp" if world > 1 else "zero1"))
    for cell in cells:
        strategy, _, precision = cell.partition("-")
        settings = [f"--{SWITCHES[strategy]}", "true"] if strategy in SWITCHES else []
        config = load_config(config_path, settings)
        if strategy not in ("zero1", "zero2"):
            strategy = "ddp" if world > 1 else "single"
        launch = Launch(rank, world, rank, cpu, "fp32" if precision == "fp64" else precision, strategy)  # type: ignore[arg-type]
        half, end = config.run.iterations // 2, config.run.iterations
        with default_dtype(torch.float64 if precision == "fp64" else torch.float32):
            states = train(config, launch, None, 0, (half, end))
            given = Path(out) / f"{cell}.start.pt"
            begin = torch.load(given) if given.exists() else states[0]
            (resumed,) = train(config, launch, begin, half, (end,))
        if rank == 0:
            same = all(torch.equal(resumed[name], tensor) for name, tensor in states[1].items())
            torch.save({"half": states[0], "final": states[1], "resumed_equal": same}, Path(out) / f"{cell}.pt")
    dist.destroy_process_group()


def train(
    config: Config, launch: Launch, tensors: dict[str, torch.Tensor] | None, start: int, stops: tuple[int, ...]
) -> list[dict[str, torch.Tensor]]:
    """The logical states at `stops`, from `tensors` or from the seed's own."""
    method = config.objective.build(config.problem())
    replicas = config.batch.replicas
    state, held = State(config, method, launch), launch.held_replicas(replicas)
    cut = launch.part(replicas), launch.parts(replicas)
    state.load(share_from_main(launch, tensors or state.tensors()))
    found = []
    with open_source(config, method, "data", launch, start) as source:
        for iteration in range(start, stops[-1]):
            draws = Draws(method, {"data": source}, config.run.seed, iteration, 0, held, launch.device, True, *cut)
            run_iteration(
                method,
                state.players,
                method.turns(iteration),
                lambda turn, draws=draws: [widened(draw) for draw in draws.of(turn)],  # type: ignore[misc]
                state.memory,
                launch=launch,
                replicas=replicas,
                rate_factor=1.0,
                seed_layers=draws.seed_layers,
                synchronised=config.batch.synchronised_norm,
                speed=config.speed,
            )
            if iteration + 1 in stops:
                found.append({name: tensor.clone() for name, tensor in state.tensors().items()})
    return found


def widened(draw: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The draw, in float64 where that is the default."""
    dtype = torch.get_default_dtype()
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in draw.items()}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    main(*sys.argv[1:])
