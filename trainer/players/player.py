"""A player: one network, its optimizer and its parallel strategy. The loop does not know which strategy it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.foundation.errors import CheckpointError
from trainer.players.reduction import fixed_order_gradients
from trainer.players.zero import ZeroEngine
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig

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
    `averaged` is the number of processes over which the strategy takes a mean of the gradients.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        config: AdamConfig,
        launch: Launch,
        *,
        replicas: int = 1,
        deterministic: bool = False,
        speed: SpeedConfig = SpeedConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """`deterministic`: the gradient is summed over the `replicas` in their order, whatever the process count."""
        self.name, self.config, self.launch, self.replicas = name, config, launch, replicas
        partitioned = launch.strategy in ("zero1", "zero2") and not deterministic
        # The layout that convolutions are fastest in; names, shapes and checkpoints do not know of it. ZeRO's flat
        # partitions have their own.
        layout = torch.channels_last if speed.channels_last and not partitioned else torch.contiguous_format
        self.module = module.to(device=launch.device, memory_format=layout)  # type: ignore[call-overload]
        self.network: nn.Module = self.module
        self.optimizer = torch.optim.Adam(
            self.module.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=speed.fused_adam,
        )
        self.steps = 0
        self.deterministic = deterministic
        self.averaged = 1 if deterministic else launch.world_size
        self.zero: ZeroEngine | None = None
        self.scaler = torch.amp.GradScaler(launch.device.type) if launch.precision == "fp16" else None
        if deterministic:
            return
        if launch.strategy == "ddp":
            # Buffers are not synchronised: what a pass changes does not depend on the process (models/replicas.py).
            self.network = DistributedDataParallel(
                self.module,
                device_ids=[launch.local_rank] if launch.device.type == "cuda" else None,
                forward_sync_buffers=False,
                # Otherwise DDP orders its buckets anew after the first backward pass, and with three or more processes the
                # order in which an element's addends meet depends on its place: a resumed run would have other bits.
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
            if speed.bf16_gradients:
                self.network.register_comm_hook(None, bf16_compress_hook)
        elif partitioned:
            self.zero = ZeroEngine(name, self.module, self.optimizer, launch)
            self.network = self.zero.network

    def step(self, losses: Sequence[Tensor], rate_factor: float) -> None:
        """Minimise the sum of the losses of the held replicas by one update at `rate_factor` x base rate.

        The losses are weighted by `averaged / replicas`, so that the gradient is the mean over all replicas. One backward
        pass goes through their sum: no strategy sees uneven accumulation.
        """
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate_factor
            group["eps"] = self.config.epsilon
            if self.config.epsilon_placement == "outside_correction":
                group["eps"] /= (1.0 - self.config.beta2**self.steps) ** 0.5
        if self.deterministic:
            parameters = list(self.module.parameters())
            gradients = fixed_order_gradients(losses, parameters, self.launch, self.replicas)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            return
        total = torch.zeros((), device=self.launch.device)
        for loss in losses:
            total = total + loss
        if self.zero:
            self.zero.update(total)
            return
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self._scaled_step(self.scaler, total)
            return
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _scaled_step(self, scaler: torch.amp.GradScaler, total: Tensor) -> None:
        """fp16: a step whose scaled gradient overflows is left out, and the scale lowered; Adam's count stays with it."""
        before = scaler.get_scale()
        scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        scaler.step(self.optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            self.steps -= 1

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare network with gradients to its inputs only: how it is called in the other player's step."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """Logical state, by name, on the CPU: parameters, buffers, Adam's moments and its step count.

        Every process calls it, since ZeRO gathers its parts.
        """
        state = {f"{self.name}/{key}": value for key, value in self.module.state_dict().items()}
        if self.zero:
            moments = self.zero.moments()
        else:
            moments = {
                f"{moment}/{key}": self.optimizer.state.get(parameter, {}).get(moment, torch.zeros_like(parameter))
                for key, parameter in self.module.named_parameters()
                for moment in MOMENTS
            }
        state |= {f"{self.name}.adam/{key}": value for key, value in moments.items()}
        state[f"{self.name}.adam/step"] = torch.tensor(self.steps)
        if self.scaler:
            scaler = self.scaler.state_dict()
            state[f"{self.name}.scaler/scale"] = torch.tensor(scaler["scale"], dtype=torch.float64)
            state[f"{self.name}.scaler/growth_tracker"] = torch.tensor(scaler["_growth_tracker"])
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` wrote; raises `CheckpointError` if a tensor is missing, left over or misshapen.

        The scale of fp16's losses is taken where there is one, and left behind where this launch has no scaler.
        """
        mine = {key: value for key, value in state.items() if key.split("/")[0] in (self.name, f"{self.name}.adam")}
        expected = {key: value for key, value in self.state().items() if not key.startswith(f"{self.name}.scaler/")}
        check_names(expected, mine, self.name)
        self.steps = int(mine[f"{self.name}.adam/step"])
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                value.copy_(mine[f"{self.name}/{key}"])
        if self.scaler and f"{self.name}.scaler/scale" in state:
            scaler = self.scaler.state_dict()
            scaler["scale"] = state[f"{self.name}.scaler/scale"].item()
            scaler["_growth_tracker"] = int(state[f"{self.name}.scaler/growth_tracker"])
            self.scaler.load_state_dict(scaler)
        if self.zero:
            prefix = f"{self.name}.adam/"
            self.zero.load({key.removeprefix(prefix): value for key, value in mine.items()}, self.steps)
            return
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
