"""A measure has one name for whoever asks for it, and a wrong one is refused at the start, with the closest."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.config import load_config
from trainer.evaluate import main as evaluate
from trainer.foundation.errors import SettingError
from trainer.metrics.measures import MEASURES, measurement_named
from trainer.processes.launch import Launch
from trainer.training.keeper import Keeper

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")


def test_a_checkpoint_is_kept_by_either_name(tiny: Callable[..., Path]) -> None:
    assert measurement_named("fid", "x") == measurement_named("frechet_distance", "x") == "frechet_distance"
    assert measurement_named("ms_ssim", "x") == "ms_ssim"
    for measure in MEASURES:
        if measure.titles:
            path = tiny(checkpoint={"keep_best": measure.name})
            assert Keeper(load_config(str(path)), LAUNCH).store.config.keep_best in measure.titles


@pytest.mark.parametrize(("name", "advice"), [("fdi", "did you mean 'fid'?"), ("strips", "there are"), ("loss", "")])
def test_another_name_is_refused_at_the_start(tiny: Callable[..., Path], name: str, advice: str) -> None:
    config = load_config(str(tiny(checkpoint={"keep_best": name})))
    expected = re.escape(f"checkpoint.keep_best: there is no measure {name!r}; {advice}")
    with pytest.raises(SettingError, match=expected):
        Keeper(config, LAUNCH)


@pytest.mark.parametrize("samples", ["2", "3"])
def test_too_few_images_are_refused_before_the_work(run: Path, judge_file: str, samples: str) -> None:
    words = ["--measures", "precision_recall", "--features", judge_file, "--samples", samples, "--splits", "1"]
    with pytest.raises(SettingError, match=f"--samples: {samples} images are too few for precision_recall"):
        evaluate([str(run), *words])


def test_scores_of_a_commit_have_both_names(run: Path, judge_file: str) -> None:
    assert evaluate([str(run), "--measures", "fid", "--features", judge_file, "--samples", "50"]) == 0
    (noted,) = run.glob("checkpoints/*/scores.json")
    scores = json.loads(noted.read_text())
    assert scores["fid"] == scores["frechet_distance"]
