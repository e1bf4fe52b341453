"""From host memory to the device and back, so that the host waits for nothing that the device still has to do."""

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`: itself where it is there already, else a copy that is under way.

    `value` may be overwritten at once: what the device reads is a page-locked copy that nobody else has, and PyTorch gives
    that memory out again only after the device has read it. The cost is one copy in host memory.
    """
    if value.device.type == device.type or value.device.type != "cpu":
        return value.to(device)
    staged = torch.empty_like(value, pin_memory=device.type == "cuda")
    staged.copy_(value)
    return staged.to(device, non_blocking=True)


def fetch_later(value: Tensor) -> Callable[[], Tensor]:
    """Start to copy `value` to host memory; the function that comes back waits for that copy alone, and gives it."""
    if value.device.type != "cuda":
        kept = value.detach().clone()
        return lambda: kept
    host = torch.empty_like(value, device="cpu", pin_memory=True)
    host.copy_(value.detach(), non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def fetched() -> Tensor:
        copied.synchronize()
        return host

    return fetched
