"""How replicas are dealt to processes, and launches that are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trainer
from tests.support.checkout import environment
from trainer.foundation.errors import TrainerError
from trainer.processes import watch
from trainer.processes.launch import Launch, held_description, read_launch


def launch(rank: int, world_size: int) -> Launch:
    return Launch(rank, world_size, 0, torch.device("cpu"), "fp32", "ddp")


@pytest.mark.parametrize("replicas", range(1, 9))
def test_blocks_are_contiguous_complete_and_even(replicas: int) -> None:
    for world_size in range(1, replicas + 1):
        blocks = [launch(rank, world_size).held_replicas(replicas) for rank in range(world_size)]
        assert [replica for block in blocks for replica in block] == list(range(replicas))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
        assert 0 in blocks[0]


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_more_processes_share_the_replicas_evenly(parts: int) -> None:
    for replicas in (1, 2, 4):
        world = replicas * parts
        held = [
            (launch(rank, world).held_replicas(replicas), launch(rank, world).part(replicas)) for rank in range(world)
        ]
        assert held == [(range(r, r + 1), part) for r in range(replicas) for part in range(parts)]
        assert [launch(0, world).owner(r, replicas) for r in range(replicas)] == [r * parts for r in range(replicas)]


@pytest.mark.parametrize(("replicas", "world", "fitting"), [(2, 5, "4 or 6"), (4, 6, "4 or 8"), (3, 64, "63 or 66")])
def test_processes_that_cannot_share_evenly_are_refused(replicas: int, world: int, fitting: str) -> None:
    message = (
        rf"^batch.replicas: is {replicas}, but the launch started {world} processes, .*; launch {fitting} processes"
    )
    with pytest.raises(TrainerError, match=message):
        launch(0, world).held_replicas(replicas)


def test_description() -> None:
    assert held_description(launch(0, 3), 4) == "4 replicas on 3 processes (2 + 1 + 1), ddp, fp32, cpu"
    assert held_description(launch(0, 8), 4) == "4 replicas on 8 processes (2 share each replica), ddp, fp32, cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("MIXED_PRECISION=fp8", "mixed_precision .accelerate's YAML.: is 'fp8'"),
        ("MIXED_PRECISION=fp16", "mixed_precision .accelerate's YAML.: is 'fp16', but there is no GPU"),
        ("USE_FSDP=true", "distributed_type .accelerate's YAML.: is FSDP"),
        ("USE_DEEPSPEED=true DEEPSPEED_ZERO_STAGE=3", "deepspeed_config .*: zero_stage is 3; set it to 1 or 2"),
        (
            "USE_DEEPSPEED=true DEEPSPEED_ZERO_STAGE=0",
            "deepspeed_config .*: zero_stage is 0; .* stage 0 is cluster/launch/ddp.yaml",
        ),
        ("USE_DEEPSPEED=true DEEPSPEED_CONFIG_FILE=ds.json", "deepspeed_config .*: names a file of DeepSpeed's"),
        (
            "USE_DEEPSPEED=true GRADIENT_CLIPPING=1.0",
            "deepspeed_config .*: gradient_clipping is 1.0, but the experiment clips nothing",
        ),
        ("USE_DEEPSPEED=true GRADIENT_ACCUMULATION_STEPS=2", "deepspeed_config .*: gradient_accumulation_steps is 2"),
        (
            "USE_DEEPSPEED=true DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE=cpu",
            "deepspeed_config .*: offload_optimizer_device is cpu",
        ),
        ("USE_DEEPSPEED=true DEEPSPEED_OFFLOAD_PARAM_DEVICE=nvme", "deepspeed_config .*: offload_param_device is nvme"),
        ("USE_DEEPSPEED=true MIXED_PRECISION=fp16", "mixed_precision .*: is 'fp16' with DeepSpeed"),
    ],
)
def test_unsupported_launches_are_refused(monkeypatch: pytest.MonkeyPatch, settings: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for setting in settings.split():
        name, _, value = setting.partition("=")
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(TrainerError, match=message):
        read_launch()


@pytest.mark.parametrize(("stage", "strategy"), [("1", "zero1"), ("2", "zero2")])
def test_deepspeed_stages(monkeypatch: pytest.MonkeyPatch, stage: str, strategy: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    for clipping in ("none", "0.0"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", clipping)
        assert read_launch().strategy == strategy


@pytest.mark.parametrize("how", ["words", "yaml"])
def test_a_launcher_that_starts_one_process_of_two_is_caught(tmp_path: Path, how: str) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one, without a word."""
    script = tmp_path / "script.py"
    script.write_text("from trainer.processes.launch import read_launch\nread_launch()")
    words = ["--cpu", "--num_processes", "2"]
    if how == "yaml":
        (tmp_path / "two.yaml").write_text(
            "distributed_type: MULTI_CPU\ncompute_environment: LOCAL_MACHINE\nnum_processes: 2\n"
        )
        words = ["--config_file", str(tmp_path / "two.yaml"), "--cpu"]
    accelerate = Path(sys.executable).parent / "accelerate"
    done = subprocess.run(
        [accelerate, "launch", *words, script], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (
        "num_processes (accelerate's YAML): 2 processes were asked for, but this one was started as one of 1"
        in done.stderr
    )


def test_a_process_whose_launcher_ended_before_it_could_ask_for_a_signal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the others' rendezvous, and train on unseen."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)  # this process's own signals stay as they are
    watch.die_with_launcher()
    monkeypatch.setattr(trainer, "PARENT", 1234567)
    with pytest.raises(
        TrainerError, match=r"^launch: the launcher \(pid 1234567\) ended while this process was starting"
    ):
        watch.die_with_launcher()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    watch.die_with_launcher()  # nobody launched it
