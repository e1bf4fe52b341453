"""A replica on several processes: each computes an equal part of its batches.

What couples a replica's samples is summed over the processes that share it: batch norm's statistics. What belongs to a
pass as a whole is computed alike on each of them: spectral norm's u. A loss that is a mean over samples is the mean over
the parts' losses. Whatever is none of these is refused, so that the experiment stays the same on any number of processes.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import cast

import torch.distributed as dist
from torch import nn

from trainer.config import Config
from trainer.foundation.errors import SettingError
from trainer.methods.problem import differentiates_twice
from trainer.methods.protocol import Method
from trainer.models.synchronised import coupling_layers, synchronise_norms
from trainer.models.traits import couples_samples, draws_inside
from trainer.processes.launch import Launch


def check_sharing(config: Config, method: Method, networks: Mapping[str, nn.Module], launch: Launch) -> None:
    """Raise `SettingError` where the processes of this launch cannot share the replicas. It needs no process group."""
    replicas = config.batch.replicas
    parts = launch.parts(replicas)
    if parts == 1:
        return
    reason = _obstacle(config, method, networks, parts)
    if reason:
        raise SettingError(
            f"batch.replicas: is {replicas}, but the launch started {launch.world_size} processes, and {parts} of them cannot "
            f"share a replica: {reason}; launch at most {replicas} processes"
        )


def uneven_cut(method: Method, parts: int) -> str | None:
    """Why the batches of the method's turns cannot be cut into so many equal parts, if they cannot."""
    for iteration in (0, *method.changes):
        for turn in method.turns(iteration):
            for samples in (turn.made, *turn.reads.values()):
                if samples % parts:
                    return (
                        f"the {samples} samples of a turn of the {turn.player} cannot be cut into {parts} equal parts"
                    )
    return None


def _obstacle(config: Config, method: Method, networks: Mapping[str, nn.Module], parts: int) -> str | None:
    """Why a replica of this experiment cannot be cut into so many parts, if it cannot."""
    if uneven := uneven_cut(method, parts):
        return uneven
    if config.run.deterministic:
        return "run.deterministic is true, and the bits of a sum depend on how it is cut"
    if not getattr(method, "means_over_samples", False):
        return f"the loss of {config.objective.name} is no mean over samples, or does not say so (means_over_samples)"
    if method.memory(0):
        return f"{config.objective.name} remembers something of whole batches"
    if getattr(method, "draws", True):
        return "a loss draws random numbers inside its pass (a gradient penalty), and they would be others"
    for name, network in networks.items():
        if draws_inside(network):
            return f"a layer of the {name} draws random numbers inside its pass, and they would be others"
        if layers := coupling_layers(network):
            return f"the layer {layers[0]} of the {name} couples the samples of a batch"
        judges = name not in method.players[method.shown]
        if judges and differentiates_twice(config.objective) and any(map(couples_samples, network.modules())):
            return f"objective.penalty differentiates twice through the batch norm of the {name}"
    return None


def share_replicas(config: Config, networks: Mapping[str, nn.Module], launch: Launch) -> None:
    """Let the processes that share a replica take batch norm's statistics together. Every process calls it."""
    replicas = config.batch.replicas
    parts = launch.parts(replicas)
    if parts == 1 or config.batch.synchronised_norm:
        return
    own = launch.rank // parts
    for replica in range(replicas):
        ranks = list(range(replica * parts, (replica + 1) * parts))
        # Every process makes every group, in this order.
        group = cast(dist.ProcessGroup, dist.new_group(ranks, timeout=timedelta(minutes=10)))
        if replica == own:
            synchronise_norms(*networks.values(), group=group)
