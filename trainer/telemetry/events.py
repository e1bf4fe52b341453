"""TensorBoard's event files, written so that a disk that fails ends nothing."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from trainer.foundation.lines import Trouble

logger = logging.getLogger("menagerie.telemetry")

RETRY_SECONDS = 30.0
MOST_WAITING = 2000
"""Writes that wait for the disk; the oldest go first."""
Write = Callable[[SummaryWriter], object]


class Events:
    """The event files of one folder. What cannot be written is told once, waits, and is tried again in a new file."""

    def __init__(self, folder: Path, purge_step: int | None = None, first: Write | None = None) -> None:
        """`purge_step`: what earlier files say from there on does not count; `first`: what every file begins with."""
        self._folder, self._purge_step, self._first = folder, purge_step, first
        self._writer: SummaryWriter | None = None
        self._waiting: deque[Write] = deque(maxlen=MOST_WAITING)
        self._next_try = 0.0
        self._trouble = Trouble(f"TensorBoard's file in {folder}")

    def write(self, *writes: Write) -> None:
        """Call each with the writer, and bring all to the file; in a later call, if that fails now."""
        self._waiting.extend(writes)
        if time.monotonic() >= self._next_try:
            self._try()

    def close(self) -> None:
        """Write what waits, if that is possible now."""
        if self._waiting:
            self._try()
        with suppress(Exception):  # told already
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    def _try(self) -> None:
        try:
            if self._writer is None:
                self._writer = self._open()
            for write in self._waiting:
                self._call(write, self._writer)
            self._writer.flush()
        except OSError as error:  # also of TensorBoard's thread, which it raises here
            self._writer = None  # after a failure it writes nothing more
            self._next_try = time.monotonic() + RETRY_SECONDS
            self._trouble.failed(error)
            return
        self._waiting.clear()
        self._trouble.worked()

    @staticmethod
    def _call(write: Write, writer: SummaryWriter) -> None:
        try:
            write(writer)
        except OSError:
            raise
        except Exception as error:  # tried again it would fail again
            logger.warning("TensorBoard does not take a value (%s: %s)", type(error).__name__, error)

    def _open(self) -> SummaryWriter:
        _hush_writer_threads()
        writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        if self._first is not None:
            self._first(writer)
        return writer


def _hush_writer_threads() -> None:
    """The failure of TensorBoard's thread is told by us; Python would show its traceback besides."""
    before = threading.excepthook
    if getattr(before, "hushes_writers", False):
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            before(arguments)

    hook.hushes_writers = True  # type: ignore[attr-defined]
    threading.excepthook = hook
