"""What a run has learned and remembers: the players, the moving average, the method's memory, and a few marks.

The state is an open, named collection. Every part says which tensors are its own. A tensor that no part takes up is an
error, never dropped.
"""

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import Config
from trainer.foundation import keys
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.methods.protocol import ChecksMemory, Method, StartsFromData, Tensors, results_of
from trainer.methods.terms import guidance
from trainer.models.synchronised import synchronise_norms
from trainer.players import ema
from trainer.players.ema import Ema
from trainer.players.player import Player, check_names
from trainer.processes.launch import Launch
from trainer.speed.apply import apply_speed

logger = logging.getLogger("menagerie")

ROLLBACKS = "run/rollbacks"
MEMORY = "memory/"
"""The method's memory: `memory/NAME` [replicas, ...], a row for each replica."""


class State:
    """Built from the seed, or taken from the newest commit."""

    def __init__(
        self, config: Config, method: Method, launch: Launch, first: Mapping[str, Tensors] | None = None
    ) -> None:
        """`first`: the real samples that a `StartsFromData` looks at, where the run begins.

        Raises `SettingError` where launch and method do not go together.
        """
        self.launch, self.replicas = launch, config.batch.replicas
        self._method, self._seed = method, config.run.seed
        modules = {
            network: _built(method, network, config.run.seed) for nets in method.players.values() for network in nets
        }
        if first is not None and isinstance(method, StartsFromData):
            torch.manual_seed(keys.key(config.run.seed, "start from data"))
            method.start(modules, first)
        if config.batch.synchronised_norm:
            synchronise_norms(*modules.values())
        apply_speed(config.speed, modules, config.model.resolution, launch)
        self.players = {
            player: Player(
                player,
                {network: modules[network] for network in networks},
                config.optimizer.of(player),
                launch,
                replicas=config.batch.replicas,
                deterministic=config.run.deterministic,
                speed=config.speed,
            )
            for player, networks in method.players.items()
        }
        self.results = {
            name: module for player in results_of(method) for name, module in self.players[player].modules.items()
        }
        """The networks that are looked at, as they are trained."""
        self.ema = Ema(self.results, config.ema) if config.ema.on else None
        self.rollbacks = 0
        """How often the run has gone back after numbers that were not finite; the draws depend on it."""
        self.marks: dict[str, Tensor] = {}
        """What the fine-tuning stage has to remember (trainer/training/finetuning.py), by name."""
        held = launch.held_replicas(self.replicas)
        self.memory: dict[int, Tensors] = {
            replica: {name: value.to(launch.device) for name, value in method.memory(replica).items()}
            for replica in held
        }
        """What the method remembers of each replica of this process."""
        remembered = self.memory[held.start]
        if remembered and config.batch.synchronised_norm:
            raise SettingError(
                "batch.synchronised_norm: is true, but the method remembers something for each replica, whose batches would "
                "come as one; set it to false"
            )
        self._memory_like = {name: value.detach().clone() for name, value in remembered.items()}

    @property
    def sampled(self) -> dict[str, nn.Module]:
        """The networks that are looked at: the moving average where there is one."""
        return self.ema.modules if self.ema else self.results

    def tensors(self) -> dict[str, Tensor]:
        """The full logical state, by name, where it lies: on the device, but for what the host alone knows.

        Every process calls it, since a part may have to be gathered.
        """
        average = self.ema.state() if self.ema else {}
        state: dict[str, Tensor] = {}
        for player in self.players.values():
            state |= player.state()
        return {
            **state,
            **{name: value.contiguous() for name, value in average.items()},
            **({ROLLBACKS: torch.tensor(self.rollbacks)} if self.rollbacks else {}),
            **self.marks,
            **{f"{MEMORY}{name}": self._gathered(name) for name in self._memory_like},
        }

    def load(self, tensors: Mapping[str, Tensor], iteration: int | None = None) -> None:
        """Take over what `tensors` gave; raises `CheckpointError` by name if it does not fit, or if something is left.

        iteration: where the run resumes, so that the method can check what it remembers; None: it does not.
        """
        left = sorted(name for name in tensors if not self._takes(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"checkpoint: it holds the tensor {left[0]}{more}, which nothing in this experiment takes up; it was written "
                "with other settings or by a newer version: use those, or choose another run.dir"
            )
        for player in self.players.values():
            player.load(tensors)
        self.rollbacks = int(tensors.get(ROLLBACKS, 0))
        self.marks = {name: value for name, value in tensors.items() if name.startswith(guidance.PREFIX)}
        average = {name: value for name, value in tensors.items() if name.startswith(ema.PREFIX)}
        if self.ema:
            if not average:
                raise CheckpointError("ema.decay: the checkpoint holds no moving average; set ema.decay to 0")
            self.ema.load(average)
        elif average:
            logger.warning("ema.decay is 0: the checkpoint's moving average is left behind")
        remembered = {name.removeprefix(MEMORY): value for name, value in tensors.items() if name.startswith(MEMORY)}
        expected = {name: value.expand(self.replicas, *value.shape) for name, value in self._memory_like.items()}
        check_names(expected, remembered, "memory")
        if iteration is not None and isinstance(self._method, ChecksMemory):
            for replica in range(self.replicas):  # every process checks them all, so all say the same
                rows = {name: value[replica] for name, value in remembered.items()}
                self._method.check_memory(self._seed, iteration, replica, rows)
        for replica in self.memory:
            self.memory[replica] = {
                name: value[replica].to(self.launch.device, copy=True) for name, value in remembered.items()
            }

    def _takes(self, name: str) -> bool:
        parts = (ema.PREFIX, guidance.PREFIX, MEMORY)
        return name == ROLLBACKS or name.startswith(parts) or any(p.takes(name) for p in self.players.values())

    def _gathered(self, name: str) -> Tensor:
        """A memory's rows of all replicas [replicas, ...], on the CPU."""
        like, launch = self._memory_like[name], self.launch
        rows = []
        for replica in range(self.replicas):
            mine = self.memory.get(replica)
            row = torch.zeros_like(like, device=launch.device) if mine is None else mine[name].to(launch.device)
            if launch.world_size > 1:
                # Bytes from the owner, rather than a sum: -0.0 and NaN stay what they are.
                raw = row.detach().contiguous().reshape(-1).view(torch.uint8)
                dist.broadcast(raw, src=launch.owner(replica, self.replicas))
                row = raw.view(like.dtype).reshape(like.shape)
            rows.append(row.detach().cpu())
        return torch.stack(rows)


def _built(method: Method, network: str, seed: int) -> nn.Module:
    torch.manual_seed(keys.key(seed, f"initial {network}"))
    return method.build(network)
