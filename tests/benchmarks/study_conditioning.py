"""Projection, concat and AC-GAN on Fashion-MNIST after the same number of iterations, three seeds each, in one table.

`make study-conditioning`. Two trainings run at a time, one thread each; a finished one is not run again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CONDITIONINGS = ("projection", "concat", "acgan")
DATA = ROOT / "data" / "fashion32"


def train(conditioning: str, seed: int, iterations: int, precision: str, folder: Path) -> Path:
    """One training as a process of its own; returns the run's folder."""
    run = folder / f"{conditioning}-{seed}"
    half = f"[{{until: {iterations // 2}}}, {{until: {iterations}, learning_rate: linear_to_zero}}]"
    settings = {
        "run.dir": run,
        "run.seed": seed,
        "run.iterations": iterations,
        "run.sample_every": 0,
        "run.log_every": 100,
        "schedule.stages": half,
        "data.decode_threads": 1,
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": precision}
    command = [sys.executable, "trainer/main.py", f"configs/fashion32_{conditioning}.yaml", *words]
    run.mkdir(parents=True, exist_ok=True)
    with (run / "output.txt").open("a") as output:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=True)
    print(f"trained: {conditioning}, seed {seed}", flush=True)
    return run


def table(rows: dict[str, list[tuple[float, float]]], seeds: Sequence[int], iterations: int) -> str:
    """Mean and standard deviation over seeds, and each seed's value."""
    lines = [
        f"After {iterations:,} iterations, 2,000 samples, moving average; seeds {', '.join(map(str, seeds))}.",
        "",
        "| conditioning | class accuracy | each seed | diversity | each seed |",
        "|---|---|---|---|---|",
    ]
    for conditioning, values in rows.items():
        accuracy, diversity = zip(*values, strict=True)
        spread = [stdev(numbers) if len(numbers) > 1 else 0.0 for numbers in (accuracy, diversity)]
        lines.append(
            f"| {conditioning} | {mean(accuracy):.1%} +- {spread[0]:.1%} | {', '.join(f'{a:.1%}' for a in accuracy)} | "
            f"{mean(diversity):.2f} +- {spread[1]:.2f} | {', '.join(f'{d:.2f}' for d in diversity)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, judge, print."""
    from trainer.metrics.accuracy import GeneratedAccuracy
    from trainer.runs import load_generator

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--at-a-time", type=int, default=2)
    options = parser.parse_args()
    jobs = [(conditioning, seed) for seed in options.seeds for conditioning in CONDITIONINGS]
    with ThreadPoolExecutor(options.at_a_time) as pool:
        runs = list(pool.map(lambda job: train(*job, options.iterations, options.precision, options.out), jobs))
    rows: dict[str, list[tuple[float, float]]] = {conditioning: [] for conditioning in CONDITIONINGS}
    for (conditioning, _), run in zip(jobs, runs, strict=True):
        trained = load_generator(str(run))
        judge = GeneratedAccuracy(str(DATA / "classifier.safetensors"), trained.config.model)
        judgement = judge.judge(trained.module, 0, 2000)
        diversity = judgement.diversity(judge.judge_real(str(DATA / "test")))
        rows[conditioning].append((float(judgement.accuracy.mean()), float(diversity.mean())))
    print(table(rows, options.seeds, options.iterations))


if __name__ == "__main__":
    main()
