"""Who judges classes, and sums of what it says: the share of right images and the spread of their features, per class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.manifest.format import Manifest
from trainer.classifiers import check_class_map
from trainer.foundation.errors import SettingError
from trainer.metrics.features import ClassifierFeatures, FeatureNetwork
from trainer.metrics.reference import Reference
from trainer.metrics.samples import as_signed


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

    def of_real(self, judged: Reference) -> "ClassSums":
        """Accuracy and variance of the real images' features, class by class."""
        sums = ClassSums(len(self.class_names), 1, judged.features.shape[1])
        for label in range(len(self.class_names)):
            rows = (judged.labels == label).nonzero()[0]
            right = torch.from_numpy(judged.predictions[rows]) == self.logit_of[label]
            sums.add(torch.full((len(rows),), label), right[:, None], torch.from_numpy(judged.features[rows]))
        return sums

    def describe(self) -> dict[str, str]:
        """For a record."""
        return {"classifier": self.network.description, "classifier_digest": self.network.digest}


def open_judge(network: FeatureNetwork, manifest: Manifest) -> Judge:
    """Of a classifier; raises SettingError if it has other classes than the data (or none)."""
    if not isinstance(network, ClassifierFeatures):
        raise SettingError(
            "--classifier: TF-Inception's 1008 outputs are not ImageNet's classes; give efficientnet_lite0"
        )
    return Judge(network, manifest)


class ClassSums:
    """Per class: how many images, how many of them right, and how much their features vary. Streaming, 16 K F bytes."""

    def __init__(self, classes: int, columns: int, features: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.float64)
        self._right = torch.zeros(classes, columns, dtype=torch.float64)
        self._sum = torch.zeros(classes, features, dtype=torch.float64)
        self._squares = torch.zeros(classes, dtype=torch.float64)

    def add(self, labels: Tensor, right: Tensor, features: Tensor | None = None) -> None:
        """Labels [n], right [n, columns], features [n, F]; none where F is 0."""
        self.count.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
        self._right.index_add_(0, labels, right.double())
        if features is not None:
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
