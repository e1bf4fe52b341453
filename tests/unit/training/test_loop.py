"""The loop as a user meets it, in one process: what it writes, what it refuses, how it goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import DataError
from trainer.checkpoint.commits import CheckpointStore
from trainer.config import load_config
from trainer.foundation.errors import CheckpointError, NonFinite, SettingError, TrainerError
from trainer.methods.protocol import Method
from trainer.players.player import Player
from trainer.processes.launch import Launch
from trainer.training import loop
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
Tiny = Callable[..., Path]


def run(path: Path, *words: str) -> bool:
    return train(load_config(str(path), words), LAUNCH)


def state_of(folder: Path) -> tuple[int, str]:
    restored = CheckpointStore(str(folder)).restore()
    assert restored is not None
    return restored.commit.iteration, restored.commit.state_sha256


def test_a_run_that_goes_on_ends_with_the_same_bits_and_records(tiny: Tiny, tmp_path: Path) -> None:
    assert run(tiny("straight", run={"sample_every": 3, "iterations": 7}))
    path = tiny("parts", run={"sample_every": 3, "iterations": 7})
    assert run(path, "--run.iterations", "2")
    assert run(path, "--run.iterations", "5", "--run.log_every", "1")
    assert run(path)
    assert state_of(tmp_path / "straight") == state_of(tmp_path / "parts")

    def losses(name: str) -> list[tuple[int, float, float]]:
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [(line["iteration"], line["loss/discriminator"], line["score/fake"]) for line in lines]

    assert losses("straight") == losses("parts")
    assert [iteration for iteration, *_ in losses("parts")] == list(range(1, 8))
    for picture in ("00000000.png", "00000003.png", "00000006.png", "00000007.png"):
        one, other = (tmp_path / name / "samples" / picture for name in ("straight", "parts"))
        assert one.read_bytes() == other.read_bytes()
    assert {"config.yaml", "checkpoints", "tensorboard", "samples", "metrics.jsonl", "log.txt"} <= {
        entry.name for entry in (tmp_path / "parts").iterdir()
    }


def test_another_seed_is_another_run(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("one"), "--run.iterations", "2")
    run(tiny("two"), "--run.iterations", "2", "--run.seed", "4")
    assert state_of(tmp_path / "one")[1] != state_of(tmp_path / "two")[1]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ["--model.resolution", "64"],
            SettingError,
            r"model\.resolution: is 64, but the shards in .* hold images with 32",
        ),
        (["--model.image_channels", "3"], SettingError, r"model\.image_channels: is 3, but"),
        (
            ["--model.classes", "10"],
            SettingError,
            r"model\.classes: is 10, but the shards in .* hold 3 classes; set it to 3",
        ),
        (["--data.shards", "nowhere"], DataError, "nowhere"),
        (["--evaluation.classifier", "nowhere"], TrainerError, r"evaluation\.classifier: there is no file nowhere"),
    ],
)
def test_what_is_refused_writes_nothing(
    tiny: Tiny, tmp_path: Path, words: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tiny("refused"), *words)
    assert not (tmp_path / "refused").exists()


def test_a_finished_run_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny("finished", run={"iterations": 2})
    run(path)
    before = state_of(tmp_path / "finished")
    assert run(path)
    assert state_of(tmp_path / "finished") == before


def test_changes_of_the_science_are_refused(tiny: Tiny) -> None:
    path = tiny("changed", run={"iterations": 2})
    run(path)
    with pytest.raises(SettingError, match=r"batch\.real_per_replica: .*4.*5"):
        run(path, "--run.iterations", "3", "--batch.real_per_replica", "5")
    with pytest.raises(CheckpointError, match=r"run\.resume: is 'never', but .* holds a checkpoint of iteration 2"):
        run(path, "--run.resume", "never")


def test_a_run_can_start_from_another_runs_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """A branch at iteration 2 that changes nothing is the run itself; without Adam's moments it is not."""
    run(tiny("base", run={"iterations": 4}))
    base = str(tmp_path / "base")
    branch = tiny("branch", run={"iterations": 4, "initialize_from": f"{base}@2"})
    run(branch)
    assert state_of(tmp_path / "branch") == state_of(tmp_path / "base")
    run(tiny("fresh", run={"iterations": 4, "initialize_from": f"{base}@2", "initialize_optimizer": False}))
    assert state_of(tmp_path / "fresh")[1] != state_of(tmp_path / "base")[1]
    newest = tiny("newest", run={"iterations": 4, "initialize_from": base})
    run(newest)
    assert state_of(tmp_path / "newest") == state_of(tmp_path / "base")
    with pytest.raises(CheckpointError, match="holds no checkpoint of iteration 3, only of 2, 4"):
        run(tiny("missing", run={"initialize_from": f"{base}@3"}))
    with pytest.raises(SettingError, match=r"run\.initialize_from: is '.*@x'; after @ comes the number"):
        run(tiny("wrong", run={"initialize_from": f"{base}@x"}))
    with pytest.raises(CheckpointError, match=r"generator: .* has shape"):
        run(tiny("wider", run={"initialize_from": base}, generator={"name": "resnet", "channels": 16}))


@pytest.mark.parametrize("checkpoint_every", [2, 5])
def test_a_diverged_run_goes_back_as_often_as_it_may(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: int
) -> None:
    """NaN in iteration 4, seen in the losses of the next: back to iteration 4 (or 0), with other draws from there."""
    poisoned = 0

    def run_iteration(method: Method, players: Mapping[str, Player], *rest: object, **more: object) -> object:
        nonlocal poisoned
        generator = players["generator"]
        if max(generator.steps.values()) == 4 and poisoned < 1:
            poisoned += 1
            next(generator.modules["generator"].parameters()).data.fill_(float("nan"))
        return real(method, players, *rest, **more)

    real = loop.run_iteration
    every = {"checkpoint_every": checkpoint_every, "iterations": 7}
    run(tiny("straight", run=every))
    monkeypatch.setattr(loop, "run_iteration", run_iteration)
    with pytest.raises(NonFinite, match="is nan in the 1 iterations before 5"):
        run(tiny("stops", run=every))
    for name in ("first", "second"):
        poisoned = 0
        assert run(tiny(name, run={**every, "rollbacks": 1}))
    assert state_of(tmp_path / "first") == state_of(tmp_path / "second")
    assert state_of(tmp_path / "first") != state_of(tmp_path / "straight")
    poisoned = -1
    with pytest.raises(NonFinite):
        run(tiny("twice", run={**every, "rollbacks": 1}))


def test_divergence_names_the_number_and_the_iteration(tiny: Tiny) -> None:
    adam = {"learning_rate": 1e18}
    path = tiny("diverged", optimizer={"generator": adam, "discriminator": adam})
    with pytest.raises(TrainerError, match=r"(is (nan|inf|-inf) in the|NaN|infin)"):
        run(path)
