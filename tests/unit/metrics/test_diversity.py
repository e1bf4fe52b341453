"""MS-SSIM against torchmetrics, pytorch-msssim and a NumPy form of the TensorFlow code, on photographs and on noise."""

import numpy as np
import pytest
import pytorch_msssim
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage, signal
from skimage import data
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as of_torchmetrics

from trainer.metrics.diversity import WEIGHTS, ms_ssim_diversity, window_settings


def photographs(side: int) -> tuple[Tensor, Tensor]:
    """Pairs of alike and different photographs, [4, 3, side, side] twice, in [-1, 1]."""
    whole = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    tensors = [torch.from_numpy(picture[:300, :300].copy()).permute(2, 0, 1)[None].float() for picture in whole]
    images = torch.cat([F.interpolate(t, (side, side), mode="area") for t in tensors]) / 127.5 - 1
    noisy = (images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    return images, torch.stack([noisy[0], images[2], noisy[2].flip(2), images[3].roll(3, 2)])


def tensorflow_form(a: Tensor, b: Tensor) -> list[float]:
    """Per pair as TensorFlow's msssim.py computes it: scipy's `valid` convolution with a 2-D window, `reflect` halving."""

    def window(size: int) -> NDArray[np.float64]:
        places = np.arange(size) - (size - 1) / 2
        x, y = np.meshgrid(places, places)
        g = np.exp(-(x**2 + y**2) / (2.0 * (size * 1.5 / 11) ** 2))
        return np.asarray(g / g.sum())

    values = []
    for pair in zip(a, b, strict=True):
        x, y = ((image.permute(1, 2, 0).double().numpy() + 1) * 127.5 for image in pair)
        product = 1.0
        for scale, weight in enumerate(WEIGHTS):
            g = window(min(11, *x.shape[:2]))[..., None]
            mx, my, xx, yy, xy = (signal.fftconvolve(v, g, "valid", axes=(0, 1)) for v in (x, y, x * x, y * y, x * y))
            contrast = (2 * (xy - mx * my) + 58.5225) / (xx - mx**2 + yy - my**2 + 58.5225)
            luminance = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
            term = (luminance * contrast if scale == len(WEIGHTS) - 1 else contrast).mean()
            product *= max(float(term), 0.0) ** weight
            half = np.ones((2, 2, 1)) / 4
            x, y = (ndimage.convolve(v, half, mode="reflect")[::2, ::2] for v in (x, y))
        values.append(product)
    return values


def test_as_pytorch_msssim_where_it_works() -> None:
    a, b = photographs(256)
    for channel in range(
        3
    ):  # on colour it multiplies the scales of each channel, where TensorFlow's code takes the mean first
        x, y = a[:, channel, None], b[:, channel, None]
        theirs = pytorch_msssim.ms_ssim(x + 1, y + 1, data_range=2.0, size_average=False)
        ours = ms_ssim_diversity(x, y)
        assert torch.allclose(ours, theirs, atol=2e-5)
        assert ours.min() < 0.1  # the pairs are different and alike ones
        assert ours.max() > 0.6


def test_near_torchmetrics_which_counts_a_mirrored_border_at_the_last_scale() -> None:
    for side, weights in ((256, WEIGHTS), (128, (0.0448, 0.2856, 0.3001, 0.3696))):
        a, b = (images[[0, 3]] for images in photographs(side))
        for x, y, value in zip(a, b, ms_ssim_diversity(a, b, weights), strict=True):
            other = of_torchmetrics(x[None] + 1, y[None] + 1, data_range=2.0, normalize="relu", betas=weights)
            assert isinstance(other, Tensor)
            assert float(value) == pytest.approx(float(other), abs=1e-2)


@pytest.mark.parametrize("side", [128, 64, 32])
def test_as_the_tensorflow_code_with_its_shrinking_window(side: int) -> None:
    a, b = photographs(side)
    assert ms_ssim_diversity(a, b).tolist() == pytest.approx(tensorflow_form(a, b), abs=2e-5)
    grey = ms_ssim_diversity(a[:, :1], b[:, :1])
    assert grey.tolist() == pytest.approx(tensorflow_form(a[:, :1], b[:, :1]), abs=2e-5)


def test_bounds_and_settings() -> None:
    a, b = photographs(32)
    assert torch.equal(ms_ssim_diversity(a, a), torch.ones(4))
    assert torch.equal(ms_ssim_diversity(a, -a), torch.zeros(4))
    assert torch.allclose(ms_ssim_diversity(a, b), ms_ssim_diversity(b, a), atol=1e-6)
    assert window_settings(128)["windows"] == [11, 11, 11, 11, 8]
    assert window_settings(32)["windows"] == [11, 11, 8, 4, 2]
    with pytest.raises(ValueError, match="sides divisible by 16, not"):
        ms_ssim_diversity(a[..., :20], b[..., :20])
    with pytest.raises(ValueError, match="pairs of images"):
        ms_ssim_diversity(a, b[:2])
