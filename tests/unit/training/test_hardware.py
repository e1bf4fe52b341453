"""A checkpoint names what its last bits depend on; a resume elsewhere says so, and goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import load_config
from trainer.processes.launch import Launch
from trainer.training import keeper, loop

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")


def test_a_resume_on_other_hardware_is_told_and_goes_on(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, here = str(tiny("moved", run={"iterations": 4})), {"device": "cpu", "torch": torch.__version__}
    log = tmp_path / "moved" / "log.txt"
    assert loop.train(load_config(path, ["--run.iterations", "1"]), LAUNCH)
    commit = CheckpointStore(str(tmp_path / "moved")).commits()[0]
    assert commit.info["hardware"] == here
    assert loop.train(load_config(path, ["--run.iterations", "2"]), LAUNCH)
    assert "made elsewhere" not in log.read_text()
    monkeypatch.setattr(keeper, "hardware", lambda device: {**here, "torch": "3.0"})
    assert loop.train(load_config(path), LAUNCH)
    assert f"of iteration 2 was made elsewhere (torch {torch.__version__} -> 3.0)" in log.read_text()
