"""What a player does on a device that is not the CPU: `meta` stands for it, which cannot be copied to the CPU at all."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig

CPU = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")


def test_a_players_state_is_not_copied_before_the_saver_copies_it() -> None:
    """The saver copies into page-locked memory, in the main process alone; two copies would wait for the device twice."""
    launch = replace(CPU, device=torch.device("meta"))
    player = Player("p", {"net": nn.Linear(3, 2)}, AdamConfig(), launch, speed=SpeedConfig(fused_adam=False))
    state = player.state()
    assert {value.device.type for name, value in state.items() if "/step" not in name} == {"meta"}


@pytest.mark.parametrize(("fused", "where"), [(True, "meta"), (False, "cpu")])
def test_adams_counts_lie_where_torch_keeps_them(fused: bool, where: str) -> None:
    """Unfused Adam would fetch a count from the device for every parameter in every update after a resume."""
    moments = {moment: torch.zeros(3, device="meta") for moment in ("exp_avg", "exp_avg_sq")}
    assert AdamConfig().state(4, moments, fused=fused)["step"].device.type == where


def test_fp16_asks_for_nothing_in_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an update was taken is asked before the next one needs the count, when the device has long known."""
    player = Player("p", {"net": nn.Linear(3, 2)}, AdamConfig(), replace(CPU, precision="fp16"))
    x, asked = torch.randn(4, 3), []
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda self: asked.append("scale") or 1.0)
    for number, factor in enumerate((1.0, float("inf"), 1.0)):
        player.step([player.modules["net"](x).square().mean() * factor], 1.0)
        assert set(player.steps.values()) == {1 if number < 2 else 2}
    assert not asked
