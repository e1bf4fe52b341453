"""What an asynchronous checkpoint every 50 iterations costs training, at the demo's settings: one process, one run.

Blocks of 50 iterations with a save at their beginning and blocks without one take turns. Printed: the ratio of a block's
CPU and wall time to that of its neighbour without a save, and the time the training thread itself waited.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from trainer.config import load_config
from trainer.processes.launch import read_launch, start_processes
from trainer.training.draws import Draws
from trainer.training.iteration import run_iteration
from trainer.training.keeper import Keeper
from trainer.training.loop import open_source
from trainer.training.state import State

BLOCK = 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--config", default="configs/fashion32_projection.yaml")
    options = parser.parse_args()
    launch = read_launch()
    start_processes(launch)
    folder = tempfile.mkdtemp(prefix="menagerie-bench-")
    config = load_config(options.config, ["--run.dir", folder])
    method, keeper = config.objective.build(config.problem()), Keeper(config, launch)
    state = State(config, method, launch)
    keeper.resume(state)
    held = launch.held_replicas(config.batch.replicas)
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with open_source(config, method, "data", launch, 0) as source:
        keeper.check_data({"data": source.stream.manifest})
        iteration = 0
        for number in range(2 * (options.rounds + 1)):
            saving = number % 2 == 0
            cpu, wall = time.process_time(), time.perf_counter()
            if saving:
                keeper.save(state, iteration, 0, {}, final=False)
            for _ in range(BLOCK):
                draws = Draws(method, {"data": source}, 0, iteration, 0, held, launch.device)
                run_iteration(
                    method,
                    state.players,
                    method.turns(iteration),
                    draws.of,
                    state.memory,
                    launch=launch,
                    replicas=config.batch.replicas,
                    rate_factor=1.0,
                    seed_layers=draws.seed_layers,
                )
                iteration += 1
            times[saving].append((time.process_time() - cpu, time.perf_counter() - wall))
            if keeper.saver is not None:
                keeper.saver.wait()
    status = keeper.status()
    for index, what in enumerate(("cpu", "wall")):
        ratios = [a[index] / b[index] for a, b in zip(times[True][1:], times[False][1:], strict=True)]
        low, high = min(ratios), max(ratios)
        print(f"RATIO saving every {BLOCK} iterations {what}: {statistics.median(ratios):.3f} [{low:.3f}..{high:.3f}]")
    stolen = status["checkpoint/stolen_seconds"]
    total = sum(wall for _, wall in times[True])
    print(
        f"training thread waited {1000 * stolen / len(times[True]):.1f} ms per save, {stolen / total:.3%} of the time"
    )
    keeper.close()


if __name__ == "__main__":
    main()
