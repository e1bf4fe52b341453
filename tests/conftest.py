"""A tiny experiment on generated shards, for the tests that train."""

import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

# Before torch is imported: one thread per process (two that spin can be ten times slower than one).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
Experiment = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 90 grey 32x32 images of 3 classes (noise round a level that depends on the class), 40 a shard."""
    from data_pipeline.make_shards import __main__ as make_shards

    folder, output = tmp_path_factory.mktemp("idx"), tmp_path_factory.mktemp("tiny") / "shards"
    labels = (np.arange(90) % 3).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 20, (90, 28, 28))
    images = (60 + 60 * labels[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
    assert make_shards.main(["idx", str(folder), str(output), "--samples-per-shard", "40", "--jobs", "1"]) == 0
    return output


@pytest.fixture(scope="session")
def tiny_in(tiny_shards: Path) -> Callable[..., Path]:
    """`tiny_in(folder, name, section={...}, ...)` writes the YAML of a training of a few seconds whose run is
    folder/name, and returns its path."""

    def write(folder: Path, name: str = "run", **sections: dict[str, Any]) -> Path:
        tree: Experiment = {
            "run": {"dir": str(folder / name), "seed": 3, "iterations": 6, "checkpoint_every": 2, "log_every": 1},
            "data": {"shards": str(tiny_shards)},
            "batch": {"replicas": 2, "real_per_replica": 4, "generated_per_replica": 6},
            "model": {"resolution": 32, "image_channels": 1, "classes": 3, "latent_dim": 8},
            "generator": {"name": "resnet", "channels": 8},
            "discriminator": {"name": "resnet", "channels": 8, "conditioning": {"name": "projection"}},
            "objective": {"name": "adversarial"},
            "schedule": {"discriminator_steps": 2, "stages": [{"until": 1_000_000}]},
            "ema": {"decay": 0.9},
        }
        tree["run"]["sample_every"] = 0
        for section, values in sections.items():
            tree[section] = {**tree.get(section, {}), **values}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture
def tiny(tiny_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`tiny_in` with the test's own folder."""
    return partial(tiny_in, tmp_path)


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command(*words, processes=1, **environment)`: runs the trainer's main.py and returns what it printed."""

    def run(*words: object, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            training_command(*words, processes=processes),
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def training_command(*words: object, processes: int = 1) -> list[str]:
    """The command line of a training: plain python for one process, accelerate's launcher for several."""
    main = [str(ROOT / "trainer" / "main.py"), *map(str, words)]
    if processes == 1:
        return [sys.executable, *main]
    accelerate = str(Path(sys.executable).parent / "accelerate")
    launch = ["launch", "--config_file", str(ROOT / "cluster/launch/cpu.yaml"), "--num_processes", str(processes)]
    return [accelerate, *launch, *main]
