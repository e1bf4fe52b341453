"""Which device a process gets, on machines with no GPU, one, and more: PyTorch's answers are patched."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml

from tests.support.checkout import ROOT, environment
from tests.support.gpus import pretend
from trainer.foundation.errors import SettingError, TrainerError
from trainer.processes import launch as module
from trainer.processes.launch import Launch, check_cards, read_launch, start_processes

CUDA = Launch(0, 2, 0, torch.device("cuda", 0), "bf16", "ddp")


def ranks(patch: pytest.MonkeyPatch, local_rank: int, world_size: int) -> None:
    for name, value in {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world_size}.items():
        patch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("seen", "local_rank", "world_size", "expected"),
    [
        (0, 0, 1, "cpu"),
        (0, 1, 2, "cpu"),
        (1, 0, 1, "cuda:0"),
        (1, 0, 2, "cuda:0"),
        (1, 1, 2, "refused"),  # two processes on one card, or on one slice of it (MIG): NCCL wants a card for each
        (2, 1, 2, "cuda:1"),
        (2, 1, 4, "cuda:1"),  # the second machine of two
        (2, 2, 4, "refused"),
        (8, 3, 4, "cuda:3"),
    ],
)
def test_each_process_has_a_gpu_of_its_own_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, seen: int, local_rank: int, world_size: int, expected: str
) -> None:
    pretend(monkeypatch, seen)
    ranks(monkeypatch, local_rank, world_size)
    if expected == "refused":
        said = rf"^num_processes .accelerate's YAML.: this is process {local_rank} .* sees {seen} GPU"
        with pytest.raises(TrainerError, match=said):
            read_launch()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        assert read_launch().device.type == "cpu"
    else:
        assert str(read_launch().device) == expected


def test_a_verb_that_is_given_the_cpu_needs_no_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1)
    ranks(monkeypatch, 1, 2)
    assert read_launch("cpu").device.type == "cpu"
    ranks(monkeypatch, 0, 1)
    assert str(read_launch("cuda").device) == "cuda:0"
    pretend(monkeypatch, 0)
    for device, said in (
        ("cuda", r"^--device: is 'cuda', but this process sees no GPU"),
        ("tpu", r"^--device: is 'tpu'"),
    ):
        with pytest.raises(SettingError, match=said):
            read_launch(device)


def test_the_launch_file_for_cpus_shows_no_gpu_to_its_processes(tmp_path: Path) -> None:
    """`make demo` on a workstation with one GPU: the second of its two processes has none."""
    script = tmp_path / "script.py"
    script.write_text("import os\nprint('seen:', os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['WORLD_SIZE'])")
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", "cluster/launch/cpu.yaml"]
    given = {**environment(), "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(
        [*command, str(script)], cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split("\n")[:2] == ["seen: -1,-1 2"] * 2


def test_the_launch_files_start_no_more_processes_than_the_experiments_have_replicas() -> None:
    """They are named in README, in the headers of configs/ and in the documentation, without a number."""
    for path in (ROOT / "cluster/launch").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["num_processes"] <= 4, path.name
    file = yaml.safe_load((ROOT / "cluster/launch/single_bf16.yaml").read_text())
    assert (file["mixed_precision"], file["num_processes"], file["distributed_type"]) == ("bf16", 1, "NO")


def test_host_memory_goes_through_gloo_beside_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes agree on in every iteration may not wait for the GPU."""
    pretend(monkeypatch, 2)
    backends: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(module, "check_cards", lambda launch, card: None)
    start_processes(CUDA, timedelta(seconds=1))
    assert backends == ["cpu:gloo,cuda:nccl"]


def test_what_is_agreed_on_lies_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training import loop

    seen: list[torch.device] = []

    def alone(launch: Launch, values: torch.Tensor) -> torch.Tensor:
        seen.append(values.device)
        return values

    monkeypatch.setattr(loop, "sum_over_processes", alone)
    assert loop._agree(replace(CUDA, device=torch.device("meta")), True, False) == (True, False)
    assert seen == [torch.device("cpu")]


@pytest.mark.parametrize(("others", "same"), [(["b/card 0", "a/card 1"], None), (["b/card 0", "a/card 0"], "0 and 2")])
def test_two_processes_on_one_card_are_refused(
    monkeypatch: pytest.MonkeyPatch, others: list[str], same: str | None
) -> None:
    """Without LOCAL_RANK each takes GPU 0, and NCCL says "invalid usage"."""
    rows: list[torch.Tensor] = []

    def alone(launch: Launch, values: torch.Tensor) -> torch.Tensor:
        rows.append(values.clone())
        return values

    monkeypatch.setattr(module, "sum_over_processes", alone)
    for rank, card in enumerate(["a/card 0", *others]):
        with suppress(TrainerError):  # it sees itself alone here
            check_cards(replace(CUDA, world_size=3, rank=rank), card)
    monkeypatch.setattr(module, "sum_over_processes", lambda launch, values: sum(rows))
    if same is None:
        check_cards(replace(CUDA, world_size=3), "a/card 0")
    else:
        with pytest.raises(TrainerError, match=rf"^LOCAL_RANK: processes {same} have the same GPU"):
            check_cards(replace(CUDA, world_size=3), "a/card 0")
