"""The checkpoint format: a folder of safetensors files and a `manifest.json` that is written last.

A checkpoint exists if and only if its manifest does. Folders are never written twice: their names hold the iteration,
the writer's fencing token and the attempt, `iteration-00000050-writer-00003-1f2e3d4c`. Tensors stand sorted by name,
so that the same state always makes the same files.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

FORMAT = "menagerie-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_FOLDER = re.compile(r"iteration-(\d{8,})-writer-(\d{5,})-([0-9a-f]{8})")


class InvalidCommit(Exception):
    """A commit that cannot be trusted: the message says what is wrong with which file."""


class NewerFormat(Exception):
    """A commit that a newer version of the program wrote: it is not damaged, it cannot be read here."""


class Attempt(NamedTuple):
    """What a checkpoint folder's name says."""

    iteration: int
    writer: int
    nonce: str

    @property
    def folder(self) -> str:
        return f"iteration-{self.iteration:08d}-writer-{self.writer:05d}-{self.nonce}"

    @classmethod
    def parse(cls, folder: str) -> "Attempt | None":
        """The attempt that a folder's name stands for, None for a foreign folder."""
        match = _FOLDER.fullmatch(folder)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint as its manifest promises it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint, as its manifest describes it. Whether its bytes are sound is another question."""

    folder: str
    iteration: int
    writer: int
    """Fencing token of the process that wrote it: a higher one is a later writer."""
    run: str
    created: str
    save_seconds: float
    """From the request to the manifest, in seconds."""
    state_sha256: str
    files: tuple[FileRecord, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    """Real images seen, strategy, world size, configuration and its digest, data fingerprint, code version ..."""

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort key: what a later writer committed is newer, whatever a fenced one still managed to write."""
        return (self.writer, self.iteration, self.created)

    @property
    def bytes(self) -> int:
        """Size of all its tensor files."""
        return sum(file.bytes for file in self.files)


def state_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over the logical state.

    For each tensor, sorted by name: a line of JSON, [name, dtype, shape], then its bytes, which are those of the
    contiguous tensor in memory order (little endian). The device does not matter.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head, separators=(",", ":")).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def split_state(tensors: Mapping[str, torch.Tensor], file_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Cut the state, sorted by name, into files of at most `file_bytes` (a larger tensor has a file of its own)."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(tensors):
        bytes_here = tensors[name].numel() * tensors[name].element_size()
        if part and size + bytes_here > file_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensors[name]
        size += bytes_here
    if part:
        yield part


def serialize(part: Mapping[str, torch.Tensor]) -> bytes:
    """One file's tensors as safetensors; tensors that share memory are stored apart."""
    plain: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in part.items():
        tensor = tensor.detach().cpu().contiguous()
        plain[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in memory else tensor
        memory.add(plain[name].untyped_storage().data_ptr())
    content: bytes = safetensors.torch.save(plain)
    return content


def origin_of(info: Mapping[str, Any]) -> dict[str, str]:
    """What every manifest tells of its making: the code's version, and a digest of the settings in `info`, if any."""
    origin = {"code_version": code_version()}
    if "settings" in info:
        origin["settings_sha256"] = _digest(json.loads(json.dumps(info["settings"])))
    return origin


@functools.cache
def code_version() -> str:
    """The package's version, with the git commit where the code runs from a checkout: "0.1.0+g1f2e3d4c5b6a"."""
    try:
        number = version("menagerie")
    except PackageNotFoundError:
        number = "unknown"
    git = Path(__file__).resolve().parent.parent / ".git"
    with suppress(OSError):
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            loose = git / name
            packed = git / "packed-refs"
            lines = [loose.read_text()] if loose.exists() else packed.read_text().splitlines()
            head = next((line.split()[0] for line in lines if loose.exists() or line.endswith(f" {name}")), "")
        if re.fullmatch(r"[0-9a-f]{40,}", head):
            return f"{number}+g{head[:12]}"
    return number


def encode_manifest(commit: Commit) -> bytes:
    """The manifest as indented JSON with a digest of itself, so that a damaged one is known as such."""
    body = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "iteration": commit.iteration,
        "writer": commit.writer,
        "run": commit.run,
        "created": commit.created,
        "save_seconds": commit.save_seconds,
        "state_sha256": commit.state_sha256,
        "files": [vars(file) for file in commit.files],
        "info": dict(commit.info),
    }
    body = json.loads(json.dumps(body))  # as it will be read back: the digest is over plain JSON
    return (json.dumps({**body, "sha256": _digest(body)}, indent=2) + "\n").encode()


def parse_manifest(content: bytes, folder: str) -> Commit:
    """The commit that a manifest describes.

    Raises InvalidCommit for a manifest that is empty, cut, altered or of another folder, NewerFormat for one that this
    version cannot read.
    """
    if not content:
        raise InvalidCommit(f"{MANIFEST} is empty")
    try:
        body = json.loads(content)
    except ValueError:
        raise InvalidCommit(f"{MANIFEST} is not whole JSON ({len(content)} bytes)") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise InvalidCommit(f"{MANIFEST} is not a checkpoint's manifest")
    found = body.get("format_version")
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise NewerFormat(f"format version {found}, this program reads up to {FORMAT_VERSION}")
    promised = body.pop("sha256", None)
    if promised != _digest(body):
        raise InvalidCommit(f"{MANIFEST} does not have the sha256 that it states: it was altered")
    commit = Commit(
        folder=folder,
        iteration=body["iteration"],
        writer=body["writer"],
        run=body["run"],
        created=body["created"],
        save_seconds=body["save_seconds"],
        state_sha256=body["state_sha256"],
        files=tuple(FileRecord(**file) for file in body["files"]),
        info=body["info"],
    )
    attempt = Attempt.parse(folder)
    if attempt is None or (attempt.iteration, attempt.writer) != (commit.iteration, commit.writer):
        raise InvalidCommit(f"{MANIFEST} belongs to iteration {commit.iteration} of writer {commit.writer}")
    return commit


def check_file(file: FileRecord, content: bytes) -> None:
    """Raise InvalidCommit unless `content` is, byte for byte, the file that the manifest promises."""
    if len(content) != file.bytes:
        raise InvalidCommit(f"{file.name} has {len(content)} bytes, the manifest says {file.bytes}")
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise InvalidCommit(f"{file.name} has sha256 {found[:12]}..., the manifest says {file.sha256[:12]}...")


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
