"""Feature networks: images in, features and class logits out, with a name and a digest that go into every record.

Images are uint8 everywhere here: generated ones are rounded as they would be in a file, as the papers' were.
"""

import hashlib
import io
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifiers import Classifier, build_classifier, parse_classifier
from trainer.classifiers.build import import_library
from trainer.classifiers.weights import read_weights
from trainer.foundation.errors import SettingError
from trainer.metrics.lpips import PerceptualDistance
from trainer.metrics.samples import as_signed

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_LAYERS = ["2048", "logits_unbiased"]  # torch-fidelity's own choice for FID, KID and for the Inception Score


class FeatureNetwork(Protocol):
    """What the measures ask of a network."""

    description: str
    """Which network, with which weights and resizer, for people."""
    digest: str
    """sha256 of the file of weights."""
    identity: str
    """The weights' digest and what they are used for: equal for networks that give the same numbers."""
    dimension: int
    """Features of one image."""
    outputs: int
    """Logits of one image."""

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images [n, c, h, w] -> features [n, dimension], logits [n, outputs]; float32, on the network's device."""
        ...


class ClassifierFeatures:
    """A classifier's penultimate features and logits."""

    name, crops_faces = "feature", False
    """Of the distance."""

    def __init__(self, classifier: Classifier, device: torch.device | str, image_channels: int) -> None:
        self.classifier, self.device = classifier, torch.device(device)
        self.digest = classifier.digest
        size = classifier.input_size
        self.description = f"{classifier.description}, input {size} px"
        self.identity = f"{classifier.digest} at {size} px"
        with torch.no_grad():
            features, logits = classifier.both(torch.zeros(1, image_channels, size, size, device=self.device))
        self.dimension, self.outputs = features.shape[1], logits.shape[1]

    @torch.no_grad()
    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier.both(as_signed(images.to(self.device)))

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Squared distance [n] between normalised features of images [n, c, h, w] in [-1, 1]."""
        a, b = (F.normalize(self.classifier.both(images.float().to(self.device))[0]) for images in (first, second))
        return (a - b).square().sum(1)


class InceptionFeatures:
    """TF-Inception-v3 of 2015-12-05, the network of the published scores, by torch-fidelity: its resizing (TensorFlow 1's
    bilinear one to 299 px), its 2048 features, and for the Inception Score its 1008 logits without their bias."""

    dimension, outputs = 2048, 1008

    def __init__(self, weights: str, device: torch.device | str, setting: str = "--features") -> None:
        cure = (
            f"save {INCEPTION_URL} (91 MB) to a file where you have a network, and pass {setting} inception:FILE "
            "(or pass the address itself to have it downloaded)"
        )
        found = read_weights(weights, f"{setting} inception", cure)
        stamp = weights.rpartition("-")[2].removesuffix(".pth")
        if len(stamp) == 8 and stamp.isalnum() and not found.sha256.startswith(stamp):
            raise SettingError(
                f"{setting} inception: {weights} has sha256 {found.sha256[:8]}..., its name promises {stamp}; {cure}"
            )
        buffer = io.BytesIO()
        torch.save(found.tensors, buffer)
        buffer.seek(0)
        extractor: Any = import_library(
            "torch_fidelity.feature_extractor_inceptionv3", setting
        ).FeatureExtractorInceptionV3
        try:
            self.network = extractor("inception", _LAYERS, feature_extractor_weights_path=buffer).to(device)
        except RuntimeError as error:
            reason = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()[:200]
            raise SettingError(f"{setting} inception: {weights} does not fit TF-Inception ({reason}); {cure}") from None
        self.device = torch.device(device)
        self.digest = found.sha256
        self.identity = f"{found.sha256} as TF-Inception"
        self.description = "TF-Inception-v3 (torch-fidelity), TensorFlow bilinear to 299 px"

    @torch.no_grad()
    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(images.to(self.device).expand(-1, 3, -1, -1))
        return features, logits


def open_features(
    text: str, image_channels: int, device: torch.device | str = "cpu", setting: str = "--features"
) -> FeatureNetwork:
    """`inception:FILE_OR_URL`, `lpips:FILE_OR_URL`, or a classifier as `parse_classifier` reads it. Raises `SettingError`."""
    source, _, weights = text.partition(":")
    if source == "inception":
        if not weights:
            raise SettingError(
                f"{setting}: inception needs its weights, which Menagerie does not bring; save {INCEPTION_URL} (91 MB) where "
                f"you have a network and pass {setting} inception:FILE, or use efficientnet_lite0, which is installed"
            )
        return InceptionFeatures(weights, device, setting)
    if source == "lpips" and weights:
        return PerceptualDistance(weights, device, setting)
    return ClassifierFeatures(
        build_classifier(parse_classifier(text, setting), device, setting), device, image_channels
    )


def combined_digest(*parts: str) -> str:
    """sha256 (hex) over texts, each on a separate line."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
