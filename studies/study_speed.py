"""Does the fast form learn what the plain form learns? Fashion-MNIST's projection GAN from three seeds each.

`make study-speed`: plain form in fp32, fast form in fp32, fast form in bf16; class accuracy and Frechet distance of the
small classifier's features, in one table. One thread a training; a finished one is not run again.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from studies.seeds import ROOT, table, train

FORMS = {"plain fp32": (True, "no"), "fast fp32": (False, "no"), "fast bf16": (False, "bf16")}
SAMPLES = 5000


def judge(runs: dict[tuple[str, int], Path], data: Path) -> dict[str, list[tuple[float, float]]]:
    """Class accuracy and Frechet distance to the real test images of every run, by form."""
    import torch

    from data_pipeline.manifest.format import load_manifest
    from data_pipeline.reading.stream import DataConfig, open_stream
    from trainer.classifiers import build_classifier, parse_classifier
    from trainer.foundation.pixels import normalise
    from trainer.metrics.frechet import Moments, frechet_distance
    from trainer.metrics.samples import generate
    from trainer.trained.runs import load_trained

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
            DataConfig(shards=str(data / "test")), seed=0, replicas=1, held=range(1), sizes=[500] * (count // 500)
        ) as stream:
            real = torch.cat([normalise(next(stream).images[0].clone(), None) for _ in range(count // 500)])
        target = moments(real).gaussian()
        rows: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
        for (form, _), run in runs.items():
            trained = load_trained(str(run))
            labels = torch.arange(SAMPLES) % trained.config.model.classes
            images = generate(trained.sampler(), labels, 0)
            hits = torch.cat([classifier(part).argmax(1) for part in images.split(250)]) == labels
            rows[form].append((float(hits.float().mean()), frechet_distance(moments(images).gaussian(), target)))
    return rows


def main() -> None:
    """Train what is missing, judge, print."""
    from pydantic import TypeAdapter

    from trainer.speed.settings import PLAIN, SpeedConfig

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "fashion32")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-a-time", type=int, default=2)
    options = parser.parse_args()
    plain = {f"speed.{name}": value for name, value in TypeAdapter(SpeedConfig).dump_python(PLAIN).items()}
    jobs = [(form, seed) for seed in options.seeds for form in FORMS]

    def one(job: tuple[str, int]) -> Path:
        form, seed = job
        is_plain, precision = FORMS[form]
        settings = {"data.shards": options.data.resolve() / "train", **(plain if is_plain else {})}
        run = options.out.resolve() / f"{form.replace(' ', '-')}-{seed}"
        return train("configs/fashion32_projection.yaml", run, seed, options.iterations, precision, settings)

    with ThreadPoolExecutor(options.at_a_time) as pool:
        runs = dict(zip(jobs, pool.map(one, jobs), strict=True))
    seeds = ", ".join(map(str, options.seeds))
    headline = f"After {options.iterations:,} iterations, {SAMPLES:,} samples, moving average; seeds {seeds}."
    print(table(headline, {"class accuracy": ".1%", "Frechet distance": ".2f"}, judge(runs, options.data)))


if __name__ == "__main__":
    main()
