"""Gradient checkpointing of a generator's blocks: memory for time, with the same numbers.

Chen et al. 2016 (arXiv 1604.06174). Only a block's input is kept; the backward pass computes the rest again. That second
time must leave batch norm's running statistics alone, or they would move twice. Blocks that draw (dropout) or take power
iterations cannot be computed again; `trainer.models.traits.can_repeat` finds them.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """`block(x, labels)`; where a gradient will be asked for, its inside is computed again in the backward pass."""
    if not torch.is_grad_enabled():
        y: Tensor = block(x, labels)
        return y
    again: Tensor = checkpoint(
        block,
        x,
        labels,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _second_time(block)),
    )
    return again


@contextmanager
def _second_time(block: nn.Module) -> Iterator[None]:
    layers: list[Any] = [layer for layer in block.modules() if hasattr(layer, "update_statistics")]
    before = [layer.update_statistics for layer in layers]
    for layer in layers:
        layer.update_statistics = False
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.update_statistics = value
