"""From uint8 batches to the networks' range, on the device; and back, to pictures."""

import numpy as np
import torch
from torch import Tensor

from data_pipeline.reading.order import mix
from trainer.foundation.keys import key
from trainer.foundation.transfer import to_device


def normalise(images: Tensor, dequantization: torch.Generator | None = None) -> Tensor:
    """uint8 [n, h, w, c] -> float32 [n, c, h, w] in [-1, 1], channels-last in memory.

    With a generator x / 128 - 1 + U(0, 1/128) (official datasets/imagenet.py), else x / 127.5 - 1 (datasets/cifar10.py). The
    noise is drawn where the generator is, which is the CPU in a training: a GPU's numbers depend on its model.
    """
    if dequantization is None:
        return (images.float() / 127.5 - 1.0).permute(0, 3, 1, 2)
    drawn = torch.rand(images.shape, generator=dequantization, device=dequantization.device)
    noise = to_device(drawn, images.device)
    return ((images.float() + noise) / 128.0 - 1.0).permute(0, 3, 1, 2)


def flip_half(images: Tensor, positions: Tensor, seed: int, replica: int, purpose: str = "flip") -> Tensor:
    """Mirror each image [n, c, h, w] with probability 1/2, by a hash of its position in the replica's stream [n]."""
    counters = positions.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = mix(counters + np.uint64(key(seed, purpose, replica=replica)))
    mirrored = to_device(torch.from_numpy((mixed >> np.uint64(63)).astype(bool)), images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def to_uint8(images: Tensor) -> Tensor:
    """Generated images [n, c, h, w] in [-1, 1] -> uint8 on the CPU, as the official evaluation code: x * 127.5 + 127.5."""
    return (images.float() * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).cpu()
