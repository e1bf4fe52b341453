"""A frozen classifier: images of the trainer's range and any size in, logits or features out, differentiable.

It knows its input size, its normalisation and its classes, and nothing about it ever changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resampling = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """What a network was trained to see."""

    input_size: int
    """Side of its square input in pixels."""
    image_channels: int = 3
    mean: Sequence[float] = (0.0,)
    """Per channel, of images in [-1, 1]."""
    deviation: Sequence[float] = (1.0,)
    """Per channel, of images in [-1, 1]."""
    resampling: Resampling = "bilinear"

    @classmethod
    def of_unit_range(
        cls, input_size: int, mean: Sequence[float], deviation: Sequence[float], resampling: Resampling
    ) -> "Preprocessing":
        """From the usual mean and deviation of RGB images in [0, 1]."""
        return cls(
            input_size,
            len(mean),
            tuple(2.0 * value - 1.0 for value in mean),
            tuple(2.0 * value for value in deviation),
            resampling,
        )


class Classifier(nn.Module):
    """`network` maps normalised images to (features [B, F], logits [B, K]).

    In evaluation mode for ever (`train()` changes nothing), so batch norm's running statistics are used and never moved;
    its parameters take no gradient. Normalisation and resizing are in fp32; the network follows autocast.
    """

    _mean: Tensor
    _deviation: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        class_names: Sequence[str],
        class_ids: Sequence[str] | None,
        digest: str,
        description: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        """In the order of the logits."""
        self.class_ids = None if class_ids is None else tuple(class_ids)
        """WordNet ids in the order of the logits, where it has any."""
        self.digest = digest
        """sha256 of the file of weights."""
        self.description = description
        mean, deviation = (torch.tensor(v, dtype=torch.float32) for v in (preprocessing.mean, preprocessing.deviation))
        self.register_buffer("_mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("_deviation", deviation.view(-1, 1, 1), persistent=False)
        self._resizers: dict[tuple[int, torch.device], Tensor] = {}
        self.requires_grad_(False)
        super().train(False)

    @property
    def input_size(self) -> int:
        """Side of the square that images are resized to, in pixels."""
        return self.preprocessing.input_size

    @property
    def image_channels(self) -> int:
        """1 or 3; grey images are repeated for a classifier of colour images."""
        return self.preprocessing.image_channels

    def train(self, mode: bool = True) -> "Classifier":
        """Nothing: it stays in evaluation mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], any H and W -> logits [B, K], fp32."""
        return self.both(images)[1]

    def features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], any H and W -> what the last layer sees, [B, F], fp32."""
        return self.both(images)[0]

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of one pass."""
        features, logits = self.network(self.preprocess(images))
        return features.float(), logits.float()

    def preprocess(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> [B, C', S, S] for the network; differentiable; fp32, or float64 if so given."""
        if images.shape[1] not in (1, self.image_channels):
            raise ValueError(
                f"{self.description} takes images of {self.image_channels} channels, not {images.shape[1]}"
            )
        with torch.autocast(images.device.type, enabled=False):
            resized = images if images.dtype == torch.float64 else images.float()
            # Two small matrix products: unlike the built-in's, their gradient is deterministic on a GPU.
            if images.shape[-2] != self.input_size:
                resized = self._resizer(images.shape[-2], images.device).to(resized.dtype) @ resized
            if images.shape[-1] != self.input_size:
                resized = resized @ self._resizer(images.shape[-1], images.device).T.to(resized.dtype)
            if images.shape[1] != self.image_channels:
                resized = resized.expand(-1, self.image_channels, -1, -1)
            return ((resized - self._mean) / self._deviation).contiguous(memory_format=torch.channels_last)

    def _resizer(self, size: int, device: torch.device) -> Tensor:
        key = (size, device)
        if key not in self._resizers:
            self._resizers[key] = resizing_matrix(size, self.input_size, self.preprocessing.resampling).to(device)
        return self._resizers[key]


def resizing_matrix(size: int, target: int, resampling: Resampling) -> Tensor:
    """[target, size]: what PyTorch's antialiased resizing does to a column of `size` pixels; float32, on the CPU."""
    unit = torch.eye(size)[None, None]
    return F.interpolate(unit, size=(target, size), mode=resampling, antialias=True, align_corners=False)[0, 0]
