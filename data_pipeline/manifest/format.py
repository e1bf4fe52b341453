"""The manifest of a folder of shards; `python -m data_pipeline.manifest show|verify URL`.

`manifest.json` names the classes, the images' geometry and, for every shard, its samples, bytes and sha256, and those
of its index. Its own sha256 is the data's fingerprint: a run records it and refuses to go on with other data.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.manifest import index
from data_pipeline.storage.folder import Folder

FORMAT = "menagerie-shards"
VERSION = 1
FILE_NAME = "manifest.json"


class ClassInfo(NamedTuple):
    """One class: its readable name, its identifier in the source (a WordNet id, a folder's name), its number of
    samples."""

    name: str
    id: str
    samples: int


@dataclass(frozen=True)
class ShardInfo:
    """One shard; `name` is relative to the manifest's `base`, `index` to the manifest's folder."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds. Images are `channels` x `resolution` x `resolution` (1 = grey, 3 = RGB), 8
    bits."""

    classes: tuple[ClassInfo, ...]
    resolution: int
    channels: int
    shards: tuple[ShardInfo, ...]
    options: dict[str, Any] = field(default_factory=dict)
    """How the shards were made."""
    report: dict[str, Any] = field(default_factory=dict)
    """Samples read, written, excluded, and the unreadable ones with the reason."""
    base: str = ""
    """Path or URL of the folder that the shards lie in; empty: beside the manifest. The indexes always are beside
    it."""
    plan: str = ""
    """sha256 over the source's listing and the options: the same plan gives the same bytes."""
    fingerprint: str = ""
    """sha256 of the manifest file's bytes (with a selection of classes: of these bytes and the selection)."""

    @property
    def samples(self) -> int:
        return sum(entry.samples for entry in self.classes)

    @property
    def total_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)

    def to_bytes(self) -> bytes:
        """The manifest file: deterministic JSON."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "samples": self.samples,
            "resolution": self.resolution,
            "channels": self.channels,
            "classes": [entry._asdict() for entry in self.classes],
            "shards": [shard.__dict__ for shard in self.shards],
            "options": self.options,
            "report": self.report,
            "base": self.base,
            "plan": self.plan,
        }
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def with_fingerprint(self) -> "Manifest":
        return replace(self, fingerprint=hashlib.sha256(self.to_bytes()).hexdigest())


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest of a file's bytes; `where` is for the error. Raises DataError."""
    cure = "make the shards again, or check that the setting names a folder made by data_pipeline.make_shards"
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        version = document["version"]
        if version != VERSION:
            raise DataError(
                f"{where}: is a manifest of version {version}, this program reads version {VERSION}; {cure}"
            )
        manifest = Manifest(
            classes=tuple(ClassInfo(str(c["name"]), str(c["id"]), int(c["samples"])) for c in document["classes"]),
            resolution=int(document["resolution"]),
            channels=int(document["channels"]),
            shards=tuple(
                ShardInfo(
                    name=str(s["name"]),
                    samples=int(s["samples"]),
                    bytes=int(s["bytes"]),
                    sha256=str(s["sha256"]),
                    index=str(s["index"]),
                    index_sha256=str(s["index_sha256"]),
                )
                for s in document["shards"]
            ),
            options=dict(document["options"]),
            report=dict(document["report"]),
            base=str(document["base"]),
            plan=str(document["plan"]),
            fingerprint=hashlib.sha256(data).hexdigest(),
        )
        held = sum(shard.samples for shard in manifest.shards)
        if not manifest.samples == held == document["samples"]:
            raise ValueError(
                f"its shards hold {held} samples, its classes {manifest.samples}, it says {document['samples']}"
            )
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: is not a manifest of shards ({error}); {cure}") from None
    return manifest


def load_manifest(url: str | Folder) -> Manifest:
    """Read the manifest of the folder of shards at a path or an fsspec URL. Raises DataError."""
    folder = url if isinstance(url, Folder) else Folder(url)
    if not folder.exists(FILE_NAME):
        raise DataError(
            f"data.shards: {folder} holds no {FILE_NAME}; make the shards first "
            "(python -m data_pipeline.make_shards --help), or correct the path"
        )
    return parse_manifest(folder.read(FILE_NAME), f"{folder}/{FILE_NAME}")


def load_index(folder: Folder, shard: ShardInfo) -> index.Records:
    """The verified index of one shard: records of `index.RECORD`, shape [samples]. Raises DataError."""
    data = folder.read(shard.index)
    name = f"{folder}/{shard.index}"
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DataError(f"{name}: its sha256 is not the manifest's; the file was changed or damaged, copy it again")
    records = index.from_bytes(data, name)
    if len(records) != shard.samples:
        raise DataError(
            f"{name}: holds {len(records)} samples, the manifest says {shard.samples}; make the shards again"
        )
    return records
