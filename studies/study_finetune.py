"""The classifier-loss stage on Fashion-MNIST: before it, and at its end with and without the loss; three seeds, one table.

`make study-finetune`. One training at a time, one thread; a finished one is not run again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch

from studies.seeds import ROOT
from trainer.classifiers import Classifier, parse_classifier
from trainer.classifiers import build_classifier as build
from trainer.classifiers.training import one_epoch
from trainer.foundation.pixels import to_uint8
from trainer.methods.terms.guidance import only_the_guiding_is_pleased
from trainer.metrics.diversity import ms_ssim_diversity
from trainer.metrics.frechet import Gaussian, Moments, frechet_distance
from trainer.metrics.samples import generate
from trainer.metrics.watched import Watched, measure
from trainer.trained.runs import Trained, load_trained

DATA = ROOT / "data" / "fashion32"
GUIDING, INDEPENDENT = (str(DATA / f"{name}.safetensors") for name in ("classifier", "independent"))
PAIRS = 2_000
FRECHET_IMAGES = 5_000


class Row(NamedTuple):
    """One generator's figures."""

    guiding: float
    independent: float
    frechet: float
    ms_ssim: float


def train(folder: Path, precision: str, config: str, **settings: object) -> Path:
    """One training as a process of its own, unless it is there already; returns the run's folder."""
    if (folder / "done").exists():
        return folder
    settings = {
        "run.dir": folder,
        "run.sample_every": 0,
        "run.checkpoint_every": 250,
        "data.decode_threads": 1,
        "data.shards": DATA / "train",
        **settings,
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": precision}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        command = [sys.executable, "trainer/main.py", f"configs/{config}.yaml", *words]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=True)
    (folder / "done").touch()
    print(f"trained: {folder.name}", flush=True)
    return folder


def trainings(options: argparse.Namespace, seed: int) -> dict[str, tuple[Path, int]]:
    """For one seed: the base run, carried on without the loss, and the stage from its commit; name -> run and iteration."""
    begin, end = options.begin, options.end
    schedule = {
        "run.seed": seed,
        "run.iterations": end,
        "run.log_every": 50,
        "schedule.stages": f"[{{until: {begin}}}, {{until: {end}, learning_rate: linear_to_zero}}]",
    }
    base = train(options.out / f"base-{seed}", options.precision, "fashion32_projection", **schedule)
    found = {f"before ({begin:,})": (base, begin), f"without the loss ({end:,})": (base, end)}
    for weight in options.weights:
        run = train(
            options.out / f"weight-{weight:g}-{seed}",
            options.precision,
            "fashion32_projection_finetune",
            **schedule,
            **{
                "run.initialize_from": f"{base}@{begin}",
                "classifier_loss.weight": weight,
                "classifier_loss.begin": begin,
                "classifier_loss.until": end,
                "classifier_loss.watch_every": (end - begin) // 2,
            },
        )
        found[f"with it, weight {weight:g} ({end:,})"] = (run, end)
    return found


def judge(trained: Trained, guiding: Classifier, independent: Classifier, real: Gaussian) -> Row:
    """A generator's figures on fresh samples."""
    sampler = trained.sampler()
    seen: Watched = measure(sampler, 1, 2 * PAIRS, (guiding, None), (independent, None))
    assert seen.independent_accuracy is not None
    moments = Moments(len(real.mean))
    images = generate(sampler, sampler.conditions.in_turn(range(FRECHET_IMAGES)), 2)
    add(moments, independent, to_uint8(images).float() / 127.5 - 1.0)
    return Row(
        seen.guiding_accuracy, seen.independent_accuracy, frechet_distance(moments.gaussian(), real), seen.ms_ssim
    )


@torch.no_grad()
def add(moments: Moments, classifier: Classifier, images: torch.Tensor) -> None:
    """Features of images, in parts of 500."""
    for part in torch.split(images, 500):
        moments.add(classifier.features(part))


@torch.no_grad()
def judge_real(guiding: Classifier, independent: Classifier) -> tuple[Row, Gaussian]:
    """The test images' own figures (their Fréchet distance is that of two halves), and their features' Gaussian."""
    images, labels = (torch.cat(parts) for parts in zip(*one_epoch(str(DATA / "test"), 500), strict=True))
    size = independent.features(images[:1]).shape[1]
    whole, halves = Moments(size), [Moments(size), Moments(size)]
    add(whole, independent, images)
    for number, half in enumerate(halves):
        add(half, independent, images[number::2])
    right = [
        mean(
            float((net(i).argmax(1) == y).float().mean())
            for i, y in zip(images.split(500), labels.split(500), strict=True)
        )
        for net in (guiding, independent)
    ]
    a, b = [], []
    for label in range(int(labels.max()) + 1):
        of_class = images[labels == label][: PAIRS // 5]
        a.append(of_class[0::2])
        b.append(of_class[1::2])
    similar = float(torch.cat([ms_ssim_diversity(x, y) for x, y in zip(a, b, strict=True)]).mean())
    return Row(*right, frechet_distance(*(half.gaussian() for half in halves)), similar), whole.gaussian()


def table(rows: dict[str, list[Row]], real: Row, seeds: Sequence[int]) -> str:
    """Mean and standard deviation over seeds, and each seed's value."""
    formats = ("{:.1%}", "{:.1%}", "{:.2f}", "{:.3f}")
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; mean +- standard deviation (each seed). {2 * PAIRS:,} samples for the "
        f"accuracies, {PAIRS:,} pairs of one class for MS-SSIM, {FRECHET_IMAGES:,} samples and 10,000 test images for the "
        "Fréchet distance, on the independent classifier's features (not Inception's); moving average.",
        "",
        "| generator (iteration) | accuracy: guiding | accuracy: independent | Fréchet distance | MS-SSIM |",
        "|---|---|---|---|---|",
    ]
    for name, values in rows.items():
        cells = []
        for form, numbers in zip(formats, zip(*values, strict=True), strict=True):
            spread = stdev(numbers) if len(numbers) > 1 else 0.0
            each = ", ".join(form.format(number) for number in numbers)
            cells.append(f"{form.format(mean(numbers))} +- {form.format(spread)} ({each})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [form.format(number) for form, number in zip(formats, real, strict=True)]
    lines.append(f"| real test images (Fréchet distance: between halves) | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begin", type=int, default=500)
    parser.add_argument("--end", type=int, default=750)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    options = parser.parse_args()
    guiding, independent = (build(parse_classifier(path)) for path in (GUIDING, INDEPENDENT))
    real_row, real = judge_real(guiding, independent)
    rows: dict[str, list[Row]] = {}
    for seed in options.seeds:
        for name, (run, iteration) in trainings(options, seed).items():
            trained = load_trained(str(run), iteration)
            rows.setdefault(name, []).append(judge(trained, guiding, independent, real))
    print(table(rows, real_row, options.seeds))
    names = list(rows)
    for name in names[2:]:
        for seed, before, after in zip(options.seeds, rows[names[1]], rows[name], strict=True):
            warning = only_the_guiding_is_pleased(before[:2], after[:2])
            if warning:
                print(f"warning, {name}, seed {seed}, against the run without the loss: {warning}")


if __name__ == "__main__":
    main()
