"""Lines for whoever reads them. The work never depends on a reader: he may be gone, slow, or have a full disk.

A reader that is gone (a closed pipe, a terminal that hung up) is given up: what follows goes nowhere. A reader that only
does not read (a pager, a stopped terminal) is waited for once, for seconds; then lines are left out until he reads again.
"""

import errno
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TextIO

Name = Literal["stdout", "stderr"]
PATIENCE_SECONDS = 5.0
"""How long a line waits for a reader that does not read; the next ones wait no more."""
_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF, errno.ESTALE)
_left_out: dict[Name, int] = {}
"""Lines that nobody has read, of each stream that is behind."""
_guard = threading.RLock()


def open_streams() -> None:
    """Have all three standard streams: a file that takes the number of a closed one would get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def say(line: str, name: Name) -> bool:
    """Print a line; False if nobody took it. Raises nothing for a reader's sake."""

    def write() -> None:
        behind = f"... (lines that were not read are left out)\n{line}" if _left_out.pop(name, 0) else line
        stream = getattr(sys, name)
        print(_encodable(behind, stream), file=stream, flush=True)

    return attempt(write, name)


def attempt(write: Callable[[], object], name: Name) -> bool:
    """Call what writes to a standard stream; False if that failed. A reader that is gone is given up."""
    with _guard:
        stream: TextIO | None = getattr(sys, name)
        if stream is None or not _has_room(stream, name):
            return False
        try:
            write()
        except OSError as error:
            if error.errno in _GONE:
                _give_up(stream)
            return False
        except ValueError:  # the stream is closed
            return False
        return True


def settle() -> None:
    """Before the process ends: nothing is left that Python would fail to write, which changes its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            _give_up(stream)
            with suppress(OSError, ValueError):
                stream.flush()


def _has_room(stream: TextIO, name: Name) -> bool:
    """Whether a line can be written without waiting. Files always have room."""
    try:
        number = stream.fileno()
        patience = 0.0 if name in _left_out else PATIENCE_SECONDS
        ready = bool(select.select([], [number], [], patience)[1])
    except (OSError, ValueError):  # no file of the system's, or closed: writing will tell
        return True
    if not ready:
        _left_out[name] = _left_out.get(name, 0) + 1
    return ready


def _encodable(line: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _give_up(stream: TextIO) -> None:
    """From now on what is written to `stream` goes nowhere, also by libraries."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
