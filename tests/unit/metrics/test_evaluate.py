"""`python -m trainer.evaluate` as a user meets it: tables, records, pictures, --follow, errors; the watch inside a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer import evaluate
from trainer.checkpoint.commits import CheckpointStore
from trainer.config import load_config
from trainer.foundation.errors import SettingError
from trainer.foundation.stores import Store
from trainer.methods.protocol import Sampler
from trainer.metrics import measures
from trainer.metrics.features import ClassifierFeatures, open_features
from trainer.metrics.frechet import frechet_distance
from trainer.metrics.inline import InlineHealth
from trainer.metrics.records import append_records, read_records
from trainer.metrics.reference import open_reference
from trainer.metrics.samples import Samples
from trainer.processes.launch import Launch
from trainer.report import __main__ as report
from trainer.trained.sampling import CHUNK
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
QUICK = ("--samples", "120", "--splits", "3", "--pairs", "10", "--class-samples", "60", "--queries", "20")
APART = (
    "classification",
    "fidelity",
    "pair_accuracy",
    "round_trip",
)  # of runs with a classifier, with pairs, with two ways
EVERY = ",".join(m.name for m in measures.MEASURES if m.needs.images and m.name not in APART)


def records_of(run: Path) -> dict[str, dict[str, Any]]:
    return {record["measure"]: record for record in read_records(str(run))}


def test_every_measure_is_published_with_its_small_print(
    run: Path, judge_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), "--classifier", judge_file, "--measures", EVERY, *QUICK]) == 0
    printed = capsys.readouterr().out
    records = records_of(run)
    assert set(records) == {
        "inception_score", "frechet_distance", "kernel_distance", "precision", "recall", "class_accuracy", "ms_ssim",
        "accuracy_kept_at_lowest_resolution", "accuracy_ms_ssim_correlation", "intra_frechet_distance",
        "near_copies_pixels", "near_copies_features", "parzen_log_likelihood", "sliced_wasserstein_distance",
        "feature_path_length_z_full", "feature_path_length_z_end",
    }  # fmt: skip
    for name, record in records.items():
        assert name == "class_accuracy" or name in printed
        assert (record["precision"], record["hardware"]["device"]) == ("fp32", "cpu")
        for key in (
            "seed",
            "iteration",
            "moving_average",
            "batch_norm",
            "code_version",
            "state_sha256",
            "settings_digest",
            "when",
        ):
            assert key in record, (name, key)
    fid = records["frechet_distance"]
    assert (fid["samples"], fid["iteration"], fid["moving_average"]) == (120, 4, True)
    assert fid["reference"]["samples"] == 90
    assert len(fid["features_digest"]) == len(fid["reference"]["digest"]) == 64
    assert records["inception_score"]["splits"] == 3
    assert records["ms_ssim"]["windows"] == [11, 11, 8, 4, 2]
    assert records["accuracy_kept_at_lowest_resolution"]["resolutions"] == [8, 16, 32]
    assert records["class_accuracy"]["real_images"] == 1.0
    assert list(records["intra_frechet_distance"]["per_class"]) == list(records["class_accuracy"]["per_class"])
    for name in ("interpolation", "morph", "neighbours"):
        assert Image.open(run / "evaluation" / "00000004" / f"{name}.png").width > 300
    board = EventAccumulator(str(run / "tensorboard" / "evaluation"), size_guidance={"images": 0}).Reload()
    (point,) = board.Scalars("measures/frechet_distance")
    assert (point.step, point.value) == (4, pytest.approx(fid["value"]))
    assert {"evaluation/neighbours", "evaluation/morph", "evaluation/interpolation"} <= set(board.Tags()["images"])
    newest = CheckpointStore(str(run)).newest()
    assert newest is not None
    scores = json.loads((run / "checkpoints" / newest.folder / "scores.json").read_text())
    assert scores["frechet_distance"] == fid["value"]


def test_values_do_not_depend_on_the_cache_or_on_other_measures(run: Path, judge_file: str) -> None:
    words = [str(run), "--classifier", judge_file, *QUICK, "--iteration", "2"]
    evaluate.main([*words, "--measures", "fid,is,kid"])
    first = records_of(run)
    real_both, seen = ClassifierFeatures.both, []

    def counted(self: ClassifierFeatures, images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return real_both(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierFeatures, "both", counted)
        evaluate.main([*words, "--measures", "kid,fid,precision_recall"])
    assert sum(seen) == 150  # 3 chunks of generated images, no real one again
    for name in ("frechet_distance", "kernel_distance"):
        assert records_of(run)[name]["value"] == first[name]["value"]
        assert records_of(run)[name]["iteration"] == 2
    evaluate.main([*words, "--measures", "fid", "--seed", "1"])
    assert records_of(run)["frechet_distance"]["value"] != first["frechet_distance"]["value"]
    evaluate.main([*words, "--measures", "fid", "--weights", "plain", "--statistics", "batch"])
    plain = records_of(run)["frechet_distance"]
    assert (plain["moving_average"], plain["batch_norm"]) == (False, "batch of 50")
    assert plain["settings_digest"] != first["frechet_distance"]["settings_digest"]


def test_real_images_against_themselves(tiny_shards: Path, judge_file: str, tmp_path: Path) -> None:
    network = open_features(judge_file, 1)
    reference = open_reference(LAUNCH, DataConfig(shards=str(tiny_shards)), network, tmp_path)
    assert reference is not None
    assert frechet_distance(reference.gaussian, reference.gaussian) == pytest.approx(0.0, abs=1e-6)
    assert reference.labels.tolist().count(1) == len(reference.of_class(1)) == 30
    assert (reference.predictions == reference.labels).all()
    again = open_reference(LAUNCH, DataConfig(shards=str(tiny_shards)), network, tmp_path)
    assert again is not None
    assert again.digest == reference.digest
    other = open_reference(LAUNCH, DataConfig(shards=str(tiny_shards), classes=(0, 2)), network, tmp_path)
    assert other is not None
    assert other.digest != reference.digest
    assert set(other.labels.tolist()) == {0, 1}
    assert len(other.labels) == 60


def test_the_demo_form(run: Path, judge_file: str, tiny_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--classifier", judge_file, "--real", str(tiny_shards), "--samples", "90"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("90 generated images at iteration 4: class accuracy\n")
    assert f"(1: as diverse as {tiny_shards})" in printed
    assert f"the classifier itself, on {tiny_shards}: 100.0%" in printed
    assert set(records_of(run)) == {"class_accuracy"}


def test_follow_takes_every_checkpoint_once(run: Path, judge_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run), "--classifier", judge_file, "--measures", "fid,accuracy", *QUICK, "--follow", "--poll", "0.01"]
    assert evaluate.main(words) == 0
    found = [(r["iteration"], r["measure"]) for r in read_records(str(run))]
    assert found == [(i, m) for i in (2, 4) for m in ("frechet_distance", "class_accuracy")]
    assert evaluate.main(words) == 0  # the run is complete and measured: nothing more
    assert len(read_records(str(run))) == 4
    assert evaluate.main([*words, "--seed", "5"]) == 0
    assert len(read_records(str(run))) == 8
    capsys.readouterr()


def test_a_run_in_object_storage(run: Path, judge_file: str, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/tiny"
    remote = Store(url)
    for path in run.rglob("*"):
        if path.is_file():
            remote.put(path.relative_to(run).as_posix(), path.read_bytes())
    before = remote.get("log.txt")
    for iteration in ("2", "4"):
        words = ["--classifier", judge_file, "--measures", "accuracy,ms_ssim,strips", *QUICK, "--iteration", iteration]
        assert evaluate.main([url, *words]) == 0
    assert [record["iteration"] for record in read_records(url)] == [2, 2, 2, 4, 4, 4]
    assert {"evaluation/00000002/morph.png", "evaluation/00000004/morph.png"} <= set(remote.find("evaluation"))
    assert len(remote.find("tensorboard/evaluation")) == 2
    assert remote.get("log.txt") == before
    assert report.main([url, "--out", str(tmp_path / "remote.html")]) == 0
    assert (tmp_path / "remote.html").read_text().count("data:image/png") == 3


def test_a_checkpoint_that_is_deleted_meanwhile_is_left_out(
    run: Path, judge_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(str(run))
    oldest = min(store.commits(), key=lambda commit: commit.iteration)
    for name in oldest.files:
        (run / "checkpoints" / oldest.folder / name.name).unlink()
    words = [str(run), "--classifier", judge_file, "--samples", "60", "--follow", "--poll", "0.01"]
    assert evaluate.main(words) == 0
    assert "iteration 2: left out, its checkpoint is gone" in capsys.readouterr().out
    assert {record["iteration"] for record in read_records(str(run))} == {4}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--measures", "fud"], r"--measures: there is no measure 'fud'; there are is, fid"),
        (["--measures", "accuracy"], r"--classifier: is needed for accuracy; give the file"),
        (["--measures", "fid", "--samples", "1"], r"--samples: is 1; give at least 2"),
        (["--measures", "is", "--samples", "5", "--splits", "6"], r"--splits: is 6, more than the 5 samples"),
        (["--follow", "--iteration", "2"], r"--iteration: does not go together with --follow"),
        (
            ["--measures", "fid", "--features", "inception:/none.pth"],
            r"--features inception: there is no file /none.pth; save",
        ),
        (
            ["--measures", "fid", "--features", "timm:resnet5o:/none"],
            r"--features.model: timm has no model 'resnet5o'",
        ),
    ],
)
def test_mistakes_are_sentences(run: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        evaluate.main([str(run), *words])


def test_real_images_of_another_kind_are_refused(run: Path, tmp_path: Path, tiny_shards: Path) -> None:
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest | {"resolution": 64}))
    with pytest.raises(
        SettingError, match=r"--real: the images in .*other have 64 px, the generator's have 32; give shards"
    ):
        evaluate.main([str(run), "--measures", "fid", "--real", str(tmp_path / "other")])


def test_records_survive_a_torn_line(tmp_path: Path) -> None:
    append_records(str(tmp_path), [{"measure": "a", "value": 1.0}])
    with (tmp_path / "measurements.jsonl").open("a") as file:
        file.write('{"measure": "b", "val\n')
    append_records(str(tmp_path), [{"measure": "c"}])
    assert [record["measure"] for record in read_records(str(tmp_path))] == ["a", "c"]


def test_a_run_watches_its_own_health(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny("watched", run={"evaluate_every": 2}, evaluation={"ms_ssim_pairs": 5})

    def of_condition(self: Samples, condition: Tensor, chunk: int) -> Tensor:
        """Varied images, and from the last evaluation on one image per class."""
        varied = torch.randint(0, 256, (CHUNK, 1, 32, 32), generator=torch.Generator().manual_seed(int(condition))).to(
            torch.uint8
        )
        return varied[:1].expand(CHUNK, -1, -1, -1) if len(looks) == 3 else varied

    looks: list[int] = []
    real_look = InlineHealth.at_evaluation

    def counted(self: InlineHealth, sampler: Sampler) -> Any:
        looks.append(1)
        return real_look(self, sampler)

    monkeypatch.setattr(Samples, "of_condition", of_condition)
    monkeypatch.setattr(InlineHealth, "at_evaluation", counted)
    assert train(load_config(str(path)), LAUNCH)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "MS-SSIM within classes" in line]
    assert ["WARNING collapse" in line for line in lines] == [False, False, True]
    records = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    alarms = {r["iteration"]: r["health/collapse"] for r in records if "health/collapse" in r}
    assert alarms == {2: 0.0, 4: 0.0, 6: 1.0}
    for name in (
        "score_gap",
        "gradient_norm/generator",
        "gradient_norm/discriminator",
        "singular_value/discriminator/largest",
    ):
        assert sum(f"health/{name}" in record for record in records) == 6, name
    board = EventAccumulator(str(tmp_path / "watched" / "tensorboard")).Reload()
    assert "warnings/collapse/text_summary" in board.Tags()["tensors"]


def test_the_watch_changes_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for name, more in (("with", {"ms_ssim_pairs": 3}), ("without", {})):
        every = 2 if more else 0
        assert train(load_config(str(tiny(name, run={"evaluate_every": every}, evaluation=more))), LAUNCH)
    found = [CheckpointStore(str(tmp_path / name)).newest() for name in ("with", "without")]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].state_sha256 == found[1].state_sha256
