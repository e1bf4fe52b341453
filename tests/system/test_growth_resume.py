"""A network that grows, killed at every iteration across a whole fade: equal bits, also on another number of processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.resuming import state_of, train_and_be_killed
from trainer.checkpoint.format import state_hash
from trainer.config import Config, load_config
from trainer.metrics.records import read_records
from trainer.processes.launch import read_launch
from trainer.training import loop

ITERATIONS, FADE = 9, (3, 7)
"""16 images at 16 px, then 40 while 32 px fades in, 8 an iteration: the first iteration of the fade, and the one behind it."""
Write = Callable[..., Config]


@pytest.fixture(scope="module")
def write(tiny_in: Callable[..., Path]) -> Write:
    """`write(folder)` gives the settings of a run in folder/run."""

    def written(folder: Path, **objective: Any) -> Config:
        folder.mkdir(exist_ok=True)
        widths = {"fmap_base": 32, "fmap_max": 8}
        growth = {"first_resolution": 16, "stable_images": 16, "fade_images": 40, "repeats": 1}
        game = {"name": "pggan", "growth": growth, "generator": widths}
        path = tiny_in(
            folder,
            run={"iterations": ITERATIONS, "deterministic": True, "checkpoint_every": 1},
            batch={"replicas": 2, "real_per_replica": 4, "dequantize": False},
            objective=game | {"discriminator": widths | {"noisy": True}} | objective,
            optimizer={"generator": {"beta2": 0.99, "learning_rate": 0.01}},
            ema={"half_life": 30, "warm_up": False, "taken": "before"},
        )
        tree = yaml.safe_load(path.read_text())
        del tree["generator"], tree["discriminator"], tree["ema"]["decay"]
        path.write_text(yaml.safe_dump(tree))
        return load_config(str(path))

    return written


@pytest.fixture(scope="module")
def straight(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """An undisturbed run."""
    config = write(tmp_path_factory.mktemp("growth") / "straight")
    assert loop.train(config, read_launch())
    return config


def test_the_state_has_what_growth_leaves(straight: Config) -> None:
    state = state_of(straight.run.dir)
    # Reset at both ends of the fade: the last one 2 iterations before the end.
    assert int(state["generator.adam/step"]) == ITERATIONS - FADE[1]
    assert int(state["generator.adam/step/to_rgb.16.weight"]) == 0  # it no longer acts
    assert not state["generator.adam/exp_avg_sq/to_rgb.16.weight"].any()
    assert not torch.equal(state["generator/blocks.32.conv1.weight"], state["ema/blocks.32.conv1.weight"])
    assert torch.equal(state["generator/to_rgb.8.weight"], state["ema/to_rgb.8.weight"])  # it never acted
    assert state["generator/reached.resolution"].item() == 32
    assert state["memory/score"].shape == (2,)


@pytest.mark.parametrize("iteration", [FADE[0], FADE[0] + 1, FADE[1], FADE[1] + 1])
def test_killed_next_to_an_edge_it_resumes_with_equal_bits(
    iteration: int, write: Write, straight: Config, tmp_path: Path
) -> None:
    """The checkpoint is that of the edge itself, or of the iterations next to it."""
    config = write(tmp_path / "killed")
    train_and_be_killed(config, iteration)
    assert loop.train(config, read_launch())
    expected, found = state_of(straight.run.dir), state_of(config.run.dir)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_records_say_at_which_level_they_were_taken(write: Write, tmp_path: Path) -> None:
    from trainer import evaluate, sample
    from trainer.foundation.errors import SettingError

    config = write(tmp_path / "run")
    assert loop.train(load_config(str(tmp_path / "run/run.yaml"), ["--run.iterations", "5"]), read_launch())
    assert evaluate.main([config.run.dir, "--measures", "ms_ssim", "--pairs", "2", "--cache", str(tmp_path)]) == 0
    (record, *_) = read_records(config.run.dir)
    assert record["grown"]["resolution"] == 32
    assert 0 < record["grown"]["fade"] < 1
    with pytest.raises(SettingError, match=r"^--truncation|^truncation"):
        sample.main([config.run.dir, "--truncation", "0.5", "--count", "1", "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_proof(
    write: Write, straight: Config, tmp_path: Path, command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at every iteration from before the fade to behind it, resumed on 1 and on 2 processes; and 2 processes alone."""
    expected = state_hash(state_of(straight.run.dir))
    for iteration in range(1, ITERATIONS + 1):
        for processes in (1, 2):
            folder = tmp_path / f"{iteration}-{processes}"
            config = write(folder)
            train_and_be_killed(config, iteration)
            if processes == 1:
                assert loop.train(config, read_launch())
            else:
                done = command(folder / "run.yaml", processes=processes)
                assert done.returncode == 0, done.stderr
            assert state_hash(state_of(config.run.dir)) == expected, (iteration, processes)
    config = write(tmp_path / "two")
    done = command(tmp_path / "two/run.yaml", processes=2)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(config.run.dir)) == expected
    with capsys.disabled():
        print(
            f"\nPROOF method-growth: PASS killed in each of {ITERATIONS} iterations, resumed on 1 and 2 processes, "
            f"equal bits: {expected[:16]}"
        )


@pytest.mark.slow
def test_reduced_by_the_strategy_it_differs_by_rounding(
    write: Write, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """DDP's own sums, with levels that no loss reaches; next to those in the order of the replicas."""
    config = write(tmp_path / "one")
    assert loop.train(load_config(str(tmp_path / "one/run.yaml"), ["--run.iterations", "5"]), read_launch())
    write(tmp_path / "two")
    words = ("--run.deterministic", "false", "--run.iterations", "5")
    done = command(tmp_path / "two/run.yaml", *words, processes=2)
    assert done.returncode == 0, done.stderr
    found = state_of(tmp_path / "two/run")
    for name, tensor in state_of(config.run.dir).items():
        if not name.startswith(("generator.adam", "discriminator.adam")):
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-2, msg=name)
        elif "/step" in name:
            assert torch.equal(found[name], tensor)
