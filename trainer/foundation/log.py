"""The project's log: one tree of loggers, one level, one handler.

Every logger is `logging.getLogger("menagerie")` or a child of it ("menagerie.checkpoint", "menagerie.data"); the level is
INFO. A verb shows the lines on stderr. A training shows them on stdout, and writes them to log.txt in the run's folder.
An information is its bare text; before a warning stands `warning: `.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.errors import DataError
from trainer.foundation.errors import TrainerError
from trainer.foundation.lines import Lines
from trainer.foundation.output import say
from trainer.foundation.stores import Store

FILE = "log.txt"
logger = logging.getLogger("menagerie")
_FORMAT = logging.Formatter()
Say = Callable[[str], None]


def to_stderr(line: str) -> None:
    """A line beside a verb's own output; nobody need read it."""
    say(line, "stderr")


def to_stdout(line: str) -> None:
    """A line of a training, or of a verb that has more to do than to print; nobody need read it."""
    say(line, "stdout")


class Log(logging.Handler):
    """Says every line once. Process 0 says all of them, the others only warnings, with their number."""

    def __init__(self, say: Say, rank: int) -> None:
        super().__init__(logging.WARNING if rank else logging.INFO)
        self._prefix = f"process {rank}: " if rank else ""
        self.console = self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(self._prefix + _text(record))


class RunLog(Log):
    """The log of a training. In process 0 it also writes log.txt, wherever that is open.

    Between two attempts no file is open. The lines of that time are kept, and stand in the file of the next attempt.
    A start that is refused opens no file, so nothing is written.
    """

    def __init__(self, url: str, rank: int) -> None:
        super().__init__(to_stdout if rank == 0 else to_stderr, rank)
        self._url, self._is_main = url, rank == 0
        self._file: Lines | None = None
        self._kept: list[str] = []
        self._was_open = False
        self._failing = False
        self._guard = threading.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        self.write(record)
        super().emit(record)

    def open_in(self, folder: Path, say: Say | None = None) -> None:
        """Write to log.txt in `folder` until `close_file`; meanwhile the console's lines go through `say`."""
        with self._guard:
            self._file = Lines(folder / FILE)
            self._was_open = True
            self.say = say or self.console
            self._append("".join(self._kept))
            self._kept.clear()

    def close_file(self) -> None:
        """Keep the lines from now on."""
        with self._guard:
            self._append("")
            self._file, self.say = None, self.console

    def write(self, record: logging.LogRecord) -> None:
        """A line for log.txt alone."""
        if not self._is_main:
            return
        line = f"{_FORMAT.formatTime(record)} {_text(record)}\n"
        with self._guard:
            if self._file is None:
                self._kept.append(line)
            else:
                self._append(line)

    def _append(self, text: str) -> None:
        """A disk that fails is told once; the lines wait."""
        if self._file is None:
            return
        try:
            self._file.add(text)
            self._failing = False
        except OSError as error:
            if not self._failing:
                to_stderr(f"warning: {FILE} of {self._url} cannot be written ({error}); the lines wait for it")
            self._failing = True

    def end(self) -> None:
        """Append what was kept since the file was closed, if this start wrote one at all."""
        if not (self._kept and self._was_open):
            return
        store, text = Store(self._url), "".join(self._kept)
        if store.local:  # appended: another start may have the file open
            with Path(store.root, FILE).open("a") as file:
                file.write(text)
            return
        before = b""
        with suppress(FileNotFoundError):
            before = store.get(FILE)
        store.put(FILE, before + text.encode())


@contextmanager
def console() -> Iterator[None]:
    """Round a verb: its log goes to stderr."""
    with _installed(Log(to_stderr, int(os.environ.get("RANK", "0")))):
        yield


@contextmanager
def run_log(url: str, rank: int = 0) -> Iterator[RunLog]:
    """Round a training whose run lives at `url`; inside another one it is that one.

    What ends the training is written to log.txt as well. The command shows it.
    """
    for handler in logger.handlers:
        if isinstance(handler, RunLog):
            yield handler
            return
    log = RunLog(url, rank)
    with _installed(log):
        try:
            yield log
        except Exception as error:
            ours = isinstance(error, TrainerError | DataError)
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            note_error(text)
            raise
        finally:
            log.close_file()
            with suppress(Exception):  # the store may be what failed
                log.end()


def note_error(text: str) -> None:
    """An error for log.txt alone: the console shows it by other means."""
    for handler in logger.handlers:
        if isinstance(handler, RunLog):
            handler.write(logging.LogRecord(logger.name, logging.ERROR, "", 0, text, None, None))


@contextmanager
def _installed(handler: Log) -> Iterator[None]:
    """`handler` is the only one of ours; nothing reaches the root logger's handlers, which would say it again."""
    before, level, propagate = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = [*(other for other in before if not isinstance(other, Log)), handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)
        logger.propagate = propagate


def _text(record: logging.LogRecord) -> str:
    message = _FORMAT.format(record)  # with the traceback, where there is one
    return message if record.levelno == logging.INFO else f"{record.levelname.lower()}: {message}"
