"""Exponential moving average of the generator (off by default: the papers of 2018 sample the last weights)."""

import copy
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class EmaConfig:
    """The average of the generator's weights over iterations."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Weight of the old average per iteration, e.g. 0.9999; 0 switches the average off."""
    warm_up: bool = True
    """Use min(decay, (1 + t) / (10 + t)) at iteration t, so that the initial weights are soon forgotten."""


class Ema:
    """Averages parameters and copies buffers (an average of batch-norm or spectral statistics would be neither)."""

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module, iteration: int) -> None:
        """Call after the generator's update of `iteration`."""
        decay = self.config.decay
        if self.config.warm_up:
            decay = min(decay, (1 + iteration) / (10 + iteration))
        for average, value in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(value.detach(), 1.0 - decay)
        for kept, current in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(current)

    def state(self) -> dict[str, Tensor]:
        """Logical state: tensors by name."""
        return dict(self.module.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        self.module.load_state_dict(state)
