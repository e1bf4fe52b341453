"""The conditional GAN of 2014 and semi-supervised GANs: killed anywhere they resume with equal bits, on 1, 2, 3 processes."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.resuming import state_of, train_and_be_killed
from trainer.checkpoint.format import state_hash
from trainer.config import load_config
from trainer.foundation.errors import SettingError
from trainer.processes.launch import Launch, read_launch
from trainer.training import loop

ITERATIONS = 9
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.5, "final_momentum": 0.7, "momentum_steps": 6}
SGAN: dict[str, Any] = {
    "batch": {"replicas": 3, "dequantize": False},
    "model": {"latent_distribution": "unit_uniform"},
    "optimizer": {"generator": {"beta1": 0.5}, "discriminator": {"beta1": 0.5}},
    "schedule": {"discriminator_steps": 1, "generator_first": False},
}
GAMES: dict[str, dict[str, Any]] = {
    "cgan": {
        "batch": {"replicas": 3, "dequantize": False},
        "model": {"latent_distribution": "unit_uniform"},
        "generator": {"name": "mlp", "latent_width": 6, "class_width": 8, "joint_width": 10},
        "discriminator": {"name": "maxout", "image_units": 8, "class_units": 4, "joint_units": 6},
        "objective": {"loss": "non_saturating"},
        "optimizer": {"generator": SGD, "discriminator": SGD},
        "schedule": {"stages": [{"until": 20, "learning_rate": {"name": "exponential", "divisor": 1.3, "floor": 0.2}}]},
    },
    "sgan": {
        **SGAN,
        "objective": {"name": "sgan", "first_samples": 20},
        "discriminator": {"name": "improved_mlp", "widths": [8, 6]},
        "generator": {"name": "improved_mlp", "widths": [5, 6]},
    },
    "sgan_odena": {
        **SGAN,
        "objective": {"name": "sgan", "form": "fake_class", "first_samples": 20},
        "discriminator": {"name": "improved_conv", "widths": [2, 3], "fake_class": True},
        "generator": {"name": "improved_conv", "widths": [4, 3, 2]},
    },
}


@pytest.fixture
def written(tiny_in: Callable[..., Path]) -> Callable[..., Path]:
    """`written(folder, game)` writes the settings of the game; its run is folder/run."""

    def write(folder: Path, game: str) -> Path:
        sections = {name: dict(values) for name, values in GAMES[game].items()}
        sections["run"] = {"iterations": ITERATIONS, "deterministic": True, "checkpoint_every": 1}
        path = tiny_in(folder, "run", **sections)
        tree = yaml.safe_load(path.read_text())
        # Those of the tiny experiment are another network's.
        tree |= {section: GAMES[game][section] for section in ("generator", "discriminator")}
        if "sgan" in game:
            tree["sources"] = {"labelled": {**tree["data"], "labelled_per_class": 4}}
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize("game", GAMES)
def test_killed_it_resumes_with_equal_bits(game: str, written: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight, killed = (load_config(str(written(tmp_path / name, game))) for name in ("straight", "killed"))
    assert loop.train(straight, read_launch())
    train_and_be_killed(killed, 6)
    assert loop.train(killed, read_launch())
    expected = state_of(straight.run.dir)
    assert differing(expected, state_of(killed.run.dir)) == []
    if game == "cgan":
        assert any("momentum_buffer" in name and value.any() for name, value in expected.items())
    else:  # both players are averaged, and scales began from data
        assert {name.split("/")[1] for name in expected if name.startswith("ema/")} == {"generator", "discriminator"}
        assert all(
            not torch.equal(value, torch.ones_like(value)) for name, value in expected.items() if "scale" in name
        )


@pytest.mark.parametrize("game", ["cgan"])
def test_zero_has_a_sentence(game: str, written: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(str(written(tmp_path, game)), ["--run.deterministic", "false"])
    launch = Launch(0, 1, 0, torch.device("cpu"), "fp32", "zero1")
    with pytest.raises(SettingError, match=r"^optimizer: the player generator has the optimizer sgd, .* zero1"):
        loop.State(config, config.objective.build(config.problem()), launch)


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_proof(game: str, written: Callable[..., Path], tmp_path: Path, command: Callable[..., Any]) -> None:
    """Killed at 10 random points; and 1, 2 and 3 processes."""
    (tmp_path / "straight").mkdir()
    straight = load_config(str(written(tmp_path / "straight", game)))
    assert loop.train(straight, read_launch())
    expected = state_hash(state_of(straight.run.dir))
    source, points = random.Random(game), []
    for number in range(10):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        config = load_config(str(written(folder, game)))
        points.append(source.randint(1, ITERATIONS))
        train_and_be_killed(config, points[-1])
        assert loop.train(config, read_launch())
        assert state_hash(state_of(config.run.dir)) == expected, points[-1]
        shutil.rmtree(folder)
    for processes in (2, 3):
        folder = tmp_path / f"processes{processes}"
        folder.mkdir()
        path = written(folder, game)
        done = command(path, processes=processes)
        assert done.returncode == 0, done.stderr
        assert state_hash(state_of(load_config(str(path)).run.dir)) == expected, processes
    print(f"PROOF method-{game}: PASS killed in the iterations {points}, on 1, 2 and 3 processes: {expected[:16]}")
