"""Fréchet distance of two sets of features (Heusel et al. 2017), and its mean over classes (intra-FID, Miyato & Koyama 2018).

|mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), unbiased covariances, float64. With TF-Inception's 2048 features it is
FID; with others it is another number, comparable only with itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """What the distance needs of a set of features: mean [F], covariance [F, F], number of samples."""

    mean: Array
    covariance: Array
    samples: int


class Moments:
    """Streaming first and second moments in float64: 16 F^2 bytes (67 MB for 2048 features), whatever the number of samples."""

    def __init__(self, features: int) -> None:
        self.samples = 0
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._outer = torch.zeros(features, features, dtype=torch.float64)
        self._shift: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Features [n, F], float32 on the CPU."""
        values = features.double()
        if self._shift is None:  # near the mean, so that the difference of sums loses no digits
            self._shift = values.mean(0)
        values = values - self._shift
        self.samples += len(values)
        self._sum += values.sum(0)
        self._outer.addmm_(values.T, values)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance so far. Raises ValueError for fewer than 2 samples."""
        if self.samples < 2 or self._shift is None:
            raise ValueError(f"{self.samples} samples have no covariance; at least 2 are needed")
        mean = self._sum / self.samples
        covariance = (self._outer - self.samples * torch.outer(mean, mean)) / (self.samples - 1)
        return Gaussian((mean + self._shift).numpy(), covariance.numpy(), self.samples)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The number that torch-fidelity and torchmetrics give, with a trace of the root that takes a fraction of their time.

    Tr (S_1 S_2)^(1/2) is the sum of the roots of the eigenvalues of R S_2 R with R = S_1^(1/2): two symmetric problems
    instead of the general one that S_1 S_2 is.
    """
    one, two = torch.from_numpy(first.covariance), torch.from_numpy(second.covariance)
    values, vectors = torch.linalg.eigh((one + one.T) / 2)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    product = root @ two @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0.0).sqrt().sum()
    difference = torch.from_numpy(first.mean - second.mean)
    return float(difference @ difference + one.trace() + two.trace() - 2 * trace)


def frechet_distance_to_few(generated: Gaussian, real: Tensor) -> float:
    """The same where the second set is few features [m, F], m <= F, as a class of ImageNet is (at most 1,300 images).

    With B = centred features / sqrt(m - 1), S_2 = B^T B and Tr (S_1 S_2)^(1/2) is the sum of the roots of the
    eigenvalues of B S_1 B^T: a symmetric m x m problem instead of a general F x F one.
    """
    values = real.double()
    mean = values.mean(0)
    scaled = (values - mean) / (len(values) - 1) ** 0.5
    gram = scaled @ torch.from_numpy(generated.covariance) @ scaled.T
    roots = torch.linalg.eigvalsh((gram + gram.T) / 2).clamp_min(0.0).sqrt().sum()
    difference = torch.from_numpy(generated.mean) - mean
    trace = float(np.trace(generated.covariance)) + float(scaled.square().sum())
    return float(difference @ difference) + trace - 2 * float(roots)


def class_distance(generated: Gaussian, real: Tensor) -> float:
    """The distance of one class's generated moments to all its real features [m, F]; NaN for fewer than 2 of them."""
    if len(real) < 2:
        return float("nan")
    if len(real) <= real.shape[1]:
        return frechet_distance_to_few(generated, real)
    moments = Moments(real.shape[1])
    moments.add(real)
    return frechet_distance(generated, moments.gaussian())
