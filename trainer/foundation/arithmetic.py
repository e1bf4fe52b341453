"""How a GPU computes: set in one place for every verb, and told in the records. A CPU has none of these choices.

PyTorch's own defaults are not ours: it lets cuDNN's convolutions use TF32, and lets cuDNN take kernels that add up with
atomics, in another order every time.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Arithmetic:
    """What is asked of a GPU. The default is fp32 as it is on a CPU, and one order for every sum of cuDNN's."""

    tf32: bool = False
    """fp32 matrices and convolutions with TF32's 10-bit mantissa."""
    deterministic: bool = False
    """Every operation, not cuDNN's alone, must have a form with one order of sums; one that has none raises RuntimeError."""
    benchmark: bool = False
    """cuDNN chooses among its algorithms by timing: the choice, and so the last bits, may differ from start to start."""


def set_arithmetic(asked: Arithmetic = Arithmetic()) -> None:
    """Set it for this process, on whatever device. `run_command` calls it for every verb, a training with its own settings."""
    torch.backends.cuda.matmul.allow_tf32 = asked.tf32
    torch.backends.cudnn.allow_tf32 = asked.tf32
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = asked.benchmark
    if asked.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def precision_now(device: torch.device) -> str:
    """For records: in what fp32 tensors are multiplied on `device` as things are set."""
    if device.type != "cuda":
        return "fp32"
    switches = {
        "matrices": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
    }
    rounded = [name for name, on in switches.items() if on]
    return f"fp32 (TF32 in {' and '.join(rounded)})" if rounded else "fp32"


def hardware(device: torch.device) -> dict[str, Any]:
    """What the last bits on `device` depend on, for records: the model of a GPU, and the versions of what computes."""
    if device.type != "cuda":
        return {"device": device.type, "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": f"{properties.name} ({properties.multi_processor_count} multiprocessors)",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def hardware_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two of `hardware`'s, for people; nothing where the first was never recorded."""
    return [
        f"{key} {before.get(key, 'not there')} -> {now.get(key, 'not there')}"
        for key in dict.fromkeys([*before, *now])
        if before and before.get(key) != now.get(key)
    ]


def slowness(device: torch.device, precision: str, tf32: bool) -> str | None:
    """One sentence where the launch is far from what the card can do, else None."""
    if device.type != "cuda":
        return None
    if precision == "fp32" and not tf32 and torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            "mixed_precision (accelerate's YAML): is 'no', so this GPU's bf16 units stand still; by the makers' peak figures "
            "it is many times slower than it could be: launch with --mixed_precision bf16 or cluster/launch/single_bf16.yaml"
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            "mixed_precision (accelerate's YAML): is 'bf16', which this GPU has no units for and imitates; launch with "
            "cluster/launch/ddp_fp16.yaml or --mixed_precision fp16"
        )
    return None
