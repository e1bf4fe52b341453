"""Side effects of a pass belong to the pass, not to a micro-batch.

A process may hold several replicas and run them one after another. Spectral norm's power iteration must then happen
once per pass over all replicas, and batch norm's running statistics must be those of replica 0, or the number of
processes would leak into the training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn

from trainer.models.traits import Effects, moves_state


@contextmanager
def replica_passes(*modules: nn.Module) -> Iterator[Callable[[int], None]]:
    """Shares the passes of `modules` among the replicas that one process runs.

    Yields `start_replica(number)`, to be called before each replica's forward passes. The k-th call of a spectrally
    normalised layer in a replica is pass k: the first replica's does the power iteration (in training mode) and keeps
    the normalised weight with its graph, the others' use that very tensor. So one backward through the sum over the
    replicas is right, and several backwards are not possible. Running statistics follow replica 0 only. Every replica
    must make the same passes. Wrapped modules (DDP, DeepSpeed) are given bare.

    Raises TypeError for a layer whose state moves and that is no `Effects` (trainer/models/traits.py).
    """
    layers = list(_effects(*modules))

    def start_replica(number: int) -> None:
        for layer in layers:
            layer.start_replica(number)

    for layer in layers:
        layer.begin_passes()
    try:
        yield start_replica
    finally:
        for layer in layers:
            layer.end_passes()


def _effects(*modules: nn.Module) -> Iterator[Effects]:
    """Every module inside `modules` that is an `Effects`, once.

    Raises TypeError for one in training mode whose state moves and that is none: its state would depend on the number of
    processes.
    """
    for layer in {id(layer): layer for module in modules for layer in module.modules()}.values():
        if hasattr(type(layer), "start_replica"):
            yield cast(Effects, layer)
        elif layer.training and any(True for _ in layer.buffers(recurse=False)) and moves_state(layer):
            raise TypeError(
                f"{type(layer).__qualname__}: its passes move its buffers, in a way that depends on the number of "
                "processes; give it begin_passes, start_replica and end_passes (trainer/models/traits.py), or "
                "moves_state = False if its buffers are constant"
            )
