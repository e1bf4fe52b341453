"""A tiny trained run and a classifier of its classes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Copy = Callable[[], Path]


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> str:
    """A classifier that is right about every image of the tiny shards."""
    from trainer.classifiers.training import save_classifier, train_classifier

    path = tmp_path_factory.mktemp("judge") / "classifier.safetensors"
    model, info = train_classifier(str(tiny_shards), str(tiny_shards), epochs=40, seed=0, width=4, batch_size=30)
    assert info.test_accuracy == 1.0
    save_classifier(path, model, info)
    return str(path)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_in: Callable[..., Path]) -> Path:
    """A run of 4 iterations with checkpoints at 2 and 4."""
    from trainer.config import load_config
    from trainer.processes.launch import Launch
    from trainer.training.loop import train

    folder = tmp_path_factory.mktemp("runs")
    batch = {"replicas": 1}
    path = tiny_in(folder, "tiny", run={"iterations": 4}, batch=batch, schedule={"discriminator_steps": 1})
    launch = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
    assert train(load_config(str(path)), launch)
    return folder / "tiny"


@pytest.fixture
def run(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run, and a cache of its own."""
    monkeypatch.setenv("MENAGERIE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained_run, tmp_path / "tiny"))
