"""Does the fast form learn what the plain form learns? Fashion-MNIST's projection GAN from three seeds each.

`make study-speed`: plain form in fp32, fast form in fp32, fast form in bf16; class accuracy and Frechet distance of the
small classifier's features, in one table. One training at a time, one thread; a finished one is not run again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

FORMS = {"plain fp32": (True, "no"), "fast fp32": (False, "no"), "fast bf16": (False, "bf16")}
SAMPLES = 5000


def train(form: str, seed: int, iterations: int, data: Path, folder: Path) -> Path:
    """One training as a process of its own; returns the run's folder."""
    from pydantic import TypeAdapter

    from trainer.speed import PLAIN, SpeedConfig

    plain, precision = FORMS[form]
    run = folder / f"{form.replace(' ', '-')}-{seed}"
    half = f"[{{until: {iterations // 2}}}, {{until: {iterations}, learning_rate: linear_to_zero}}]"
    settings = {
        "run.dir": run,
        "run.seed": seed,
        "run.iterations": iterations,
        "run.sample_every": 0,
        "run.log_every": 50,
        "run.checkpoint_every": iterations,
        "data.shards": data / "train",
        "data.decode_threads": 1,
        "schedule.stages": half,
    }
    if plain:
        settings |= {f"speed.{name}": value for name, value in TypeAdapter(SpeedConfig).dump_python(PLAIN).items()}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": precision}
    command = [sys.executable, "trainer/main.py", "configs/fashion32_projection.yaml", *words]
    run.mkdir(parents=True, exist_ok=True)
    with (run / "output.txt").open("a") as output:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=True)
    print(f"trained: {form}, seed {seed}", flush=True)
    return run


def judge(runs: dict[tuple[str, int], Path], data: Path) -> dict[str, list[tuple[float, float]]]:
    """Class accuracy and Frechet distance to the real test images of every run, by form."""
    import torch

    from data_pipeline.manifest import load_manifest
    from data_pipeline.stream import DataConfig, open_stream
    from trainer.classifiers import build_classifier, parse_classifier
    from trainer.images import normalise
    from trainer.metrics.accuracy import generate
    from trainer.metrics.frechet import Moments, frechet_distance
    from trainer.runs import load_generator

    classifier = build_classifier(parse_classifier(str(data / "classifier.safetensors")), "cpu")

    def moments(images: torch.Tensor) -> Moments:
        features = [classifier.features(part) for part in images.split(250)]
        found = Moments(features[0].shape[1])
        for part in features:
            found.add(part)
        return found

    torch.set_num_threads(1)
    with torch.no_grad():
        count = load_manifest(str(data / "test")).samples
        with open_stream(
            DataConfig(shards=str(data / "test")), seed=0, replicas=1, held=range(1), batch_size=500
        ) as stream:
            real = torch.cat([normalise(next(stream).images[0].clone(), None) for _ in range(count // 500)])
        target = moments(real).gaussian()
        rows: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
        for (form, _), run in runs.items():
            trained = load_generator(str(run))
            labels = torch.arange(SAMPLES) % trained.config.model.classes
            images = generate(trained.module, trained.config.model, labels, 0)
            hits = torch.cat([classifier(part).argmax(1) for part in images.split(250)]) == labels
            rows[form].append((float(hits.float().mean()), frechet_distance(moments(images).gaussian(), target)))
    return rows


def table(rows: dict[str, list[tuple[float, float]]], seeds: Sequence[int], iterations: int) -> str:
    """Mean and standard deviation over seeds, and each seed's value."""
    lines = [
        f"After {iterations:,} iterations, {SAMPLES:,} samples, moving average; seeds {', '.join(map(str, seeds))}.",
        "",
        "| form | class accuracy | each seed | Frechet distance | each seed |",
        "|---|---|---|---|---|",
    ]
    for form, values in rows.items():
        accuracy, distance = zip(*values, strict=True)
        spread = [stdev(numbers) if len(numbers) > 1 else 0.0 for numbers in (accuracy, distance)]
        lines.append(
            f"| {form} | {mean(accuracy):.1%} +- {spread[0]:.1%} | {', '.join(f'{a:.1%}' for a in accuracy)} | "
            f"{mean(distance):.2f} +- {spread[1]:.2f} | {', '.join(f'{d:.2f}' for d in distance)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "fashion32")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    runs = {
        (form, seed): train(form, seed, options.iterations, options.data, options.out.resolve())
        for seed in options.seeds
        for form in FORMS
    }
    print(table(judge(runs, options.data), options.seeds, options.iterations))


if __name__ == "__main__":
    main()
