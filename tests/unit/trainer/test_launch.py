"""How replicas are dealt to processes, and launches that are refused."""

import pytest
import torch

from trainer.errors import TrainerError
from trainer.launch import Launch, held_description, read_launch


def launch(rank: int, world_size: int) -> Launch:
    return Launch(rank, world_size, 0, torch.device("cpu"), "fp32", "ddp")


@pytest.mark.parametrize("replicas", range(1, 9))
def test_blocks_are_contiguous_complete_and_even(replicas: int) -> None:
    for world_size in range(1, replicas + 1):
        blocks = [launch(rank, world_size).held_replicas(replicas) for rank in range(world_size)]
        assert [replica for block in blocks for replica in block] == list(range(replicas))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
        assert 0 in blocks[0]


def test_more_processes_than_replicas_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(TrainerError, match=r"batch.replicas: is 2, but the launch started 5 processes, and 3 of them"):
        launch(0, 5).held_replicas(2)


def test_description() -> None:
    assert held_description(launch(0, 3), 4) == "4 replicas on 3 processes (2 + 1 + 1), ddp, fp32, cpu"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed_precision .accelerate's YAML.: is 'fp8'"),
        ("ACCELERATE_USE_FSDP", "true", "distributed_type .accelerate's YAML.: is FSDP"),
    ],
)
def test_unsupported_launches_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TrainerError, match=message):
        read_launch()
