"""The optimizer's step against formulas, and the logical state."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from trainer.foundation.errors import CheckpointError
from trainer.players.optimizers import AdamConfig, SGDConfig
from trainer.players.player import Player
from trainer.processes.launch import Launch

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")

BUFFERS = ("p/1.running_mean", "p/1.running_var", "p/1.num_batches_tracked")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 4 * 4, 1))


@pytest.mark.parametrize("placement", ["outside_correction", "inside_correction"])
def test_adam_against_its_formula(placement: str) -> None:
    """Chainer's and PyTorch's Adam in float64; an epsilon as large as the gradients, so that its place matters."""
    config = AdamConfig(learning_rate=0.1, beta1=0.5, beta2=0.9, epsilon=0.3, epsilon_placement=placement)
    torch.manual_seed(0)
    module = nn.Linear(4, 3, bias=False).double()
    weight = module.weight.detach().numpy().copy()
    player = Player("p", {"net": module}, config, LAUNCH)
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, factor in enumerate((1.0, 0.5, 0.25, 1.0), start=1):
        x = torch.randn(5, 4, dtype=torch.float64)
        gradient = 2 * (weight @ x.numpy().T) @ x.numpy()
        player.step([module(x).square().sum()], factor)
        m = 0.5 * m + 0.5 * gradient
        v = 0.9 * v + 0.1 * gradient**2
        rate, first, second = 0.1 * factor, 1 - 0.5**t, 1 - 0.9**t
        if placement == "outside_correction":
            weight -= rate * np.sqrt(second) / first * m / (np.sqrt(v) + 0.3)
        else:
            weight -= rate * (m / first) / (np.sqrt(v / second) + 0.3)
        np.testing.assert_allclose(module.weight.detach().numpy(), weight, rtol=1e-10)


def test_a_loaded_player_goes_on_bit_for_bit() -> None:
    def step(player: Player, number: int) -> None:
        torch.manual_seed(100 + number)
        player.step([player.modules["net"](torch.randn(6, 2, 6, 6)).square().mean()], 1.0)

    straight = Player("p", {"net": network()}, AdamConfig(), LAUNCH)
    for number in range(4):
        step(straight, number)
    first = Player("p", {"net": network()}, AdamConfig(), LAUNCH)
    for number in range(2):
        step(first, number)
    second = Player("p", {"net": network(seed=9)}, AdamConfig(), LAUNCH)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for number in range(2, 4):
        step(second, number)
    expected, found = straight.state(), second.state()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert int(found["p.adam/step"]) == 4


def test_fp16_leaves_out_a_step_that_overflows_and_its_scale_is_part_of_the_state() -> None:
    """The scaler of fp16, here on float32 networks: a step equals the unscaled one, an overflow changes nothing but the
    scale."""
    fp16 = replace(LAUNCH, precision="fp16")
    plain, scaled = (
        Player("p", {"net": network()}, AdamConfig(), LAUNCH),
        Player("p", {"net": network()}, AdamConfig(), fp16),
    )
    x = torch.randn(6, 2, 6, 6)
    for player in (plain, scaled):
        player.step([player.modules["net"](x).square().mean()], 1.0)
    expected, found = plain.state(), scaled.state()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)
    scale = float(found["p.scaler/scale"])
    scaled.step([scaled.modules["net"](x).square().mean() * torch.inf], 1.0)
    after = scaled.state()
    assert float(after["p.scaler/scale"]) == scale / 2
    assert all(torch.equal(after[name], found[name]) for name in expected if name not in BUFFERS)
    resumed = Player("p", {"net": network(seed=9)}, AdamConfig(), fp16)
    resumed.load(after)
    assert resumed.state().keys() == after.keys()
    for player in (scaled, resumed):
        player.step([player.modules["net"](x).square().mean()], 1.0)
    for name, tensor in scaled.state().items():
        assert torch.equal(resumed.state()[name], tensor), name
    assert int(resumed.state()["p.adam/step"]) == 2
    plain.load(after)  # without a scaler the scale is left behind
    scaled.load(expected)  # and a state without one begins with the first scale


def test_a_state_of_another_model_is_refused_by_name() -> None:
    player = Player("p", {"net": network()}, AdamConfig(), LAUNCH)
    state = player.state()
    for change, message in (
        ({"p/0.weight": None}, "lacks the tensor p/0.weight"),
        ({"p/new": torch.zeros(1)}, "has a tensor p/new that this model lacks"),
        ({"p/0.bias": torch.zeros(7)}, r"p/0.bias has shape \[7\] in the checkpoint and \[3\] in this model"),
    ):
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        with pytest.raises(CheckpointError, match=message):
            player.load(changed)


def test_frozen_gives_gradients_to_inputs_only() -> None:
    player = Player("p", {"net": network()}, AdamConfig(), LAUNCH)
    x = torch.randn(2, 2, 6, 6, requires_grad=True)
    with player.frozen():
        player.modules["net"](x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in player.modules["net"].parameters())


class Growing(nn.Module):
    """A second layer joins when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, grown: bool) -> torch.Tensor:
        h = self.first(x)
        return self.second(torch.tanh(h)) if grown else h


