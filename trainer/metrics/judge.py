"""Class accuracy: the share of images that a classifier gives the class asked for; at full and at lower resolutions.

At lower resolutions it is the discriminability study of the AC-GAN paper (Odena et al. 2017, section 4.1): images are
shrunk to r x r and enlarged again, bilinearly (with antialiasing when shrinking), and classified. If a generator's pictures
say no more at 128 px than at 32 px, their resolution is not real.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.manifest.format import Manifest
from trainer.classifiers import check_class_map
from trainer.metrics.features import ClassifierFeatures
from trainer.metrics.samples import as_signed


def study_resolutions(resolution: int) -> list[int]:
    """Powers of two from 16 (from a quarter, for small images) up to the images' own resolution."""
    smallest = min(16, resolution // 4)
    return [r for r in (2**k for k in range(2, 13)) if smallest <= r < resolution] + [resolution]


def shrink_and_enlarge(images: Tensor, resolution: int) -> Tensor:
    """Images [n, c, h, w] with no more detail than `resolution` x `resolution` pixels hold; the same size."""
    if images.shape[-1] <= resolution:
        return images
    small = F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)


class Judge:
    """A classifier whose classes are the data's; raises SettingError if they are not."""

    def __init__(self, network: ClassifierFeatures, manifest: Manifest, setting: str = "--classifier") -> None:
        self.network, self.class_names = network, manifest.class_names
        chosen = check_class_map(network.classifier, manifest, setting)
        self.logit_of = torch.arange(len(manifest.classes)) if chosen is None else chosen.cpu()
        """Which logit is each class's, int64 [classes]."""

    def right(self, images: Tensor, labels: Tensor, resolutions: list[int]) -> Tensor:
        """Whether each uint8 image [n, c, h, w] is given its class, at each resolution: 0 or 1, [n, resolutions]."""
        whole = as_signed(images.to(self.network.device))
        wanted = self.logit_of[labels]
        columns = []
        with torch.no_grad():
            for resolution in resolutions:
                found = self.network.classifier(shrink_and_enlarge(whole, resolution)).argmax(1).cpu()
                columns.append((found == wanted).float())
        return torch.stack(columns, 1)


class ClassSums:
    """Per class: how many images, how many of them right, and how much their features vary. Streaming, 16 K F bytes."""

    def __init__(self, classes: int, columns: int, features: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.float64)
        self._right = torch.zeros(classes, columns, dtype=torch.float64)
        self._sum = torch.zeros(classes, features, dtype=torch.float64)
        self._squares = torch.zeros(classes, dtype=torch.float64)

    def add(self, labels: Tensor, right: Tensor, features: Tensor) -> None:
        """Labels [n], right [n, columns], features [n, F] (F may be 0)."""
        self.count.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
        self._right.index_add_(0, labels, right.double())
        self._sum.index_add_(0, labels, features.double())
        self._squares.index_add_(0, labels, features.double().square().sum(1))

    @property
    def accuracy(self) -> Tensor:
        """[classes, columns]; NaN for a class without images."""
        return self._right / self.count[:, None]

    @property
    def variance(self) -> Tensor:
        """Sum over features of their unbiased variance within the class, [classes]; NaN for fewer than 2 images."""
        spread = self._squares - self._sum.square().sum(1) / self.count
        return torch.where(self.count > 1, spread / (self.count - 1), torch.nan)


class Discriminability(NamedTuple):
    """Accuracy at each resolution, and the share of classes that gain from the lowest to the highest."""

    resolutions: list[int]
    accuracy: list[float]
    better_at_full: float


def discriminability(per_class: Tensor, resolutions: list[int]) -> Discriminability:
    """From accuracies [classes, resolutions], ascending resolutions; the mean is over classes."""
    better = (per_class[:, -1] > per_class[:, 0]).double().mean()
    return Discriminability(resolutions, per_class.nanmean(0).tolist(), float(better))
