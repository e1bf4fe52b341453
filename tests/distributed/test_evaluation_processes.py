"""`trainer.evaluate` on 1, 2 and 3 real processes gives the same values, bit for bit."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("--samples", "230", "--splits", "3", "--pairs", "8", "--class-samples", "60", "--queries", "12", "--seed", "4")
QUICK = "is,fid,accuracy,resolutions,ms_ssim,intra_fid,neighbours"
INCIDENTAL = {"seconds", "when", "processes", "code_version"}  # a commit may come between the launches


def evaluate(run: Path, processes: int, *words: str) -> None:
    """Each process as torchrun would start it, and a cache of its own for each launch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "trainer.evaluate", str(run), "--device", "cpu", *words]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=800)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    assert all(not text for text in said[1:]), "only the main process speaks"


def values_of(run: Path) -> dict[str, dict[str, Any]]:
    records = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    return {r["measure"]: {key: value for key, value in r.items() if key not in INCIDENTAL} for r in records}


@pytest.mark.timeout(1800)  # six starts of Python, slow ones on a busy machine
@pytest.mark.parametrize(
    ("measures", "values"),
    [(QUICK, 9), pytest.param(f"{QUICK},kid,precision_recall", 12, marks=pytest.mark.slow)],
    ids=["quick", "evaluation-processes"],
)
def test_one_two_and_three_processes_measure_the_same(
    tiny_shards: Path, tiny_in: Callable[..., Path], tmp_path: Path, measures: str, values: int
) -> None:
    from trainer.classifiers.training import save_classifier, train_classifier
    from trainer.config import load_config
    from trainer.processes.launch import Launch
    from trainer.training.loop import train

    model, info = train_classifier(str(tiny_shards), str(tiny_shards), epochs=3, seed=0, width=4, batch_size=30)
    judge = tmp_path / "classifier.safetensors"
    save_classifier(judge, model, info)
    run = tmp_path / "run"
    path = tiny_in(
        tmp_path,
        run={"iterations": 2, "checkpoint_every": 2},
        batch={"replicas": 1},
        schedule={"discriminator_steps": 1},
    )
    launch = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
    assert train(load_config(str(path)), launch)

    found = {}
    for processes in (1, 2, 3):
        words = [
            "--classifier",
            str(judge),
            "--measures",
            measures,
            "--cache",
            str(tmp_path / f"cache{processes}"),
            *WORDS,
        ]
        if processes == 3:  # the same through --follow, which ends with the run's last checkpoint
            words.append("--follow")
        evaluate(run, processes, *words)
        found[processes] = values_of(run)
    assert len(found[1]) == values
    assert found[1]["frechet_distance"]["value"] > 0
    for processes in (2, 3):
        assert found[processes] == found[1]
    print(f"PROOF evaluation-processes: PASS {values} measurements, equal bits on 1, 2 and 3 processes")
