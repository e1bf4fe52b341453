"""More processes than replicas: a replica is shared, and the experiment stays what it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.strategies import apart, difference, in_this_process, run_cells, seeds_state

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "projection": {},
    "concat": {"discriminator": {"conditioning": {"name": "concat"}}},
    "acgan": {"discriminator": {"conditioning": {"name": "acgan"}}, "objective": {"name": "acgan", "passes": "joint"}},
    "dcgan": {
        "generator": {"name": "dcgan", "widths": [24, 16, 8, 8]},
        "discriminator": {"name": "dcgan", "widths": [4, 4, 8, 8, 16, 16], "dropout": 0.0},
        "objective": {"name": "acgan", "loss": "non_saturating"},
    },
    "uncoupled": {"model": {"classes": 0}, "discriminator": {"conditioning": {"name": "none"}}},
}


@pytest.fixture
def experiment(tiny: Callable[..., Path]) -> Callable[..., Path]:
    adam = {"epsilon": 1e-3}

    def write(name: str, iterations: int, **sections: Any) -> Path:
        given = {
            "run": {"iterations": iterations},
            "batch": {"replicas": 2, "real_per_replica": 4, "generated_per_replica": 8},
            "optimizer": {"generator": adam, "discriminator": adam},
        }
        path = tiny(name, **given)
        tree = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            tree[section] = values if "name" in values else {**tree[section], **values}
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def test_four_processes_share_two_replicas(experiment: Callable[..., Path], tmp_path: Path) -> None:
    """DDP in float64 equals one process to rounding, ZeRO-1 in float32 to its own; all resume with the same bits."""
    path = experiment("run", 4)
    cells = ("ddp-fp64", "synchronised-fp64", "zero1-fp32")
    found = run_cells(path, tmp_path / "out", 4, *cells)
    assert all(cell["resumed_equal"] for cell in found.values())
    exact = in_this_process(path, "fp64")
    assert difference(found["ddp-fp64"]["final"], exact, exact) < 1e-12
    buffers = [name for name in exact if name.endswith((".running_mean", ".running_var", ".u"))]
    assert len(buffers) > 10
    for name in buffers:  # of replica 0 alone, over the processes that share it
        assert torch.allclose(found["ddp-fp64"]["final"][name], exact[name], rtol=1e-12, atol=1e-14), name
    synchronised = in_this_process(path, "fp64", "--batch.synchronised_norm", "true")
    assert difference(found["synchronised-fp64"]["final"], synchronised, exact) < 1e-12
    single = in_this_process(path, "fp32")
    assert apart(found["zero1-fp32"]["final"], single, seeds_state(path)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_proof_distributed_shared_replicas(
    name: str, experiment: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 replicas on 1, 2, 4 and 8 processes: networks and buffers in float64, ZeRO-1 in float32, after 10 iterations."""
    path = experiment(name, 10, **EXPERIMENTS[name])
    exact, single, start = in_this_process(path, "fp64"), in_this_process(path, "fp32"), seeds_state(path)
    worst, zero, same = 0.0, 0.0, True
    for processes in (2, 4, 8):
        found = run_cells(path, tmp_path / f"on{processes}", processes, "ddp-fp64", "zero1-fp32")
        same = same and all(cell["resumed_equal"] for cell in found.values())
        worst = max(worst, difference(found["ddp-fp64"]["final"], exact, exact))
        zero = max(zero, apart(found["zero1-fp32"]["final"], single, start))
    good = same and worst < 1e-12 and zero < 1e-3
    with capsys.disabled():
        print(
            f"\nPROOF distributed-shared-{name}: {'PASS' if good else 'FAIL'} 2 replicas on 2, 4, 8 processes: largest "
            f"relative difference from one process {worst:.1e} (DDP, float64), {zero:.1e} of the way trained (ZeRO-1, fp32); "
            f"resumed bitwise: {same}"
        )
    assert good
