"""What the studies share: trainings of Fashion-MNIST from several seeds, and the table of what they reach."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]


def train(config: str, run: Path, seed: int, iterations: int, precision: str, settings: Mapping[str, object]) -> Path:
    """One training as a process of its own, the rate falling over its second half; a finished one is not run again.

    Returns the run's folder.
    """
    half = f"[{{until: {iterations // 2}}}, {{until: {iterations}, learning_rate: linear_to_zero}}]"
    given = {
        "run.dir": run,
        "run.seed": seed,
        "run.iterations": iterations,
        "run.sample_every": 0,
        "run.log_every": 100,
        "schedule.stages": half,
        "data.decode_threads": 1,
        **settings,
    }
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": precision}
    run.mkdir(parents=True, exist_ok=True)
    with (run / "output.txt").open("a") as output:
        command = [sys.executable, "trainer/main.py", config, *words]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=True)
    print(f"trained: {run.name}", flush=True)
    return run


def table(
    headline: str, columns: Mapping[str, str], rows: Mapping[str, Sequence[Sequence[float]]], what: str = "form"
) -> str:
    """Mean and standard deviation over seeds, and each seed's value.

    `columns`: the measures' names and formats; `rows`: for each row's name, the measures of every seed.
    """
    names = " | ".join(f"{name} | each seed" for name in columns)
    lines = [headline, "", f"| {what} | {names} |", "|---" * (1 + 2 * len(columns)) + "|"]
    for row, values in rows.items():
        cells = []
        for form, numbers in zip(columns.values(), zip(*values, strict=True), strict=True):
            spread = stdev(numbers) if len(numbers) > 1 else 0.0
            cells.append(f"{mean(numbers):{form}} +- {spread:{form}}")
            cells.append(", ".join(f"{number:{form}}" for number in numbers))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)
