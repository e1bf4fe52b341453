"""The log as whoever runs a training or a verb meets it: what is told, where, and that every line is told once."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from trainer.config import load_config
from trainer.foundation.commands import run_command
from trainer.foundation.errors import NonFinite, SettingError, TrainerError
from trainer.foundation.log import console, logger, note_error, run_log
from trainer.processes.launch import Launch
from trainer.training.loop import train

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")
Tiny = Callable[..., Path]
SHORT = {"iterations": 2, "log_every": 1, "checkpoint_every": 100}


def run(path: Path) -> bool:
    return train(load_config(str(path), []), LAUNCH)


def lines_of(folder: Path) -> list[str]:
    """The lines of log.txt without their times."""
    lines = (folder / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} .", line) for line in lines)
    return [line[24:] for line in lines]


def test_a_run_says_every_line_once_on_stdout_and_in_its_log(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny(run=SHORT, speed={"autotune": True}))
    printed = capsys.readouterr()
    told = lines_of(tmp_path / "run")
    assert told == printed.out.splitlines()
    assert len(told) == len(set(told))
    assert sum(line.startswith("iteration ") for line in told) == 2
    # An information that is logged, not said; and before the folder of the run may be written to.
    assert told[0].startswith("speed.autotune: generator.")
    assert "menagerie" not in printed.err


def test_the_log_of_a_run_that_goes_back_tells_it(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adam = {"learning_rate": 1e18}
    diverging = {"run": {"rollbacks": 1, "checkpoint_every": 100}, "optimizer": dict.fromkeys(PLAYERS, adam)}
    with pytest.raises(NonFinite) as raised:
        run(tiny(**diverging))
    told = lines_of(tmp_path / "run")
    back = [line for line in told if line.startswith("warning: going back to the last checkpoint (1 of 1): ")]
    assert len(back) == 1
    starts = [number for number, line in enumerate(told) if "starts at iteration 0" in line]
    assert len(starts) == 2
    assert starts[0] < told.index(back[0]) < starts[1]
    assert told[-1] == f"error: {raised.value}"  # and what ended it; the command shows that by itself
    assert capsys.readouterr().out.splitlines() == told[:-1]


PLAYERS = ("generator", "discriminator")


def test_what_is_refused_writes_no_log(tiny: Tiny, tmp_path: Path) -> None:
    """Another start may be at work in the same folder."""
    folder = tmp_path / "run"
    with pytest.raises(SettingError):
        run(tiny(model={"resolution": 64}))
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(SettingError):
        run(tiny(model={"resolution": 64}))
    assert list(folder.iterdir()) == []


def test_a_warning_of_the_data_is_in_the_log(tiny: Tiny, tiny_shards: Path, tmp_path: Path) -> None:
    """A shard in the cache is damaged between two starts of the same run."""
    remote = fsspec.filesystem("memory")
    remote.put(str(tiny_shards), "/log-shards", recursive=True)
    data = {"shards": "memory://log-shards", "cache_dir": str(tmp_path / "cache")}
    run(tiny(run=SHORT, data=data))
    for mark in (tmp_path / "cache").rglob("*.ok"):
        mark.unlink()
    for shard in (tmp_path / "cache").rglob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    run(tiny(run=SHORT | {"iterations": 3}, data=data))
    damaged = [line for line in lines_of(tmp_path / "run") if "is damaged; it is removed and fetched again" in line]
    assert damaged
    assert all(line.startswith("warning: ") for line in damaged)
    assert len(damaged) == len(set(damaged))


def test_a_verb_shows_its_log_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(arguments: list[str]) -> int:
        logging.getLogger("menagerie.metrics").info("features of %d images", 3)
        logging.getLogger("menagerie.data").warning("%s: is damaged", "a")
        print("the result")
        raise TrainerError("--run: is not there")

    monkeypatch.setattr(sys, "argv", ["verb"])
    roots = logging.StreamHandler(sys.stderr)  # as some libraries add one
    logging.root.addHandler(roots)
    try:
        assert run_command(verb) == 1
    finally:
        logging.root.removeHandler(roots)
    printed = capsys.readouterr()
    assert printed.out == "the result\n"
    assert printed.err == "features of 3 images\nwarning: a: is damaged\nerror: --run: is not there\n"


def test_other_processes_only_warn_and_say_who_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say() -> None:
        logger.info("nothing new")
        logger.warning("a shard is damaged")

    with run_log(str(tmp_path), rank=2):
        say()
    monkeypatch.setenv("RANK", "3")
    with console():
        say()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "process 2: warning: a shard is damaged\nprocess 3: warning: a shard is damaged\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["{}", "memory://log-run"])
def test_what_comes_after_the_file_is_closed_is_appended(url: str, tmp_path: Path) -> None:
    """The file of a run in object storage is a scratch, uploaded and removed before the log ends."""
    url, scratch = url.format(tmp_path / "run"), tmp_path / "run"
    scratch.mkdir()

    def training() -> None:
        with run_log(url) as log:
            logger.info("one")
            log.open_in(scratch)
            logger.info("two")
            log.close_file()
            if url.startswith("memory:"):
                fsspec.filesystem("memory").pipe("/log-run/log.txt", (scratch / "log.txt").read_bytes())
            note_error("three")
            raise ValueError("too much")

    with pytest.raises(ValueError, match="too much"):
        training()
    with fsspec.open(f"{url}/log.txt", "r") as file:
        lines = [line[24:] for line in file.read().splitlines()]
    assert lines == ["one", "two", "error: three", "error: ValueError: too much"]


def test_lines_go_round_a_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with run_log(str(tmp_path)) as log:
        log.open_in(tmp_path, said.append)
        logger.info("beside the bar")
        logger.warning("a warning")
        log.close_file()
        logger.info("after it")
    assert said == ["beside the bar", "warning: a warning"]
    assert capsys.readouterr().out == "after it\n"


def test_the_log_is_as_before_when_it_ends(tmp_path: Path) -> None:
    before = logger.handlers[:], logger.level, logger.propagate
    with console(), run_log(str(tmp_path)) as outer, run_log(str(tmp_path)) as inner:
        assert outer is inner
        assert len([handler for handler in logger.handlers if handler is outer]) == 1
        assert len(logger.handlers) == len(before[0]) + 1
    assert (logger.handlers[:], logger.level, logger.propagate) == before
