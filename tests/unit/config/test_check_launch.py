"""Settings that a launch cannot keep are refused before anything is done."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.config import check_launch, load_config
from trainer.foundation.errors import SettingError
from trainer.processes.launch import Launch


@pytest.mark.parametrize(
    ("words", "strategy", "precision", "message"),
    [
        (
            ["--run.deterministic", "true"],
            "zero2",
            "fp32",
            r"run\.deterministic: is true, but the launch asks for zero2",
        ),
        (["--run.deterministic", "true"], "ddp", "fp16", r"run\.deterministic: is true, but fp16"),
        (
            ["--objective.penalty.name", "r1"],
            "zero1",
            "bf16",
            r"objective\.penalty: is on, but .* zero1, where DeepSpeed",
        ),
    ],
)
def test_refused(tiny: Callable[..., Path], words: list[str], strategy: str, precision: str, message: str) -> None:
    config = load_config(str(tiny()), words)
    cpu = torch.device("cpu")
    with pytest.raises(SettingError, match=f"^{message}"):
        check_launch(config, Launch(0, 2, 0, cpu, precision, strategy))
    check_launch(config, Launch(0, 2, 0, cpu, "fp32", "ddp"))
