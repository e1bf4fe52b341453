"""The game from images to tags by the ordinary commands: exact resume, processes, words, measures, exports."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data_pipeline.make_shards.vectors import write_vectors
from trainer import evaluate, export
from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import state_hash
from trainer.config import load_config
from trainer.foundation.errors import SettingError
from trainer.metrics.records import read_records
from trainer.processes.launch import Launch, read_launch
from trainer.trained.pretrained import Generator, open_generator
from trainer.training import loop
from trainer.training.loop import State, train

ITERATIONS, FEATURES, LENGTH = 12, 6, 4
TAGS = ("cat", "dog", "red", "sky", "small")
RANDOM = np.random.default_rng(0)
WORDS = RANDOM.normal(size=(len(TAGS), LENGTH))
PICTURES = RANDOM.normal(size=(40, FEATURES)).astype(np.float32)
CHOSEN = [RANDOM.choice(len(TAGS), 1 + n % 3, replace=False) for n in range(40)]
Write = Callable[..., Path]


def write_tagged(folder: Path, pictures: range) -> Path:
    rows = [(PICTURES[n], tag) for n in pictures for tag in CHOSEN[n]]
    vectors = np.stack([features for features, _ in rows])
    write_vectors(folder, vectors, [int(tag) for _, tag in rows], TAGS, part=True)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    write_tagged(folder / "train", range(30))
    write_tagged(folder / "test", range(30, 40))
    lines = [f"{tag} {' '.join(map(str, numbers))}" for tag, numbers in zip(TAGS, WORDS, strict=True)]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def write(data: Path) -> Write:
    """`write(folder, section={...})` writes the settings of a run whose folder is folder/run."""

    def written(folder: Path, **sections: dict[str, Any]) -> Path:
        sizes = dict.fromkeys(("noise_units", "image_units", "joint_units"), 6)
        sizes |= dict.fromkeys(("discriminator_word_units", "discriminator_image_units"), 5)
        ramp = {"momentum": 0.5, "final_momentum": 0.7, "momentum_steps": 6}
        tree: dict[str, Any] = {
            "run": {"dir": str(folder / "run"), "seed": 3, "iterations": ITERATIONS, "deterministic": True},
            "data": {"shards": str(data / "train")},
            "batch": {"replicas": 3, "real_per_replica": 4, "generated_per_replica": 6},
            "model": {"classes": len(TAGS), "latent_dim": 3},
            "objective": {
                "name": "tagging",
                "words": str(data / "words.txt"),
                "features": FEATURES,
                "word_length": LENGTH,
                "nearest": 2,
                **sizes,
            },
            "schedule": {"discriminator_steps": 2},
            "optimizer": {"generator": {"name": "sgd", **ramp}, "discriminator": {"name": "sgd", **ramp}},
            "ema": {"decay": 0.5},
        }
        tree["run"] |= {"checkpoint_every": 1, "log_every": 2, "sample_every": 4, "heartbeat_every": 3}
        for section, values in sections.items():
            tree[section] |= values
        folder.mkdir(exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
        return folder / "settings.yaml"

    return written


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    restored = CheckpointStore(str(folder / "run")).restore()
    assert restored is not None
    assert restored.commit.iteration == ITERATIONS
    return restored.tensors


@pytest.fixture(scope="module")
def straight(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(load_config(str(write(folder))), read_launch())
    return folder


def test_the_state_holds_the_vocabulary_and_the_momentum(straight: Path) -> None:
    state = state_of(straight)
    unit = WORDS / np.linalg.norm(WORDS, axis=1, keepdims=True) * LENGTH**0.5
    for name in ("generator/words/vectors", "ema/words/vectors"):
        np.testing.assert_allclose(state[name].numpy(), unit, rtol=1e-5)
    assert state["discriminator.sgd/momentum_buffer/joint.linear.weight"].abs().max() > 0
    assert int(state["discriminator.sgd/step"]) == 2 * ITERATIONS
    last = json.loads((straight / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {"score/real", "score/fake", "loss/generator", "loss/discriminator"} <= last.keys()
    assert last["progress/real_images"] == 3 * ITERATIONS * (6 + 2 * 4)


@pytest.mark.parametrize("iteration", sorted(np.random.default_rng(7).choice(np.arange(1, 13), 10, replace=False)))
def test_killed_at_ten_random_points_it_resumes_with_equal_bits(
    iteration: int, write: Write, straight: Path, tmp_path: Path
) -> None:
    config = load_config(str(write(tmp_path)))
    child = os.fork()
    if child == 0:
        try:
            kill_in(int(iteration))
            train(config, read_launch())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert train(config, read_launch())
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))


def kill_in(iteration: int) -> None:
    """SIGKILL strikes after the turns of this iteration, or in the last save."""
    calls, run_iteration = 0, loop.run_iteration

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        scalars = run_iteration(*arguments, **named)
        if calls == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return scalars

    loop.run_iteration = counting


@pytest.mark.parametrize("processes", [2, 3])
def test_it_is_the_same_experiment_on_more_processes(
    processes: int,
    write: Write,
    straight: Path,
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command(write(tmp_path), processes=processes)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))


def test_under_ddp_it_differs_by_rounding(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The vocabulary is a network without parameters, which DDP does not take."""
    done = command(write(tmp_path, run={"deterministic": False}), processes=2)
    assert done.returncode == 0, done.stderr
    for name, tensor in state_of(straight).items():
        torch.testing.assert_close(state_of(tmp_path)[name], tensor, rtol=1e-3, atol=1e-5)


