"""The draws of an iteration on another device than the CPU. The device `meta` stands for it: it knows where a tensor is."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.games import method_of
from trainer.foundation import transfer
from trainer.foundation.pixels import normalise
from trainer.foundation.transfer import to_device
from trainer.methods.adversarial import AdversarialConfig
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig
from trainer.models import ModelConfig
from trainer.training.draws import Draws, Source, anything_draws

CPU, OTHER = torch.device("cpu"), torch.device("meta")
REPLICAS, COUNT = 2, 3


def stream() -> Iterator[SimpleNamespace]:
    """Batches of 32 px images, all in the same memory, as the loader gives them."""
    images = torch.zeros(REPLICAS, COUNT, 32, 32, 3, dtype=torch.uint8)
    labels, positions = (
        torch.zeros(REPLICAS, COUNT, dtype=torch.int64),
        torch.arange(REPLICAS * COUNT).view(REPLICAS, -1),
    )
    for number in range(100):
        images.fill_(number)
        labels.fill_(number % 3)
        yield SimpleNamespace(fields={"image": images, "class": labels}, positions=positions)


def draws_on(device: torch.device) -> Draws:
    batch = BatchConfig(replicas=REPLICAS, real_per_replica=COUNT, generated_per_replica=4, dequantize=True)
    model = ModelConfig(resolution=32, classes=3, latent_dim=4)
    method = method_of(model=model, batch=batch, schedule=ScheduleConfig(discriminator_steps=2))
    source: Any = Source("data", stream(), dequantize=True, horizontal_flip=True)  # type: ignore[arg-type]
    return Draws(method, {"data": source}, 0, 0, 0, range(REPLICAS), device)


def all_draws(device: torch.device) -> list[dict[str, torch.Tensor]]:
    draws = draws_on(device)
    return [draw for turn in draws.method.turns(0) for draw in draws.of(turn)]


def test_no_copy_to_the_device_makes_the_host_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """`.to(device)` waits for all that the device has to do, also from page-locked memory, unless it is told not to."""
    waited: list[tuple[Any, ...]] = []
    moves = torch.Tensor.to

    def to(self: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        result = moves(self, *given, **options)
        if self.device != result.device and not options.get("non_blocking"):
            waited.append(given)
        return result

    monkeypatch.setattr(torch.Tensor, "to", to)
    found = all_draws(OTHER)
    assert all(value.device == OTHER for draw in found for value in draw.values())
    assert not waited


def test_every_number_is_drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's generator gives other numbers than a CPU's, and beyond some count other ones on each model of GPU."""
    where: list[tuple[torch.device, int]] = []
    rand = torch.rand

    def noted(*size: Any, **options: Any) -> torch.Tensor:
        result = rand(*size, **options)
        where.append((result.device, result.numel()))
        return result

    monkeypatch.setattr(torch, "rand", noted)
    all_draws(OTHER)
    assert {device for device, _ in where} == {CPU}
    assert COUNT * 32 * 32 * 3 in {numbers for _, numbers in where}


def test_the_noise_has_golden_values() -> None:
    """On the CPU, whatever trains: 8 numbers of U(0, 1) from the key of a draw."""
    source = draws_on(CPU).keys(draws_on(CPU).method.turns(0)[0], 0).generator("golden")
    found = normalise(torch.full((1, 2, 4, 1), 128, dtype=torch.uint8), source)
    assert [round(128 * float(value), 6) for value in found.flatten()] == GOLDEN


GOLDEN = [0.796921, 0.11644, 0.756088, 0.482452, 0.872711, 0.896713, 0.942612, 0.419174]


def test_what_was_sent_may_be_overwritten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that reads late, behind all that it has to do: it still sees the numbers of the moment of sending."""
    late: list[torch.Tensor] = []
    moves = torch.Tensor.to

    def to(self: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        late.append(self)
        return moves(self, *given, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    value = torch.arange(6.0).view(2, 3)
    to_device(value, OTHER)
    value.fill_(-1)
    assert late[0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    late.clear()
    assert to_device(value, CPU) is value


def test_a_number_that_is_fetched_later_is_that_of_the_moment_of_asking() -> None:
    value = torch.ones(())
    fetched = transfer.fetch_later(value)
    value.zero_()
    assert float(fetched()) == 1.0


def test_nothing_is_seeded_where_nothing_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 times an iteration, for networks without dropout. Whatever does not say that it draws nothing is seeded for."""
    silent, drawing = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Dropout(0.5))
    method = draws_on(CPU).method
    assert not anything_draws(method, [silent])
    assert anything_draws(method, [silent, drawing])
    assert anything_draws(SimpleNamespace(), [silent])  # type: ignore[arg-type]
    assert anything_draws(method_of(AdversarialConfig(penalty=GradientPenaltyConfig())), [silent])
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for seeded in (False, True):
        replace(draws_on(CPU), seeded=seeded).seed_layers(method.turns(0)[0], 0)
        assert len(seeds) == seeded
