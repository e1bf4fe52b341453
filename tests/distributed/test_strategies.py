"""One experiment on any hardware: DDP, ZeRO-1, ZeRO-2, any number of processes, straight and resumed.

In float32, comparisons leave out what float64 leaves at 0 (biases in front of batch norm): their gradients are rounding noise.
A large epsilon keeps Adam from blowing up the noise of the others.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.strategies import apart, difference, in_this_process, run_cells, seeds_state
from trainer.checkpoint.commits import state_hash

PROCESSES = (1, 2, 3, 4)


@pytest.fixture
def experiment(tiny: Callable[..., Path]) -> Callable[..., Path]:
    adam = {"epsilon": 1e-3}

    def write(name: str, iterations: int) -> Path:
        return tiny(
            name,
            run={"iterations": iterations},
            batch={"replicas": 4, "real_per_replica": 4, "generated_per_replica": 4},
            optimizer={"generator": adam, "discriminator": adam},
        )

    return write


def test_two_processes_compute_what_one_does(experiment: Callable[..., Path], tmp_path: Path) -> None:
    """DDP in float64 to rounding; ZeRO-1 and ZeRO-2 like one another; deterministic mode bit for bit; all resume exactly."""
    path = experiment("run", 4)
    cells = ("ddp-fp64", "synchronised-fp64", "zero1-fp32", "zero2-fp32", "deterministic-fp32", "halved-fp32")
    found = run_cells(path, tmp_path / "out", 2, *cells)
    assert all(cell["resumed_equal"] for cell in found.values())
    exact = in_this_process(path, "fp64")
    assert difference(found["ddp-fp64"]["final"], exact, exact) < 1e-12
    synchronised = in_this_process(path, "fp64", "--batch.synchronised_norm", "true")
    assert difference(found["synchronised-fp64"]["final"], synchronised, exact) < 1e-12
    assert difference(synchronised, exact, exact) > 1e-6  # it is another experiment
    single = in_this_process(path, "fp32")
    start = seeds_state(path)
    # One flipped ReLU moves a bias by 1e-3; DeepSpeed's clipping at 1.0 would move whole layers by far more.
    assert difference(found["zero1-fp32"]["final"], single, exact) < 5e-3
    assert apart(found["zero1-fp32"]["final"], single, start) < 1e-4
    assert state_hash(found["zero1-fp32"]["final"]) == state_hash(found["zero2-fp32"]["final"])
    deterministic = in_this_process(path, "fp32", "--run.deterministic", "true")
    assert state_hash(found["deterministic-fp32"]["final"]) == state_hash(deterministic)
    assert difference(deterministic, single, exact) < 5e-3
    assert apart(deterministic, single, start) < 1e-4
    assert 1e-6 < apart(found["halved-fp32"]["final"], single, start) < 1e-3  # gradients sent in bf16


def test_three_processes_resume_with_the_same_bits(experiment: Callable[..., Path], tmp_path: Path) -> None:
    """Where three add up, the order decides about bits: DDP's buckets must lie as they did before the interruption."""
    found = run_cells(experiment("run", 4), tmp_path / "out", 3, "ddp-fp32")
    assert found["ddp-fp32"]["resumed_equal"]


@pytest.mark.slow
def test_proof_distributed_strategies(
    experiment: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table: strategies x processes x precisions against one process; resumed runs bit for bit in every cell."""
    path = experiment("run", 10)
    strategies, precisions = ("ddp", "zero1", "zero2"), ("fp32", "bf16")
    cells = [f"{strategy}-{precision}" for strategy in strategies for precision in precisions]
    exact = in_this_process(path, "fp64")
    single = {precision: in_this_process(path, precision) for precision in precisions}
    lines, worst, same = [], {"fp64": 0.0, "fp32": 0.0, "bf16": 0.0}, True
    for processes in PROCESSES:
        found = run_cells(path, tmp_path / f"on{processes}", processes, "ddp-fp64", *cells)
        same = same and all(cell["resumed_equal"] for cell in found.values())
        worst["fp64"] = max(worst["fp64"], difference(found["ddp-fp64"]["final"], exact, exact))
        for precision in precisions:
            apart = [difference(found[f"{s}-{precision}"]["final"], single[precision], exact) for s in strategies]
            between = difference(found[f"zero1-{precision}"]["final"], found[f"zero2-{precision}"]["final"], exact)
            worst[precision] = max(worst[precision], *apart)
            lines.append(
                f"{processes} {precision}: ddp {apart[0]:.1e} zero1 {apart[1]:.1e} zero2 {apart[2]:.1e} 1-2 {between:.1e}"
            )
    good = same and worst["fp64"] < 1e-12 and worst["fp32"] < 5e-2 and worst["bf16"] < 0.5
    with capsys.disabled():
        print("".join(f"\n      {line}" for line in lines))
        print(
            f"PROOF distributed-strategies: {'PASS' if good else 'FAIL'} largest relative difference from 1 process "
            f"{worst}; resumed bitwise in every cell: {same}"
        )
    assert good


@pytest.mark.slow
def test_proof_distributed_deterministic(
    experiment: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One hash on 1, 2 and 4 processes, straight, and with another process count in the second half."""
    path, cell = experiment("run", 10), "deterministic-fp32"
    hashes, begin = set(), None
    for processes in (4, 1, 2):
        out = tmp_path / f"on{processes}"
        if begin is not None:
            out.mkdir()
            torch.save(begin, out / f"{cell}.start.pt")  # the half that another process count computed
        found = run_cells(path, out, processes, cell)[cell]
        hashes.add(state_hash(found["final"]))
        assert found["resumed_equal"]
        begin = found["half"]
    with capsys.disabled():
        print(f"\nPROOF distributed-deterministic: {'PASS' if len(hashes) == 1 else 'FAIL'} hashes {sorted(hashes)}")
    assert len(hashes) == 1
