"""A gradient whose bits do not depend on the number of processes (`run.deterministic`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.processes.launch import Launch, sum_over_processes


def fixed_order_gradients(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], launch: Launch, replicas: int
) -> list[Tensor | None]:
    """Each parameter's gradient as the sum over all replicas, in the order of the replicas, on every process.

    Args:
        losses: one scalar per replica that this process holds; the gradient is that of the sum over all replicas.
        parameters: what to differentiate by; one that no loss depends on gets None. Every replica must use the same.

    Every replica's gradient is computed alone and sent as it is: a sum in which all other addends are 0 is exact in any
    order. The additions over replicas are then the same everywhere. Costs one backward pass per replica, `replicas` times
    the traffic, and memory for `replicas` gradients of the largest parameter beside those of the held ones.
    """
    held = launch.held_replicas(replicas)
    own = []
    for number, loss in enumerate(losses, start=1):
        # Replicas share the spectrally normalised weights and their graph, which must last until the last one.
        own.append(torch.autograd.grad(loss, parameters, retain_graph=number < len(losses), allow_unused=True))
    total: list[Tensor | None] = []
    for index, parameter in enumerate(parameters):
        if all(gradients[index] is None for gradients in own):
            total.append(None)
            continue
        parts = torch.zeros(replicas, *parameter.shape, dtype=parameter.dtype, device=parameter.device)
        for replica, gradients in zip(held, own, strict=True):
            if gradients[index] is not None:
                parts[replica] = gradients[index]
        sum_over_processes(launch, parts)
        gradient = torch.zeros_like(parameter)
        for part in parts:
            gradient += part
        total.append(gradient)
    return total
