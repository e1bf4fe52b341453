"""A player: networks that minimise one loss, their optimizer and their parallel strategy. The loop knows no strategy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.foundation.errors import CheckpointError, SettingError
from trainer.foundation.transfer import fetch_later
from trainer.players.optimizers import AdamConfig, SGDConfig
from trainer.players.reduction import fixed_order_gradients
from trainer.players.zero import ZeroEngine
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig


class Player:
    """Networks with one optimizer.

    `modules` are the bare networks by name; `networks` are what the strategy wants called in a pass whose gradients are
    reduced. `averaged` is the number of processes over which the strategy takes a mean of the gradients. The state's names
    are PLAYER/TENSOR for one network, PLAYER/NETWORK/TENSOR for several.
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        config: AdamConfig | SGDConfig,
        launch: Launch,
        *,
        replicas: int = 1,
        deterministic: bool = False,
        speed: SpeedConfig = SpeedConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """`deterministic`: the gradient is summed over the `replicas` in their order, whatever the process count.

        Raises `SettingError` where the strategy cannot have these networks or this optimizer.
        """
        self.name, self.config, self.launch, self.replicas = name, config, launch, replicas
        partitioned = launch.strategy in ("zero1", "zero2") and not deterministic
        # The layout that convolutions are fastest in; names, shapes and checkpoints do not know of it. ZeRO's flat
        # partitions have their own.
        layout = torch.channels_last if speed.channels_last and not partitioned else torch.contiguous_format
        self.modules: dict[str, nn.Module] = {
            network: module.to(device=launch.device, memory_format=layout)  # type: ignore[call-overload]
            for network, module in modules.items()
        }
        self.networks = dict(self.modules)
        self._fused = speed.fused_adam
        self.optimizer = config.build([p for _, p in self.named_parameters()], fused=speed.fused_adam)
        self._defaults = {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"}
        self._open: tuple[Callable[[], Tensor], dict[str, int]] | None = None
        self._steps = {key: 0 for key, _ in self.named_parameters()}
        self.deterministic = deterministic
        self.averaged = 1 if deterministic else launch.world_size
        self.zero: ZeroEngine | None = None
        self.scaler = torch.amp.GradScaler(launch.device.type) if launch.precision == "fp16" else None
        if deterministic:
            return
        if launch.strategy == "ddp":
            self.networks = {network: self._reduced(module, speed) for network, module in self.modules.items()}
        elif partitioned:
            self._partition()

    def _reduced(self, module: nn.Module, speed: SpeedConfig) -> nn.Module:
        """The network under DDP. Each network has its own, since every pass must reach all parameters that will move.
        A network without parameters stays as it is."""
        launch = self.launch
        if not any(True for _ in module.parameters()):
            return module
        # Buffers are not synchronised: what a pass changes does not depend on the process (models/replicas.py).
        network = DistributedDataParallel(
            module,
            device_ids=[launch.local_rank] if launch.device.type == "cuda" else None,
            forward_sync_buffers=False,
            # Otherwise DDP orders its buckets anew after the first backward pass, and with three or more processes the
            # order in which an element's addends meet depends on its place: a resumed run would have other bits.
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        if speed.bf16_gradients:
            network.register_comm_hook(None, bf16_compress_hook)
        return network

    def _partition(self) -> None:
        if len(self.modules) > 1 or not isinstance(self.config, AdamConfig):
            what = f"{len(self.modules)} networks" if len(self.modules) > 1 else f"the optimizer {self.config.name}"
            raise SettingError(
                f"optimizer: the player {self.name} has {what}, and the launch asks for {self.launch.strategy}, which takes "
                "one network with Adam; launch with cluster/launch/ddp.yaml"
            )
        ((network, module),) = self.modules.items()
        self.zero = ZeroEngine(self.name, module, self.optimizer, self.launch)
        self.networks = {network: self.zero.network}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, by their names in the state behind PLAYER/."""
        for network, module in self.modules.items():
            for key, parameter in module.named_parameters():
                yield self._key(network, key), parameter

    def _key(self, network: str, key: str) -> str:
        return key if len(self.modules) == 1 else f"{network}/{key}"

    def step(self, losses: Sequence[Tensor], rate_factor: float) -> None:
        """Minimise the sum of the losses of the held replicas by one update at `rate_factor` x base rate.

        The losses are weighted by `averaged / replicas`, so that the gradient is the mean over all replicas. One backward
        pass goes through their sum: no strategy sees uneven accumulation. A parameter that no loss depends on stays.
        """
        if self.deterministic:
            parameters = [parameter for _, parameter in self.named_parameters()]
            gradients = fixed_order_gradients(losses, parameters, self.launch, self.replicas)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self._update(rate_factor)
            return
        total = torch.zeros((), device=self.launch.device)
        for loss in losses:
            total = total + loss
        if self.zero:
            steps = max(self.steps.values()) + 1
            for group in self.optimizer.param_groups:
                group.update(self.config.options(steps, rate_factor))
            self.zero.update(total)
            self.steps = dict.fromkeys(self.steps, steps)
            return
        self.optimizer.zero_grad(set_to_none=True)
        for _, parameter in self.named_parameters():
            parameter.grad = None  # also of parameters that no group of the last update held
        if self.scaler:
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        else:
            total.backward()  # type: ignore[no-untyped-call]
        self._update(rate_factor)

    def _update(self, rate_factor: float) -> None:
        """One step of every parameter that has a gradient, with the options of its own count."""
        moving: dict[int, dict[str, nn.Parameter]] = {}
        for key, parameter in self.named_parameters():
            if parameter.grad is not None:
                moving.setdefault(self.steps[key] + 1, {})[key] = parameter
        self.optimizer.param_groups = [
            {**self._defaults, **self.config.options(steps, rate_factor), "params": list(parameters.values())}
            for steps, parameters in moving.items()
        ]
        counts = {key: steps for steps, parameters in moving.items() for key in parameters}
        if self.scaler:
            self._scaled_step(self.scaler, counts)
        else:
            self.optimizer.step()
            self._steps |= counts

    def _scaled_step(self, scaler: torch.amp.GradScaler, counts: dict[str, int]) -> None:
        """fp16: a step whose scaled gradient overflows is left out, and the scale lowered. Whether it was taken the device
        knows; the host asks when it needs the `counts`, not now."""
        one = torch.ones((), device=self.launch.device)
        before = scaler.scale(one)
        scaler.step(self.optimizer)
        scaler.update()
        self._open = (fetch_later(scaler.scale(one) >= before), counts)

    @property
    def steps(self) -> dict[str, int]:
        """How often each parameter has moved. Under fp16 it waits for the last update, if that is still under way."""
        if self._open is not None:
            taken, counts = self._open
            self._open = None
            if taken():
                self._steps |= counts
        return self._steps

    @steps.setter
    def steps(self, counts: dict[str, int]) -> None:
        self._open, self._steps = None, counts

    def forget(self) -> None:
        """The optimizer starts anew: no moments, no counts. Raises `SettingError` under ZeRO."""
        if self.zero:
            raise SettingError(
                f"optimizer: the method resets the optimizer of {self.name}, which {self.launch.strategy} cannot; launch with "
                "cluster/launch/ddp.yaml"
            )
        self.optimizer.state.clear()
        self.steps = dict.fromkeys(self.steps, 0)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Gradients to the inputs of the bare networks only: how they are called in another player's turn."""
        for module in self.modules.values():
            module.requires_grad_(False)
        try:
            yield
        finally:
            for module in self.modules.values():
                module.requires_grad_(True)

    @property
    def _optimizer_name(self) -> str:
        return f"{self.name}.{self.config.name}"

    def takes(self, name: str) -> bool:
        """Whether the state's tensor of this name is this player's to load."""
        return name.partition("/")[0] in (self.name, self._optimizer_name, f"{self.name}.scaler")

    def state(self) -> dict[str, Tensor]:
        """Logical state, by name, where it lies: parameters, buffers, the optimizer's moments and step counts.

        Nothing is copied to the CPU here: the saver does that, into memory that it keeps, in the main process alone.

        `step` is the largest count; parameters that moved less often have one of their own, `step/PARAMETER`. Every
        process calls this, since ZeRO gathers its parts.
        """
        state = {
            f"{self.name}/{self._key(network, key)}": value
            for network, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        if self.zero:
            moments = self.zero.moments()
        else:
            moments = {
                f"{moment}/{key}": self._moment(parameter, moment)
                for key, parameter in self.named_parameters()
                for moment in self.config.moments
            }
        last = max(self.steps.values(), default=0)
        counts = {f"step/{key}": torch.tensor(steps) for key, steps in self.steps.items() if steps != last}
        counts["step"] = torch.tensor(last)
        state |= {f"{self._optimizer_name}/{key}": value for key, value in (moments | counts).items()}
        if self.scaler:
            scaler = self.scaler.state_dict()
            state[f"{self.name}.scaler/scale"] = torch.tensor(scaler["scale"], dtype=torch.float64)
            state[f"{self.name}.scaler/growth_tracker"] = torch.tensor(scaler["_growth_tracker"])
        return {key: value.detach().contiguous() for key, value in state.items()}

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        found: Tensor | None = self.optimizer.state.get(parameter, {}).get(moment)
        return torch.zeros_like(parameter) if found is None else found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` wrote; raises `CheckpointError` if a tensor is missing, left over or misshapen.

        The scale of fp16's losses is taken where there is one, and left behind where this launch has no scaler.
        """
        scaler_prefix, counts_prefix = f"{self.name}.scaler/", f"{self._optimizer_name}/step/"
        mine = {key: value for key, value in state.items() if self.takes(key) and not key.startswith(scaler_prefix)}
        counts = {
            key.removeprefix(counts_prefix): int(mine.pop(key)) for key in list(mine) if key.startswith(counts_prefix)
        }
        unknown = sorted(counts.keys() - self.steps.keys())
        if unknown:
            raise CheckpointError(
                f"{self.name}: the checkpoint has a tensor {counts_prefix}{unknown[0]} that this model lacks; check the "
                "settings"
            )
        expected = {
            key: value for key, value in self.state().items() if not key.startswith((scaler_prefix, counts_prefix))
        }
        check_names(expected, mine, self.name)
        last = int(mine[f"{self._optimizer_name}/step"])
        self.steps = {key: counts.get(key, last) for key in self.steps}
        with torch.no_grad():
            for network, module in self.modules.items():
                for key, value in module.state_dict().items():
                    value.copy_(mine[f"{self.name}/{self._key(network, key)}"])
        if self.scaler and f"{scaler_prefix}scale" in state:
            scaler = self.scaler.state_dict()
            scaler["scale"] = state[f"{scaler_prefix}scale"].item()
            scaler["_growth_tracker"] = int(state[f"{scaler_prefix}growth_tracker"])
            self.scaler.load_state_dict(scaler)
        prefix = f"{self._optimizer_name}/"
        if self.zero:
            self.zero.load({key.removeprefix(prefix): value for key, value in mine.items()}, last)
            return
        for key, parameter in self.named_parameters():
            # `zeros_like` keeps the parameter's memory layout, which the fused kernel relies on.
            moments = {moment: torch.zeros_like(parameter) for moment in self.config.moments}
            for moment, value in moments.items():
                value.copy_(mine[f"{prefix}{moment}/{key}"])
            self.optimizer.state[parameter] = self.config.state(self.steps[key], moments, fused=self._fused)


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
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
