"""From uint8 batches to the networks' range, on the device; and back, to pictures."""

import numpy as np
import torch
from torch import Tensor

from data_pipeline.order import mix
from trainer.noise import key


def normalise(images: Tensor, dequantization: torch.Generator | None = None) -> Tensor:
    """uint8 [n, h, w, c] -> float32 [n, c, h, w] in [-1, 1): x / 128 - 1 + U(0, 1/128) (official datasets/imagenet.py).

    Without a generator nothing is added (values in [-1, 0.993]). The memory stays channels-last.
    """
    scaled = images.float() / 128.0 - 1.0
    if dequantization is not None:
        scaled += torch.rand(scaled.shape, generator=dequantization, device=scaled.device) / 128.0
    return scaled.permute(0, 3, 1, 2)


def flip_half(images: Tensor, positions: Tensor, seed: int, replica: int) -> Tensor:
    """Mirror each image [n, c, h, w] with probability 1/2, by a hash of its position in the replica's stream [n]."""
    counters = positions.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = mix(counters + np.uint64(key(seed, "flip", replica=replica)))
    mirrored = torch.from_numpy((mixed >> np.uint64(63)).astype(bool)).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def to_uint8(images: Tensor) -> Tensor:
    """Generated images [n, c, h, w] in [-1, 1] -> uint8 on the CPU, as the official evaluation code: x * 127.5 + 127.5."""
    return (images.float() * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).cpu()
