"""The classifier-loss stage under SIGKILL: at its first iteration, inside it, in a run of its own, on 1 and 2 processes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.manifest.format import load_manifest
from tests.support.crash_training import Life, Training, make_shards
from trainer.checkpoint.commits import CheckpointStore
from trainer.classifiers.small import ClassifierInfo, SmallClassifier, save_classifier
from trainer.methods.terms.guidance import PREFIX, STOPPED_AT

pytestmark = pytest.mark.xdist_group("finetune-crashes")  # one set of shards for all
BEGIN = 7  # between two checkpoints, which are written every 5 iterations


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_shards(tmp_path_factory.mktemp("data"))
    names = load_manifest(str(folder)).class_names
    for seed, name in enumerate(("guiding", "independent")):
        torch.manual_seed(seed)
        info = ClassifierInfo(32, 1, names, 4, "", 0.0)
        save_classifier(folder.parent / f"{name}.safetensors", SmallClassifier(1, len(names), 4), info)
    return folder


Make = Callable[..., Training]


@pytest.fixture
def make(shards: Path, tmp_path: Path) -> Make:
    def build(name: str, iterations: int, launch: str = "single", stage: bool = True, **settings: Any) -> Training:
        classifiers = {
            f"classifier_loss.{role}": f"{{name: small, weights: {shards.parent / file}.safetensors}}"
            for role, file in (("classifier", "guiding"), ("independent", "independent"))
        }
        chosen = {
            **classifiers,
            "classifier_loss.weight": 20.0,
            "classifier_loss.begin": BEGIN,
            "classifier_loss.until": iterations,
            "classifier_loss.ramp": 4,
            "classifier_loss.watch_every": 3,
            "classifier_loss.watch_samples": 20,
        }
        return Training(launch, str(tmp_path / name), shards, {}, iterations, {**(chosen if stage else {}), **settings})

    return build


def kill_at_the_first_iteration(training: Training, begin: int = BEGIN) -> None:
    """SIGKILL inside iteration `begin`: after its measurement has been told, before its update has been."""
    for _ in range(5):
        with training.start() as life:
            assert life.wait_for(lambda life: f"iteration {begin}: generated images" in life.output), life.output[
                -3000:
            ]
        if max(life.iterations(), default=0) <= begin:
            return
    raise AssertionError("the process was never quick enough to be killed inside the iteration")


def kill_after(training: Training, iterations: int) -> None:
    """SIGKILL once so many new iterations are done."""
    with training.start() as life:
        assert life.wait_for(lambda life: len(life.iterations()) >= iterations), life.output[-3000:]
        assert life.process.poll() is None, life.output[-2000:]


def complete(training: Training) -> Life:
    life = training.complete()
    assert life.process.returncode == 0, life.output[-3000:]
    return life


def marks(training: Training) -> dict[str, torch.Tensor]:
    restored = CheckpointStore(training.url).restore()
    assert restored is not None
    return {name: tensor for name, tensor in restored.tensors.items() if name.startswith(PREFIX)}


def test_killed_at_the_stages_first_iteration_and_inside_it(make: Make) -> None:
    undisturbed, killed = make("undisturbed", 14), make("killed", 14)
    complete(undisturbed)
    kill_at_the_first_iteration(killed)
    kill_after(killed, BEGIN + 2 - 5)
    complete(killed)
    assert killed.hash() == undisturbed.hash()
    assert len(marks(killed)) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("begin", [BEGIN, 10], ids=["between-commits", "at-a-commit"])
def test_proof_killed_again_and_again(make: Make, begin: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One process: killed at the stage's first iteration, then four times inside the stage."""
    settings = {"classifier_loss.begin": begin}
    undisturbed, killed = make("a", 60, **settings), make("b", 60, **settings)
    complete(undisturbed)
    kill_at_the_first_iteration(killed, begin)
    chance = random.Random(begin)
    for _ in range(4):
        kill_after(killed, chance.randint(6, 10))
    complete(killed)
    report(capsys, f"finetune-killed-begin-{begin}", killed, undisturbed, kills=5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_proof_a_run_of_its_own(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From another run's commit: killed before anything of its own is saved, and inside; = the stage in one schedule."""
    whole, base = (
        make("whole", 40),
        make("base", 40, stage=False, **{"run.checkpoint_every": BEGIN, "checkpoint.keep_every": BEGIN}),
    )
    own = make("own", 40, **{"run.initialize_from": f"{tmp_path / 'base'}@{BEGIN}"})
    complete(whole)
    complete(base)
    kill_at_the_first_iteration(own)
    assert CheckpointStore(own.url).restore() is None
    kill_after(own, 8)
    complete(own)
    assert base.hash() != own.hash()
    report(capsys, "finetune-own-run", own, whole, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_proof_other_numbers_of_processes(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The stop rule's decision and the bits of the state survive kills between one and two processes."""
    settings = {
        "classifier_loss.maximum_ms_ssim_rise": 0.0,
        "run.deterministic": True,  # sums over replicas in one order
    }
    one, two = (make("elastic", 40, launch, **settings) for launch in ("single", "ddp"))
    undisturbed = make("undisturbed", 40, **settings)
    complete(undisturbed)
    kill_at_the_first_iteration(two)
    kill_after(one, 7)
    kill_after(two, 6)
    complete(one)
    stopped = marks(one).get(STOPPED_AT)
    at = None if stopped is None else int(stopped)
    report(capsys, "finetune-elastic", one, undisturbed, kills=3, processes="2,1,2,1", stopped_at=at)


def report(
    capsys: pytest.CaptureFixture[str], name: str, killed: Training, undisturbed: Training, **figures: object
) -> None:
    same = killed.hash() == undisturbed.hash()
    text = " ".join(f"{key}={value}" for key, value in figures.items())
    with capsys.disabled():
        print(f"\nPROOF {name}: {'PASS' if same else 'FAIL'} {text} hash_equal={same}", flush=True)
    assert same