def test_zero_is_refused_in_a_sentence(write: Write, tmp_path: Path) -> None:
    config = load_config(str(write(tmp_path, run={"deterministic": False})))
    launch = Launch(0, 1, 0, torch.device("cpu"), "fp32", "zero1")
    with pytest.raises(SettingError, match=r"^optimizer: the player generator has 2 networks, .* zero1"):
        State(config, config.objective.build(config.problem()), launch)


def test_it_is_measured_next_to_both_controls(straight: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(straight / "run")
    assert evaluate.main([run, "--measures", "tags", "--real", str(data / "test"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"10 images, 5 words, at iteration {ITERATIONS}"
    assert [line[2:36].strip() for line in lines[2:5]] == [
        "this model",
        "the most frequent tags",
        "the nearest training image's tags",
    ]
    records = {record["measure"]: record for record in read_records(run)}
    record = records["tags_mean_average_precision"]
    assert record["value"] == record["values"]["mean_average_precision"] == pytest.approx(record["value"])
    assert (record["images"], record["training_images"], record["draws"]) == (10, 30, 100)
    # All five words are among the first ten.
    assert record["frequent"]["recall_at_10"] == record["values"]["recall_at_10"] == 1
    assert records["tags_precision_at_5"]["value"] == record["nearest"]["precision_at_5"]
    again = evaluate.main([run, "--measures", "tags", "--real", str(data / "test"), "--device", "cpu"])
    assert again == 0
    assert read_records(run)[-1]["values"] == record["values"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"^--real: tags are measured on images that the run has not seen"),
        (("--real", "{data}/train"), r"^--real: tags are measured on images that the run has not seen"),
        (("--real", "{other}"), r"^--real: the tags of .* are not the vocabulary of"),
    ],
)
def test_the_measure_refuses_the_wrong_images(
    options: tuple[str, ...], message: str, straight: Path, data: Path, tmp_path: Path
) -> None:
    write_vectors(tmp_path / "other", PICTURES[:4], [0, 1, 2, 0], ("cat", "dog", "blue"))
    given = [option.format(data=data, other=tmp_path / "other") for option in options]
    with pytest.raises(SettingError, match=message):
        evaluate.main([str(straight / "run"), "--measures", "tags", *given, "--device", "cpu"])


def test_measures_of_images_are_refused(straight: Path, data: Path) -> None:
    with pytest.raises(
        SettingError, match=r"^--measures: fid looks at images, and this generator's samples are of the kind"
    ):
        evaluate.main([str(straight / "run"), "--measures", "fid", "--real", str(data / "test"), "--device", "cpu"])


def test_an_export_knows_the_words(straight: Path, tmp_path: Path) -> None:
    run = str(straight / "run")
    assert export.main([run, str(tmp_path / "export")]) == 0
    exported, sampled = Generator.from_pretrained(str(tmp_path / "export")), open_generator(run)
    source, features = torch.Generator().manual_seed(0), torch.from_numpy(PICTURES[:3])
    latents = exported.sampler.draw(source, 3)
    made = exported.make(latents, features)
    assert torch.equal(made, sampled.make(latents, features))
    one, other = exported.sampler, sampled.sampler
    assert torch.equal(one.scores(made), other.scores(made))
    assert one.names == other.names == TAGS
