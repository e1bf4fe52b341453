"""Checkpoints that exist only when committed, and of which every byte is verified before any state is touched.

`python -m trainer.checkpoint list|verify|hash|prune RUN [--iteration N]` looks at the checkpoints of a run.

In the run's folder: `checkpoints/run.json` (who the run is) and `checkpoints/iteration-.../` (see trainer.checkpoint.format).
"""

import hashlib
import json
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.checkpoint.format import (
    MANIFEST,
    Attempt,
    Commit,
    FileRecord,
    InvalidCommit,
    NewerFormat,
    check_file,
    encode_manifest,
    origin_of,
    parse_manifest,
    serialize,
    split_state,
    state_hash,
)
from trainer.checkpoint.lease import Lease, acquire
from trainer.foundation.errors import CheckpointError, TrainerError
from trainer.foundation.stores import Store

__all__ = ["CheckpointConfig", "CheckpointStore", "Commit", "Restored", "state_hash"]

logger = logging.getLogger("menagerie.checkpoint")

FOLDER = "checkpoints"
RUN_FILE = "run.json"
REJECTED = "rejected.json"
_TRANSFERS = 4  # files on their way to or from the store at a time


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class CheckpointConfig:
    """The YAML's section `checkpoint`: how state is kept. It is saved every `run.checkpoint_every` iterations as well."""

    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Minutes after the last save at which state is saved in any case; null: never."""
    file_megabytes: Annotated[int, Field(ge=1, le=4096)] = 64
    """Size of the files that a checkpoint is split into, in MiB; they travel in parallel."""
    asynchronous: bool = True
    """Write in a background thread; training only waits for a copy of the state to host memory."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Newest checkpoints that are kept. An older one is deleted only after the newest was read back and verified."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Checkpoints whose iteration is a multiple of this are kept for good; 0: none."""
    keep_best: str | None = None
    """Metric by which the best checkpoint is kept besides, e.g. `frechet_distance`; none by default."""
    keep_best_is: Literal["lower", "higher"] = "lower"
    """Whether a lower or a higher value of `keep_best` is better."""
    retry_minutes: Annotated[float, Field(ge=0)] = 10.0
    """How long a failing save is tried again before it is given up for the next one, in minutes."""
    stop_after_hours: Annotated[float, Field(gt=0)] = 6.0
    """Stop the run when saves have been due for so long without one becoming durable, in hours."""
    restart_limit: Annotated[int, Field(ge=0)] = 8
    """Refuse to start after so many starts in a row that ended without a new checkpoint; 0: no limit."""
    grace_seconds: Annotated[float, Field(gt=0)] | None = None
    """Time between SIGTERM and SIGKILL, in seconds; none: 30 under accelerate's launcher, otherwise not known."""


class StoreFailure(TrainerError):
    """The store could not be read or written; whether the checkpoints are sound is not known."""


class Restored(NamedTuple):
    """A verified checkpoint in memory."""

    commit: Commit
    tensors: dict[str, torch.Tensor]
    """The full logical state on the CPU, by name."""
    passed_over: Mapping[str, str] = MappingProxyType({})
    """Folders of newer commits that cannot be trusted, and why."""


