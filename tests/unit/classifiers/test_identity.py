"""Classes are the same if they are called the same, whatever their numbers and however many there are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.make_shards import __main__ as make_shards
from data_pipeline.manifest.format import ClassInfo
from trainer.classifiers.identity import as_classes, check_classes, places_of
from trainer.classifiers.training import train_classifier
from trainer.config import load_config
from trainer.foundation.errors import SettingError
from trainer.methods.sampling import ClassConditions
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.models import ModelConfig
from trainer.processes.launch import Launch
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
MODEL = ModelConfig(resolution=32, image_channels=1, classes=3)
Shards = Callable[..., str]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Shards of grey images in folders by class: a class is as bright everywhere as it is here."""
    bright = {"apple": 30, "banana": 120, "cherry": 220, "zebra": 170, "10": 10, "2": 200, "1": 100}

    def make(name: str, *classes: str, count: int = 12) -> str:
        for entry in classes:
            (tmp_path / "src" / name / entry).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((32, 32), bright[entry] + number % 3, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "src" / name / entry / f"{number}.png")
        words = ["--size", "32", "--grey", "--encoding", "png", "--jobs", "1"]
        assert make_shards.main(["folder", str(tmp_path / "src" / name), str(tmp_path / name), *words]) == 0
        return str(tmp_path / name)

    return make


def infos(*names: str) -> list[ClassInfo]:
    return list(as_classes(names))


@pytest.mark.parametrize(
    ("asked", "known", "places"),
    [
        (infos("a", "b"), infos("a", "b"), [0, 1]),
        (infos("b"), infos("a", "b"), [1]),
        (infos("b", "z", "a"), infos("a", "b"), [1, None, 0]),
        (  # names differ, WordNet ids do not
            [ClassInfo("tench, fish", "n01440764", 0)],
            [ClassInfo("x", "n01443537", 0), ClassInfo("tench", "n01440764", 0)],
            [1],
        ),
        (  # ids that are only numbers of each side's own
            [ClassInfo("apple", "0", 0), ClassInfo("zebra", "1", 0)],
            [ClassInfo("apple", "0", 0), ClassInfo("banana", "1", 0)],
            [0, None],
        ),
        (  # two classes of one name
            [ClassInfo("crane", "bird", 0), ClassInfo("crane", "machine", 0)],
            [ClassInfo("crane", "machine", 0), ClassInfo("crane", "bird", 0)],
            [1, 0],
        ),
    ],
)
def test_what_makes_a_class_the_same(asked: list[ClassInfo], known: list[ClassInfo], places: list[int | None]) -> None:
    assert places_of(asked, known) == places
    if None in places:
        with pytest.raises(SettingError, match="--x: these has no class 'z"):
            check_classes(asked, known, "--x", "these", "give others")


def test_a_classifier_is_tested_by_the_names_of_classes(shards: Shards) -> None:
    fruit = shards("train", "apple", "banana", "cherry")
    with pytest.raises(SettingError, match=r"TEST_SHARDS: .*train has no class 'zebra'"):
        train_classifier(fruit, shards("other", "apple", "cherry", "zebra"), epochs=1, seed=0, width=4)
    _, info = train_classifier(fruit, shards("part", "banana", "cherry"), epochs=60, seed=0, width=4, batch_size=12)
    assert info.test_accuracy == 1.0  # their numbers are 1 and 2 here, 0 and 1 there


def test_the_classifier_inside_a_run_knows_the_runs_classes(shards: Shards, judge_file: str) -> None:
    from trainer.classifiers.small import read_small

    _, info, _ = read_small(judge_file, "x")
    names = info.class_names
    with pytest.raises(SettingError, match=r"evaluation\.classifier: .* has no class 'zebra'"):
        GeneratedAccuracy(judge_file, MODEL, classes=as_classes([*names[:2], "zebra"], [*info.class_ids[:2], "zebra"]))
    turned = as_classes(names[::-1], info.class_ids[::-1])
    assert GeneratedAccuracy(judge_file, MODEL, classes=turned).logit_of.tolist() == [2, 1, 0]


def test_a_run_begins_from_one_of_the_same_classes(shards: Shards, tiny: Callable[..., Path], tmp_path: Path) -> None:
    short = {"run": {"iterations": 1}, "batch": {"replicas": 1}}
    train(load_config(str(tiny("a", data={"shards": shards("x", "apple", "banana", "cherry")}, **short))), LAUNCH)
    short["run"] |= {"initialize_from": str(tmp_path / "a"), "iterations": 2}
    other = tiny("b", data={"shards": shards("y", "apple", "cherry", "zebra")}, **short)
    with pytest.raises(
        SettingError, match=r"run\.initialize_from: the classes of .* are others.*'banana', here 'cherry'"
    ):
        train(load_config(str(other)), LAUNCH)
    assert not (tmp_path / "b").exists()
    assert train(load_config(str(other), ["--run.allow_changed", "[data.classes]"]), LAUNCH)


def test_a_name_that_is_a_number_is_a_name_first(shards: Shards, tiny: Callable[..., Path]) -> None:
    conditions = ClassConditions(4, ("1", "10", "11", "2"), ("1", "10", "11", "2"))
    assert [int(conditions.parse(text)) for text in ("10", "1", "2", "3")] == [1, 0, 3, 3]
    with pytest.raises(SettingError, match="there is no class 12; give a number from 0 to 3"):
        conditions.parse("12")
    folder = shards("numbers", "1", "10", "2")
    settings = {"data": {"shards": folder}, "model": {"classes": 1}, "run": {"iterations": 1}}
    path = tiny("n", **settings)
    with pytest.raises(SettingError, match=r"data\.classes: 1 is the number of a class and the name of another one"):
        train(load_config(str(path), ["--data.classes", "[1]"]), LAUNCH)
    assert train(load_config(str(path), ["--data.classes", "['2']"]), LAUNCH)
