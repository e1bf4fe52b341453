"""StyleGAN killed at every iteration across a whole fade: equal bits, also on another number of processes; its sheets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.support.resuming import state_of, train_and_be_killed
from trainer import export, sample
from trainer.checkpoint.format import state_hash
from trainer.config import Config, check_launch, load_config
from trainer.foundation.errors import SettingError
from trainer.methods.sampling import Truncating
from trainer.processes.launch import Launch, read_launch
from trainer.trained.pretrained import Generator, open_generator
from trainer.training import loop

ITERATIONS, FADE = 9, (3, 7)
"""16 images at 16 px, then 40 while 32 px fades in, 8 an iteration: the first iteration of the fade, and the one behind it."""
Write = Callable[..., Config]
WIDTHS = {"fmap_base": 32, "fmap_max": 8}
MAPPING = {"mapping_layers": 2, "mapping_width": 6, "mapping_rate": 0.1}


@pytest.fixture(scope="module")
def write(tiny_in: Callable[..., Path]) -> Write:
    """`write(folder)` gives the settings of a run in folder/run."""

    def written(folder: Path, generator: dict[str, Any] | None = None, **objective: Any) -> Config:
        folder.mkdir(exist_ok=True)
        growth = {"first_resolution": 16, "stable_images": 16, "fade_images": 40, "repeats": 1}
        game = {"name": "stylegan", "growth": growth, "generator": WIDTHS | MAPPING | (generator or {})}
        path = tiny_in(
            folder,
            run={"iterations": ITERATIONS, "deterministic": True, "checkpoint_every": 1},
            batch={"replicas": 2, "real_per_replica": 4, "dequantize": False},
            objective=game | {"discriminator": WIDTHS, "penalty": {"name": "r1", "gamma": 1.0}} | objective,
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


def test_the_state_has_the_mean_of_w_and_the_noise(straight: Config) -> None:
    state = state_of(straight.run.dir)
    mean = state["generator/w_average.value"]
    assert mean.abs().max() > 0
    # The average was taken before the last iteration: it has an earlier mean of w, copied and not averaged.
    assert not torch.equal(state["ema/w_average.value"], mean)
    assert torch.equal(state["ema/first.stored"], state["generator/first.stored"])
    assert int(state["generator.adam/step"]) == ITERATIONS - FADE[1]
    assert state["generator/blocks.32.ending2.noise"].abs().max() > 0


@pytest.mark.parametrize("iteration", [FADE[0], FADE[0] + 2, FADE[1]])
def test_killed_next_to_an_edge_it_resumes_with_equal_bits(
    iteration: int, write: Write, straight: Config, tmp_path: Path
) -> None:
    """The checkpoint is that of the edge itself, or of the fade."""
    config = write(tmp_path / "killed")
    train_and_be_killed(config, iteration)
    assert loop.train(config, read_launch())
    expected, found = state_of(straight.run.dir), state_of(config.run.dir)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_zero_is_refused(straight: Config) -> None:
    launch = Launch(0, 1, 0, torch.device("cpu"), "fp32", "zero1")
    path, free = f"{straight.run.dir}/config.yaml", ["--run.deterministic", "false"]
    with pytest.raises(SettingError, match=r"^objective\.penalty: is on, .* zero1"):
        check_launch(load_config(path, free), launch)
    calm = load_config(path, [*free, "--objective.penalty", "{name: none}"])
    with pytest.raises(SettingError, match=r"^objective\.name: stylegan lets optimizers start anew, .* zero1"):
        check_launch(calm, launch)


def test_truncation_and_sheets_by_the_ordinary_command(straight: Config, tmp_path: Path) -> None:
    run, out = straight.run.dir, tmp_path / "out"
    for name, words, cells in (
        ("grid", ["--truncation", "0.5"], 3 * 2),
        ("mixing", ["--mix"], (1 + 2 * 3) * 4),
        ("truncation", ["--sheet", "truncation"], 3 * 2 * 7),
        ("mean", ["--sheet", "mean"], 1),
        ("slerp", ["--sheet", "slerp", "--steps", "3"], 3 * 1 * 3),
        ("interpolation", ["--interpolate", "--steps", "3"], 3 * 2 * 3),
    ):
        assert sample.main([run, "--count", "2", "--out", str(out), *words]) == 0
        assert len(list((out / name).iterdir())) == cells, name
    assert json.loads((out / "truncation.json").read_text())["columns"][4] == "psi 0"
    # psi = 0 is the mean image for every sample (the noise is the stored one in sheets).
    mean = np.asarray(Image.open(next((out / "mean").iterdir())))
    for row in range(6):
        (found,) = (out / "truncation").glob(f"{row:03d}*_0004.png")
        np.testing.assert_array_equal(np.asarray(Image.open(found)), mean)
    with pytest.raises(
        SettingError, match=r"^--sheet: there is no sheet 'mixed'; there are truncation: a row per sample"
    ):
        sample.main([run, "--sheet", "mixed", "--out", str(out)])


def test_an_export_samples_and_truncates_alike(straight: Config, tmp_path: Path) -> None:
    assert export.main([straight.run.dir, str(tmp_path / "export")]) == 0
    exported, of_run = Generator.from_pretrained(str(tmp_path / "export")), open_generator(straight.run.dir)
    for psi in (None, 0.3):
        made = exported.sample([0, 2], count=2, seed=1, truncation=psi)
        assert torch.equal(made, of_run.sample([0, 2], count=2, seed=1, truncation=psi))
    assert not torch.equal(exported.sample([0], truncation=0.3), exported.sample([0]))


def test_a_generator_without_styles_refuses_truncation_and_sheets(write: Write, tmp_path: Path) -> None:
    config = write(tmp_path / "run", generator={"styles": False, "mapping_layers": 0}, mixing=0.0)
    loop.train(load_config(str(tmp_path / "run/run.yaml"), ["--run.iterations", "1"]), read_launch())
    assert not isinstance(open_generator(config.run.dir).sampler, Truncating)
    for words, message in (
        (["--truncation", "0.5"], r"^--truncation: this generator's latents cannot be bounded; leave the option out"),
        (["--mix"], r"^--mix: this generator's method has no sheets; leave the option out"),
    ):
        with pytest.raises(SettingError, match=message):
            sample.main([config.run.dir, *words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


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
    write(tmp_path / "two")
    done = command(tmp_path / "two/run.yaml", processes=2)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(tmp_path / "two/run")) == expected
    with capsys.disabled():
        print(
            f"\nPROOF method-styles: PASS killed in each of {ITERATIONS} iterations, resumed on 1 and 2 processes, "
            f"equal bits: {expected[:16]}"
        )
