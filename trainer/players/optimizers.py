"""Optimizers by name. To add one: its settings here, which build it, and its name in the union.

torch counts an optimizer's steps per parameter, since a parameter without a gradient takes no step. So do we: what an
update does to a parameter depends on how often that parameter has moved, and the state has a count for each.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trainer.foundation.choices import Choice

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class AdamConfig:
    """Adam as the official code uses it."""

    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    """What torch's optimizer keeps for each parameter, each of the parameter's shape."""

    name: Literal["adam"] = "adam"
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-4
    """The base rate (`alpha`); the schedule multiplies it."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    """Added to the root of the second moment."""
    epsilon_placement: Literal["outside_correction", "inside_correction"] = "outside_correction"
    """`outside_correction` (default, Chainer's Adam, the official code): step = rate * sqrt(1 - beta2^t) / (1 - beta1^t) *
    m / (sqrt(v) + epsilon), as in the Adam paper's section 2, last paragraph. `inside_correction` (PyTorch, Adam paper's
    algorithm 1): epsilon is added to the corrected root sqrt(v / (1 - beta2^t))."""

    def build(self, parameters: Iterable[Tensor], *, fused: bool) -> torch.optim.Optimizer:
        """torch's Adam over `parameters`."""
        return torch.optim.Adam(parameters, lr=self.learning_rate, betas=(self.beta1, self.beta2), fused=fused)

    def options(self, steps: int, rate_factor: float) -> dict[str, float]:
        """torch's options for update number `steps` (from 1) of a parameter."""
        epsilon = self.epsilon
        if self.epsilon_placement == "outside_correction":
            epsilon /= (1.0 - self.beta2**steps) ** 0.5
        return {"lr": self.learning_rate * rate_factor, "eps": epsilon}

    def state(self, steps: int, moments: Mapping[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
        """torch's state of a parameter after `steps` updates; `moments` are by the names in `moments` of this class.

        The count lies where torch itself keeps it: beside the moments if `fused`, else on the CPU (on a GPU every update of
        every parameter would wait for it).
        """
        device = next(iter(moments.values())).device if fused else torch.device("cpu")
        return {"step": torch.tensor(float(steps), device=device), **moments}


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class SGDConfig:
    """Stochastic gradient descent with momentum: v = momentum v + g, then parameter -= rate v (PyTorch's form)."""

    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    name: Literal["sgd"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    """The base rate; the schedule multiplies it."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the last step's direction at the start."""
    final_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """With `momentum_steps`: the momentum rises linearly to this (or falls); null: it stays."""
    momentum_steps: Annotated[int, Field(ge=1)] = 1
    """Updates until `final_momentum` is reached."""

    def build(self, parameters: Iterable[Tensor], *, fused: bool) -> torch.optim.Optimizer:
        """torch's SGD over `parameters`."""
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum, fused=fused)

    def options(self, steps: int, rate_factor: float) -> dict[str, float]:
        """torch's options for update number `steps` (from 1) of a parameter."""
        momentum = self.momentum
        if self.final_momentum is not None:
            share = min(1.0, (steps - 1) / self.momentum_steps)
            momentum += share * (self.final_momentum - self.momentum)
        return {"lr": self.learning_rate * rate_factor, "momentum": momentum}

    def state(self, steps: int, moments: Mapping[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
        """torch's state of a parameter after `steps` updates; it has no count."""
        return dict(moments)


OptimizerConfig = Annotated[AdamConfig | SGDConfig, Choice(default="adam", methods=("build", "options", "state"))]
"""Settings that name no optimizer are Adam's, as they were before there were several."""


def is_optimizers(tensor: str) -> bool:
    """Whether the state's tensor of this name is an optimizer's: these begin with PLAYER.OPTIMIZER/."""
    first = tensor.partition("/")[0]
    return "." in first and not first.endswith(".scaler")


@dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class OptimizersConfig:
    """The players' optimizers."""

    generator: OptimizerConfig = AdamConfig()
    """The generator's."""
    discriminator: OptimizerConfig = AdamConfig()
    """The discriminator's."""
    players: dict[str, OptimizerConfig] = Field(default_factory=dict)
    """Those of players with other names, by the player's name. A player that is left out has Adam's defaults."""

    def of(self, player: str) -> AdamConfig | SGDConfig:
        """The settings of a player's optimizer."""
        if player in ("generator", "discriminator"):
            return self.generator if player == "generator" else self.discriminator
        return self.players.get(player, AdamConfig())
