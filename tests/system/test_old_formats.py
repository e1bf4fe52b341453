"""Checkpoints, exports and settings files of earlier versions load, resume with equal bits, and are sampled.

tests/data/VERSION holds a run of 3 iterations on the tests' own tiny shards, its export, the state of the same run after 6
iterations and samples of the export, all written by that version (about.json names its commit).
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import load_config
from trainer.trained.pretrained import Generator, open_generator

DATA = Path(__file__).resolve().parent.parent / "data"
VERSIONS = sorted(path.name for path in DATA.iterdir() if (path / "about.json").exists())


def this_machine() -> str:
    """What the last bits depend on: the processor's name, what it can do, and PyTorch's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = [next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags")]
    return hashlib.sha256("\n".join([*found, torch.__version__]).encode()).hexdigest()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_run_resumes_with_equal_bits(
    version: str, tmp_path: Path, tiny_shards: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shutil.copytree(DATA / version / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"  # the settings file that the old version wrote
    words = ["--run.dir", tmp_path / "run", "--data.shards", tiny_shards, "--run.iterations", 6]
    done = command(config, *words)
    assert done.returncode == 0, done.stderr
    assert "resumes at iteration 3 of 6" in done.stdout
    restored = CheckpointStore(str(tmp_path / "run")).restore()
    assert restored is not None
    expected = load_file(DATA / version / "final.safetensors")
    assert restored.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(restored.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    if json.loads((DATA / version / "about.json").read_text())["machine"] == this_machine():
        assert [name for name, tensor in expected.items() if not torch.equal(restored.tensors[name], tensor)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_export_is_sampled(version: str) -> None:
    expected = load_file(DATA / version / "samples.safetensors")["samples"]
    samples = Generator.from_pretrained(str(DATA / version / "export")).sample(["0", "1", "2"], seed=1)
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_run_is_sampled(version: str) -> None:
    generator = open_generator(str(DATA / version / "run"))
    assert generator.training["iteration"] == 3
    torch.testing.assert_close(
        generator.sample(["0", "1", "2"], seed=1),
        load_file(DATA / version / "samples.safetensors")["samples"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_old_settings_mean_what_they_meant(version: str) -> None:
    config = load_config(str(DATA / version / "run" / "config.yaml"))
    assert config.optimizer.generator.name == "adam"
    assert config.problem().schedule.discriminator_steps == 2
