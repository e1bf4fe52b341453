"""Super-resolution through the ordinary commands: trained, resumed, on two processes, sampled, evaluated, exported."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from data_pipeline.make_shards import __main__ as make_shards
from trainer import evaluate, export, sample
from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import state_hash
from trainer.classifiers.training import save_classifier, train_classifier
from trainer.config import load_config
from trainer.foundation.errors import SettingError
from trainer.metrics.records import read_records
from trainer.processes.launch import read_launch
from trainer.training.loop import train

ITERATIONS = 4
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 smooth pictures of 32 px in two classes, dark and light."""
    folder = tmp_path_factory.mktemp("large")
    for number, small in enumerate(np.random.default_rng(0).integers(0, 128, (32, 8, 8, 3), dtype=np.uint8)):
        place = folder / ("dark" if number % 2 else "light")
        place.mkdir(exist_ok=True)
        image = Image.fromarray(small + np.uint8(0 if number % 2 else 127))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{number:03d}.png")
    out = tmp_path_factory.mktemp("shards") / "out"
    words = ["folder", str(folder), str(out), "--size", "32", "--encoding", "png", "--jobs", "1"]
    assert make_shards.main(words) == 0
    return out


@pytest.fixture(scope="module")
def write(shards: Path) -> Write:
    def written(folder: Path, **sections: dict[str, Any]) -> Path:
        tree: dict[str, Any] = {
            "run": {"dir": str(folder / "run"), "seed": 5, "iterations": ITERATIONS, "deterministic": True},
            "data": {"shards": str(shards)},
            "batch": {"replicas": 2, "real_per_replica": 2, "generated_per_replica": 3},
            "model": {"resolution": 32, "classes": 0},
            "generator": {"name": "resnet_upscaler", "channels": 2, "noise_channels": 3},
            "discriminator": {"name": "resnet_pairs", "channels": 2},
            "objective": {"name": "superresolution"},
            "schedule": {"discriminator_steps": 2, "stages": [{"until": 99}]},
        }
        tree["run"] |= {"checkpoint_every": 1, "log_every": 2, "sample_every": 2, "heartbeat_every": 2}
        for section, values in sections.items():
            tree[section] = tree.get(section, {}) | values
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
        return folder / "settings.yaml"

    return written


def state_of(folder: Path) -> dict[str, Tensor]:
    restored = CheckpointStore(str(folder / "run")).restore()
    assert restored is not None
    assert restored.commit.iteration == ITERATIONS
    return restored.tensors


@pytest.fixture(scope="module")
def straight(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert train(load_config(str(write(folder))), read_launch())
    return folder


def test_it_resumes_with_equal_bits(write: Write, straight: Path, tmp_path: Path) -> None:
    for until in (1, 3, ITERATIONS):
        assert train(load_config(str(write(tmp_path, run={"iterations": until}))), read_launch())
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))
    with Image.open(straight / "run" / "samples" / "00000004.png") as grid:
        assert grid.height == 10 * 64
        assert grid.width > 5 * 64  # bilinear, bicubic, made twice, real


@pytest.mark.slow
def test_two_processes_are_the_same_experiment(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command(write(tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))
    print("PROOF method-upscaling-elastic: PASS 1 and 2 processes, equal sha256 of the state")


def test_files_are_enlarged(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)).save(folder / "small.png")
    run, made = str(straight / "run"), []
    assert export.main([run, str(tmp_path / "export")]) == 0
    for source, seed in ((run, "0"), (run, "1"), (str(tmp_path / "export"), "0")):
        out = tmp_path / f"out{len(made)}"
        assert sample.main([source, "--source", str(folder), "--seed", seed, "--out", str(out)]) == 0
        with Image.open(out / "small.png") as picture:
            assert picture.size == (36, 20)
        made.append((out / "small.png").read_bytes())
    assert made[0] == made[2] != made[1]  # the noise belongs to the seed
    assert sample.main([run, "--count", "2", "--out", str(tmp_path / "own")]) == 0


def test_the_table_has_the_rows_of_the_paper(
    straight: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MENAGERIE_CACHE", str(tmp_path / "cache"))
    model, info = train_classifier(str(shards), str(shards), epochs=30, seed=0, width=4, batch_size=16)
    assert info.test_accuracy == 1.0
    save_classifier(tmp_path / "judge.safetensors", model, info)
    run = str(straight / "run")
    words = [run, "--measures", "fidelity,pair_accuracy", "--samples", "32"]
    assert evaluate.main([*words, "--classifier", str(tmp_path / "judge.safetensors")]) == 0
    told = capsys.readouterr().out
    records = {record["measure"]: record for record in read_records(run)}
    for name in ("l1", "psnr", "ssim", "ms_ssim"):
        assert records[f"pair_{name}"]["rows"].keys() == {"made", "bilinear", "bicubic"}, told
    psnr = records["pair_psnr"]["rows"]
    assert psnr["made"] < psnr["bilinear"] < psnr["bicubic"]  # the pictures are bicubic, the generator is untrained
    accuracy = records["pair_accuracy"]["rows"]
    assert accuracy.keys() == {"made", "true partner", "bilinear", "bicubic"}
    assert accuracy["true partner"] == accuracy["bicubic"] == 1.0


def test_a_generator_without_partners_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert train(load_config(str(tiny(run={"iterations": 1}, schedule={"discriminator_steps": 1}))), read_launch())
    with pytest.raises(SettingError, match=r"^--measures: fidelity compares samples with their true partners"):
        evaluate.main([str(tmp_path / "run"), "--measures", "fidelity", "--samples", "10"])


def test_settings_that_do_not_fit_are_one_sentence(write: Write, tmp_path: Path) -> None:
    for words, sentence in (
        (["--model.classes", "2"], r"^model\.classes: is 2, but superresolution has no classes"),
        (["--discriminator", "{name: patchgan}"], r"^discriminator\.name: patchgan takes images alone, but"),
    ):
        with pytest.raises(SettingError, match=sentence):
            load_config(str(write(tmp_path)), words)
    with pytest.raises(SettingError, match=r"^model\.resolution: is 64, but the shards in .* hold images with 32"):
        train(load_config(str(write(tmp_path)), ["--model.resolution", "64"]), read_launch())
    assert torch.get_default_dtype() == torch.float32
