"""A player: one network, its optimizer and its parallel strategy. The loop does not know which strategy it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import CheckpointError
from trainer.launch import Launch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class AdamConfig:
    """Adam as the official code uses it."""

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


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class OptimizerConfig:
    """The two players' optimizers."""

    generator: AdamConfig = AdamConfig()
    """The generator's."""
    discriminator: AdamConfig = AdamConfig()
    """The discriminator's."""


class Player:
    """A network with its optimizer.

    `module` is the bare network; `network` is what the strategy wants called in a pass whose gradients are reduced.
    """

    def __init__(self, name: str, module: nn.Module, config: AdamConfig, launch: Launch) -> None:
        self.name = name
        self.config = config
        # The layout that convolutions are fastest in; names, shapes and checkpoints do not know of it.
        self.module = module.to(device=launch.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = self.module
        if launch.strategy == "ddp":
            # Buffers are not synchronised: what a pass changes does not depend on the process (models/replicas.py).
            self.network = DistributedDataParallel(
                self.module,
                device_ids=[launch.local_rank] if launch.device.type == "cuda" else None,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.optimizer = torch.optim.Adam(
            self.module.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
        )
        self.steps = 0

    def step(self, loss: Tensor, rate_factor: float) -> None:
        """Minimise `loss` (already weighted for the mean over replicas) by one update at `rate_factor` x base rate."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate_factor
            group["eps"] = self.config.epsilon
            if self.config.epsilon_placement == "outside_correction":
                group["eps"] /= (1.0 - self.config.beta2**self.steps) ** 0.5
        self.optimizer.step()

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare network with gradients to its inputs only: how it is called in the other player's step."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """Logical state, by name, on the CPU: parameters, buffers, Adam's moments and its step count."""
        state = {f"{self.name}/{key}": value for key, value in self.module.state_dict().items()}
        for key, parameter in self.module.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            for moment in MOMENTS:
                state[f"{self.name}.adam/{moment}/{key}"] = moments.get(moment, torch.zeros_like(parameter))
        state[f"{self.name}.adam/step"] = torch.tensor(self.steps)
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` wrote; raises `CheckpointError` if a tensor is missing, left over or misshapen."""
        mine = {key: value for key, value in state.items() if key.split("/")[0] in (self.name, f"{self.name}.adam")}
        check_names(self.state(), mine, self.name)
        self.steps = int(mine[f"{self.name}.adam/step"])
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                value.copy_(mine[f"{self.name}/{key}"])
        for key, parameter in self.module.named_parameters():
            # `zeros_like` keeps the parameter's memory layout, which the fused kernel relies on.
            moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
            for name, moment in moments.items():
                moment.copy_(mine[f"{self.name}.adam/{name}/{key}"])
            step = torch.tensor(float(self.steps), device=parameter.device)
            self.optimizer.state[parameter] = {"step": step, **moments}


def check_names(expected: dict[str, Tensor], found: dict[str, Tensor], what: str) -> None:
    """Raise `CheckpointError`, naming the first tensor that differs, unless both have the same names and shapes."""
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            raise CheckpointError(f"{what}: the checkpoint lacks the tensor {key}; it was written by another model")
        if key not in expected:
            raise CheckpointError(
                f"{what}: the checkpoint has a tensor {key} that this model lacks; check the settings"
            )
        if expected[key].shape != found[key].shape:
            raise CheckpointError(
                f"{what}: {key} has shape {list(found[key].shape)} in the checkpoint and {list(expected[key].shape)} in "
                "this model; check the settings of the model's size"
            )
