"""The mean of gradients over processes, in one process that stands for two: its reductions double what it gives."""

from typing import Any

import pytest
import torch
from torch import nn

from trainer.players import reduction
from trainer.players.reduction import GradientMean


class Sent:
    def wait(self) -> None:
        """At once."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What is given to the reductions; each finds the same gradients on a second process."""
    found: list[torch.Tensor] = []

    def all_reduce(tensor: torch.Tensor, async_op: bool) -> Any:
        assert async_op
        found.append(tensor.clone())
        tensor.mul_(2)
        return Sent()

    monkeypatch.setattr(reduction.dist, "all_reduce", all_reduce)
    return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.wide, self.last, self.unused = nn.Linear(4, 600), nn.Linear(600, 500), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.last(torch.relu(self.wide(torch.relu(self.first(x)).mean((2, 3)))))
        return h


def gradients(net: Net, mean: GradientMean | None) -> dict[str, torch.Tensor | None]:
    for parameter in net.parameters():
        parameter.grad = None
    if mean:
        mean.begin()
    torch.manual_seed(1)
    net(torch.randn(5, 3, 6, 6)).square().mean().backward()
    if mean:
        mean.finish()
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("bf16", [False, True])
def test_the_mean_in_buckets_of_one_layout(
    sent: list[torch.Tensor], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Update after update: the same buckets in the same order; a parameter without a gradient keeps None."""
    monkeypatch.setattr(reduction, "FIRST_BUCKET_BYTES", 2000)
    monkeypatch.setattr(reduction, "BUCKET_BYTES", 1_000_000)
    net = Net()
    expected = gradients(net, None)
    mean = GradientMean(list(net.parameters()), 2, bf16=bf16)
    assert [len(bucket.places) for bucket in mean.buckets] == [3, 2, 3]  # the last parameters first
    for number in range(3):
        found = gradients(net, mean)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            want = expected[name]
            if want is None:
                assert value is None, name
            elif not bf16:
                assert torch.equal(value, want), name  # half of it, twice
            else:
                assert torch.allclose(value, want, rtol=2**-8, atol=0), name
        assert [len(part) for part in sent[3 * number :]] == [len(bucket.flat) for bucket in mean.buckets]
    assert {part.dtype for part in sent} == {torch.bfloat16 if bf16 else torch.float32}
    places = {id(parameter): view for bucket in mean.buckets for parameter, view in bucket.places}
    for parameter in net.parameters():  # in the bucket itself: memory holds no second copy
        assert parameter.grad is None or parameter.grad.data_ptr() == places[id(parameter)].data_ptr()
    assert net.first.weight.grad is not None
    assert net.first.weight.grad.stride() == net.first.weight.stride()


def test_passes_that_are_not_announced_are_left_alone(sent: list[torch.Tensor]) -> None:
    net = Net()
    expected = gradients(net, None)
    mean = GradientMean(list(net.parameters()), 2)
    assert all(
        a is b or torch.equal(a, b) for a, b in zip(gradients(net, None).values(), expected.values(), strict=True)
    )
    assert not sent
    with pytest.raises(RuntimeError, match="finish without begin"):
        mean.finish()
