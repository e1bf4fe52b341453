"""What an older PyTorch (2.11) lacks of what the program uses. The program itself is for the version in pyproject.toml."""

import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from trainer.players import player


def apply_shims() -> list[str]:
    """Put them in where they are needed; returns what was put in."""
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters:
        return []

    def without(module: Any, *given: Any, forward_sync_buffers: bool = False, **options: Any) -> Any:
        return DistributedDataParallel(module, *given, broadcast_buffers=forward_sync_buffers, **options)

    player.DistributedDataParallel = without  # type: ignore[misc, assignment]
    return ["DistributedDataParallel(forward_sync_buffers)"]
