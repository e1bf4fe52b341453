"""The classifier-loss stage in the loop: when it is on, how it goes on, where it stops, what it shows and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint.commits import CheckpointStore
from trainer.classifiers.training import save_classifier, train_classifier
from trainer.config import as_yaml, load_config
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.methods.terms.guidance import DIGEST, PREFIX, REFERENCE, STOPPED_AT
from trainer.processes.launch import Launch
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
Tiny = Callable[..., Path]
BEGIN, UNTIL, END = 2, 6, 7


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> dict[str, Any]:
    """Two classifiers of the tiny data, as settings."""
    folder = tmp_path_factory.mktemp("judges")
    settings = {}
    for seed, name in enumerate(("classifier", "independent")):
        model, info = train_classifier(str(tiny_shards), str(tiny_shards), epochs=8, seed=seed, width=4, batch_size=30)
        save_classifier(folder / f"{name}.safetensors", model, info)
        settings[name] = {"name": "small", "weights": str(folder / f"{name}.safetensors")}
    return settings


@pytest.fixture
def stage(judges: dict[str, Any]) -> dict[str, Any]:
    return {**judges, "weight": 2.0, "begin": BEGIN, "until": UNTIL, "watch_every": 2, "watch_samples": 12}


def run(path: Path, *words: object) -> bool:
    return train(load_config(str(path), [str(word) for word in words]), LAUNCH)


def tensors_of(folder: Path, iteration: int | None = None) -> dict[str, torch.Tensor]:
    restored = CheckpointStore(str(folder)).restore(iteration)
    assert restored is not None
    return restored.tensors


def hash_of(folder: Path) -> str:
    restored = CheckpointStore(str(folder)).restore()
    assert restored is not None
    return restored.commit.state_sha256


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_that_goes_on_ends_with_the_same_bits(tiny: Tiny, tmp_path: Path, stage: dict[str, Any]) -> None:
    settings = {"run": {"iterations": END, "checkpoint_every": 1}, "classifier_loss": {**stage, "ramp": 3}}
    settings["run"] |= {"dir": str(tmp_path / "straight")}
    run(tiny("straight", **settings))
    settings["run"] = {**settings["run"], "dir": str(tmp_path / "parts")}
    path = tiny("parts", **settings)
    # ends before the stage, at its first iteration, one later, in it, at its end
    for end in (3, 4, 5, 6):
        run(path, "--run.iterations", end)
    run(path)
    differing = [
        n for n, t in tensors_of(tmp_path / "straight").items() if not torch.equal(t, tensors_of(tmp_path / "parts")[n])
    ]
    assert differing == []
    assert hash_of(tmp_path / "straight") == hash_of(tmp_path / "parts")


def test_one_schedule_and_a_run_of_its_own_are_the_same_training(
    tiny: Tiny, tmp_path: Path, stage: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny("whole", run={"iterations": END}, classifier_loss=stage))
    run(tiny("base", run={"iterations": END}, checkpoint={"keep_every": BEGIN}))
    source = f"{tmp_path / 'base'}@{BEGIN}"
    own = {"iterations": END, "initialize_from": source}
    assert run(tiny("own", run={**own, "dir": str(tmp_path / "own")}, classifier_loss=stage))
    with_the_loss = tensors_of(tmp_path / "own")
    assert hash_of(tmp_path / "own") == hash_of(tmp_path / "whole")
    base = tensors_of(tmp_path / "base")
    assert not all(torch.equal(base[name], with_the_loss[name]) for name in base)
    assert {name for name in with_the_loss if name.startswith(PREFIX)} == {DIGEST, REFERENCE}

    # At weight 0 the stage is watched and changes nothing.
    run(tiny("watched", run={**own, "dir": str(tmp_path / "watched")}, classifier_loss={**stage, "weight": 0.0}))
    watched = tensors_of(tmp_path / "watched")
    assert all(torch.equal(base[name], watched[name]) for name in base)

    # The optimizer's state: taken along, or not, as is said.
    run(
        tiny("fresh", run={**own, "dir": str(tmp_path / "fresh"), "initialize_optimizer": False}, classifier_loss=stage)
    )
    assert hash_of(tmp_path / "fresh") != hash_of(tmp_path / "own")
    assert int(tensors_of(tmp_path / "fresh")["generator.adam/step"]) == END - BEGIN
    assert int(with_the_loss["generator.adam/step"]) == END

    # Open eyes: losses of training while the loss is on, and figures side by side at 2, 4, 6 and the end.
    lines = records(tmp_path / "own")
    trained = [line["iteration"] for line in lines if "generator/classifier_loss" in line]
    assert trained == [3, 4, 5, 6]
    side_by_side = {"guiding_accuracy", "guiding_loss", "independent_accuracy", "ms_ssim"}
    for line in lines:
        shown = {name.partition("/")[2] for name in line if name.startswith("finetuning/")}
        assert shown in (set(), side_by_side)
    assert [line["iteration"] for line in lines if "finetuning/ms_ssim" in line] == [2, 4, 6]
    assert "MS-SSIM within classes" in capsys.readouterr().out


def test_the_stop_rule_is_part_of_the_state(
    tiny: Tiny, tmp_path: Path, stage: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"iterations": END, "checkpoint_every": 1}
    run(tiny("plain", run={**base, "dir": str(tmp_path / "plain")}, classifier_loss={**stage, "weight": 0.0}))
    stopped = {**stage, "maximum_ms_ssim": 1e-6}
    path = tiny("at_once", run={**base, "dir": str(tmp_path / "at_once")}, classifier_loss=stopped)
    run(path, "--run.iterations", 4)  # the decision is made before this ends, and must be remembered
    run(path)
    at_once, plain = tensors_of(tmp_path / "at_once"), tensors_of(tmp_path / "plain")
    assert int(at_once.pop(STOPPED_AT)) == BEGIN
    assert at_once.keys() == plain.keys()
    assert all(torch.equal(at_once[name], plain[name]) for name in plain)
    assert "the classifier's loss is off from iteration 2 on" in capsys.readouterr().out

    # Judged by the rise above the first value: any rise stops it at a later measurement, none of 1 ever does.
    for name, rise in (("any", 0.0), ("never", 1.0)):
        rule = {**stage, "weight": 50.0, "watch_every": 1, "maximum_ms_ssim_rise": rise}
        run(tiny(name, run={**base, "dir": str(tmp_path / name)}, classifier_loss=rule))
        lines = records(tmp_path / name)
        seen = {line["iteration"]: line["finetuning/ms_ssim"] for line in lines if "finetuning/ms_ssim" in line}
        above = [iteration for iteration, value in seen.items() if value - seen[BEGIN] > rise]
        marks = tensors_of(tmp_path / name)
        assert float(marks[REFERENCE][0]) == pytest.approx(seen[BEGIN])
        if name == "any":
            assert above, "the test's training must make the images more alike at some point"
            assert int(marks[STOPPED_AT]) == above[0]
            on = [line["iteration"] for line in lines if "generator/classifier_loss" in line]
            assert on == list(range(BEGIN + 1, above[0] + 1))
        else:
            assert STOPPED_AT not in marks


def test_what_is_refused(tiny: Tiny, tmp_path: Path, stage: dict[str, Any], judges: dict[str, Any]) -> None:
    run(tiny("base", run={"iterations": 3, "checkpoint_every": 1}))
    base = str(tmp_path / "base")
    for number, (change, words, error, message) in enumerate(
        [
            (
                {},
                ["--run.initialize_from", base],
                SettingError,
                r"run\.initialize_from: .* is at iteration 3, but the stage",
            ),
            (
                {},
                ["--run.initialize_from", f"{base}@3"],
                SettingError,
                r"run\.initialize_from: .*base@3 is at iteration 3, but",
            ),
            (
                {"classifier": {"name": "small", "weights": "nowhere"}},
                [],
                SettingError,
                r"classifier_loss\.classifier\.weights: there is no file nowhere; make it with",
            ),
            (
                {"classifier": {"name": "efficientnet_lite0"}},
                [],
                SettingError,
                r"classifier_loss\.classifier: EfficientNet-Lite0 knows its classes by WordNet id, but 3 of",
            ),
            (
                {},
                ["--data.classes", "[0, 1]", "--model.classes", 2],
                SettingError,
                r"classifier_loss\.classifier: the small classifier of .* was trained for 3 classes, the data has 2",
            ),
            (
                {"independent": judges["classifier"]},
                [],
                SettingError,
                r"classifier_loss\.independent: has the weights of the guiding classifier",
            ),
            (
                {"wieght": 1},
                [],
                SettingError,
                r"classifier_loss\.wieght: unknown setting .*did you mean .*\.weight",
            ),
            ({"classifier": {"name": "vgg"}}, [], SettingError, r"classifier_loss\.classifier\.name: is 'vgg'"),
        ]
    ):
        path = tiny(f"refused{number}", run={"iterations": END}, classifier_loss={**stage, **change})
        with pytest.raises(error, match=f"^{message}") as caught:
            run(path, *words)
        assert "\n" not in str(caught.value)
        if "initialize_from" not in str(words):
            assert not (tmp_path / f"refused{number}").exists()


def test_a_stage_does_not_go_on_with_another_classifier(
    tiny: Tiny, tmp_path: Path, stage: dict[str, Any], judges: dict[str, Any]
) -> None:
    path = tiny("run", run={"iterations": END, "checkpoint_every": 1}, classifier_loss=stage)
    run(path, "--run.iterations", 4)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(judges["independent"]["weights"]).read_bytes())
    other = ["--classifier_loss.classifier.weights", moved, "--classifier_loss.independent", "null"]
    with pytest.raises(
        CheckpointError, match=r"^classifier_loss\.classifier: .* but the run's checkpoints were made with"
    ):
        run(path, *other, "--run.allow_changed", "[classifier_loss.independent]")
    moved.write_bytes(Path(judges["classifier"]["weights"]).read_bytes())
    assert run(path, "--classifier_loss.classifier.weights", moved)  # the same bytes at another place are the same


def test_switching_the_loss_on_in_a_running_run_must_be_meant(
    tiny: Tiny, tmp_path: Path, stage: dict[str, Any]
) -> None:
    run(tiny("run"), "--run.iterations", 3)
    path = tiny("run", classifier_loss=stage)
    with pytest.raises(SettingError, match=r"classifier_loss"):
        run(path)
    assert "classifier_loss" in as_yaml(load_config(str(path)))
    run(path, "--run.allow_changed", "[classifier_loss]")
    assert REFERENCE in tensors_of(tmp_path / "run")
