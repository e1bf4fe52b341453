"""A machine with GPUs, as far as PyTorch's answers go: nothing is computed there."""

from types import SimpleNamespace

import pytest
import torch


def pretend(patch: pytest.MonkeyPatch, count: int, name: str = "NVIDIA H100 80GB HBM3", *, bf16: bool = True) -> None:
    """From now on PyTorch reports `count` GPUs of this name (a MIG slice is one GPU), with or without units for bf16."""
    slices = {"name": name, "multi_processor_count": 132}
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    patch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device=None: SimpleNamespace(**slices, uuid=f"card {torch.device(device or 'cuda:0').index}"),
    )
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    patch.setattr(torch.cuda, "set_device", lambda device: None)
    patch.setattr(torch.version, "cuda", "13.0" if count else None)
    patch.setattr(torch.backends.cudnn, "version", lambda: 91900 if count else None)
