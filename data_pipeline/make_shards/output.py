"""What a run of make_shards finds in OUTPUT, and what of it is its own. Nothing else is ever written over or removed.

Its own are: a `manifest.json` that is one, the shards and indexes that this manifest or the progress of an unfinished
run speaks for, and that progress: the folder `unfinished` with the file `plan` (the plan's digest) and a record of
every finished shard. `--overwrite` says that all files called as ours are ours.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from data_pipeline.errors import DataError
from data_pipeline.make_shards.shard_writer import ShardResult
from data_pipeline.manifest import index
from data_pipeline.manifest.format import FILE_NAME, Manifest, parse_manifest
from data_pipeline.storage.folder import Folder

PART_PREFIX = ".menagerie-part-"
"""Of the folders in a local OUTPUT in which shards are written."""
_PROGRESS = "unfinished"
_PLAN = "plan"
_SHARD = re.compile(r"shard-\d{5,}\.(?:tar|idx)")
_RECORD = re.compile(r"shard-\d{5,}\.tar\.json")
_PART = re.compile(re.escape(PART_PREFIX) + r"\w+|\.part-\w{8}")  # the second: as they were called earlier


def shard_name(shard: int) -> str:
    """The tar of shard number `shard`."""
    return f"shard-{shard:05d}.tar"


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns an error of the disk (full, read-only, no permission) into DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"OUTPUT: {path} cannot be written ({error.strerror or error}); make room or correct the path, "
            "and run again"
        ) from None


def existing_manifest(output: Folder) -> Manifest | None:
    """The manifest that an earlier run has written. Raises DataError where the file is somebody else's."""
    if not output.exists(FILE_NAME):
        return None
    try:
        return parse_manifest(output.read(FILE_NAME), f"{output}/{FILE_NAME}")
    except DataError as error:
        raise DataError(
            f"OUTPUT: {output} holds a {FILE_NAME} that make_shards cannot replace ({error}); give another folder"
        ) from None


def begin(output: Folder, plan: str, shards: int, overwrite: bool) -> tuple[Manifest | None, dict[int, ShardResult]]:
    """Make OUTPUT ready for the plan with this digest: the manifest, if the plan is carried out already, else the
    shards that are finished. Raises DataError where OUTPUT holds what is not this plan's."""
    manifest = existing_manifest(output)
    if manifest and manifest.plan == plan and not overwrite:
        return manifest, {}
    if overwrite:
        _remove_all(output)
        found = None
    else:
        found = output.read(f"{_PROGRESS}/{_PLAN}") if output.exists(f"{_PROGRESS}/{_PLAN}") else None
        if manifest or found not in (None, plan.encode()):
            _refuse(output, "shards of another input or of other options")
        if found is None and (strange := [name for name in output.names() if _SHARD.fullmatch(name)]):
            _refuse(output, f"{strange[0]}, which no manifest speaks for")
    with writing(f"{output}/{_PROGRESS}"):
        output.write(f"{_PROGRESS}/{_PLAN}", plan.encode())
    return None, {} if found is None else _finished(output, shards)


def _refuse(output: Folder, what: str) -> NoReturn:
    raise DataError(f"OUTPUT: {output} holds {what}; give an empty folder, or add --overwrite")


def _finished(output: Folder, shards: int) -> dict[int, ShardResult]:
    records, finished = set(output.names(_PROGRESS)), {}
    for shard in range(shards):
        if f"{shard_name(shard)}.json" in records:
            result = ShardResult.from_bytes(output.read(f"{_PROGRESS}/{shard_name(shard)}.json"))
            if output.exists(result.name) and output.size(result.name) == result.size:
                finished[shard] = result
    return finished


def record(output: Folder, result: ShardResult) -> None:
    """Write down that a shard is finished."""
    output.write(f"{_PROGRESS}/{result.name}.json", result.to_bytes())


def complete(output: Folder, manifest: Manifest) -> None:
    """Write the manifest, and remove the progress and what killed runs left."""
    with writing(f"{output}/{FILE_NAME}"):
        output.write(FILE_NAME, manifest.to_bytes())
    _remove_progress(output)
    if output.local is not None:
        _remove_folders(output.local, lambda name: _PART.fullmatch(name) is not None)


def sweep(output: Folder, begins: str) -> None:
    """Remove the temporary folders of a local OUTPUT whose names begin so."""
    if output.local is not None and output.local.is_dir():
        _remove_folders(output.local, lambda name: name.startswith(begins))


def _remove_folders(place: Path, chosen: Callable[[str], bool]) -> None:
    for path in place.iterdir():
        if chosen(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _remove_all(output: Folder) -> None:
    for name in output.names():
        if name == FILE_NAME or _SHARD.fullmatch(name):
            output.remove(name)
    _remove_progress(output)


def _remove_progress(output: Folder) -> None:
    for name in output.names(_PROGRESS):
        if name == _PLAN or _RECORD.fullmatch(name):
            output.remove(f"{_PROGRESS}/{name}")
    output.remove_empty(_PROGRESS)


def check_indexes(output: Folder, names: Sequence[str]) -> None:
    """Refuse to replace files called as our indexes that are none (NVIDIA's DALI calls its own so). Raises DataError."""
    there = set(output.names())
    for name in names:
        if name in there and output.read_range(name, 0, len(index.MAGIC)) != index.MAGIC:
            raise DataError(
                f"OUTPUT: {output}/{name} is not an index of make_shards and would be replaced; give another folder as "
                "OUTPUT"
            )