@pytest.mark.parametrize(
    "config", [AdamConfig(), AdamConfig(epsilon_placement="inside_correction"), SGDConfig(momentum=0.9)]
)
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_layer_that_joins_later_has_the_same_bits_after_a_resume(config: AdamConfig | SGDConfig, stop: int) -> None:
    """torch counts steps per parameter. A count for the whole player makes a difference of 1e-4 after 10 updates."""

    def train(player: Player, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(100 + number)
            player.step([player.networks["net"](torch.randn(6, 3), number >= 5).square().mean()], 1.0)

    straight = Player("p", {"net": Growing()}, config, LAUNCH)
    train(straight, 0, 10)
    first, second = (Player("p", {"net": Growing()}, config, LAUNCH) for _ in range(2))
    train(first, 0, stop)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    train(second, stop, 10)
    expected, found = straight.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    counts = {name: int(value) for name, value in expected.items() if "/step" in name}
    kind = config.name
    assert counts == {f"p.{kind}/step": 10, f"p.{kind}/step/second.weight": 5, f"p.{kind}/step/second.bias": 5}


def test_sgd_against_its_formula_with_a_rising_momentum() -> None:
    """Mirza & Osindero 2014: momentum from 0.5 to 0.7. v = m v + g, w -= rate v."""
    config = SGDConfig(learning_rate=0.1, momentum=0.5, final_momentum=0.7, momentum_steps=2)
    module = nn.Linear(1, 1, bias=False).double()
    player, weight, v = Player("p", {"net": module}, config, LAUNCH), module.weight.item(), 0.0
    for gradient, momentum, factor in ((0.3, 0.5, 1.0), (-0.2, 0.6, 0.5), (0.4, 0.7, 1.0), (0.1, 0.7, 1.0)):
        player.step([(module.weight * gradient).sum()], factor)
        v = momentum * v + gradient
        weight -= 0.1 * factor * v
        assert module.weight.item() == pytest.approx(weight, rel=1e-12)


def test_several_networks_of_a_player_are_told_apart_and_move_together() -> None:
    modules = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    player = Player("pair", modules, SGDConfig(momentum=0.5), LAUNCH)
    x = torch.randn(4, 2)
    player.step([player.networks["b"](player.networks["a"](x)).square().mean()], 1.0)
    names = set(player.state())
    assert {"pair/a/weight", "pair/b/weight", "pair.sgd/momentum_buffer/a/weight", "pair.sgd/step"} <= names
    before = {name: tensor.clone() for name, tensor in player.state().items()}
    player.step([player.networks["b"](x).square().mean()], 1.0)  # a takes no part, and so does not move
    after = player.state()
    assert torch.equal(before["pair/a/weight"], after["pair/a/weight"])
    assert not torch.equal(before["pair/b/weight"], after["pair/b/weight"])
    assert int(after["pair.sgd/step/a/weight"]) == 1


def test_an_optimizer_that_forgets_starts_anew() -> None:
    x, states = torch.randn(6, 2, 6, 6), []
    for forgets in (True, False):
        player = Player("p", {"net": network()}, AdamConfig(beta1=0.5), LAUNCH)
        player.step([player.modules["net"](x).square().mean()], 1.0)
        if forgets:
            player.forget()
            assert int(player.state()["p.adam/step"]) == 0
            assert not any(value.any() for name, value in player.state().items() if "exp_avg" in name)
        player.step([player.modules["net"](x).square().mean()], 1.0)
        states.append(player.state())
    assert int(states[0]["p.adam/step"]) == 1
    assert not torch.equal(states[0]["p/0.weight"], states[1]["p/0.weight"])
