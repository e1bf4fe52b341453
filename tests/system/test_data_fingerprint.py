"""The real trainer, in this process: a run resumes with the shards that it began with, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipeline.manifest.format import load_manifest
from trainer.config import load_config
from trainer.foundation.errors import SettingError
from trainer.processes.launch import Launch
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")


def saved(run: Path) -> list[Path]:
    """All that was ever saved; who began to write (`writers`) may be written down also by a start that is refused."""
    return sorted(path for path in (run / "checkpoints").rglob("*") if "writers" not in path.parts)


def test_other_shards_at_the_same_place_are_refused(
    tiny: Callable[..., Path], tiny_shards: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    path = tiny("run", data={"shards": str(shards)})
    assert train(load_config(str(path), ["--run.iterations", "2"]), LAUNCH)
    commits = saved(tmp_path / "run")

    document = json.loads((shards / "manifest.json").read_text())
    document["classes"][0]["name"] = "another"
    (shards / "manifest.json").write_text(json.dumps(document))
    old, new = (load_manifest(str(place)).fingerprint for place in (tiny_shards, shards))
    assert old != new
    with pytest.raises(SettingError, match=rf"^data\.shards: .*{new[:12]}.*{old[:12]}.*choose another run\.dir"):
        train(load_config(str(path), ["--run.iterations", "4"]), LAUNCH)
    assert saved(tmp_path / "run") == commits

    shutil.copy(tiny_shards / "manifest.json", shards)
    assert train(load_config(str(path), ["--run.iterations", "4"]), LAUNCH)
