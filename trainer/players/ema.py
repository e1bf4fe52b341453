"""Exponential moving average of a player's networks (off by default: the papers of 2018 sample the last weights)."""

import copy
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.players.player import check_names

PREFIX = "ema/"
"""What the state's tensors of the average are called."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class EmaConfig:
    """The average of the generator's weights over iterations."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Weight of the old average per iteration, e.g. 0.9999; 0 switches the average off, unless there is a half-life."""
    half_life: Annotated[int, Field(ge=1)] | None = None
    """Real samples, of all replicas, after which old weights count half. The weight of the old average is then
    0.5^(samples of the iteration / half_life), and `decay` is not looked at."""
    warm_up: bool = True
    """Use min(decay, (1 + t) / (10 + t)) at iteration t, so that the initial weights are soon forgotten."""
    taken: Literal["after", "before"] = "after"
    """`before`: weights join the average before the updates of an iteration, so the last update is never in it."""

    @property
    def on(self) -> bool:
        """Whether there is an average."""
        return self.decay > 0.0 or self.half_life is not None


class Ema:
    """Averages parameters and copies buffers (an average of batch-norm or spectral statistics would be neither)."""

    def __init__(self, modules: Mapping[str, nn.Module], config: EmaConfig) -> None:
        self.config = config
        self.modules = {name: copy.deepcopy(module).requires_grad_(False).eval() for name, module in modules.items()}

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module], iteration: int, samples: int = 0) -> None:
        """The weights of `iteration` join the average. `samples`: real samples that all replicas read in it."""
        half_life = self.config.half_life
        decay = self.config.decay if half_life is None else 0.5 ** (samples / half_life)
        if self.config.warm_up:
            decay = min(decay, (1 + iteration) / (10 + iteration))
        for name, kept in self.modules.items():
            for average, value in zip(kept.parameters(), modules[name].parameters(), strict=True):
                average.lerp_(value.detach(), 1.0 - decay)
            for old, new in zip(kept.buffers(), modules[name].buffers(), strict=True):
                old.copy_(new)

    def state(self) -> dict[str, Tensor]:
        """Logical state: `ema/TENSOR` for one network, `ema/NETWORK/TENSOR` for several."""
        return {
            f"{PREFIX}{key if len(self.modules) == 1 else f'{name}/{key}'}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors that `state` wrote; raises `CheckpointError` by name if they do not fit."""
        mine = self.state()
        check_names(mine, state, "ema")
        for name, value in mine.items():
            value.copy_(state[name])
