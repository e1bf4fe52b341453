"""MS-SSIM diversity: how alike two random images of one class are (Odena et al. 2017, section 4.2).

Multi-scale structural similarity of Wang et al. 2003, with the conventions of the TensorFlow code that the AC-GAN paper
used: 5 scales with Wang's weights, an 11 x 11 Gaussian window of sigma 1.5 without padding, 2 x 2 means between scales,
constants K1 = 0.01 and K2 = 0.03, and **a window that shrinks with the image**: at a scale with a side s below 11 it is
s x s with sigma 1.5 s / 11. That is what makes 128 px (last scale 8 px) and 32 px possible; torchmetrics and
pytorch-msssim refuse both. Where every scale has 11 pixels or more pytorch-msssim agrees on grey images (on colour it
multiplies the scales of each channel alone); torchmetrics differs by up to 0.01, as it counts a mirrored border in.

A class is less varied the higher the mean over its pairs is. 1: all images are the same.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
DATA_RANGE = 2.0  # of images in [-1, 1]


def ms_ssim_diversity(images_a: Tensor, images_b: Tensor, weights: Sequence[float] = WEIGHTS) -> Tensor:
    """MS-SSIM of each pair: images [n, c, h, w] in [-1, 1], twice -> float32 [n], 0..1.

    `weights`: the exponents, one per scale. Contrast-structure terms below 0, which have no fractional power, count as 0.
    A measure, not a loss: at 0 its gradient is infinite. Raises ValueError if the images do not fit together, or if a
    side is not divisible by 2 at every scale but the last.
    """
    if images_a.shape != images_b.shape or images_a.dim() != 4:
        raise ValueError(f"pairs of images [n, c, h, w] are needed, not {[*images_a.shape]} and {[*images_b.shape]}")
    halvings = 2 ** (len(weights) - 1)
    if any(side % halvings for side in images_a.shape[2:]):
        raise ValueError(f"{len(weights)} scales need sides divisible by {halvings}, not {[*images_a.shape[2:]]}")
    a, b = images_a.float(), images_b.float()
    product = torch.ones(len(a), device=a.device)
    for scale, weight in enumerate(weights):
        luminance, contrast = _terms(a, b)
        last = scale == len(weights) - 1
        similarity = (luminance * contrast if last else contrast).mean((1, 2, 3))
        product = product * similarity.clamp_min(0.0) ** weight
        if not last:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product


def window_settings(resolution: int, weights: Sequence[float] = WEIGHTS) -> dict[str, object]:
    """What a record says of the measure: the window and sigma at each scale of images of `resolution` pixels."""
    sides = [resolution // 2**scale for scale in range(len(weights))]
    return {
        "scales": len(weights),
        "weights": list(weights),
        "windows": [min(WINDOW, side) for side in sides],
        "sigmas": [round(_sigma(min(WINDOW, side)), 4) for side in sides],
        "k1": K1,
        "k2": K2,
    }


def _sigma(size: int) -> float:
    return SIGMA * size / WINDOW


def _terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure at every place, [n, c, h - size + 1, w - size + 1] (Wang et al. 2003, eq. 1-5)."""
    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    # Variances do not depend on where zero is, and lose fewer digits round mid-grey; luminance counts from black.
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    mean_a, mean_b = mean_a + 1.0, mean_b + 1.0
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, contrast


def _blur(x: Tensor) -> Tensor:
    """The Gaussian mean of every window that lies inside the image, each channel for itself."""
    channels, size = x.shape[1], min(WINDOW, *x.shape[2:])
    row = _gaussian(size, x).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(x, row, groups=channels), row.transpose(2, 3), groups=channels)


def _gaussian(size: int, like: Tensor) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * _sigma(size) ** 2))
    return (weights / weights.sum()).to(like)
