"""What watches a run does not end it: files that cannot be written are told once, and written when they can be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import load_config
from trainer.foundation.lines import Lines
from trainer.foundation.log import logger, run_log
from trainer.processes.launch import Launch
from trainer.telemetry import events
from trainer.telemetry.board import Telemetry
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
FILES = ("metrics.jsonl", "log.txt", "config.yaml")
FOLDERS = ("tensorboard", "samples")


def test_a_training_whose_files_cannot_be_written_trains_on(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tiny(run={"sample_every": 2, "iterations": 6}), tmp_path / "run"
    for name in FILES:
        (run / name / "in the way").mkdir(parents=True)
    for name in FOLDERS:
        (run / name).write_text("in the way")
    assert train(load_config(str(path)), LAUNCH)
    newest = CheckpointStore(str(run)).newest()
    assert newest is not None
    assert newest.iteration == 6
    printed = capsys.readouterr()
    for name in (*FILES, *FOLDERS):
        assert sum(name in line and "written" in line for line in (printed.out + printed.err).splitlines()) == 1, name
    assert "Traceback" not in printed.out + printed.err


def read_points(folder: Path) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars("loss")]


def test_a_disk_that_comes_back_gets_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.0)
    run, away = tmp_path / "run", tmp_path / "away"
    with run_log(str(run)), Telemetry(run, 0, 100) as telemetry:
        for iteration in range(1, 13):
            if iteration == 4:
                run.rename(away)
                run.write_text("no folder")
            if iteration == 9:
                run.unlink()
                away.rename(run)
            telemetry.scalars(iteration, {"loss": float(iteration)})
            telemetry.say(f"line {iteration}")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == list(range(1, 13))
    lines = [line.partition(" line ")[2] for line in (run / "log.txt").read_text().splitlines() if " line " in line]
    assert lines == [str(number) for number in range(1, 13)]
    assert read_points(run / "tensorboard") == [(number, float(number)) for number in range(1, 13)]


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    with run_log(str(tmp_path / "run")), Telemetry(tmp_path / "run", 0, 10) as telemetry:
        telemetry.scalars(1, {"loss": 1.0})
        shutil.rmtree(tmp_path / "run")
        telemetry.scalars(2, {"loss": 2.0})
        telemetry.say("still here")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["iteration"] == 2
    assert "still here" in (tmp_path / "run" / "log.txt").read_text()


def test_a_full_disk_tears_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    lines, write, room = Lines(tmp_path / "f"), os.write, [1000, 3, 0]

    def with_little_room(number: int, data: bytes) -> int:
        space = room.pop(0) if room else 1000
        if not space:
            raise OSError(28, "No space left on device")
        return write(number, data[:space])

    monkeypatch.setattr(os, "write", with_little_room)
    lines.add("first\n")
    with pytest.raises(OSError, match="No space"):
        lines.add("second\n")
    assert (tmp_path / "f").read_text() == "first\n"
    lines.add("third\n")
    assert (tmp_path / "f").read_text() == "first\nsecond\nthird\n"


@pytest.mark.parametrize("line", ["5", '"word"', "[1, 2]", "null", '{"loss": 3}', '{"iteration": "x"}', "not JSON", ""])
def test_lines_that_are_not_ours_stay_and_are_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    ours = ['{"iteration": 1, "loss": 1.0}', '{"iteration": 2, "loss": 2.0}']
    path.write_text("\n".join([ours[0], line, *ours[1:], '{"iteration": 3, "lo']))
    said: list[str] = []
    with run_log(str(tmp_path)) as log:
        log.say = log.console = said.append
        with Telemetry(tmp_path, 1, 10):
            logger.info("begun")
    assert path.read_text() == "\n".join([ours[0], line, ""])
    assert any("1 lines are not ours" in text for text in said)
