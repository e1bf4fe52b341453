"""The run's small files (curves, log, samples, settings) for a run that lives in object storage.

Writers of event files and logs append to local files, which object storage cannot do. So a remote run has a scratch
folder on this machine; `push` uploads what has changed since. A local run is its own folder, and `push` does nothing.
"""

import logging
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.foundation.errors import TrainerError
from trainer.foundation.stores import Store

logger = logging.getLogger("menagerie.telemetry")

_APPENDED = ("metrics.jsonl", "log.txt")  # continued where the last start left them


class RunFolder:
    """The local folder `path` that stands for the run at `url`. A context manager; the main process has one."""

    def __init__(self, url: str) -> None:
        self._store = Store(url)
        self._pushed: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        if self._store.local:
            self.path = Path(self._store.root)
            return
        self.path = Path(tempfile.mkdtemp(prefix="menagerie-run-"))
        for name in _APPENDED:
            try:
                with suppress(FileNotFoundError):
                    (self.path / name).write_bytes(self._store.get(name))
                    self._pushed[name] = _state(self.path / name)
            except Exception as error:  # a shorter one would replace it
                raise TrainerError(
                    f"run.dir: {self._store.describe(name)} cannot be read ({type(error).__name__}: {error}); see that the "
                    "store can be reached, and start again"
                ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.push()
        if not self._store.local:
            shutil.rmtree(self.path, ignore_errors=True)

    def push(self) -> None:
        """Upload every file that changed since it was last uploaded. A failure is told, and made up for next time."""
        if self._store.local:
            return
        with self._lock:
            for path in sorted(self.path.rglob("*")):
                name = path.relative_to(self.path).as_posix()
                if not path.is_file() or path.name.startswith("."):
                    continue
                try:
                    state = _state(path)
                    if self._pushed.get(name) != state:
                        self._store.put(name, path.read_bytes())
                        self._pushed[name] = state
                except Exception as error:
                    logger.warning("%s could not be uploaded: %s", self._store.describe(name), error)
                    return


def _state(path: Path) -> tuple[int, int]:
    """Size and time of the last change, which together tell whether a file was written to."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
