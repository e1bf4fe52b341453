"""What an iteration costs: operations and memory, counted on the meta device from the networks as they will run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from trainer.methods import Latents, RealAndLatents, build_objective
from trainer.models import build_discriminator, build_generator, replica_passes
from trainer.processes.launch import Launch, Precision
from trainer.speed.apply import apply_speed
from trainer.speed.settings import SpeedConfig

if TYPE_CHECKING:
    from trainer.config import Config


@dataclass(frozen=True)
class Cost:
    """Of one replica."""

    generator_step: float
    """Operations (2 for a multiplication and an addition) of matrix products and convolutions, forward and backward."""
    discriminator_step: float
    """The same, with the generation of its images."""
    parameters: tuple[int, int]
    """Of the generator and of the discriminator."""
    activations: int
    """Bytes that the larger of the two steps keeps for its backward pass."""

    def iteration(self, discriminator_steps: int) -> float:
        """Operations of one generator step and its discriminator steps."""
        return self.generator_step + discriminator_steps * self.discriminator_step


def count(config: "Config", speed: SpeedConfig, device: torch.device, precision: Precision = "fp32") -> Cost:
    """Costs of one replica under `speed`, in the forms chosen for `device`; nothing is computed."""
    model, batch = config.model, config.batch
    launch = Launch(rank=0, world_size=1, local_rank=0, device=device, precision=precision, strategy="single")
    with torch.device("meta"):
        G = build_generator(config.generator, model)
        D = build_discriminator(config.discriminator, model)
        apply_speed(speed, {"generator": G, "discriminator": D}, model.resolution, launch)
        objective = build_objective(config.objective)

        def latents(n: int) -> Latents:
            return Latents(torch.zeros(n, model.latent_dim), torch.zeros(n, dtype=torch.int64))

        n = batch.real_per_replica
        real = torch.zeros(n, model.image_channels, model.resolution, model.resolution)
        draws = RealAndLatents(real, torch.zeros(n, dtype=torch.int64), *latents(n))
        steps = []
        for network, loss in (
            (G, lambda: objective.generator_loss(G, D, latents(batch.generated_per_replica))),
            (D, lambda: objective.discriminator_loss(G, D, draws)),
        ):
            D.requires_grad_(network is D)
            counter, kept = FlopCounterMode(display=False), _Kept()
            with counter, replica_passes(G, D) as start_replica:
                start_replica(0)
                with saved_tensors_hooks(kept.note, lambda tensor: tensor):
                    value: Tensor = loss()["loss"]  # type: ignore[no-untyped-call]
                value.backward()  # type: ignore[no-untyped-call]
            steps.append((float(counter.get_total_flops()), kept.total()))
    width = 1.0 if precision == "fp32" else 0.5
    sizes = tuple(sum(p.numel() for p in network.parameters()) for network in (G, D))
    return Cost(
        generator_step=steps[0][0],
        discriminator_step=steps[1][0],
        parameters=(sizes[0], sizes[1]),
        activations=int(width * max(kept for _, kept in steps)),
    )


class _Kept:
    """Distinct tensors that a graph keeps; parameters among them are counted too, and are small beside activations."""

    def __init__(self) -> None:
        self._found: dict[Any, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._found[storage._cdata] = storage.nbytes()
        return tensor

    def total(self) -> int:
        return sum(self._found.values())
