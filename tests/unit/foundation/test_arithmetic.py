"""How a GPU computes: set in one place, told in one place. No GPU is needed, since PyTorch's switches are there without."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.gpus import pretend
from trainer.foundation.arithmetic import (
    Arithmetic,
    hardware,
    hardware_changes,
    precision_now,
    set_arithmetic,
    slowness,
)
from trainer.foundation.commands import run_command

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def switches() -> tuple[bool, ...]:
    """TF32 in matrices and in convolutions, cuDNN's fixed order, cuDNN's timing."""
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark


@pytest.fixture(autouse=True)
def as_pytorch_starts() -> Iterator[None]:
    """PyTorch's own defaults, before and after."""
    for _ in range(2):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
        if _ == 0:
            yield


def test_the_arithmetic_of_every_verb_is_fp32_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own default is TF32 in convolutions, and cuDNN's kernels may add up with atomics."""
    seen: list[tuple[bool, ...]] = []
    monkeypatch.setattr(sys, "argv", ["verb"])

    def verb(arguments: list[str]) -> int:
        seen.append(switches())
        return 0

    assert run_command(verb) == 0
    assert seen == [(False, False, True, False)]


def test_every_verb_of_the_trainer_goes_through_the_one_place() -> None:
    root = Path(__file__).resolve().parents[3] / "trainer"
    commands = [path for path in root.rglob("*.py") if 'if __name__ == "__main__":' in path.read_text()]
    assert {"evaluate.py", "sample.py", "plan.py", "train_classifier.py", "main.py"} <= {path.name for path in commands}
    for path in commands:
        if path.parent.name != "checkpoint":  # it computes nothing
            assert "sys.exit(run_command(main" in path.read_text(), path


def test_a_training_sets_its_own_and_the_next_verb_takes_it_back() -> None:
    set_arithmetic(Arithmetic(tf32=True, benchmark=True))
    assert switches() == (True, True, True, True)
    assert precision_now(GPU) == "fp32 (TF32 in matrices and convolutions)"
    assert precision_now(CPU) == "fp32"
    set_arithmetic()
    assert switches() == (False, False, True, False)
    assert precision_now(GPU) == "fp32"


def test_a_record_says_tf32_where_pytorch_uses_it() -> None:
    assert precision_now(GPU) == "fp32 (TF32 in convolutions)"


def test_counting_for_a_gpu_leaves_the_process_as_it_is() -> None:
    """`trainer.plan` counts what would run on a GPU."""
    from trainer.models import ModelConfig
    from trainer.models.resnet import ResNetGeneratorConfig
    from trainer.processes.launch import Launch
    from trainer.speed.apply import apply_speed
    from trainer.speed.settings import SpeedConfig

    network = ResNetGeneratorConfig(channels=2).build(ModelConfig(resolution=32, classes=3, latent_dim=4))
    apply_speed(SpeedConfig(cudnn_benchmark=True), {"g": network}, 32, Launch(0, 1, 0, GPU, "bf16", "single"))
    assert switches() == (False, True, False, False)


def test_hardware_names_the_model_and_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware(CPU) == {"device": "cpu", "torch": torch.__version__}
    pretend(monkeypatch, 1)
    h100 = hardware(GPU)
    assert h100 == {
        "device": "NVIDIA H100 80GB HBM3 (132 multiprocessors)",
        "torch": torch.__version__,
        "cuda": "13.0",
        "cudnn": 91900,
    }
    assert hardware_changes(h100, h100) == []
    assert hardware_changes({}, h100) == [], "checkpoints from before it was recorded"
    assert hardware_changes(h100, {**h100, "cudnn": 92400}) == ["cudnn 91900 -> 92400"]
    assert hardware_changes(h100, hardware(CPU)) == [
        "device NVIDIA H100 80GB HBM3 (132 multiprocessors) -> cpu",
        "cuda 13.0 -> not there",
        "cudnn 91900 -> not there",
    ]


def test_a_launch_that_is_far_from_the_cards_speed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1)
    assert slowness(GPU, "bf16", False) is None
    assert slowness(GPU, "fp32", True) is None
    said = slowness(GPU, "fp32", False)
    assert said is not None
    assert said.startswith("mixed_precision (accelerate's YAML): is 'no'")
    assert slowness(CPU, "fp32", False) is None
    pretend(monkeypatch, 1, "Tesla V100", bf16=False)
    assert slowness(GPU, "fp32", False) is None
    assert "imitates" in (slowness(GPU, "bf16", False) or "")


def test_the_record_of_timings_is_for_one_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.processes.launch import Launch
    from trainer.speed.autotune import describe_device

    pretend(monkeypatch, 1)
    launch = Launch(0, 1, 0, GPU, "bf16", "single")
    before = describe_device(launch)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92400)
    assert describe_device(replace(launch)) != before
