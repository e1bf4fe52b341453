"""The game from images to tags by the ordinary commands: exact resume, processes, words, measures, exports."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_pipeline.make_shards.vectors import write_vectors
from data_pipeline.manifest.format import load_manifest
from trainer import evaluate, export, extract_features, sample
from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import state_hash
from trainer.classifiers.training import save_classifier, train_classifier
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


def test_it_is_the_same_experiment_on_two_processes(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command(write(tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))


@pytest.mark.slow
def test_proof(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """On three processes the bits are equal. Under DDP, which takes no network without parameters, they differ by
    rounding."""
    expected = state_of(straight)
    done = command(write(tmp_path / "three"), processes=3)
    assert done.returncode == 0, done.stderr
    assert state_hash(state_of(tmp_path / "three")) == state_hash(expected)
    done = command(write(tmp_path / "ddp", run={"deterministic": False}), processes=2)
    assert done.returncode == 0, done.stderr
    found, most = state_of(tmp_path / "ddp"), 0.0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
        most = max(most, float((found[name].double() - tensor.double()).abs().max()))
    print(f"PROOF method-tagging: PASS on 1 and 3 processes {state_hash(expected)[:16]}, under DDP within {most:.1e}")


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


@pytest.fixture(scope="module")
def described(tiny_shards: Path, write: Write, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on features of real pictures, and a picture."""
    folder = tmp_path_factory.mktemp("described")
    model, info = train_classifier(str(tiny_shards), str(tiny_shards), epochs=1, seed=0, width=4, batch_size=30)
    judge = str(folder / "classifier.safetensors")
    save_classifier(Path(judge), model, info)
    assert extract_features.main([judge, str(tiny_shards), str(folder / "features"), "--device", "cpu"]) == 0
    manifest = load_manifest(str(folder / "features"))
    names = manifest.class_names
    vectors = RANDOM.normal(size=(len(names), LENGTH))
    lines = [f"{name.replace(' ', '_')} {' '.join(map(str, row))}" for name, row in zip(names, vectors, strict=True)]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    settings = write(
        folder,
        data={"shards": str(folder / "features")},
        model={"classes": len(names)},
        objective={
            "features": manifest.vector_length,
            "words": str(folder / "words.txt"),
            "network": judge,
        },
    )
    assert train(load_config(str(settings)), read_launch())
    Image.fromarray(np.full((20, 30, 3), 99, dtype=np.uint8)).save(folder / "grey one.png")
    return folder / "run", folder / "grey one.png"


def test_words_are_printed_for_picture_files(
    described: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, picture = described
    capsys.readouterr()
    options = ["--count", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert sample.main([str(run), "--source", str(picture), *options]) == 0
    printed = capsys.readouterr().out
    name, _, words = printed.strip().partition(": ")
    assert name == "grey one.png"
    assert len(set(words.split(", "))) == 2
    assert set(words.split(", ")) <= set(load_manifest(str(run.parent / "features")).class_names)
    # A folder gives the same words for the same picture; an export knows them too.
    assert export.main([str(run), str(tmp_path / "export")]) == 0
    capsys.readouterr()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/other.png").write_bytes(picture.read_bytes())
    assert sample.main([str(tmp_path / "export"), "--source", str(tmp_path / "folder"), *options]) == 0
    assert capsys.readouterr().out == printed.replace("grey one", "other")
    assert json.loads((tmp_path / "out/words.json").read_text())["words"] == {"other.png": words.split(", ")}
    with pytest.raises(SettingError, match=r"^--source: nowhere is neither a file nor a folder"):
        sample.main([str(run), "--source", "nowhere", *options])
    with pytest.raises(SettingError, match=r"^--classes: does not go together with --source"):
        sample.main([str(run), "--source", str(picture), "--classes", "cat", *options])


def test_features_of_another_network_are_refused(described: tuple[Path, Path]) -> None:
    config = load_config(str(described[0].parent / "settings.yaml"))
    wrong = replace(config, objective=replace(config.objective, network="efficientnet_lite0"))
    with pytest.raises(
        SettingError, match=r"^objective\.network: EfficientNet-Lite0 has other weights than the network"
    ):
        train(wrong, read_launch())


def test_without_conditions_it_samples_the_data(described: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--count", "3", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert sample.main([str(described[0]), *options]) == 0
    assert np.load(tmp_path / "out/samples.npy").shape == (30, LENGTH)
