"""The one sampling loop: every command, measure and grid takes its samples here."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.foundation.errors import SettingError
from trainer.methods.protocol import Sampler
from trainer.models.layers import BatchNorm2d

CHUNK = 50
"""Samples of one forward pass. A convolution's last bits may depend on it, so it is part of every measured number."""


def chunks_of(samples: int) -> int:
    """How many chunks hold so many samples."""
    return -(-samples // CHUNK)


def device_of(sampler: Sampler) -> torch.device:
    """Where the sampler's networks are; the CPU if it has none."""
    for network in sampler.networks.values():
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")


def device_named(text: str | None, setting: str = "--device") -> torch.device:
    """The device that is asked for; without a word a GPU where there is one. Raises `SettingError` if it is not there."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"{setting}: is {text!r}; give cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"{setting}: is {text!r}, but there is no such GPU here; give cpu")
    return device


@contextmanager
def evaluating(sampler: Sampler, batch_statistics: bool = False) -> Iterator[None]:
    """The sampler's networks are in evaluation mode inside; afterwards every layer is in the mode that it was in.

    batch_statistics: batch norm normalises with the current batch, and its running statistics stay as they are.
    """
    layers = [layer for network in sampler.networks.values() for layer in network.modules()]
    before = [layer.training for layer in layers]
    for network in sampler.networks.values():
        network.eval()
    norms = [layer for layer in layers if isinstance(layer, BatchNorm2d)] if batch_statistics else []
    for norm in norms:
        norm.train()
        norm.update_statistics = False
    try:
        yield
    finally:
        for norm in norms:
            norm.update_statistics = True
        for layer, training in zip(layers, before, strict=True):
            layer.training = training


@torch.no_grad()
def samples_of(
    sampler: Sampler, latents: Tensor, conditions: Tensor, batch: int = CHUNK, batch_statistics: bool = False
) -> Tensor:
    """Samples [n, ...] in evaluation mode and without a graph, on the networks' device.

    Args:
        latents: [n, ...], on any device.
        conditions: [n, ...], on any device.
        batch: samples of one forward pass.
        batch_statistics: batch norm normalises with each pass's batch.
    """
    device = device_of(sampler)
    pairs = zip(torch.split(latents.to(device), batch), torch.split(conditions.to(device), batch), strict=True)
    with evaluating(sampler, batch_statistics):
        return torch.cat([sampler.sample(z, y) for z, y in pairs])
