"""Files beside a run, which tell of it: none of them ends the work. What fails is told once, kept, and tried again."""

import logging
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("menagerie")

MOST_WAITING = 100_000
"""Lines that wait for a file; the oldest go first."""
AGAIN_SECONDS = 3600.0
"""A trouble that lasts is told again after this time."""


class Lines:
    """A file of lines that only grows. Lines that cannot be written now come first the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[str] = deque(maxlen=MOST_WAITING)

    def keep(self, line: str) -> None:
        """Let a line wait."""
        if line:
            self._waiting.append(line)

    def add(self, line: str) -> None:
        """Append a line, after those that wait. Raises OSError where they wait on."""
        self.keep(line)
        if self._waiting:
            self.flush()

    def flush(self) -> None:
        """Append the lines that wait, all or none. Raises OSError."""
        data = "".join(self._waiting).encode(errors="backslashreplace")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before, done = os.fstat(number).st_size, 0
            try:
                while done < len(data):
                    done += os.write(number, data[done:])
            except OSError:
                with suppress(OSError):  # a part of a line would spoil the next one
                    if os.fstat(number).st_size == before + done:
                        os.ftruncate(number, before)
                raise
        finally:
            os.close(number)
        self._waiting.clear()


class Trouble:
    """Tells that something cannot be written: once, again after an hour, and once when it can be written again."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._told_at: float | None = None

    def failed(self, error: BaseException) -> None:
        """It could not be written."""
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > AGAIN_SECONDS:
            self._told_at = now
            logger.warning("%s cannot be written (%s); the training continues, and it is tried again", self.what, error)

    def worked(self) -> None:
        """It was written."""
        if self._told_at is not None:
            self._told_at = None
            logger.info("%s is written again", self.what)
