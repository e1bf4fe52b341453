"""The number of processes belongs to the launch: the same experiment on 1, 2 and 3 processes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import load_config
from trainer.processes.launch import Launch
from trainer.training.draws import Draws
from trainer.training.loop import open_source

Command = Callable[..., subprocess.CompletedProcess[str]]


def launch(rank: int, world_size: int) -> Launch:
    strategy = "ddp" if world_size > 1 else "single"
    return Launch(rank, world_size, 0, torch.device("cpu"), "fp32", strategy)


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_the_draws_do_not_depend_on_the_process_count(tiny: Callable[..., Path], world_size: int) -> None:
    """Real images, labels and latents of every replica: the same bytes, whichever process holds it, or a part of it."""
    config = load_config(str(tiny()), ["--batch.replicas", "4", "--data.horizontal_flip", "true"])
    method = config.objective.build(config.problem())

    def draws(rank: int, world: int) -> dict[tuple[int, int, int, int], dict[str, torch.Tensor]]:
        """By iteration, turn, replica and part."""
        here, found = launch(rank, world), {}
        held, part, parts = here.held_replicas(4), here.part(4), here.parts(4)
        with open_source(config, method, "data", here, 5) as source:
            for iteration in range(5, 8):
                of_iteration = Draws(
                    method, {"data": source}, config.run.seed, iteration, 0, held, here.device, True, part, parts
                )
                for turn in method.turns(iteration):
                    for replica, draw in zip(held, of_iteration.of(turn), strict=True):
                        found[iteration, turn.number, replica, part] = draw
        return found

    whole = draws(0, 1)
    found = {key: draw for rank in range(world_size) for key, draw in draws(rank, world_size).items()}
    assert len(whole) == 3 * 3 * 4
    assert len(found) == 3 * 3 * max(4, world_size)
    for (iteration, number, replica, _), draw in whole.items():
        parts = [found[iteration, number, replica, part] for part in range(launch(0, world_size).parts(4))]
        assert all(part.keys() == draw.keys() for part in parts)
        for name, value in draw.items():
            assert torch.equal(value, torch.cat([part[name] for part in parts])), (iteration, number, replica, name)


def test_losses_agree_on_1_2_and_3_processes(tiny: Callable[..., Path], tmp_path: Path, command: Command) -> None:
    """20 iterations of 4 replicas; 3 processes hold 2 + 1 + 1. Only the order of summation may differ.

    With the usual epsilon Adam turns the rounding noise of gradients that are truly 0 (biases in front of batch norm) into
    steps as large as the learning rate, and a real difference could hide behind that; a large epsilon prevents it. A small
    rate keeps the 20 iterations out of chaos.
    """
    curves = {}
    adam = {"epsilon": 1e-3, "learning_rate": 1e-4}
    for processes in (1, 2, 3):
        path = tiny(
            f"on{processes}",
            run={"iterations": 20, "checkpoint_every": 20, "heartbeat_every": 5},
            batch={"replicas": 4, "real_per_replica": 4, "generated_per_replica": 4},
            optimizer={"generator": adam, "discriminator": adam},
        )
        done = command(path, processes=processes)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / f"on{processes}" / "metrics.jsonl").read_text().splitlines()
        curves[processes] = [json.loads(line) for line in lines]
    assert [record["iteration"] for record in curves[1]] == list(range(1, 21))
    for processes in (2, 3):
        for one, several in zip(curves[1], curves[processes], strict=True):
            for name in ("loss/discriminator", "loss/generator", "score/real", "score/fake"):
                assert several[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4), (
                    processes,
                    one["iteration"],
                    name,
                )


def test_more_processes_than_replicas_is_refused(tiny: Callable[..., Path], command: Command) -> None:
    done = command(tiny(), processes=3)
    assert done.returncode != 0
    assert "batch.replicas: is 2, but the launch started 3 processes" in done.stderr


@pytest.mark.parametrize(("processes", "precision"), [(2, "fp32"), (1, "bf16")])
def test_a_state_is_the_same_bits_on_another_launch(
    tiny: Callable[..., Path], tmp_path: Path, command: Command, processes: int, precision: str
) -> None:
    """A branch that ends where it begins saves what it loaded: the hash of one process in fp32."""
    assert command(tiny("base"), "--run.iterations", 2).returncode == 0
    branch = tiny("branch", run={"iterations": 2, "initialize_from": f"{tmp_path / 'base'}@2"})
    mixed = "no" if precision == "fp32" else precision
    done = command(branch, processes=processes, ACCELERATE_MIXED_PRECISION=mixed)
    assert done.returncode == 0, done.stderr
    base, moved = (CheckpointStore(str(tmp_path / name)).restore() for name in ("base", "branch"))
    assert base is not None
    assert moved is not None
    assert base.commit.state_sha256 == moved.commit.state_sha256
    assert (moved.commit.info["world_size"], moved.commit.info["precision"]) == (processes, precision)
