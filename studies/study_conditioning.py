"""Projection, concat and AC-GAN on Fashion-MNIST after the same number of iterations, three seeds each, in one table.

`make study-conditioning`. Two trainings run at a time, one thread each; a finished one is not run again.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from studies.seeds import ROOT, table, train

CONDITIONINGS = ("projection", "concat", "acgan")
DATA = ROOT / "data" / "fashion32"


def main() -> None:
    """Train what is missing, judge, print."""
    import torch

    from trainer.classifiers.training import one_epoch
    from trainer.metrics.accuracy import GeneratedAccuracy
    from trainer.metrics.samples import generate
    from trainer.trained.runs import load_trained

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--at-a-time", type=int, default=2)
    options = parser.parse_args()
    jobs = [(conditioning, seed) for seed in options.seeds for conditioning in CONDITIONINGS]

    def one(job: tuple[str, int]) -> Path:
        conditioning, seed = job
        run = options.out / f"{conditioning}-{seed}"
        config = f"configs/fashion32_{conditioning}.yaml"
        return train(config, run, seed, options.iterations, options.precision, {})

    with ThreadPoolExecutor(options.at_a_time) as pool:
        runs = list(pool.map(one, jobs))
    rows: dict[str, list[tuple[float, float]]] = {conditioning: [] for conditioning in CONDITIONINGS}
    for (conditioning, _), run in zip(jobs, runs, strict=True):
        trained = load_trained(str(run))
        judge = GeneratedAccuracy(str(DATA / "classifier.safetensors"), trained.config.model)
        labels = torch.arange(2000) % trained.config.model.classes
        generated = judge.judge(generate(trained.sampler(), labels, 0), labels)
        real = judge.judge(*(torch.cat(parts) for parts in zip(*one_epoch(str(DATA / "test"), 500), strict=True)))
        diversity = generated.variance / real.variance
        rows[conditioning].append((float(generated.accuracy.mean()), float(diversity.mean())))
    seeds = ", ".join(map(str, options.seeds))
    headline = f"After {options.iterations:,} iterations, 2,000 samples, moving average; seeds {seeds}."
    print(table(headline, {"class accuracy": ".1%", "diversity": ".2f"}, rows, "conditioning"))


if __name__ == "__main__":
    main()
