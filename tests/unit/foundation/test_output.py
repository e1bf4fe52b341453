"""Lines for readers who are gone, slow, or have a full disk: none of them ends the work or holds it up."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

PROGRAM = """if True:
    import sys, time
    from pathlib import Path
    from trainer.foundation import commands, log, output
    output.PATIENCE_SECONDS = 0.2

    def verb(arguments):
        for number in range({lines}):
            log.to_stdout(f"line {{number}} " + "x" * 100)
            log.to_stderr(f"note {{number}}")
            log.logger.info("logged %d", number)
        Path({done!r}).write_text("done")
        return {status}

    sys.argv = ["verb"]
    sys.exit(commands.run_command(verb, prints=False))
"""


def command(tmp_path: Path, lines: int = 50, status: int = 0) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(lines=lines, done=str(tmp_path / "done"), status=status)]


@contextmanager
def broken_pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextmanager
def hung_up_terminal() -> Iterator[int]:
    controller, terminal = pty.openpty()
    os.close(controller)
    yield terminal
    os.close(terminal)


@contextmanager
def unread_pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    yield writing
    os.close(reading)
    os.close(writing)


@contextmanager
def full_disk() -> Iterator[int]:
    number = os.open("/dev/full", os.O_WRONLY)
    yield number
    os.close(number)


@contextmanager
def not_waiting() -> Iterator[int]:
    """As a terminal that a program beside this one has set so."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("status", [0, 2])
@pytest.mark.parametrize("reader", [broken_pipe, hung_up_terminal, unread_pipe, full_disk, not_waiting])
def test_a_reader_that_fails_changes_neither_the_work_nor_the_status(
    tmp_path: Path, reader: object, status: int
) -> None:
    lines = 50 if reader is not unread_pipe and reader is not not_waiting else 2000  # more than a pipe holds
    with reader() as stream:  # type: ignore[operator]
        done = subprocess.run(command(tmp_path, lines, status), cwd=ROOT, stdout=stream, stderr=stream, timeout=60)
    assert (tmp_path / "done").exists()
    assert done.returncode == status


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start(tmp_path: Path, closed: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *command(tmp_path)], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, (tmp_path / "done").read_text()) == (0, "done")


def test_a_reader_who_comes_back_is_told_that_lines_are_missing(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path, 2000), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while not (tmp_path / "done").exists():  # nobody has read a word
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.wait(30) == 0
    first = process.stdout.read().decode().splitlines()
    process.stdout.close()
    assert first[0].startswith("line 0 ")
    assert len(first) < 2000


def test_words_that_the_terminal_cannot_show_are_shown_in_others(tmp_path: Path) -> None:
    program = "from trainer.foundation.log import to_stdout; to_stdout('class 猫')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "class \\u732b\n")


def test_a_verb_that_only_prints_is_done_when_its_reader_leaves(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from trainer.foundation.commands import run_command
        sys.exit(run_command(lambda arguments: print("x", flush=True), prints={}))
    """
    for prints, status in ((True, 0), (False, 1)):
        with broken_pipe() as stream:
            words = [sys.executable, "-c", program.format(prints)]
            done = subprocess.run(words, cwd=ROOT, stdout=stream, stderr=subprocess.DEVNULL)
        assert done.returncode == status
