"""The settings of `speed.*`, put into the networks."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from trainer.foundation.errors import SettingError
from trainer.models.forms import MATRIX, Placed, fixed_form, placed_convolutions, set_form, set_fused
from trainer.models.traits import can_repeat, draws_inside, silent_layers
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig


def apply_speed(speed: SpeedConfig, networks: Mapping[str, nn.Module], resolution: int, launch: Launch) -> None:
    """Put the settings into the networks, by name, which were built for images of `resolution` px. Raises `SettingError`."""
    check_speed(speed, launch)
    for name, network in networks.items():
        if not speed.channels_last and draws_inside(network):
            silent = silent_layers(network)
            what = f"layers that do not say whether they draw ({', '.join(silent)})" if silent else "dropout or noise"
            raise SettingError(
                f"speed.channels_last: is false, but the {name} has {what}, and draws follow the order of memory: it would be "
                "another training; set it to true"
            )
        set_fused(
            network,
            spectral_norm=speed.fused_spectral_norm,
            conditional_norm=speed.fused_conditional_norm,
            low_resolution=speed.low_resolution_shortcuts,
        )
        for item in placed_convolutions(network, resolution):
            set_form(item, _chosen(speed, item, launch.device))
    _set_recomputation(speed.recompute_blocks, networks)


def _set_recomputation(recompute: bool, networks: Mapping[str, nn.Module]) -> None:
    """Switch it in the networks that have it. Raises `SettingError` where it is asked for and none has it, or one may not."""
    able: dict[str, Any] = {name: network for name, network in networks.items() if hasattr(network, "recompute")}
    if recompute and not able:
        raise SettingError(
            f"speed.recompute_blocks: is true, but none of the networks ({', '.join(networks)}) can compute its blocks "
            "again; set it to false"
        )
    for name, network in able.items():
        if recompute and not all(can_repeat(block) for block in getattr(network, "blocks", (network,))):
            raise SettingError(
                f"speed.recompute_blocks: is true, but layers in the blocks of the {name} draw or move a state, so that a "
                "second pass would differ from the first; set it to false"
            )
        network.recompute = recompute


def _chosen(speed: SpeedConfig, item: Placed, device: torch.device) -> str:
    if speed.convolutions == "measured":
        return fixed_form(item, device)
    if speed.convolutions == "matrix":
        return "plain" + MATRIX
    return speed.convolutions if speed.convolutions in item.resampling else "plain"


def check_speed(speed: SpeedConfig, launch: Launch) -> None:
    """Raise `SettingError` for settings that this launch cannot keep."""
    if speed.bf16_gradients and launch.strategy in ("zero1", "zero2"):
        raise SettingError(
            f"speed.bf16_gradients: is true, but under {launch.strategy} DeepSpeed sends the gradients; set it to false"
        )


def describe_host(speed: SpeedConfig, launch: Launch) -> str:
    """The line at the start of a run: what of the machine and the environment decides about its speed."""
    changed = [
        f"{field.name} {getattr(speed, field.name)}"
        for field in fields(SpeedConfig)
        if getattr(speed, field.name) != getattr(SpeedConfig(), field.name)
    ]
    settings = f"speed: {', '.join(changed) or 'the defaults'}"
    if launch.device.type == "cuda":
        return f"{torch.cuda.get_device_name(launch.device)}; torch {torch.__version__}; {settings}"
    threads, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "").lower()
    waiting = f"waiting {policy or 'as OpenMP pleases'}"
    if threads > 1 and policy != "passive":
        waiting += (
            " (where others use the machine too, spinning threads are up to ten times slower: OMP_WAIT_POLICY=passive)"
        )
    return f"CPU: threads {threads}, {waiting}; freed memory kept; torch {torch.__version__}; {settings}"
