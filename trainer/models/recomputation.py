"""Gradient checkpointing of a generator's blocks: memory for time, with the same numbers.

Chen et al. 2016 (arXiv 1604.06174). Only a block's input is kept; the backward pass computes the rest again. That second
time must leave batch norm's running statistics alone, or they would move twice. Blocks that draw (dropout) or take power
iterations are not given here: the generators of the papers have neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.models.layers import BatchNorm2d


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
    norms = [layer for layer in block.modules() if isinstance(layer, BatchNorm2d)]
    before = [norm.update_statistics for norm in norms]
    for norm in norms:
        norm.update_statistics = False
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.update_statistics = value
