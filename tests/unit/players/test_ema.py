"""The moving average: by iterations, by samples, and which weights join it."""

import pytest
import torch
from torch import nn

from trainer.players.ema import Ema, EmaConfig


def network(value: float) -> nn.Module:
    made = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


@pytest.mark.parametrize("batch", [25, 50, 200])
def test_after_the_half_life_old_weights_count_half_whatever_the_batch(batch: int) -> None:
    ema = Ema({"g": network(0.0)}, EmaConfig(half_life=1_000, warm_up=False))
    for iteration in range(1_000 // batch):
        ema.update({"g": network(1.0)}, iteration, batch)
    assert next(ema.modules["g"].parameters())[0, 0].item() == pytest.approx(0.5, abs=1e-6)


def test_without_a_half_life_the_decay_counts_iterations() -> None:
    ema = Ema({"g": network(0.0)}, EmaConfig(decay=0.75, warm_up=False))
    for iteration in range(3):
        ema.update({"g": network(1.0)}, iteration, 10)
    assert next(ema.modules["g"].parameters())[0, 0].item() == pytest.approx(1 - 0.75**3)
    assert EmaConfig(decay=0.5).on
    assert EmaConfig(half_life=1).on
    assert not EmaConfig().on


def test_weights_that_stay_are_their_own_average_bit_for_bit() -> None:
    module = nn.Linear(7, 5)
    ema = Ema({"g": module}, EmaConfig(half_life=100, warm_up=False))
    for iteration in range(10):
        ema.update({"g": module}, iteration, 7)
    assert torch.equal(ema.modules["g"].weight, module.weight)  # type: ignore[arg-type]
