"""A semi-supervised GAN by the ordinary commands: it trains with few labels, its classifier is measured, exported and used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from data_pipeline.errors import DataError
from tests.support.resuming import state_of
from trainer import evaluate, export, sample
from trainer.classifiers.small import load_classifier
from trainer.config import Config, load_config
from trainer.foundation.errors import SettingError
from trainer.metrics.records import read_records
from trainer.processes.launch import read_launch
from trainer.trained.pretrained import Generator
from trainer.trained.runs import load_trained
from trainer.training.loop import train


def settings(
    tiny_in: Callable[..., Path], folder: Path, name: str = "run", per_class: int = 5, **more: object
) -> Config:
    path = tiny_in(
        folder,
        name,
        run={"iterations": 60, "checkpoint_every": 60, "log_every": 10},
        batch={"replicas": 1, "real_per_replica": 10, "generated_per_replica": 10, "dequantize": False},
        model={"latent_distribution": "unit_uniform"},
        optimizer={
            "generator": {"learning_rate": 3e-3, "beta1": 0.5},
            "discriminator": {"learning_rate": 2e-2, "beta1": 0.5},
        },
        schedule={"discriminator_steps": 1, "generator_first": False},
        objective={"name": "sgan", "first_samples": 60, **more},
    )
    tree = yaml.safe_load(path.read_text())
    tree["generator"] = {"name": "improved_mlp", "widths": [8, 8]}
    tree["discriminator"] = {"name": "improved_mlp", "widths": [12, 8]}
    tree["sources"] = {"labelled": {**tree["data"], "labelled_per_class": per_class}}
    path.write_text(yaml.safe_dump(tree))
    return load_config(str(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_in: Callable[..., Path]) -> Path:
    config = settings(tiny_in, tmp_path_factory.mktemp("sgan"))
    assert train(config, read_launch())
    return Path(config.run.dir)


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MENAGERIE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_start_says_how_many_labels_there_are(trained: Path) -> None:
    assert (
        "90 images of 3 classes (30, 30, 30); labelled: 15 images of 3 classes (5, 5, 5)"
        in (trained / "log.txt").read_text()
    )


def test_its_own_classifier_is_measured(run: Path, tiny_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--measures", "classification", "--real", str(tiny_shards)]) == 0
    (record,) = read_records(str(run))
    assert (record["measure"], record["real_samples"], record["better"]) == ("classification_error", 90, "lower")
    assert record["wrong"] == round(90 * record["value"])
    assert record["value"] < 0.4  # the levels of grey tell the classes
    images, labels = everything(tiny_shards)
    sampler = load_trained(str(run)).sampler()
    found = sampler.classifier.eval()(images, labels).class_logits.argmax(1)  # type: ignore[attr-defined]
    assert record["wrong"] == int((found != labels).sum())


def everything(shards: Path) -> tuple[torch.Tensor, torch.Tensor]:
    from trainer.classifiers.training import one_epoch

    batches = list(one_epoch(str(shards), 90))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_the_classifier_is_exported_and_judges_elsewhere(
    run: Path, trained_run: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.safetensors"
    assert export.main([str(run), str(file), "--network", "classifier"]) == 0
    network, info = load_classifier(str(file))
    assert (info.class_names, info.resolution) == (("0", "1", "2"), 32)
    images, labels = everything(tiny_shards)
    expected = load_trained(str(run)).networks["discriminator"](images, labels).class_logits
    assert torch.equal(network.head(network.features(images)), expected)
    other = Path(shutil.copytree(trained_run, tmp_path / "other"))
    words = ["--classifier", str(file), "--measures", "accuracy", "--samples", "60", "--real", str(tiny_shards)]
    assert evaluate.main([str(other), *words]) == 0
    (record,) = read_records(str(other))
    assert record["real_images"] == pytest.approx(float((expected.argmax(1) == labels).float().mean()))
    with pytest.raises(SettingError, match=r"^--network: this run has trained no classifier; leave it out"):
        export.main([str(trained_run), str(tmp_path / "none"), "--network", "classifier"])
    with pytest.raises(SettingError, match=r"^--measures: classification is the error of a run's own classifier"):
        evaluate.main([str(trained_run), "--measures", "classification"])


def test_samples_have_no_class_and_an_export_holds_both_networks(run: Path, tmp_path: Path) -> None:
    assert sample.main([str(run), "--count", "2", "--out", str(tmp_path / "samples")]) == 0
    assert export.main([str(run), str(tmp_path / "export")]) == 0
    generator = Generator.from_pretrained(str(tmp_path / "export"))
    assert list(generator.sampler.networks) == ["generator", "discriminator"]
    assert generator.sample([0], 3).shape == (3, 1, 32, 32)


def test_the_plain_and_the_averaged_weights_of_both_players(run: Path) -> None:
    state = state_of(run)
    for average, prefix in ((True, "ema/{}/"), (False, "{}/")):
        networks = load_trained(str(run), average=average).networks
        for name, network in networks.items():
            for key, value in network.state_dict().items():
                assert torch.equal(value, state[prefix.format(name) + key])


def test_the_supervised_baseline_never_moves_the_generator(tiny_in: Callable[..., Path], tmp_path: Path) -> None:
    config = settings(tiny_in, tmp_path, form="supervised")
    assert train(config, read_launch())
    state = state_of(config.run.dir)
    assert int(state["generator.adam/step"]) == 0
    assert int(state["discriminator.adam/step"]) == 60


def test_bad_settings_are_a_sentence_each(tiny_in: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^sources\.labelled\.labelled_per_class: is 31, but the class '0' has 30"):
        train(settings(tiny_in, tmp_path, per_class=31), read_launch())
    path = tmp_path / "run.yaml"
    tree = yaml.safe_load(path.read_text())
    del tree["sources"]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingError, match=r"^sources\.labelled: is missing, but sgan reads it; give its shards"):
        train(load_config(str(path)), read_launch())
