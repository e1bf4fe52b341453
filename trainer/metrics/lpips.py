"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) with VGG16: a perceptual distance of two images, for path lengths.

Its weights come from a file: the state of the network of the package `lpips` (net="vgg", version 0.1), as torch.save or
safetensors wrote it. Menagerie does not bring them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifiers.weights import read_weights
from trainer.foundation.errors import SettingError

LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of VGG16's convolutions, by slice; the features behind each slice's last one are compared."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of colours in [-1, 1]."""
_CURE = "save the state of lpips.LPIPS(net='vgg') where the package is installed, and pass lpips:FILE"


class PerceptualDistance:
    """Squared distances of normalised features, weighted by channel, averaged over places, summed over layers."""

    name = "perceptual"
    crops_faces = True
    dimension = outputs = 0

    def __init__(self, weights: str, device: torch.device | str, setting: str = "--features") -> None:
        found = read_weights(weights, f"{setting} lpips", _CURE)
        self.device, self.digest = torch.device(device), found.sha256
        self.identity, self.description = f"{found.sha256} as LPIPS", "LPIPS, VGG16"
        try:
            tensors = {name: value.float().to(self.device) for name, value in found.tensors.items()}
            self._layers = [
                [(tensors[f"net.slice{k + 1}.{n}.weight"], tensors[f"net.slice{k + 1}.{n}.bias"]) for n in numbers]
                for k, numbers in enumerate(LAYERS)
            ]
            self._heads = [tensors[f"lin{k}.model.1.weight"] for k in range(len(LAYERS))]
        except KeyError as error:
            raise SettingError(f"{setting} lpips: {weights} lacks {error}, which LPIPS needs; {_CURE}") from None

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """There are no features. Raises `SettingError`."""
        raise SettingError(
            "--features: lpips gives distances alone; measure ppl alone with it, and others with another"
        )

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """[n] of images [n, c, h, w] in [-1, 1]; grey ones are repeated."""
        total = torch.zeros(len(first), device=self.device)
        for a, b, head in zip(self._features(first), self._features(second), self._heads, strict=True):
            total = total + F.conv2d((a - b).square(), head).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values, device=self.device)[:, None, None] for values in (SHIFT, SCALE))
        x, found = (images.float().to(self.device).expand(-1, 3, -1, -1) - shift) / scale, []
        for number, convolutions in enumerate(self._layers):
            if number:
                x = F.max_pool2d(x, 2)
            for weight, bias in convolutions:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found
