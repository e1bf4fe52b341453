"""Sanity on real images (Fashion-MNIST, as `make demo` prepares it): what must be near zero is, what must fall falls."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.reading.stream import DataConfig
from trainer.metrics.features import ClassifierFeatures, open_features
from trainer.metrics.frechet import Gaussian, Moments, frechet_distance
from trainer.metrics.health import CollapseWatch
from trainer.metrics.judge import ClassSums, Judge
from trainer.metrics.kid import kernel_distance
from trainer.metrics.ms_ssim import pairs_of
from trainer.metrics.precision_recall import precision_recall
from trainer.metrics.reference import open_reference
from trainer.metrics.resolutions import discriminability, study_resolutions
from trainer.processes.launch import Launch
from trainer.trained.real import images_of_class, manifest_of, real_chunks

DATA = Path(__file__).resolve().parents[2] / "data" / "fashion32"
LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")


def gaussian_of(features: np.ndarray) -> Gaussian:
    moments = Moments(features.shape[1])
    moments.add(torch.from_numpy(features))
    return moments.gaussian()


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "classifier.safetensors").exists(), reason="`make demo` has not prepared Fashion-MNIST")
def test_evaluation_real_images(tmp_path: Path) -> None:
    network = open_features(str(DATA / "classifier.safetensors"), 1)
    assert isinstance(network, ClassifierFeatures)
    train, test = (DataConfig(shards=str(DATA / split)) for split in ("train", "test"))
    reference, held_out = (open_reference(LAUNCH, data, network, tmp_path) for data in (train, test))
    assert reference is not None
    assert held_out is not None

    order = np.random.default_rng(0).permutation(len(reference.labels))
    halves = [gaussian_of(reference.features[np.sort(part)]) for part in np.array_split(order, 2)]
    same, fresh = frechet_distance(*halves), frechet_distance(reference.gaussian, held_out.gaussian)
    shoes = gaussian_of(reference.features[reference.labels >= 7])
    other = frechet_distance(reference.gaussian, shoes)
    assert same < 0.01
    assert fresh < 0.1
    assert other > 100 * same
    kernel = kernel_distance(held_out.subset(5000), reference.subset(5000))
    assert abs(kernel.mean) < 0.02
    shares = precision_recall(held_out.subset(3000), reference.subset(3000))
    assert min(shares) > 0.7

    judge, resolutions = Judge(network, manifest_of(test)), study_resolutions(32)
    sums = ClassSums(10, len(resolutions), 0)
    for chunk in real_chunks(test, 0, 60):
        sums.add(chunk.labels, judge.right(chunk.images, chunk.labels, resolutions), torch.zeros(50, 0))
    found = discriminability(sums.accuracy, resolutions)
    assert all(low < high for low, high in pairwise(found.accuracy))

    real = torch.stack([pairs_of(images_of_class(train, label, 200), 100).mean() for label in range(10)])
    again = torch.stack([pairs_of(images_of_class(test, label, 200), 100).mean() for label in range(10)])
    watch = CollapseWatch(manifest_of(train).class_names, real)
    assert watch.look(again) is None  # other real images: healthy
    one_each = torch.stack(
        [pairs_of(images_of_class(test, label, 1).expand(200, -1, -1, -1), 100).mean() for label in range(10)]
    )
    alarm = watch.look(one_each)
    assert alarm is not None
    accuracy = ", ".join(f"{r} px {a:.1%}" for r, a in zip(resolutions, found.accuracy, strict=True))
    distances = (
        f"two halves of the training images {same:.4f}, training and test {fresh:.4f}, all and shoes {other:.2f}"
    )
    alike = (
        f"{float(real.mean()):.3f} (train), {float(again.mean()):.3f} (test), {float(one_each.mean()):.3f} (one each)"
    )
    print(
        f"PROOF evaluation-real-images: PASS Frechet distance of {distances}; KID {kernel.mean:.4f}; precision "
        f"{shares.precision:.2f}, recall {shares.recall:.2f}; accuracy of real test images {accuracy}; MS-SSIM {alike}: "
        f"{alarm.line()}"
    )
