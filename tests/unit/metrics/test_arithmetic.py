"""Each measure of feature arrays against closed forms, torch-fidelity and torchmetrics."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from trainer.metrics.frechet import Gaussian, Moments, class_distance, frechet_distance, frechet_distance_to_few
from trainer.metrics.inception_score import InceptionScore
from trainer.metrics.kid import kernel_distance
from trainer.metrics.precision_recall import precision_recall


def features(count: int, dimension: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated Gaussian features."""
    source = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(7)) / dimension**0.5
    return (torch.randn(count, dimension, generator=source) @ mix) * scale + shift


def moments_of(values: Tensor, piece: int = 37) -> Gaussian:
    moments = Moments(values.shape[1])
    for part in values.split(piece):
        moments.add(part)
    return moments.gaussian()


def test_frechet_distance_of_known_gaussians() -> None:
    one, two = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 1.0])
    # Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2.
    a, b = Gaussian(np.zeros(3), one, 9), Gaussian(np.array([1.0, 2.0, 2.0]), two, 9)
    assert frechet_distance(a, b) == pytest.approx(9.0 + 1.0 + 0.0 + 4.0, abs=1e-9)
    rotation = scipy.linalg.expm(np.array([[0.0, 0.3, -0.2], [-0.3, 0.0, 0.5], [0.2, -0.5, 0.0]]))
    a, b = (
        Gaussian(rotation @ a.mean, rotation @ one @ rotation.T, 9),
        Gaussian(rotation @ b.mean, rotation @ two @ rotation.T, 9),
    )
    assert frechet_distance(a, b) == pytest.approx(14.0, abs=1e-9)
    general = Gaussian(np.zeros(3), np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.5]]), 9)
    root = scipy.linalg.sqrtm(general.covariance @ one)
    expected = np.trace(general.covariance + one - 2 * np.real(root))
    assert frechet_distance(general, Gaussian(np.zeros(3), one, 9)) == pytest.approx(float(expected), abs=1e-9)


class Given(nn.Module):
    """For torchmetrics: the images are the features."""

    num_features = 24

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :24]


def test_frechet_distance_as_both_libraries_in_any_pieces() -> None:
    fake, real = features(400, 24, 0, 5.0), features(700, 24, 1, 5.3, 1.2)
    ours = frechet_distance(moments_of(fake), moments_of(real))
    statistics = [fid_features_to_statistics(values.double()) for values in (fake, real)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-8)
    judge = FrechetInceptionDistance(feature=Given(), normalize=True, input_img_size=(1, 1, 24)).set_dtype(
        torch.float64
    )
    judge.update(real.double().view(-1, 1, 1, 24), real=True)
    judge.update(fake.double().view(-1, 1, 1, 24), real=False)
    assert ours == pytest.approx(float(judge.compute()), rel=1e-6)
    whole = moments_of(fake, 400)
    assert np.allclose(whole.covariance, np.cov(fake.double().numpy(), rowvar=False), rtol=1e-10)
    assert frechet_distance(moments_of(real), moments_of(real)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("count", [5, 20, 24])
def test_distance_to_few_real_images_is_the_same_number(count: int) -> None:
    fake, real = moments_of(features(300, 24, 2)), features(count, 24, 3, 0.4)
    full = frechet_distance(fake, moments_of(real))
    assert frechet_distance_to_few(fake, real) == pytest.approx(full, rel=1e-6)
    assert class_distance(fake, real) == frechet_distance_to_few(fake, real)
    assert math.isnan(class_distance(fake, real[:1]))
    many = features(50, 24, 3)
    assert class_distance(fake, many) == pytest.approx(frechet_distance(fake, moments_of(many)), rel=1e-6)


def test_inception_score_of_constructed_predictions() -> None:
    certain = torch.eye(10).repeat(20, 1) * 200.0  # ten classes, each certain and as frequent: exp(log 10)
    score = InceptionScore(200, 10, 4)
    for part in certain.split(33):
        score.add(part)
    assert score.score().mean == pytest.approx(10.0, rel=1e-9)
    assert score.score().deviation == pytest.approx(0.0, abs=1e-9)
    uniform = InceptionScore(50, 10, 1)
    uniform.add(torch.zeros(50, 10))
    assert uniform.score().mean == pytest.approx(1.0)
    # Half certain of class 0, half undecided between 0 and 1: p = (3/4, 1/4).
    mixed = InceptionScore(2, 2, 1)
    mixed.add(torch.tensor([[100.0, 0.0], [0.0, 0.0]]))
    expected = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert mixed.score().mean == pytest.approx(math.exp(expected), rel=1e-9)
    short = InceptionScore(200, 10, 4)
    short.add(certain[:5])
    with pytest.raises(ValueError, match="200 samples were announced, 5 came"):
        short.score()


def test_inception_score_as_torch_fidelity_streamed() -> None:
    logits = features(333, 12, 4, 0.0, 3.0)
    score = InceptionScore(330, 12, 7)
    for part in logits.split(50):
        score.add(part)
    theirs = isc_features_to_metric(logits[:330], splits=7, shuffle=False)
    assert score.score().mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert score.score().deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_kernel_distance() -> None:
    fake, real = features(300, 16, 5, 0.3), features(200, 16, 6)
    found = kernel_distance(fake, real)
    assert found.subset_size == 200
    # The cubic kernel's unbiased MMD^2 of whole sets, written out; subsets of all real images and 200 of 300 scatter round it.
    x, y = fake.double(), real.double()
    xx, yy, xy = ((p @ q.T / 16 + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    whole = (xx.sum() - xx.trace()) / (300 * 299) + (yy.sum() - yy.trace()) / (200 * 199) - 2 * xy.mean()
    assert found.mean == pytest.approx(float(whole), abs=4 * found.deviation / 10)
    assert found.mean > 10 * found.deviation / 10
    same = kernel_distance(features(200, 16, 8), features(200, 16, 9))
    assert abs(same.mean) < 0.1 * found.mean
    one = kernel_distance(fake[:200], real)  # subsets are permutations of the whole: torchmetrics gives the same
    assert one.mean == pytest.approx(float(poly_mmd(fake[:200], real)), rel=1e-3)


def test_precision_and_recall() -> None:
    real, fake = features(150, 8, 10), features(120, 8, 11, 0.2)
    ours = precision_recall(fake, real)
    assert ours == pytest.approx(calculate_precision_recall_full(fake, real, 3, 10_000))
    radius_real = torch.cdist(real, real).sort(1).values[:, 3]  # by hand: the third neighbour besides itself
    assert ours.precision == pytest.approx(float((torch.cdist(fake, real) <= radius_real).any(1).float().mean()))
    radius_fake = torch.cdist(fake, fake).sort(1).values[:, 3]
    assert ours.recall == pytest.approx(float((torch.cdist(real, fake) <= radius_fake).any(1).float().mean()))
    narrow = precision_recall(features(120, 8, 12, 0.0, 0.05), real)  # one mode: precise, with little recall
    assert narrow.precision == 1.0
    assert narrow.recall < 0.05
