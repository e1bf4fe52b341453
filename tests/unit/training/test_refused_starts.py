"""A start that is refused touches nothing: neither files nor counters, and a run that is at work goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import as_tree, load_config
from trainer.foundation.errors import TrainerError
from trainer.processes.launch import Launch
from trainer.training.keeper import Keeper
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
Tiny = Callable[..., Path]


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time of change and bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def start(path: Path, *words: str) -> bool:
    return train(load_config(str(path), list(words)), LAUNCH)


REFUSED = {
    "other shards": (["--data.shards", "{other}"], r"data\.shards: .* has the fingerprint"),
    "no shards": (["--data.shards", "{folder}/nowhere"], r"nowhere"),
    "other classes": (
        ["--data.classes", "[0, 1]", "--model.classes", "2"],
        r"data\.classes: .*made with other settings",
    ),
    "another science": (["--ema.decay", "0.5"], r"ema\.decay: .*made with other settings"),
    "fewer iterations than done": (["--run.iterations", "3"], r"run\.iterations: is 3, but .*of iteration 4; give 4"),
    "a new run that is not new": (["--run.resume", "never"], r"run\.resume: is 'never'"),
    "another network": (["--model.resolution", "64"], r"resolution"),
    "a classifier that is not there": (
        ["--evaluation.classifier", "{folder}/none", "--run.evaluate_every", "2"],
        r"evaluation\.classifier",
    ),
}


@pytest.fixture
def other_shards(tiny_shards: Path, tmp_path: Path) -> Path:
    """The same classes, with one sample less: another fingerprint."""
    import gzip
    import struct

    import numpy as np

    from data_pipeline.make_shards import __main__ as make_shards

    source, target = tmp_path / "other-idx", tmp_path / "other"
    source.mkdir()
    labels = (np.arange(60) % 3).astype(np.uint8)
    images = np.full((60, 28, 28), 7, np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (source / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
    assert make_shards.main(["idx", str(source), str(target), "--jobs", "1"]) == 0
    return target


@pytest.fixture
def experiment(run: Path, tiny: Tiny) -> Path:
    """The settings of `run`, a run of 4 iterations."""
    return tiny("tiny", run={"iterations": 6}, batch={"replicas": 1}, schedule={"discriminator_steps": 1})


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_start_touches_nothing(
    run: Path, experiment: Path, other_shards: Path, tmp_path: Path, case: str
) -> None:
    words, message = REFUSED[case]
    given = [word.format(other=other_shards, folder=tmp_path) for word in words]
    healthy = CheckpointStore(str(run))
    lease = healthy.acquire()
    before = content(run)
    for _ in range(9):  # more than checkpoint.restart_limit
        with pytest.raises(Exception, match=message):
            start(experiment, *given)
    assert content(run) == before
    lease.check()  # it still is the writer
    lease.release("test", 4)
    assert start(experiment)  # and the right command goes on


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.initialize_from", "{run}@3"], r"run\.initialize_from: .*no checkpoint of iteration 3"),
        (["--run.initialize_from", "{folder}/none"], r"run\.initialize_from: .* holds no checkpoint"),
        (["--run.initialize_from", "{run}", "--run.iterations", "3"], r"run\.iterations: is 3, but .*of iteration 4"),
        (["--run.initialize_from", "{run}", "--ema.decay", "0", "--generator.channels", "4"], r"generator"),
    ],
)
def test_a_new_run_that_is_refused_has_no_folder(
    run: Path, experiment: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    given = [word.format(run=run, folder=tmp_path) for word in words]
    with pytest.raises(TrainerError, match=message):
        start(experiment, "--run.dir", str(tmp_path / "new"), *given)
    assert not (tmp_path / "new").exists()


class Numbers:
    """A state of one tensor."""

    def __init__(self) -> None:
        self.held = torch.zeros(1)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"a": self.held}

    def load(self, tensors: dict[str, torch.Tensor], iteration: int | None = None) -> None:
        self.held = tensors["a"]


def test_what_a_healthy_run_commits_before_it_is_taken_over_is_not_lost(tmp_path: Path, tiny: Tiny) -> None:
    config = load_config(str(tiny()))
    healthy = CheckpointStore(config.run.dir)
    healthy.acquire()
    state, keeper = Numbers(), Keeper(config, LAUNCH)
    assert keeper.resume(state) == 0  # type: ignore[arg-type]
    healthy.save(2, {"a": torch.ones(1)}, {"settings": as_tree(config)})
    assert not keeper.take_over()
    assert keeper.resume(state) == 2  # type: ignore[arg-type]
    assert keeper.take_over()
    keeper.close()
    assert state.held.item() == 1
    assert len(list((tmp_path / "run" / "checkpoints" / "writers").iterdir())) == 2


def test_a_damaged_checkpoint_is_set_aside_by_the_writer_alone(tmp_path: Path, tiny: Tiny) -> None:
    config = load_config(str(tiny()))
    healthy = CheckpointStore(config.run.dir)
    healthy.acquire()
    for iteration in (1, 2):
        healthy.save(iteration, {"a": torch.full((1,), float(iteration))}, {"settings": as_tree(config)})
    (damaged,) = (tmp_path / "run" / "checkpoints").glob("iteration-00000002-*")
    next(damaged.glob("state-*")).write_bytes(b"")
    state, keeper = Numbers(), Keeper(config, LAUNCH)
    assert keeper.resume(state) == 1  # type: ignore[arg-type]
    assert not (damaged / "rejected.json").exists()
    assert keeper.take_over()
    keeper.close()
    assert (damaged / "rejected.json").exists()
