"""A tiny trained run and a classifier of its classes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

Copy = Callable[[], Path]


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> str:
    """A classifier that is right about every image of the tiny shards."""
    from trainer.metrics.classifier import save_classifier, train_classifier

    path = tmp_path_factory.mktemp("judge") / "classifier.safetensors"
    model, info = train_classifier(str(tiny_shards), str(tiny_shards), epochs=40, seed=0, width=4, batch_size=30)
    assert info.test_accuracy == 1.0
    save_classifier(path, model, info)
    return str(path)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """A run of 4 iterations with checkpoints at 2 and 4."""
    from trainer.config import load_config
    from trainer.launch import Launch
    from trainer.loop import train

    folder = tmp_path_factory.mktemp("runs")
    tree = {
        "run": {"dir": str(folder / "tiny"), "seed": 3, "iterations": 4, "checkpoint_every": 2, "log_every": 1},
        "data": {"shards": str(tiny_shards)},
        "batch": {"replicas": 1, "real_per_replica": 4, "generated_per_replica": 6},
        "model": {"resolution": 32, "image_channels": 1, "classes": 3, "latent_dim": 8},
        "generator": {"name": "resnet", "channels": 8},
        "discriminator": {"name": "resnet", "channels": 8, "conditioning": {"name": "projection"}},
        "objective": {"name": "adversarial"},
        "schedule": {"discriminator_steps": 1, "stages": [{"until": 1_000_000}]},
        "ema": {"decay": 0.9},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    launch = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
    assert train(load_config(str(path)), launch)
    return folder / "tiny"


@pytest.fixture
def run(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run, and a cache of its own."""
    monkeypatch.setenv("MENAGERIE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained_run, tmp_path / "tiny"))
