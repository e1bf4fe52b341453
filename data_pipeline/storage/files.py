"""Local files that are there whole or not at all, also after a power loss.

A file is written aside, under a fresh hidden name in the same folder, brought to the disk, and renamed. What a killed
process leaves behind is called `.NAME.XXXXXXXX.part`. All local files that the data pipeline and the trainer replace
go through here. Two places rename by themselves: the cache, whose part holds a lock and the room on the disk while it
is fetched (`data_pipeline.reading.cache`), and the reference statistics, which are a folder
(`trainer.metrics.reference`).
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """The path of a fresh file, which replaces `target` when the block ends, and is removed when the block raises.

    The block creates the file. The folder is made where it is missing. Raises OSError.
    """
    make_folder(target.parent)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync_folder(target.parent)


def replace_file(target: Path, data: bytes) -> None:
    """Write a file; an existing one is replaced at once. Raises OSError."""
    with written_aside(target) as part:
        create_file(part, data)


def create_file(path: Path, data: bytes) -> None:
    """Write a new file and bring it to the disk. Raises FileExistsError where there is one, else OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_file(source: Path, target: Path) -> None:
    """Rename a finished file of the same file system; an existing target is replaced at once. Raises OSError."""
    make_folder(target.parent)
    os.replace(source, target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Create a local folder and its parents so that their names survive a power loss. Raises OSError."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a local folder durable. Raises OSError."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