class CheckpointStore:
    """The checkpoints of one run. One process writes (rank 0); any number may read. `about` is written into every manifest.
    `reached` is called with the name of every step of the protocol, which is where tests kill the process.
    """

    def __init__(
        self,
        run_url: str,
        config: CheckpointConfig | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        reached: Callable[[str], None] | None = None,
    ) -> None:
        self.store = Store(run_url, "RUN or run.dir").below(FOLDER)
        self.config = config or CheckpointConfig()
        self._about = dict(about or {})
        self.reached = reached or (lambda step: None)
        self.lease: Lease | None = None
        self._run: str | None = None

    # ---- writing

    def acquire(self) -> Lease:
        """Become the only writer of the run; every older one is fenced off. Before anything is read or saved.

        Raises RestartLoop when the last `restart_limit` starts came to nothing.
        """
        with self._telling_failures():
            committed = {_attempt(folder).writer for folder, files in self.folders().items() if MANIFEST in files}
            self.reached("before lease")
            self.lease = acquire(self.store, committed, restart_limit=self.config.restart_limit)
        self.reached("after lease")
        return self.lease

    def release(self, reason: str, iteration: int) -> None:
        """Note that this writer ended in good order, at `iteration`."""
        if self.lease is not None:
            self.lease.release(reason, iteration)

    @property
    def writer(self) -> int:
        """The fencing token, 0 without a lease."""
        return self.lease.token if self.lease is not None else 0

    def save(
        self, iteration: int, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any] | None = None
    ) -> Commit:
        """Write and commit the state at the start of `iteration`; returns when it is durable.

        Raises LeaseLost if a later writer has taken over, else whatever the store raises (disk full, no
        connection ...); then nothing is committed, and the attempt is removed where that is still possible.
        """
        begun = time.monotonic()
        run = self.run_identity()
        told = {**self._about, **(info or {})}
        told = {**origin_of(told), **told}
        attempt = Attempt(iteration, self.writer, secrets.token_hex(4))
        parts = list(split_state(tensors, self.config.file_megabytes * 2**20))
        names = [f"state-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]

        def write(name: str, part: Mapping[str, torch.Tensor]) -> FileRecord:
            content = serialize(part)
            self.reached(f"before {name}")
            self.store.put(f"{attempt.folder}/{name}", content)
            self.reached(f"after {name}")
            return FileRecord(name, len(content), hashlib.sha256(content).hexdigest())

        try:
            with ThreadPoolExecutor(_TRANSFERS, "checkpoint-file") as pool:
                records = tuple(pool.map(write, names, parts))
            commit = Commit(
                folder=attempt.folder,
                iteration=iteration,
                writer=self.writer,
                run=run,
                created=datetime.now(UTC).isoformat(timespec="microseconds"),
                save_seconds=round(time.monotonic() - begun, 3),
                state_sha256=state_hash(tensors),
                files=records,
                info=told,
            )
            if self.lease is not None:
                self.lease.check()
            self.reached("before manifest")
            self.store.put(f"{attempt.folder}/{MANIFEST}", encode_manifest(commit))
        except Exception:
            with suppress(Exception):
                self.remove(attempt.folder)
            raise
        self.reached("after manifest")
        return commit

    def run_identity(self) -> str:
        """The run's identity, made up when its first checkpoint is written; manifests of other runs do not count."""
        if self._run is None and not self.store.exists(RUN_FILE):
            # A folder that lost this file still is the run whose checkpoints it holds.
            known = {commit.run for commit, _ in self._parsed(self.folders()) if commit is not None}
            if len(known) > 1:
                raise CheckpointError(
                    f"{self.store.describe(RUN_FILE)}: missing, and the checkpoints beside it "
                    f"come from {len(known)} runs; remove those that do not belong here."
                )
            run = known.pop() if known else uuid.uuid4().hex
            self.store.create(RUN_FILE, (json.dumps({"run": run}) + "\n").encode())
        return self._known_run() or ""

    # ---- reading

    def commits(self) -> list[Commit]:
        """Every commit whose manifest is sound, newest first. The files themselves are not looked at."""
        sound = [commit for commit, _ in self._parsed(self.folders()) if commit is not None]
        return sorted(sound, key=lambda commit: commit.order, reverse=True)

    def newest(self) -> Commit | None:
        """The newest commit of which every byte was verified; None if there has never been one. As `restore`."""
        restored = self.restore()
        return restored.commit if restored else None

    def restore(self, iteration: int | None = None, *, set_aside: bool = False) -> Restored | None:
        """The newest state that verifies (of `iteration`, if given), or None where nothing was ever committed.

        Commits that do not verify are named in the log; with `set_aside` (for the writer) they are marked as well, so
        that they are kept for inspection but not tried again before the others.

        Raises CheckpointError if commits exist but none verifies or if one is of a newer format, and StoreFailure if
        the store does not answer, which says nothing about the checkpoints.
        """
        with self._telling_failures():
            return self._restore(iteration, set_aside)

    def is_newest(self, restored: Restored | None) -> bool:
        """Whether `restore` would still give this: nothing was committed since."""
        with self._telling_failures():
            found = self._candidates(None)
        seen = [*restored.passed_over, restored.commit.folder] if restored else []
        return found[: len(seen)] == seen if seen else not found

    def _restore(self, iteration: int | None, set_aside: bool) -> Restored | None:
        candidates = self._candidates(iteration)
        faults: dict[str, str] = {}
        for folder in candidates:
            try:
                commit = self.read_manifest(folder)
                tensors = self._read_state(commit)
            except NewerFormat as error:
                raise CheckpointError(
                    f"{self.store.describe(folder)}: {error}; "
                    "continue this run with the version that wrote it or a later one."
                ) from None
            except InvalidCommit as error:
                faults[folder] = str(error)
                logger.warning(
                    "checkpoint %s cannot be trusted and is kept aside: %s", self.store.describe(folder), error
                )
                if set_aside:
                    self.set_aside(folder, str(error))
                continue
            if faults:
                logger.warning("resuming from the checkpoint before it: iteration %d (%s)", commit.iteration, folder)
            return Restored(commit, tensors, faults)
        if faults:
            raise CheckpointError(
                f"{self.store.url}: none of the {len(faults)} checkpoints can be trusted "
                f"({'; '.join(map(': '.join, faults.items()))}); "
                "the run is not started again from zero: bring back one of them from a copy, or choose another run.dir."
            )
        if iteration is not None:
            raise CheckpointError(f"{self.store.url}: there is no checkpoint of iteration {iteration}.")
        return None

    def load(self, commit: Commit) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The state and the info of one commit, every byte verified; raises CheckpointError if that fails."""
        try:
            return self._read_state(commit), dict(commit.info)
        except InvalidCommit as error:
            raise CheckpointError(f"{self.store.describe(commit.folder)}: {error}; use another checkpoint.") from None

    def check_sizes(self, commit: Commit) -> None:
        """The quick half of `verify`: raises InvalidCommit if a file is missing or has another size than promised."""
        sizes = self.store.find(commit.folder)
        for file in commit.files:
            found = sizes.get(f"{commit.folder}/{file.name}")
            if found != file.bytes:
                what = "is missing" if found is None else f"has {found} bytes, the manifest says {file.bytes}"
                raise InvalidCommit(f"{file.name} {what}")

    def verify(self, commit: Commit) -> None:
        """Read a commit back from the store; raises InvalidCommit unless every byte is as promised."""
        self._read_state(self.read_manifest(commit.folder))

    def folders(self) -> dict[str, dict[str, int]]:
        """Every attempt's folder with its objects and their sizes; foreign files and folders are not among them."""
        folders: dict[str, dict[str, int]] = {}
        for path, size in self.store.find().items():
            folder, _, name = path.partition("/")
            if name and Attempt.parse(folder):
                folders.setdefault(folder, {})[name] = size
        return folders

    def remove(self, folder: str) -> None:
        """Delete one attempt, its manifest first: from that moment it does not exist any more."""
        for path in sorted(self.store.find(folder), key=lambda path: not path.endswith(f"/{MANIFEST}")):
            self.reached(f"before delete of {path.rpartition('/')[2]}")
            self.store.delete([path])
            self.reached(f"after delete of {path.rpartition('/')[2]}")
        self.store.delete_folder(folder)

    # ---- inside

    def _candidates(self, iteration: int | None) -> list[str]:
        """Folders of committed checkpoints in the order in which they are to be tried."""
        committed = {folder: files for folder, files in self.folders().items() if MANIFEST in files}
        if iteration is not None:
            committed = {
                folder: files for folder, files in committed.items() if _attempt(folder).iteration == iteration
            }
        created = {commit.folder: commit.created for commit, _ in self._parsed(committed) if commit is not None}

        def order(folder: str) -> tuple[bool, int, int, str]:
            attempt = _attempt(folder)
            return (REJECTED not in committed[folder], attempt.writer, attempt.iteration, created.get(folder, ""))

        return sorted(committed, key=order, reverse=True)

    def _parsed(self, folders: Mapping[str, Any]) -> list[tuple[Commit | None, str]]:
        """For each folder with a manifest: the commit, or None and why not."""
        result: list[tuple[Commit | None, str]] = []
        for folder, files in folders.items():
            if MANIFEST not in files:
                continue
            try:
                result.append((parse_manifest(self.store.get(f"{folder}/{MANIFEST}"), folder), ""))
            except (InvalidCommit, NewerFormat) as error:
                result.append((None, f"{folder}: {error}"))
            except FileNotFoundError:  # removed since the listing
                continue
        return result

    def read_manifest(self, folder: str) -> Commit:
        """The commit of a folder; raises InvalidCommit, or NewerFormat."""
        try:
            content = self.store.get(f"{folder}/{MANIFEST}")
        except FileNotFoundError:
            raise InvalidCommit(f"{MANIFEST} is missing") from None
        commit = parse_manifest(content, folder)
        run = self._known_run()
        if run is not None and commit.run != run:
            raise InvalidCommit(f"{MANIFEST} belongs to another run ({commit.run[:8]}..., this one is {run[:8]}...)")
        return commit

    def _known_run(self) -> str | None:
        if self._run is None:
            with suppress(FileNotFoundError):
                try:
                    self._run = str(json.loads(self.store.get(RUN_FILE))["run"])
                except (ValueError, KeyError, TypeError):
                    raise CheckpointError(
                        f"{self.store.describe(RUN_FILE)}: damaged; "
                        "delete it: it is made again from the checkpoints beside it."
                    ) from None
        return self._run

    def _read_state(self, commit: Commit) -> dict[str, torch.Tensor]:
        def read(file: FileRecord) -> dict[str, torch.Tensor]:
            try:
                content = self.store.get(f"{commit.folder}/{file.name}")
            except FileNotFoundError:
                raise InvalidCommit(f"{file.name} is missing") from None
            check_file(file, content)
            return safetensors.torch.load(content)

        tensors: dict[str, torch.Tensor] = {}
        with ThreadPoolExecutor(_TRANSFERS, "checkpoint-file") as pool:
            for part in pool.map(read, commit.files):
                tensors.update(part)
        if state_hash(tensors) != commit.state_sha256:
            raise InvalidCommit("the state does not have the sha256 that its manifest states")
        return tensors

    @contextmanager
    def _telling_failures(self) -> Iterator[None]:
        try:
            yield
        except TrainerError:
            raise
        except Exception as error:
            raise StoreFailure(
                f"run.dir: the store of {self.store.url} failed: {type(error).__name__}: {error}; "
                "see that it can be reached and written to, and start again."
            ) from error

    def set_aside(self, folder: str, reason: str) -> None:
        """For the writer: keep a folder for inspection, and do not try it again before the others."""
        note = {"reason": reason, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            self.store.put(f"{folder}/{REJECTED}", (json.dumps(note) + "\n").encode())
        except Exception as error:
            logger.warning("checkpoint %s could not be marked: %s", self.store.describe(folder), error)


def _attempt(folder: str) -> Attempt:
    attempt = Attempt.parse(folder)
    assert attempt is not None
    return attempt
