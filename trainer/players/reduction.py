"""Gradients over the processes: their mean (DDP), or a sum whose bits do not depend on their number (`run.deterministic`)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.processes.launch import Launch, sum_over_processes
from trainer.processes.progress import progress


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
    progress.enter("reduction")
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


BUCKET_BYTES = 25 * 2**20
"""Gradients are sent together up to this size: small messages cost latency, large ones come late."""
FIRST_BUCKET_BYTES = 2**20
"""Of the network's first parameters, whose gradients come last, so that little is left to send at the end."""


class GradientMean:
    """The mean of parameters' gradients over all processes, sent in buckets while the backward pass goes on.

    The layout and the order of the buckets depend on the parameters alone. So an element's addends meet in the same order
    in every update of every start, and a resumed run has the same bits (torch's DistributedDataParallel lays its buckets
    anew after the first backward pass unless it walks through the graph each time). A parameter that no loss reaches keeps
    None; it must be the same parameters on every process.
    """

    def __init__(self, parameters: Sequence[Tensor], processes: int, *, bf16: bool = False) -> None:
        """`bf16`: gradients are sent in bf16 (`speed.bf16_gradients`)."""
        self.buckets = [_Bucket(members, processes, bf16) for members in reversed(_layout(parameters))]
        self._bucket_of = {id(parameter): bucket for bucket in self.buckets for parameter, _ in bucket.places}
        self._next: int | None = None
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """The next backward pass is to be reduced."""
        self._next = 0
        for bucket in self.buckets:
            bucket.missing = len(bucket.places)

    def _arrived(self, parameter: Tensor) -> None:
        """Send the buckets that are complete, in their order."""
        if self._next is None:
            return
        self._bucket_of[id(parameter)].missing -= 1
        while self._next < len(self.buckets) and self.buckets[self._next].missing == 0:
            self.buckets[self._next].send()
            self._next += 1

    def finish(self) -> None:
        """Send the rest and wait for all: every gradient is the mean from here on."""
        if self._next is None:
            raise RuntimeError("GradientMean: finish without begin")
        for bucket in self.buckets[self._next :]:
            bucket.send()
        self._next = None
        for bucket in self.buckets:
            bucket.receive()


class _Bucket:
    """Gradients that are sent together. Each parameter's has its place in one flat tensor, in the parameter's layout."""

    def __init__(self, members: Sequence[Tensor], processes: int, bf16: bool) -> None:
        self.processes, self.bf16, self.missing = processes, bf16, len(members)
        self.flat = torch.zeros(sum(map(torch.numel, members)), dtype=members[0].dtype, device=members[0].device)
        self.places: list[tuple[Tensor, Tensor]] = []
        begin = 0
        for parameter in members:
            self.places.append((parameter, self.flat.as_strided(parameter.shape, parameter.stride(), begin)))
            begin += parameter.numel()
        self._sent: tuple[Tensor, Any] | None = None

    def send(self) -> None:
        """Start the reduction, unless no gradient of the bucket has come. Those that came lie in the bucket from here on, so
        that there is no second copy of them."""
        if all(parameter.grad is None for parameter, _ in self.places):
            return
        share = 1.0 / self.processes
        for parameter, view in self.places:
            if parameter.grad is None:
                view.zero_()
                continue
            if self.bf16:
                view.copy_(parameter.grad)
            else:
                torch.mul(parameter.grad, share, out=view)
            parameter.grad = view
        sent = self.flat.to(torch.bfloat16).div_(self.processes) if self.bf16 else self.flat
        self._sent = sent, dist.all_reduce(sent, async_op=True)

    def receive(self) -> None:
        """Wait for the reduction."""
        if self._sent is None:
            return
        sent, work = self._sent
        self._sent = None
        work.wait()
        if sent is not self.flat:
            self.flat.copy_(sent)


def _layout(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters in buckets, in their order; those of one bucket have one type and one device."""
    buckets: list[list[Tensor]] = []
    size, limit = 0, FIRST_BUCKET_BYTES
    for parameter in parameters:
        same = bool(buckets) and (buckets[-1][0].dtype, buckets[-1][0].device) == (parameter.dtype, parameter.device)
        if not same or size >= limit:
            limit = BUCKET_BYTES if buckets else FIRST_BUCKET_BYTES
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets
