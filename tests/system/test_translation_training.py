"""Translation between two unpaired sources, by the ordinary commands: training, resuming, several processes, sampling."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from data_pipeline.make_shards import __main__ as make_shards
from trainer import evaluate, export, sample
from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import state_hash
from trainer.config import load_config
from trainer.costs import dry_run
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.metrics.records import read_records
from trainer.processes.launch import read_launch
from trainer.trained.pretrained import open_generator
from trainer.training import loop
from trainer.training.loop import train

ITERATIONS = 12  # of 2 replicas: a pool of 8 is half full after 4
SIZES = {"a": 100, "b": 37}
Write = Callable[..., Path]


def pictures(folder: Path, count: int, side: int = 16, channels: int = 3, seed: int = 0) -> Path:
    """A folder of smooth random pictures."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)
    for number, small in enumerate(drawn):
        image = Image.fromarray(small if channels == 3 else small[..., 0]).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        image.save(folder / f"{number:03d}.png")
    return folder


def shards(folder: Path, *options: str) -> Path:
    out = folder.with_name(f"{folder.name}_shards")
    words = ["folder", str(folder), str(out), "--unlabelled", "--encoding", "png", "--jobs", "1", *options]
    assert make_shards.main(words) == 0
    return out


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("domains")
    found = {name: shards(pictures(folder / name, count, seed=count), "--size", "16") for name, count in SIZES.items()}
    found["grey"] = shards(pictures(folder / "grey", 9, channels=1), "--size", "16", "--grey")
    found["small"] = shards(pictures(folder / "small", 9, side=12), "--size", "12")
    return found


@pytest.fixture(scope="module")
def write(domains: dict[str, Path]) -> Write:
    def written(folder: Path, **sections: dict[str, Any]) -> Path:
        tree: dict[str, Any] = {
            "run": {"dir": str(folder / "run"), "seed": 5, "iterations": ITERATIONS, "deterministic": True},
            "data": {"shards": str(domains["a"]), "horizontal_flip": True},
            "sources": {"b": {"shards": str(domains["b"]), "horizontal_flip": True}},
            "batch": {"replicas": 2, "real_per_replica": 1, "dequantize": False},
            "model": {"resolution": 16, "classes": 0},
            "generator": {"name": "resnet_translator", "channels": 2, "blocks": 1},
            "discriminator": {"name": "patchgan", "channels": 2, "layers": 1},
            "objective": {"name": "cyclegan", "pool": 8, "load_size": 18},
            "schedule": {"stages": [{"until": 6}, {"until": ITERATIONS, "learning_rate": "linear_to_zero"}]},
            "ema": {"decay": 0.9},
        }
        tree["run"] |= {"checkpoint_every": 1, "log_every": 4, "sample_every": 6, "heartbeat_every": 4}
        for section, values in sections.items():
            tree[section] = tree.get(section, {}) | values
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
        return folder / "settings.yaml"

    return written


def state_of(folder: Path, iteration: int = ITERATIONS) -> dict[str, Tensor]:
    restored = CheckpointStore(str(folder / "run")).restore()
    assert restored is not None
    assert restored.commit.iteration == iteration
    return restored.tensors


@pytest.fixture(scope="module")
def straight(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert train(load_config(str(write(folder))), read_launch())
    return folder


def test_the_state_holds_two_generators_two_discriminators_and_the_pools(straight: Path) -> None:
    state = state_of(straight)
    for name in ("generators/a_to_b/layers.1.weight", "discriminators/discriminator_b/layers.0.weight"):
        assert name in state
    assert "ema/b_to_a/layers.1.weight" in state
    assert state["memory/pool_images_a"].shape == (2, 8, 3, 16, 16)
    held = state["memory/pool_queries_a"]
    assert int(held.min()) >= 0
    assert int(held.max()) < ITERATIONS
    assert len({tuple(state[f"memory/pool_queries_{domain}"][row].tolist()) for domain in "ab" for row in (0, 1)}) == 4
    records = [json.loads(line) for line in (straight / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/generators", "loss/discriminators", "generators/cycle_a", "generators/identity_b"} <= records[
        -1
    ].keys()
    assert records[-1]["progress/real_images"] == 2 * 2 * ITERATIONS  # beyond both ends of 37 images
    with Image.open(straight / "run" / "samples" / "00000012.png") as grid:
        assert grid.height == 10 * 64  # five rows of each domain


def test_the_dry_run_counts_the_pools(write: Write, tmp_path: Path, straight: Path) -> None:
    path = write(tmp_path, objective={"pool": 50}, model={"resolution": 256}, batch={"replicas": 1})
    config = load_config(str(path), ["--objective.load_size", "286"])
    each = dry_run.memory_bytes(config)
    assert each == 2 * (50 + 2) * 3 * 256 * 256 * 4 + 2 * 50 * 8
    text = dry_run.describe(config, read_launch())
    assert "what the method remembers: 1 x 78.0 MiB (replicas x each)" in text
    assert "and 78 MiB that the method remembers" in text
    # What a checkpoint holds is what was counted.
    state = state_of(straight)
    found = sum(value.numel() * value.element_size() for name, value in state.items() if name.startswith("memory/"))
    assert found == 2 * dry_run.memory_bytes(load_config(str(write(tmp_path))))


def killed_in(iteration: int, work: Callable[[], object]) -> None:
    calls, run_iteration = 0, loop.run_iteration

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        scalars = run_iteration(*arguments, **named)
        if calls == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return scalars

    loop.run_iteration = counting
    work()


def run_and_kill(config: Any, iteration: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            killed_in(iteration, lambda: train(config, read_launch()))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("iterations", [(2,), (5, 3), (9, 1, 2)], ids=["half full", "twice", "full"])
def test_killed_it_resumes_with_equal_bits(
    iterations: tuple[int, ...], write: Write, straight: Path, tmp_path: Path
) -> None:
    config = load_config(str(write(tmp_path)))
    for iteration in iterations:
        run_and_kill(config, iteration)
    assert train(config, read_launch())
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))


@pytest.mark.slow
def test_killed_at_20_random_places_it_resumes_with_equal_bits(write: Write, straight: Path, tmp_path: Path) -> None:
    """Half of the places are before the pools are full. A run is killed up to three times."""
    places, expected = random.Random(1), state_hash(state_of(straight))
    kills = 0
    while kills < 20:
        folder = tmp_path / str(kills)
        config = load_config(str(write(folder)))
        done = 0
        for _ in range(3):
            step = places.randint(1, max(1, (ITERATIONS - done) // 2))
            run_and_kill(config, step)
            done, kills = done + step - 1, kills + 1
        assert train(config, read_launch())
        assert state_hash(state_of(folder)) == expected
    print(
        f"PROOF method-translation-kills: PASS {kills} kills, pools of 8 half full and full, equal sha256 of the state"
    )


@pytest.mark.slow
def test_from_1_to_2_to_1_processes_it_is_the_same_experiment(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = str(write(tmp_path))
    assert train(load_config(path, ["--run.iterations", "4"]), read_launch())
    done = command(path, "--run.iterations", "9", processes=2)
    assert done.returncode == 0, done.stderr
    assert train(load_config(path), read_launch())
    assert state_hash(state_of(tmp_path)) == state_hash(state_of(straight))
    print("PROOF method-translation-elastic: PASS 1 -> 2 -> 1 processes, equal sha256 of the state")


@pytest.mark.slow
def test_ddp_sums_differ_by_rounding(
    write: Write, straight: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Also a proof that DDP takes generators that are called three times in a pass."""
    done = command(write(tmp_path, run={"deterministic": False}), processes=2)
    assert done.returncode == 0, done.stderr
    for name, tensor in state_of(tmp_path).items():
        if name.startswith("memory/pool_queries"):
            assert torch.equal(tensor, state_of(straight)[name])
    print("PROOF method-translation-ddp: PASS 2 processes with DDP's own sums, the pools hold the same queries")


@pytest.mark.parametrize("change", [{"run.seed": 6}, {"batch.real_per_replica": 2}])
def test_pools_that_were_filled_otherwise_are_refused(
    change: dict[str, int], write: Write, straight: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, run={"initialize_from": str(straight / "run"), "iterations": ITERATIONS + 1})
    words = [word for name, value in change.items() for word in (f"--{name}", str(value))]
    config = load_config(str(path), ["--schedule.stages", "[{until: 99}]", *words])
    with pytest.raises(CheckpointError, match=r"^memory: "):
        train(config, read_launch())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_luas_order_trains(write: Write, tmp_path: Path) -> None:
    lua = {"order": "alternating", "discriminator_weight": 1.0}
    nets: dict[str, dict[str, Any]] = {kind: {"affine": True, "bias": False} for kind in ("generator", "discriminator")}
    nets["discriminator"]["padding"] = 2
    assert train(load_config(str(write(tmp_path, objective=lua, run={"iterations": 3}, **nets))), read_launch())
    state = state_of(tmp_path, 3)
    assert int(state["generators.adam/step"]) == 3
    assert not [name for name in state if name.startswith("generators.adam/step/")]  # each network moved 3 times


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"sources": {"b": "grey"}},
            r"^model\.image_channels: is 3, but the shards of sources\.b in .* hold images with 1;",
        ),
        (
            {"sources": {"b": "small"}, "objective": {"load_size": None}},
            r"^model\.resolution: is 16, .*sources\.b.* of 12 px",
        ),
        ({"sources": {}}, r"^sources\.b: is missing"),
    ],
)
def test_sources_that_do_not_fit_are_refused(
    change: dict[str, Any], sentence: str, write: Write, domains: dict[str, Path], tmp_path: Path
) -> None:
    tree = yaml.safe_load(write(tmp_path).read_text())
    tree["objective"] |= change.get("objective", {})
    tree["sources"] = {name: {"shards": str(domains[which])} for name, which in change["sources"].items()}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingError, match=sentence):
        train(load_config(str(tmp_path / "settings.yaml")), read_launch())
    assert not (tmp_path / "run").exists()


def test_sources_of_another_size_are_resized(write: Write, domains: dict[str, Path], tmp_path: Path) -> None:
    small = {"b": {"shards": str(domains["small"])}}
    assert train(load_config(str(write(tmp_path, sources=small, run={"iterations": 1}))), read_launch())


def test_an_empty_source_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    assert make_shards.main(["folder", str(tmp_path / "nothing"), str(tmp_path / "out"), "--unlabelled"]) == 1
    assert capsys.readouterr().err.startswith("INPUT: ")


def test_settings_that_do_not_fit_are_one_sentence(write: Write, tmp_path: Path) -> None:
    for words, sentence in (
        (["--model.classes", "3"], r"^model\.classes: is 3, but cyclegan has no classes"),
        (["--objective.load_size", "8"], r"^objective\.load_size: is 8, less than"),
        (["--generator", "{name: resnet}"], r"^generator\.name: resnet takes a class, but objective\.name cyclegan"),
        (["--objective", "{name: adversarial}"], r"^generator\.name: resnet_translator takes images alone"),
    ):
        with pytest.raises(SettingError, match=sentence):
            load_config(str(write(tmp_path)), words)
    for words, sentence in (
        (["--model.resolution", "18"], r"^model\.resolution: is 18, which"),
        (["--discriminator.layers", "4"], r"^discriminator\.layers: 4 convolutions leave nothing"),
    ):
        config = load_config(str(write(tmp_path)), words)
        with pytest.raises(SettingError, match=sentence):
            dry_run.describe(config, read_launch())


def test_files_are_translated_in_both_directions(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", 2, side=17)
    Image.new("L", (9, 30), 100).save(folder / "grey.jpg")
    (folder / "notes.txt").write_text("no picture")
    run, out = str(straight / "run"), tmp_path / "out"
    assert export.main([run, str(tmp_path / "export")]) == 0
    made = {}
    for where in (run, str(tmp_path / "export")):
        for direction in ("a_to_b", "b_to_a"):
            words = [where, "--source", str(folder), "--direction", direction, "--out", str(out)]
            assert sample.main(words) == 0
            made[where, direction] = {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}
    assert list(made[run, "a_to_b"]) == ["000.png", "001.png", "grey.png"]
    assert made[run, "a_to_b"] != made[run, "b_to_a"]
    assert made[run, "a_to_b"] == made[str(tmp_path / "export"), "a_to_b"]
    with Image.open(out / "grey.png") as picture:
        assert picture.size == (9, 30)
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}/: 3 pictures"
    # One file; and conditions from the run's own data, without --source.
    assert sample.main([run, "--source", str(folder / "000.png"), "--out", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "000.png").read_bytes() == made[run, "a_to_b"]["000.png"]
    assert sample.main([run, "--count", "1", "--out", str(tmp_path / "own")]) == 0
    assert len(list((tmp_path / "own" / "grid").glob("*.png"))) == 10


def test_pairs_are_measured_beside_the_controls(
    straight: Path, domains: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(straight / "run")
    words = [
        run,
        "--measures",
        "fidelity,round_trip",
        "--samples",
        "30",
        "--sources",
        f"b={domains['a']}",
        "--real",
        str(domains["b"]),
    ]
    assert evaluate.main(words) == 0
    told = capsys.readouterr().out
    assert "30 pairs at iteration 12" in told
    records = {record["measure"]: record for record in read_records(run)}
    rows = records["pair_l1"]["rows"]
    assert rows.keys() == {"made", "identity", "mean real image", "nearest real image"}
    assert rows["identity"] == 0.0  # a is its own partner here
    assert records["pair_psnr"]["rows"]["identity"] == 100.0
    assert records["pair_ssim"]["rows"]["identity"] == pytest.approx(1.0)
    by_noise = records["round_trip_l1"]["by_noise"]
    assert list(by_noise) == ["0", "2", "4", "8", "16"]
    sampler = open_generator(run).sampler
    images = sampler.conditions.in_turn(range(30))
    with torch.no_grad():
        back = sampler.networks["b_to_a"](sampler.networks["a_to_b"](images))
    assert by_noise["0"] == pytest.approx(float((back - images).abs().mean() / 2), rel=1e-4)
    assert by_noise["16"] != by_noise["0"]
    assert 0 < rows["made"] == records["pair_l1"]["value"] < 1
    # The same in the other direction: partners of b (now a) are the images of a.
    assert evaluate.main([*words, "--direction", "b_to_a"]) == 0
    again = [record for record in read_records(run) if record["measure"] == "pair_l1"]
    assert len(again) == 2
    assert again[1]["settings_digest"] != again[0]["settings_digest"]
    assert again[1]["value"] != again[0]["value"]
    for wrong, sentence in (
        (["--sources", "c=x"], r"^--sources: is 'c=x'; give NAME=SHARDS, with a source of the run \(data, b\)"),
        (["--direction", "up"], r"^--direction: is 'up'"),
    ):
        with pytest.raises(SettingError, match=sentence):
            evaluate.main([*words, *wrong])


def test_what_cannot_be_translated_is_one_sentence(
    straight: Path, tmp_path: Path, tiny_in: Callable[..., Path]
) -> None:
    ours = str(straight / "run")
    other = tiny_in(tmp_path, "other", run={"iterations": 1}, schedule={"discriminator_steps": 1})
    assert train(load_config(str(other)), read_launch())
    Image.new("RGB", (3, 3)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    export.main([ours, str(tmp_path / "export")])
    for words, sentence in (
        ([ours, "--source", str(tmp_path / "tiny.png")], r"^--source: .*tiny\.png is 3x3 px, too small"),
        ([ours, "--source", str(tmp_path / "broken.png")], r"^--source: .*broken\.png cannot be read"),
        ([ours, "--source", str(tmp_path / "empty")], r"^--source: the folder .* holds no pictures"),
        ([ours, "--source", str(tmp_path / "nowhere")], r"^--source: .* is neither a file nor a folder"),
        ([ours, "--source", str(tmp_path), "--classes", "1"], r"^--classes: does not go together with --source"),
        ([ours, "--direction", "up"], r"^--direction: is 'up'; give a_to_b or b_to_a"),
        ([ours, "--classes", "x"], r"^--classes: 'x' names no image"),
        ([str(tmp_path / "export")], r"^--source: names nothing"),
        (
            [str(tmp_path / "other"), "--source", str(tmp_path / "tiny.png")],
            r"^--source: this generator makes no pictures of pictures",
        ),
        ([str(tmp_path / "other"), "--direction", "a_to_b"], r"^--direction: this generator has only one"),
    ):
        with pytest.raises(SettingError, match=sentence):
            sample.main([*words, "--out", str(tmp_path / "out")])
    assert open_generator(ours).sampler.conditions.evenly(3).shape == (3, 3, 16, 16)


def test_a_published_layout_becomes_sources_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("trainA", 3), ("trainB", 5), ("testA", 1), ("testB", 2)):
        pictures(tmp_path / "horse2zebra" / name, count)
    out = tmp_path / "horse2zebra" / "shards"
    words = ["folder", str(tmp_path / "horse2zebra"), str(out), "--each", "--unlabelled", "--size", "16", "--jobs", "1"]
    for _ in range(2):  # and again: nothing is left to do
        assert make_shards.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(" samples")[0].removeprefix(f"{out}/") for line in lines] == [
            "testA: 1",
            "testB: 2",
            "trainA: 3",
            "trainB: 5",
        ]
    assert make_shards.main(["folder", str(out / "trainA"), str(tmp_path / "x"), "--each"]) == 1
    assert capsys.readouterr().err.startswith("INPUT: ")
