"""Players of an experiment with draws that are made once, on the CPU: every device computes the same iteration."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_check.runner import ROOT, Check
from trainer.config import Config, load_config
from trainer.costs.timed import random_fields
from trainer.foundation.keys import Keys
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import Launch, Precision, Strategy
from trainer.speed.apply import apply_speed
from trainer.speed.settings import SpeedConfig
from trainer.training.iteration import run_iteration

SMALL = (
    *(
        "--generator.channels",
        "4",
        "--discriminator.channels",
        "4",
        "--model.resolution",
        "32",
        "--model.classes",
        "10",
    ),
    *("--generator.multipliers", "[4,4,2,1]", "--discriminator.multipliers", "[1,2,4,4]"),
    *("--discriminator.downsampling_blocks", "3", "--batch.replicas", "2", "--batch.real_per_replica", "3"),
    *("--batch.generated_per_replica", "4", "--schedule.discriminator_steps", "2"),
)
"""The paper's networks and iteration, narrow and at 32 px."""


def paper(small: bool) -> Config:
    """The 128 px projection experiment, or its small form."""
    return load_config(str(ROOT / "configs/imagenet128_projection.yaml"), SMALL if small else ())


def launch_of(device: torch.device, precision: Precision = "fp32", strategy: Strategy = "single") -> Launch:
    """One process."""
    return Launch(rank=0, world_size=1, local_rank=0, device=device, precision=precision, strategy=strategy)


class Bench:
    """One process that holds all replicas of an experiment, and one iteration's draws."""

    def __init__(
        self,
        config: Config,
        launch: Launch,
        speed: SpeedConfig = SpeedConfig(),  # noqa: B008 (frozen)
        *,
        double: bool = False,
        epsilon: float | None = None,
        seed: int = 0,
    ) -> None:
        """`double`: in float64. `epsilon`: Adam's; a large one, so that rounding of tiny gradients is not blown up."""
        self.config, self.launch, self.speed = config, launch, speed
        self.method = config.objective.build(config.problem())
        kind = torch.float64 if double else torch.float32
        torch.manual_seed(seed)
        modules = {name: self.method.build(name).to(kind) for names in self.method.players.values() for name in names}
        apply_speed(speed, modules, config.model.resolution, launch)
        replicas = config.batch.replicas
        self.players = {}
        for name, networks in self.method.players.items():
            adam = config.optimizer.of(name)
            if epsilon is not None and isinstance(adam, AdamConfig):
                adam = replace(adam, epsilon=epsilon)
            own = {network: modules[network] for network in networks}
            self.players[name] = Player(name, own, adam, launch, replicas=replicas, speed=speed)
        self.turns = self.method.turns(0)
        torch.manual_seed(1)
        self.draws = {
            turn.number: [self._draw(turn, replica, kind) for replica in range(replicas)] for turn in self.turns
        }
        self.memory = {
            replica: {name: value.to(launch.device) for name, value in self.method.memory(replica).items()}
            for replica in range(replicas)
        }

    def _draw(self, turn, replica: int, kind: torch.dtype) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        fields = random_fields(turn, self.config.model, torch.device("cpu"))
        found = self.method.draw(turn, Keys(0, 0, turn.number, replica), fields)
        return {
            name: value.to(self.launch.device, kind if value.is_floating_point() else value.dtype)
            for name, value in found.items()
        }

    def iterate(self, draws: Callable[..., Sequence[dict[str, Tensor]]] | None = None) -> None:
        """One iteration, by the loop's own function; with its own draws if none are given."""
        run_iteration(
            self.method,
            self.players,
            self.turns,
            draws or (lambda turn: self.draws[turn.number]),
            self.memory,
            launch=self.launch,
            replicas=self.config.batch.replicas,
            rate_factor=1.0,
            seed_layers=lambda turn, replica: None,
            speed=self.speed,
        )

    def state(self) -> dict[str, Tensor]:
        """All players' state, on the CPU, in memory of its own."""
        return {name: value.cpu().clone() for player in self.players.values() for name, value in player.state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take it over."""
        for player in self.players.values():
            player.load(state)


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference, in units of its tensor's largest number, and the tensor's name."""
    return max(
        (float((found[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-3)), name)
        for name, value in expected.items()
        if value.is_floating_point() and value.numel()
    )


def seconds_of(check: Check, function: Callable[[], object], repeats: int, warm: int = 2) -> float:
    """The median of some repeats, the device waited for."""
    for _ in range(warm):
        function()
    check.wait()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        check.wait()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


class Operations(TorchDispatchMode):
    """Counts what the host dispatches while it is open."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return function(*args, **(kwargs or {}))
